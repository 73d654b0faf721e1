//! What an image is made of, and its identity: the digest of that.
//!
//! The digest must be the same wherever and by whichever version of Kiln it is computed, as long as the image would be the
//! same. So it is taken of [`ImageInputs`], a structure that is written for this purpose only, in a canonical form: JSON
//! without spaces, keys sorted, absent values left out.

use std::collections::BTreeMap;

use kiln_config::config::{Config, IMAGE_VOLUME_GIB, ImageVariant};
use kiln_config::model::{AmiId, BaseImage, Sha256};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256 as Hasher};

use super::Request;
use crate::code::Code;
use crate::error::{Error, Result};
use crate::pin;
use crate::ports::{Component, ComponentUse, Versioned};
use kiln_image::components;

/// The form of [`ImageInputs`]. Raised when a field changes its meaning; then every image is baked again, and the changelog
/// has to say so. A new field that is absent by default changes no digest, and needs no other form.
pub(super) const FORMAT: u32 = 1;

/// The root device's name on Amazon Linux.
pub(super) const ROOT_DEVICE: &str = "/dev/xvda";

/// Everything that decides what is in an image and where it is: equal inputs, equal image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInputs {
    /// `FORMAT`.
    pub format: u32,
    /// The image's name: organization, base image and architecture.
    pub image: String,
    /// The AMI it is built on.
    pub base_image: String,
    /// What is done to it, in order.
    pub components: Vec<ComponentInputs>,
    /// Its root volume.
    pub root_volume: RootVolume,
    /// Regions that get a copy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub copied_to: Vec<String>,
    /// Accounts that may launch from it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shared_with: Vec<String>,
}

/// A component and the values it is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComponentInputs {
    /// Its name.
    pub name: String,
    /// The digest of its document.
    pub document_sha256: String,
    /// Values of its parameters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
}

/// The root volume of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RootVolume {
    /// The device's name.
    pub device: String,
    /// Its size.
    pub gib: u32,
    /// The key that encrypts it; absent for the account's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kms_key: Option<String>,
}

impl ImageInputs {
    /// The text that the digest is of.
    pub fn canonical_json(&self) -> String {
        let mut text = String::new();
        let value = serde_json::to_value(self).expect("structures of texts and numbers are JSON");
        write_canonical(&value, &mut text);
        text
    }

    /// The image's identity.
    pub fn digest(&self) -> Sha256 {
        sha256(self.canonical_json().as_bytes())
    }
}

/// JSON without spaces, the keys of each object sorted. `serde_json` sorts them too, unless a crate anywhere in the build
/// switches its feature `preserve_order` on.
fn write_canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(object) => {
            let sorted: BTreeMap<&String, &Value> = object.iter().collect();
            text.push('{');
            for (index, (key, value)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                write_canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(values) => {
            text.push('[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                write_canonical(value, text);
            }
            text.push(']');
        }
        other => text.push_str(&other.to_string()),
    }
}

/// The inputs of an image, without the two parameters that are named after their digest.
///
/// # Errors
/// [`crate::Kind::Configuration`] when kiln.toml has no digest for the architecture, or no Node where one is needed.
pub(super) fn image_inputs(request: &Request<'_>, bucket: &str, base: &AmiId) -> Result<ImageInputs> {
    let Request { config, variant, .. } = request;
    let values = component_values(request, &payload_uri(request, bucket), base)?;
    let image = &config.image_defaults;
    let component = |component: &Component| ComponentInputs {
        name: component.id.name.clone(),
        document_sha256: sha256(component.document.as_bytes()).to_string(),
        parameters: component_use(component, &values).parameters,
    };
    Ok(ImageInputs {
        format: FORMAT,
        image: config.image_name(*variant),
        base_image: base.to_string(),
        components: components().iter().map(component).collect(),
        root_volume: RootVolume {
            device: ROOT_DEVICE.to_owned(),
            gib: IMAGE_VOLUME_GIB,
            kms_key: image.kms_key.as_ref().map(ToString::to_string),
        },
        copied_to: sorted(&image.copy_to),
        shared_with: sorted(&image.share_with),
    })
}

/// Their order in kiln.toml says nothing.
fn sorted<T: ToString>(values: &[T]) -> Vec<String> {
    let mut values: Vec<String> = values.iter().map(ToString::to_string).collect();
    values.sort();
    values
}

/// The components as the recipe uses them.
pub(super) fn component_uses(
    request: &Request<'_>,
    bucket: &str,
    base: &AmiId,
    inputs: &Sha256,
) -> Result<Vec<ComponentUse>> {
    let mut values = component_values(request, &payload_uri(request, bucket), base)?;
    values.insert("Inputs", inputs.to_string());
    values.insert("RecordUri", format!("s3://{bucket}/{}", record_of(inputs)));
    Ok(components().iter().map(|component| component_use(component, &values)).collect())
}

/// The folder in the bucket for what an image writes down of itself. It is named by the inputs, and so is no part of them.
pub(super) fn record_of(inputs: &Sha256) -> String {
    format!("images/{inputs}")
}

/// The payload's key in the bucket.
pub(super) fn payload_key(request: &Request<'_>) -> String {
    format!("payload/{}.tar.gz", request.payload_sha256)
}

fn payload_uri(request: &Request<'_>, bucket: &str) -> String {
    format!("s3://{bucket}/{}", payload_key(request))
}

/// The digest of bytes.
pub(super) fn sha256(bytes: &[u8]) -> Sha256 {
    let hex = Hasher::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    hex.parse().expect("32 bytes are 64 hexadecimal digits")
}

/// Image Builder's versions are three numbers below 2^30; two of them hold 60 bits of a digest.
pub(super) fn version_of(digest: &Sha256) -> String {
    let node = |range: std::ops::Range<usize>| {
        u32::from_str_radix(&digest.as_str()[range], 16).expect("eight hexadecimal digits") & ((1 << 30) - 1)
    };
    format!("1.{}.{}", node(0..8), node(8..16))
}

/// The documents of `ami/components` as components, each with a version of its own content.
pub(super) fn components() -> Vec<Component> {
    components::COMPONENTS
        .iter()
        .map(|(name, document)| Component {
            id: Versioned { name: format!("kiln-{name}"), version: version_of(&sha256(document.as_bytes())) },
            document: (*document).to_owned(),
            supported_os: vec!["Amazon Linux 2".to_owned(), "Amazon Linux 2023".to_owned()],
        })
        .collect()
}

/// Every value that the documents may ask for.
fn component_values(
    request: &Request<'_>,
    payload_uri: &str,
    base_image: &AmiId,
) -> Result<BTreeMap<&'static str, String>> {
    let Request { config, variant, payload_sha256, .. } = request;
    let pin = &config.runner;
    let Some(runner_sha256) = pin.sha256.get(&variant.architecture) else {
        return Err(Error::new(
            Code::RunnerDigestMissing,
            format!("kiln.toml pins no sha256 of runner {} for {}", pin.version, variant.architecture),
        )
        .hint(format!("add `{} = \"…\"` to [runner.sha256]", variant.architecture)));
    };
    let file = format!("actions-runner-linux-{}-{}.tar.gz", variant.architecture.runner_name(), pin.version);
    let base = pin.release_url.as_str().trim_end_matches('/');
    Ok(BTreeMap::from([
        ("RunnerVersion", pin.version.to_string()),
        ("RunnerUrl", format!("{base}/v{}/{file}", pin.version)),
        ("RunnerSha256", runner_sha256.to_string()),
        ("NodeBuilds", node_builds(config, *variant)?),
        ("PayloadUri", payload_uri.to_owned()),
        ("PayloadSha256", payload_sha256.to_string()),
        ("DiskGib", IMAGE_VOLUME_GIB.to_string()),
        ("BaseImage", base_image.to_string()),
    ]))
}

/// What stands in for the runner's own Node, as the document wants it. Only Amazon Linux 2 needs it, and builds for glibc
/// 2.17 exist for x86_64 only; the configuration's check has refused the other.
fn node_builds(config: &Config, variant: ImageVariant) -> Result<String> {
    if variant.base != BaseImage::AmazonLinux2 {
        return Ok("none".to_owned());
    }
    let pin = &config.runner;
    let missing: Vec<String> = pin::RUNNER_NODES
        .iter()
        .filter(|major| !pin.node.contains_key(major))
        .map(|major| format!("[runner.node.{major}]"))
        .collect();
    if !missing.is_empty() {
        let message = format!(
            "amazon-linux-2 needs {}, which kiln.toml does not have: the runner's own Node needs glibc 2.28, Amazon Linux 2 \
             has 2.26, and JavaScript actions would not run",
            missing.join(" and ")
        );
        return Err(Error::new(Code::NodePinMissing, message).hint(
            "`cargo xtask pin` writes [runner.node] into kiln.toml; or set `base_image = \"amazon-linux-2023\"`",
        ));
    }
    let url = pin.node_url.as_str().trim_end_matches('/');
    let builds = pin.node.iter().map(|(major, node)| format!("{major}={}={url}/{}", node.sha256, node.path()));
    Ok(builds.collect::<Vec<_>>().join(","))
}

fn component_use(component: &Component, values: &BTreeMap<&'static str, String>) -> ComponentUse {
    let document = components::Document::parse(&component.document).expect("the committed documents are tested");
    let parameters = values
        .iter()
        .filter(|(name, _)| document.parameters.contains_key(**name))
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect();
    ComponentUse { id: component.id.clone(), parameters }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs() -> ImageInputs {
        ImageInputs {
            format: FORMAT,
            image: "kiln-acme-al2023-x86-64".to_owned(),
            base_image: "ami-00000000000000001".to_owned(),
            components: vec![
                ComponentInputs {
                    name: "kiln-os".to_owned(),
                    document_sha256: "a".repeat(64),
                    parameters: BTreeMap::new(),
                },
                ComponentInputs {
                    name: "kiln-runner".to_owned(),
                    document_sha256: "b".repeat(64),
                    parameters: BTreeMap::from([
                        ("RunnerVersion".to_owned(), "2.338.0".to_owned()),
                        ("NodeBuilds".to_owned(), "a \"quoted\"\nline".to_owned()),
                    ]),
                },
            ],
            root_volume: RootVolume { device: "/dev/xvda".to_owned(), gib: 30, kms_key: None },
            copied_to: Vec::new(),
            shared_with: Vec::new(),
        }
    }

    /// Not to be changed for a renaming or a new field: every image of every user would be baked again.
    #[test]
    fn the_identity_of_given_inputs_never_changes() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let golden = format!(
            "{{\"base_image\":\"ami-00000000000000001\",\"components\":[\
             {{\"document_sha256\":\"{a}\",\"name\":\"kiln-os\"}},\
             {{\"document_sha256\":\"{b}\",\"name\":\"kiln-runner\",\"parameters\":\
             {{\"NodeBuilds\":\"a \\\"quoted\\\"\\nline\",\"RunnerVersion\":\"2.338.0\"}}}}],\
             \"format\":1,\"image\":\"kiln-acme-al2023-x86-64\",\
             \"root_volume\":{{\"device\":\"/dev/xvda\",\"gib\":30}}}}"
        );
        assert_eq!(inputs().canonical_json(), golden);
        assert_eq!(inputs().digest().as_str(), "624b4aaa63b82d2ec730f0268e60f3bb4e0b39252fc72c8823e535cc94e88423");
    }

    #[test]
    fn each_of_them_is_part_of_the_identity() {
        let changes: [fn(&mut ImageInputs); 10] = [
            |inputs| inputs.format += 1,
            |inputs| inputs.image.push('x'),
            |inputs| inputs.base_image = "ami-00000000000000002".to_owned(),
            |inputs| inputs.components.reverse(),
            |inputs| inputs.components[0].document_sha256 = "c".repeat(64),
            |inputs| inputs.components[1].parameters.retain(|name, _| name != "NodeBuilds"),
            |inputs| inputs.root_volume.gib = 31,
            |inputs| inputs.root_volume.kms_key = Some("arn:aws:kms:eu-central-1:000000000000:key/1".to_owned()),
            |inputs| inputs.copied_to.push("eu-west-1".to_owned()),
            |inputs| inputs.shared_with.push("123456789012".to_owned()),
        ];
        let mut digests = std::collections::BTreeSet::from([inputs().digest().to_string()]);
        for (index, change) in changes.into_iter().enumerate() {
            let mut changed = inputs();
            change(&mut changed);
            assert!(digests.insert(changed.digest().to_string()), "change {index} is not part of the identity");
        }
    }
}
