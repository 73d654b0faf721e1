//! What an image is made of, and its identity: the digest of that.
//!
//! The digest must be the same wherever and by whichever version of Kiln it is computed, as long as the image would be the
//! same. So it is taken of [`ImageInputs`], a structure that is written for this purpose only, in a canonical form: JSON
//! without spaces, keys sorted, absent values left out.

use std::collections::BTreeMap;

use kiln_config::config::{ComponentSource, Config, Image};
use kiln_config::model::{BaseImage, Sha256};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256 as Hasher};

use super::{BaseAmi, Request};
use crate::code::Code;
use crate::error::{Error, Result};
use crate::pin;
use crate::ports::{Caller, Component, ComponentUse, ResourceVersion};
use kiln_image::components;
use kiln_image::contents::{CERTIFICATES, CONTENTS};
use kiln_image::packages;

/// The form of [`ImageInputs`]. Raised when a field changes its meaning; then every image is baked again, and the changelog
/// has to say so. A new field that is absent by default changes no digest, and needs no other form.
pub(super) const FORMAT: u32 = 1;

/// Everything that decides what is in an image and where it is: equal inputs, equal image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInputs {
    /// `FORMAT`.
    pub format: u32,
    /// The name of the image's resources: organization and image.
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
    /// The digest of its document; empty for one that has an immutable ARN in place of it.
    #[serde(skip_serializing_if = "String::is_empty")]
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
pub(super) fn image_inputs(request: &Request<'_>, bucket: &str, base: &BaseAmi) -> Result<ImageInputs> {
    let Request { config, image, .. } = request;
    let values = component_values(request, bucket, base)?;
    let defaults = &config.image_defaults;
    let inputs = |part: &Part| match part {
        Part::Ours(component) | Part::Theirs(component) => ComponentInputs {
            name: component.id.name.clone(),
            document_sha256: sha256(component.document.as_bytes()).to_string(),
            parameters: parameters(part, &values),
        },
        Part::Existing(arn) => {
            ComponentInputs { name: arn.clone(), document_sha256: String::new(), parameters: BTreeMap::new() }
        }
    };
    Ok(ImageInputs {
        format: FORMAT,
        image: config.image_name(&image.name),
        base_image: base.id.to_string(),
        components: parts(request).iter().map(inputs).collect(),
        root_volume: RootVolume {
            device: base.root_device.clone(),
            gib: image.volume_gib,
            kms_key: defaults.kms_key.as_ref().map(ToString::to_string),
        },
        copied_to: sorted(&defaults.copy_to),
        shared_with: sorted(&defaults.share_with),
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
    caller: &Caller,
    bucket: &str,
    base: &BaseAmi,
    inputs: &Sha256,
) -> Result<Vec<ComponentUse>> {
    let mut values = component_values(request, bucket, base)?;
    values.insert("Inputs", inputs.to_string());
    values.insert("RecordUri", format!("s3://{bucket}/{}", record_of(inputs)));
    let used = |part: &Part| {
        let id = match part {
            Part::Ours(component) | Part::Theirs(component) => component.id.clone(),
            Part::Existing(arn) => existing(arn, caller, request.config),
        };
        ComponentUse { id, parameters: parameters(part, &values) }
    };
    Ok(parts(request).iter().map(used).collect())
}

/// A component by its ARN: one of this account and region has a name and a version, as those that Kiln makes; of another one
/// the ARN is the name.
fn existing(arn: &str, caller: &Caller, config: &Config) -> ResourceVersion {
    let own = format!("arn:{}:imagebuilder:{}:{}:component/", caller.partition, config.region, caller.account);
    match arn.strip_prefix(&own).map(|rest| rest.split('/').collect::<Vec<_>>()).as_deref() {
        Some(&[name, version, "1"]) => ResourceVersion { name: name.to_owned(), version: version.to_owned() },
        _ => ResourceVersion { name: arn.to_owned(), version: String::new() },
    }
}

/// The folder in the bucket for what an image writes down of itself. It is named by the inputs, and so is no part of them.
pub(super) fn record_of(inputs: &Sha256) -> String {
    format!("images/{inputs}")
}

/// The payload's key in the bucket.
pub(super) fn payload_key(request: &Request<'_>) -> String {
    format!("payload/{}.tar.gz", request.payload_sha256)
}

/// The key of the archive with what kiln.toml adds.
pub(super) fn contents_key(digest: &Sha256) -> String {
    format!("payload/contents-{digest}.tar.gz")
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

/// A component of a recipe.
#[derive(Debug)]
enum Part {
    /// Kiln's own, or generated: it is given the values of the parameters that it declares.
    Ours(Component),
    /// A document of the user's, which is given none.
    Theirs(Component),
    /// One that exists.
    Existing(String),
}

/// The components of an image in order: authorities first, for what is downloaded later; what kiln.toml adds after all that
/// Kiln needs, so that it finds it; then what looks at the result.
fn parts(request: &Request<'_>) -> Vec<Part> {
    let Request { image, contents, .. } = request;
    let mut parts = Vec::new();
    let generated = |name: &str, text: Option<String>| text.map(|text| Part::Ours(component(name, text)));
    parts.extend(generated(CERTIFICATES, contents.certificates_document()));
    for (name, document) in components::COMPONENTS {
        if name == FIRST_AFTER_CONTENTS {
            parts.extend(generated(CONTENTS, contents.contents_document()));
            let mut documents = contents.documents.iter();
            parts.extend(image.components.iter().filter_map(|source| match source {
                ComponentSource::Arn(arn) => Some(Part::Existing(arn.clone())),
                ComponentSource::Document(_) => {
                    documents.next().map(|(name, text)| Part::Theirs(component(&format!("own-{name}"), text.clone())))
                }
            }));
        }
        parts.push(Part::Ours(component(name, document.to_owned())));
    }
    parts
}

/// The first of Kiln's documents that runs after the user's.
const FIRST_AFTER_CONTENTS: &str = "manifest";

/// A component with a version of its own content. It names no operating systems: Image Builder would compare them with its
/// own names for the base's, and does not know each one's.
///
/// source: `botocore`, `imagebuilder/2019-12-02/service-2.json`, `CreateComponentRequest$supportedOsVersions`: "if the OS
/// information is available, a prefix match is performed against the base image OS version"
fn component(name: &str, document: String) -> Component {
    let id = ResourceVersion { name: format!("kiln-{name}"), version: version_of(&sha256(document.as_bytes())) };
    Component { id, document }
}

/// The components of an image that have to be made.
pub(super) fn components(request: &Request<'_>) -> Vec<Component> {
    let made = |part| match part {
        Part::Ours(component) | Part::Theirs(component) => Some(component),
        Part::Existing(_) => None,
    };
    parts(request).into_iter().filter_map(made).collect()
}

/// Every value that the documents may ask for.
fn component_values(
    request: &Request<'_>,
    bucket: &str,
    base_image: &BaseAmi,
) -> Result<BTreeMap<&'static str, String>> {
    let Request { config, image, contents, payload_sha256, .. } = request;
    let (pin, architecture) = (&config.runner, image.architecture);
    let Some(runner_sha256) = pin.sha256.get(&architecture) else {
        return Err(Error::new(
            Code::RunnerDigestMissing,
            format!("kiln.toml pins no sha256 of runner {} for {architecture}", pin.version),
        )
        .hint(format!("add `{architecture} = \"…\"` to [runner.sha256]")));
    };
    let file = format!("actions-runner-linux-{}-{}.tar.gz", architecture.runner_name(), pin.version);
    let base = pin.release_url.as_str().trim_end_matches('/');
    let mut values = BTreeMap::from([
        ("RunnerVersion", pin.version.to_string()),
        ("RunnerUrl", format!("{base}/v{}/{file}", pin.version)),
        ("RunnerSha256", runner_sha256.to_string()),
        ("NodeBuilds", node_builds(config, image)?),
        ("SystemPackages", packages::required(image.system).join(" ")),
        ("PayloadUri", format!("s3://{bucket}/{}", payload_key(request))),
        ("PayloadSha256", payload_sha256.to_string()),
        ("DiskGib", image.volume_gib.to_string()),
        ("BaseImage", base_image.id.to_string()),
        ("Toolset", image.toolset.name().to_owned()),
    ]);
    if let Some(archive) = contents.archive() {
        values.insert("ContentsUri", format!("s3://{bucket}/{}", contents_key(&archive.sha256)));
        values.insert("ContentsSha256", archive.sha256.to_string());
    }
    Ok(values)
}

/// What stands in for the runner's own Node, as the document wants it. Only Amazon Linux 2 needs it, and builds for glibc
/// 2.17 exist for x86_64 only; the configuration's check has refused the other.
fn node_builds(config: &Config, image: &Image) -> Result<String> {
    if image.system != BaseImage::AmazonLinux2 {
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
            "`cargo xtask pin` writes [runner.node] into kiln.toml; or set `base = \"amazon-linux-2023\"` in the image's table",
        ));
    }
    let url = pin.node_url.as_str().trim_end_matches('/');
    let builds = pin.node.iter().map(|(major, node)| format!("{major}={}={url}/{}", node.sha256, node.path()));
    Ok(builds.collect::<Vec<_>>().join(","))
}

/// The values of the parameters that a document of Kiln's declares.
fn parameters(part: &Part, values: &BTreeMap<&'static str, String>) -> BTreeMap<String, String> {
    let Part::Ours(component) = part else { return BTreeMap::new() };
    let document = components::Document::parse(&component.document).expect("checked before it is used");
    let declared = values.iter().filter(|(name, _)| document.parameters.contains_key(**name));
    declared.map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
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
