//! The tags of an image, and what they prove.

use std::collections::BTreeMap;

use kiln_config::config::{Config, Image};
use kiln_config::model::ImageName;

use crate::code::Code;
use crate::error::{Error, Result};
use crate::fleet_stack::stack_tags;
use crate::pin::{BASE_IMAGE_TAG, RUNNER_VERSION_TAG};
use crate::ports::{Ami, Caller};
use crate::prune::IMAGE_TAG;

/// Tag on everything that Kiln makes.
pub const MANAGED_TAG: &str = "kiln:managed";

/// Tag on an AMI: the digest of the inputs it was baked from.
pub const INPUTS_TAG: &str = "kiln:inputs";

/// Tag on an AMI: the same with the bootstrap binary's sources in place of the binary, so that a checkout of which nothing
/// changed is known without a build.
pub const SOURCES_TAG: &str = "kiln:sources";

/// The tags of everything that a bake of an image makes: Image Builder's resources, its instances, AMIs and snapshots. A
/// policy of the organization that demands kiln.toml's `[tags]` on a launch is met by them.
pub(super) fn bake_tags(config: &Config, image: &Image) -> BTreeMap<String, String> {
    let mut tags = stack_tags(config);
    tags.insert(IMAGE_TAG.to_owned(), config.image_name(&image.name));
    tags
}

/// The tags that say what is in an image, as far as this is known without the image.
pub(super) fn content_tags(config: &Config, image: &Image, base: &str) -> BTreeMap<String, String> {
    let runner = &config.runner;
    let mut tags = BTreeMap::from([
        (BASE_IMAGE_TAG.to_owned(), base.to_owned()),
        (RUNNER_VERSION_TAG.to_owned(), runner.version.to_string()),
    ]);
    if let Some(digest) = runner.sha256.get(&image.architecture) {
        tags.insert("kiln:runner-sha256".to_owned(), digest.to_string());
    }
    tags.insert("kiln:system".to_owned(), image.system.name().to_owned());
    tags.insert("kiln:toolset".to_owned(), image.toolset.name().to_owned());
    tags
}

/// Of what the image wrote down of itself, the versions that people ask for. EC2 takes 256 characters for a value and 50
/// tags.
pub(super) fn manifest_tags(manifest: &str) -> BTreeMap<String, String> {
    let manifest: serde_json::Value = serde_json::from_str(manifest).unwrap_or_default();
    let mut tags = BTreeMap::new();
    let mut tag = |name: &str, value: &serde_json::Value| {
        if let Some(value) = value.as_str().filter(|value| !value.is_empty()) {
            tags.insert(format!("kiln:{name}"), value.chars().take(256).collect());
        }
    };
    for name in ["kernel", "glibc", "docker", "git"] {
        tag(name, &manifest[name]);
    }
    tag("bootstrap-version", &manifest["bootstrap"]["version"]);
    tag("bootstrap-sha256", &manifest["bootstrap"]["sha256"]);
    // The runner has two or three of them.
    for (major, version) in manifest["node"].as_object().into_iter().flatten().take(8) {
        tag(&format!("node-{major}"), version);
    }
    tags
}

/// Refuses an AMI that this organization's `ami` did not bake for the variant. The parameter that names it can be written by
/// more people than those who may bake, and what is launched from it gets the right to sign as the App.
///
/// An image that another account bakes and shares shows no tags here; it is known by its owner and its name.
///
/// # Errors
/// [`crate::Kind::Precondition`] that names what is not as it should be.
pub fn require_ours(config: &Config, image: &ImageName, ami: &Ami, caller: &Caller) -> Result<()> {
    let name = config.image_name(image);
    let tag = |key: &str| ami.tags.get(key).map(String::as_str);
    let shared_by =
        config.image_defaults.owner.as_ref().map(|owner| owner.as_str()).filter(|owner| *owner != caller.account);
    let wrong = match shared_by {
        Some(owner) if ami.owner != owner => {
            Some(format!("it belongs to account {}, not to {owner}, which [image_defaults] names", ami.owner))
        }
        Some(_) if !ami.name.starts_with(&format!("{name} ")) => {
            Some(format!("its name is `{}`, which is not one of {name}", ami.name))
        }
        Some(_) => None,
        None if ami.owner != caller.account => {
            Some(format!("it belongs to account {}, not to {}", ami.owner, caller.account))
        }
        None if tag(IMAGE_TAG) != Some(name.as_str()) => {
            Some(format!("its tag {IMAGE_TAG} is {}, not {name}", tag(IMAGE_TAG).unwrap_or("missing")))
        }
        None if tag(INPUTS_TAG).is_none() => Some(format!("it has no tag {INPUTS_TAG}")),
        None => None,
    };
    match wrong {
        None => Ok(()),
        Some(wrong) => Err(Error::new(
            Code::ImageForeign,
            format!("{} is not an image {image} that Kiln baked here: {wrong}", ami.id),
        )
        .hint(
            "find out who wrote its id into the parameter (CloudTrail, PutParameter); `cargo xtask ami` records the right \
             image. Where another account bakes the images, name it as `owner` in [image_defaults]",
        )),
    }
}

/// The same of an image that served before: the fleet may have had another image then.
///
/// # Errors
/// [`require_ours`]'s, for the image that the fleet has now.
pub(crate) fn require_any_of_ours(config: &Config, image: &ImageName, ami: &Ami, caller: &Caller) -> Result<()> {
    let tagged = ami.tags.get(IMAGE_TAG).map(String::as_str);
    let named = tagged.or_else(|| ami.name.split(' ').next());
    let then = named.and_then(|name| name.strip_prefix(&config.image_prefix())?.parse::<ImageName>().ok());
    let is_ours = |image: &ImageName| require_ours(config, image, ami, caller).is_ok();
    if then.is_some_and(|then| is_ours(&then)) { Ok(()) } else { require_ours(config, image, ami, caller) }
}
