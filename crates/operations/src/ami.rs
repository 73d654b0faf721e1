//! `cargo xtask ami`: brings the recorded AMI of a variant to what kiln.toml and this checkout say.
//!
//! The digest of all inputs (documents, payload, pins, base image) is the recipe's version and a tag on the AMI. That
//! makes the command idempotent without a file of its own: whatever an interrupted run left is found by its name.

mod apply;
mod inputs;
mod place;
mod plan;
mod tags;

use std::collections::BTreeMap;

use kiln_config::config::{Config, IMAGE_VOLUME_GIB, ImageVariant};
use kiln_config::model::{AmiId, BaseImage, Sha256};

use crate::error::Result;
use crate::fleet_stack::{output_reference, stack_tags};
use crate::ports::{Caller, Cloud, Component, Distribution, Infrastructure, Recipe, StackRequest, Versioned};
use kiln_image::payload;

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
    pub variant: ImageVariant,
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

/// The log group of an image's builds. It is sent with each build, and the bake stack makes it.
pub fn log_group(config: &Config, variant: ImageVariant) -> String {
    format!("/aws/imagebuilder/{}", config.image_name(variant))
}

/// What an image is made of.
///
/// # Errors
/// [`crate::Kind::Configuration`] when kiln.toml lacks a digest that is needed.
pub fn image_inputs(request: &Request<'_>, caller: &Caller, base: &AmiId) -> Result<ImageInputs> {
    inputs::image_inputs(request, &bucket_name(request.config, caller), base)
}

/// Derives all that has to exist.
///
/// # Errors
/// [`crate::Kind::Configuration`] when kiln.toml lacks a digest that is needed.
pub fn wanted(request: &Request<'_>, caller: &Caller, base: &AmiId, place: &Place) -> Result<Wanted> {
    let Request { config, variant, .. } = request;
    let bucket = bucket_name(config, caller);
    let inputs = image_inputs(request, caller, base)?.digest();
    let name = config.image_name(*variant);
    let tags = tags::bake_tags(config, *variant);
    Ok(Wanted {
        stack: bake_stack(config, &bucket, place),
        key: inputs::payload_key(request),
        components: inputs::components(),
        recipe: Recipe {
            id: Versioned { name: name.clone(), version: inputs::version_of(&inputs) },
            base: base.clone(),
            components: inputs::component_uses(request, &bucket, base, &inputs)?,
            volume_gib: IMAGE_VOLUME_GIB,
            kms_key: config.image_defaults.kms_key.clone(),
            root_device: inputs::ROOT_DEVICE.to_owned(),
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
        log_group: log_group(config, *variant),
        tags,
        parameter: config.image_parameter(*variant),
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
fn sources_digest(request: &Request<'_>, sources: &Sha256, caller: &Caller, base: &AmiId) -> Result<Sha256> {
    let instead = Request {
        payload: &[],
        payload_sha256: payload::digest_of_sources(sources),
        sources: None,
        config: request.config,
        variant: request.variant,
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
    variant: ImageVariant,
    sources: &Sha256,
    cloud: &impl Cloud,
) -> Result<Option<AmiId>> {
    let caller = cloud.caller().await?;
    let base = cloud.newest_base(variant.base, variant.architecture).await?;
    let request = Request {
        config,
        variant,
        payload: &[],
        payload_sha256: sources.clone(),
        sources: None,
        keep_on_failure: false,
    };
    // First, since what kiln.toml lacks is told before minutes of compiling, not after.
    let digest = sources_digest(&request, sources, &caller, &base)?;
    let Some(recorded) = cloud.recorded(&config.image_parameter(variant)).await? else { return Ok(None) };
    let Some(ami) = plan::existing(cloud, &recorded).await? else { return Ok(None) };
    Ok((ami.tags.get(SOURCES_TAG).map(String::as_str) == Some(digest.as_str())).then_some(recorded))
}

/// What is said once about a base image that should not be chosen any more.
pub fn notice(variant: ImageVariant) -> Option<&'static str> {
    match variant.base {
        BaseImage::AmazonLinux2 => Some(
            "Amazon Linux 2 is out of support since 2026-06-30: no more security updates, and a runner that needs a newer \
             .NET will not start on it; set base_image = \"amazon-linux-2023\"",
        ),
        BaseImage::AmazonLinux2023 => None,
    }
}
