//! `cargo xtask ami`: brings the recorded AMI of an image to what kiln.toml and this checkout say.
//!
//! The digest of all inputs (documents, payload, pins, base image) is the recipe's version and a tag on the AMI. That
//! makes the command idempotent without a file of its own: whatever an interrupted run left is found by its name.

mod apply;
mod inputs;
mod place;
mod plan;
mod tags;

use std::collections::BTreeMap;

use kiln_config::config::{Base, Config, Image};
use kiln_config::model::{AmiId, BaseImage, Sha256};

use crate::code::Code;
use crate::error::{Error, Result};
use crate::fleet_stack::{output_reference, stack_tags};
use crate::ports::{Caller, Cloud, Component, Distribution, Infrastructure, Recipe, ResourceVersion, StackRequest};
use kiln_image::contents::Contents;
use kiln_image::payload::{self, Payload};

pub use apply::apply;
pub use inputs::{ComponentInputs, ImageInputs, RootVolume};
pub use place::{Place, observe as observe_place};
pub use plan::{MOST_TOKEN, Observed, Prepared, Step, observe, plan, settled};
pub(crate) use tags::require_any_of_ours;
pub use tags::{INPUTS_TAG, MANAGED_TAG, SOURCES_TAG, require_ours};

/// The bake stack's template, as it stands in `infra/`.
pub const BAKE_TEMPLATE: &str = include_str!("../../../infra/bake.yaml");

/// The bake stack's output with the security group of the instances that images are built on.
const SECURITY_GROUP: &str = "SecurityGroup";

/// What is to be baked.
#[derive(Debug)]
pub struct Request<'a> {
    /// The validated kiln.toml.
    pub config: &'a Config,
    /// Which of its images.
    pub image: &'a Image,
    /// What the image's table puts into it.
    pub contents: &'a Contents,
    /// The packed payload.
    pub payload: &'a [u8],
    /// Its digest.
    pub payload_sha256: Sha256,
    /// The digest of what the binary in it was built from, when it was built from this checkout.
    pub sources: Option<Sha256>,
    /// Does an instance on which a build fails stay, for a look?
    pub keep_on_failure: bool,
}

/// Everything to be made for an image, all names derived from the inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The bake stack.
    pub stack: StackRequest,
    /// The payload's bucket.
    pub bucket: String,
    /// The payload's key.
    pub key: String,
    /// The archive with what kiln.toml adds, and its key.
    pub contents: Option<(String, Payload)>,
    /// The components, in order.
    pub components: Vec<Component>,
    /// The recipe, whose version is [`Wanted::inputs`], shortened.
    pub recipe: Recipe,
    /// Where it is built.
    pub infrastructure: Infrastructure,
    /// What the AMI is called.
    pub distribution: Distribution,
    /// The log group of its builds.
    pub log_group: String,
    /// The tags of what is made for it.
    pub tags: BTreeMap<String, String>,
    /// The digest of all inputs.
    pub inputs: Sha256,
    /// The folder in the bucket for what the image writes down of itself.
    pub record: String,
    /// The parameter that records the AMI.
    pub parameter: String,
}

/// The longest name of a bucket.
///
/// source: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html>
const MOST_BUCKET_NAME: usize = 63;

/// How much of a digest tells two long logins apart.
const DIGEST_CHARACTERS: usize = 8;

/// A bucket's name has at most 63 characters. Of a prefix that leaves no room for account and region the end is replaced by
/// a digest, or two organizations with long logins would share a bucket.
pub(crate) fn bucket_name(config: &Config, caller: &Caller) -> String {
    bucket_named(&config.prefix(), config, caller)
}

/// A bucket of the account and region, whose name begins so.
pub(crate) fn bucket_named(prefix: &str, config: &Config, caller: &Caller) -> String {
    let place = format!("-{}-{}", caller.account, config.region);
    let room = MOST_BUCKET_NAME.saturating_sub(place.len());
    if prefix.len() <= room {
        return format!("{prefix}{place}");
    }
    let digest = inputs::sha256(prefix.as_bytes());
    let cut = prefix[..room.saturating_sub(DIGEST_CHARACTERS + 1)].trim_end_matches('-');
    format!("{cut}-{}{place}", &digest.as_str()[..DIGEST_CHARACTERS])
}

/// What an image is built on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseAmi {
    /// Its id.
    pub id: AmiId,
    /// The name of its root device.
    pub root_device: String,
}

/// The AMI that an image is built on. It exists and is of the image's architecture.
///
/// # Errors
/// [`crate::Kind::Precondition`] where it does not fit; what AWS answers.
pub async fn base(image: &Image, cloud: &impl Cloud) -> Result<BaseAmi> {
    let unfit = |message: String, hint: &str| Error::new(Code::BaseUnfit, message).hint(hint);
    let id = match &image.base {
        Base::Newest => cloud.newest_base(image.system, image.architecture).await?,
        Base::Ami(id) => id.clone(),
        Base::Parameter(name) => cloud.recorded(name).await?.ok_or_else(|| {
            let message = format!("image {} is built on what parameter {name} names, which does not exist", image.name);
            unfit(message, "name a parameter of this account and region that holds an AMI's id as `base`")
        })?,
    };
    let hint = "name an AMI of this region that this account may launch as `base`";
    let Some(ami) = cloud.ami(&id).await?.filter(|ami| ami.state == "available") else {
        return Err(unfit(format!("image {} can't be built on {id}: it is not available here", image.name), hint));
    };
    if ami.architecture != image.architecture.aws_name() {
        let message = format!(
            "image {} can't be built on {id}: that is for {}, and `architecture` is {}",
            image.name, ami.architecture, image.architecture
        );
        return Err(unfit(message, "name an AMI of that architecture as `base`, or change `architecture`"));
    }
    if ami.root_gib > image.volume_gib {
        let message = format!("image {} can't be built on {id}: its volume has {} GiB", image.name, ami.root_gib);
        return Err(unfit(message, "set `volume_gib` in the image's table to at least that"));
    }
    Ok(BaseAmi { id, root_device: ami.root_device })
}

/// What an image is made of.
///
/// # Errors
/// [`crate::Kind::Configuration`] when kiln.toml lacks a digest that is needed.
pub fn image_inputs(request: &Request<'_>, caller: &Caller, base: &BaseAmi) -> Result<ImageInputs> {
    inputs::image_inputs(request, &bucket_name(request.config, caller), base)
}

/// Derives all that has to exist.
///
/// # Errors
/// [`crate::Kind::Configuration`] when kiln.toml lacks a digest that is needed.
pub fn wanted(request: &Request<'_>, caller: &Caller, base: &BaseAmi, place: &Place) -> Result<Wanted> {
    let Request { config, image, .. } = request;
    let bucket = bucket_name(config, caller);
    let inputs = image_inputs(request, caller, base)?.digest();
    let name = config.image_name(&image.name);
    let tags = tags::bake_tags(config, image);
    Ok(Wanted {
        stack: bake_stack(config, &bucket, place),
        key: inputs::payload_key(request),
        contents: request.contents.archive().map(|archive| (inputs::contents_key(&archive.sha256), archive)),
        components: inputs::components(request),
        recipe: Recipe {
            id: ResourceVersion { name: name.clone(), version: inputs::version_of(&inputs) },
            base: base.id.clone(),
            components: inputs::component_uses(request, caller, &bucket, base, &inputs)?,
            volume_gib: image.volume_gib,
            kms_key: config.image_defaults.kms_key.clone(),
            root_device: base.root_device.clone(),
            user_data: None,
        },
        infrastructure: Infrastructure {
            name: name.clone(),
            instance_profile: config.bake_role(),
            instance_types: place.instance_types.clone(),
            subnet: place.subnet.clone(),
            security_groups: vec![
                place.security_group.clone().unwrap_or_else(|| output_reference(&config.bake_stack(), SECURITY_GROUP)),
            ],
            log_bucket: bucket.clone(),
            tags: tags.clone(),
            keep_on_failure: request.keep_on_failure,
        },
        distribution: Distribution {
            ami_name: format!("{name} {{{{ imagebuilder:buildDate }}}}"),
            name,
            ami_tags: tags.clone(),
            copy_to: config.image_defaults.copy_to.clone(),
            share_with: config.image_defaults.share_with.clone(),
            kms_key: config.image_defaults.kms_key.clone(),
        },
        log_group: config.image_log_group(),
        tags,
        parameter: config.image_parameter(&image.name),
        bucket,
        record: inputs::record_of(&inputs),
        inputs,
    })
}

fn bake_stack(config: &Config, bucket: &str, place: &Place) -> StackRequest {
    // A group of the user's own makes another one superfluous.
    let vpc = if place.security_group.is_some() { String::new() } else { place.vpc.clone() };
    StackRequest {
        name: config.bake_stack(),
        template: BAKE_TEMPLATE.to_owned(),
        parameters: BTreeMap::from([
            ("BucketName".to_owned(), bucket.to_owned()),
            ("ImagePrefix".to_owned(), config.prefix()),
            ("VpcId".to_owned(), vpc),
            ("PermissionsBoundary".to_owned(), config.permissions_boundary.clone().unwrap_or_default()),
        ]),
        tags: stack_tags(config),
    }
}

/// The digest that [`SOURCES_TAG`] holds.
fn sources_digest(request: &Request<'_>, sources: &Sha256, caller: &Caller, base: &BaseAmi) -> Result<Sha256> {
    let instead = Request {
        payload: &[],
        payload_sha256: payload::digest_of_sources(sources),
        sources: None,
        config: request.config,
        image: request.image,
        contents: request.contents,
        keep_on_failure: request.keep_on_failure,
    };
    Ok(image_inputs(&instead, caller, base)?.digest())
}

/// The recorded AMI, when it was baked from these very sources and everything else is as it was too: nothing has to be
/// built to know that there is nothing to do.
///
/// # Errors
/// What AWS answers, and [`wanted`]'s.
pub async fn unchanged(
    config: &Config,
    image: &Image,
    contents: &Contents,
    sources: &Sha256,
    cloud: &impl Cloud,
) -> Result<Option<AmiId>> {
    let caller = cloud.caller().await?;
    let base = base(image, cloud).await?;
    let request = Request {
        config,
        image,
        contents,
        payload: &[],
        payload_sha256: sources.clone(),
        sources: None,
        keep_on_failure: false,
    };
    // First, since what kiln.toml lacks is told before minutes of compiling, not after.
    let digest = sources_digest(&request, sources, &caller, &base)?;
    let Some(recorded) = cloud.recorded(&config.image_parameter(&image.name)).await? else { return Ok(None) };
    let Some(ami) = plan::existing(cloud, &recorded).await? else { return Ok(None) };
    Ok((ami.tags.get(SOURCES_TAG).map(String::as_str) == Some(digest.as_str())).then_some(recorded))
}

/// What is said once about a base image that should not be chosen any more.
pub fn notice(image: &Image) -> Option<&'static str> {
    match image.system {
        BaseImage::AmazonLinux2 => Some(
            "Amazon Linux 2 is out of support since 2026-06-30: no more security updates, and a runner that needs a newer \
             .NET will not start on it; set base = \"amazon-linux-2023\"",
        ),
        _ => None,
    }
}
