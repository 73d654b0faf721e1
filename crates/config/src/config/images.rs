//! What `[image.NAME]` says: what an image is built on, and what is put into it.
//!
//! The files that it names are not read here. Each keeps its place in kiln.toml, so that whoever reads them can say there
//! what is wrong with one: [`ContentsError`].

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;

use super::diagnostic::{ConfigError, Diagnostic, Findings, cut};
use super::fleet::distinct;
use super::image::{BakeNetwork, network};
use super::infrastructure::IMAGE_VOLUME_GIB;
use super::raw::{RawConfig, RawFleet, RawImage, RawImageFile};
use crate::model::{AmiId, Architecture, BaseImage, ImageName, InstanceType, Toolset};

/// The most of each kind. Each script is a step of a component document, which holds 16,000 characters.
pub(super) const PACKAGES: usize = 200;
pub(super) const SCRIPTS: usize = 20;
pub(super) const FILES: usize = 50;
pub(super) const COMPONENTS: usize = 10;
pub(super) const CERTIFICATES: usize = 20;
pub(super) const CONTAINERS: usize = 20;

// For editors; what is checked here is the same.
pub(super) const PACKAGE: &str = "^[A-Za-z0-9][A-Za-z0-9+._:~=^-]*$";
pub(super) const COMPONENT: &str = "^(arn:aws[a-z-]*:imagebuilder:.+|[^:]+)$";
pub(super) const CONTAINER: &str = "^[a-z0-9][A-Za-z0-9._:/-]*@sha256:[0-9a-f]{64}$";
pub(super) const DESTINATION: &str = "^(/[A-Za-z0-9._+@-]+)+$";
pub(super) const MODE: &str = "^0?[0-7]{3}$";

/// An image, as a fleet's `image` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its name.
    pub name: ImageName,
    /// What it is built on.
    pub base: Base,
    /// The operating system that is on that.
    pub system: BaseImage,
    /// The architecture.
    pub architecture: Architecture,
    /// What it has beyond what the runner needs.
    pub toolset: Toolset,
    /// Packages of the distribution.
    pub packages: Vec<String>,
    /// Scripts for the machine that becomes the image, in order.
    pub scripts: Vec<LocalPath>,
    /// Scripts for an instance that is started from it, in order.
    pub tests: Vec<LocalPath>,
    /// Files that are laid down.
    pub files: Vec<ImageFile>,
    /// Image Builder components of the user's, in order.
    pub components: Vec<ComponentSource>,
    /// Certificates of authorities that are trusted.
    pub ca_certificates: Vec<LocalPath>,
    /// Containers' images by digest.
    pub containers: Vec<String>,
    /// The size of its root volume.
    pub volume_gib: u32,
    /// Where it is built, where that is not as `[image_defaults]` says.
    pub network: Option<BakeNetwork>,
    /// What it is built on, where that is not as `[image_defaults]` says.
    pub instance_types: Vec<InstanceType>,
}

/// Where an image's base comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// The newest image of the operating system's maker.
    Newest,
    /// This AMI.
    Ami(AmiId),
    /// The AMI that an SSM parameter names.
    Parameter(String),
}

/// A path below the folder of kiln.toml, and where it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPath {
    /// The path, relative, without `..`.
    pub path: String,
    place: Range<usize>,
}

/// A file that is laid down in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    /// What.
    pub source: LocalPath,
    /// Where in the image.
    pub destination: String,
    /// Its permissions.
    pub mode: u32,
}

/// An Image Builder component of the user's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ComponentSource {
    /// A document.
    Document(LocalPath),
    /// One that exists, by the ARN of its build.
    Arn(String),
}

/// What is wrong with the files that a valid kiln.toml names.
#[derive(Debug, Default)]
pub struct ContentsError(Findings);

impl ContentsError {
    /// Adds a complaint at the place of a path.
    pub fn push(&mut self, at: &LocalPath, message: impl Into<String>, expected: &str) {
        let hint = "the handbook's page \"Add tools to the image\" has the rules; a path is relative to the folder of kiln.toml";
        self.push_with_hint(at, message, expected, hint);
    }

    /// The same with a hint of its own.
    pub fn push_with_hint(&mut self, at: &LocalPath, message: impl Into<String>, expected: &str, hint: &str) {
        self.0.push(Diagnostic::new(at.place.clone(), message).expected(expected).hint(hint));
    }

    /// An error where there was a complaint.
    ///
    /// # Errors
    /// All complaints, shown in the text of the file.
    pub fn into_result(self, file: &str, text: &str) -> Result<(), ConfigError> {
        if self.0.is_empty() { Ok(()) } else { Err(ConfigError::new(file, text, self.0)) }
    }
}

impl Image {
    /// The image of fleets without `image`.
    pub fn implied(architecture: Architecture) -> Self {
        Self {
            name: implied_name(architecture).parse().expect("a constant name"),
            base: Base::Newest,
            system: BaseImage::AmazonLinux2023,
            architecture,
            toolset: Toolset::Minimal,
            packages: Vec::new(),
            scripts: Vec::new(),
            tests: Vec::new(),
            files: Vec::new(),
            components: Vec::new(),
            ca_certificates: Vec::new(),
            containers: Vec::new(),
            volume_gib: IMAGE_VOLUME_GIB,
            network: None,
            instance_types: Vec::new(),
        }
    }
}

/// What the image of fleets without `image` is called.
fn implied_name(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "al2023-x86-64",
        Architecture::Aarch64 => "al2023-aarch64",
    }
}

/// The image that a fleet names, or the implied one. Nothing where the table that it names has a mistake of its own, which is
/// complained about there, or where there is none.
pub(super) fn of_fleet(
    raw: &RawFleet,
    tables: &BTreeMap<String, Option<Image>>,
    found: &mut Findings,
) -> Option<Image> {
    let Some(name) = &raw.image else {
        let types = raw.instance_types.as_ref().map(|types| types.get_ref().as_slice()).unwrap_or_default();
        let first: Option<InstanceType> = types.first().and_then(|name| name.get_ref().parse().ok());
        return Some(Image::implied(first.map_or(Architecture::X86_64, |name| name.architecture())));
    };
    if let Some(image) = tables.get(name.get_ref()) {
        return image.clone();
    }
    let known: Vec<String> = tables.keys().map(|name| format!("\"{name}\"")).collect();
    let diagnostic = Diagnostic::of_value(name.span(), "`image`", name.get_ref());
    found.push(if known.is_empty() {
        diagnostic.expected("expected the name of a table [image.NAME], of which there is none").hint(format!(
            "add [image.{}], or leave `image` out: Amazon Linux 2023 with nothing in it",
            cut(name.get_ref())
        ))
    } else {
        diagnostic.expected(format!("expected {}", known.join(" or ")))
    });
    None
}

/// Every table; nothing for one that was complained about.
pub(super) fn tables(raw: &RawConfig, found: &mut Findings) -> BTreeMap<String, Option<Image>> {
    raw.image.iter().flatten().map(|(name, table)| (name.get_ref().clone(), image(name, table, found))).collect()
}

fn image(name: &Spanned<String>, raw: &RawImage, found: &mut Findings) -> Option<Image> {
    if Architecture::ALL.into_iter().any(|architecture| implied_name(architecture) == name.get_ref()) {
        found.push(
            Diagnostic::new(name.span(), format!("`{name}` is what Kiln calls the image of fleets without `image`"))
                .expected("expected another name"),
        );
        return None;
    }
    let parsed: Option<ImageName> = found.parse("the image's name", name);
    let architecture = raw.architecture.as_ref().map_or(Architecture::X86_64, |value| *value.get_ref());
    let base = base(name, raw, found);
    if let Some((_, BaseImage::AmazonLinux2)) = base {
        runs_actions(name, raw, architecture, found);
    }
    let paths = |key: &str, list: Option<&Spanned<Vec<Spanned<String>>>>, found: &mut Findings| {
        let list = list.map(|list| list.get_ref().as_slice()).unwrap_or_default();
        let paths: Vec<LocalPath> =
            list.iter().filter_map(|path| local(&format!("an entry of `{key}`"), path, found)).collect();
        twice(key, paths.iter().map(|path| (path.path.as_str(), path.place.clone())), found);
        paths
    };
    let instance_types = raw.instance_types.as_ref();
    let instance_types: Vec<(_, InstanceType)> = instance_types
        .map(|types| distinct("instance_types", types.get_ref(), str::to_owned, found))
        .unwrap_or_default();
    let (base, system) = base?;
    Some(Image {
        name: parsed?,
        base,
        system,
        architecture,
        toolset: raw.toolset.as_ref().map(|value| *value.get_ref()).unwrap_or_default(),
        packages: words("packages", raw.packages.as_ref(), is_package, PACKAGE_EXPECTED, found),
        scripts: paths("scripts", raw.scripts.as_ref(), found),
        tests: paths("tests", raw.tests.as_ref(), found),
        files: files(raw, found),
        components: components(raw, found),
        ca_certificates: paths("ca_certificates", raw.ca_certificates.as_ref(), found),
        containers: words("containers", raw.containers.as_ref(), is_container, CONTAINER_EXPECTED, found),
        volume_gib: raw.volume_gib.as_ref().map_or(IMAGE_VOLUME_GIB, |value| *value.get_ref()),
        network: raw.network.as_ref().and_then(|table| network(table.get_ref(), found)),
        instance_types: instance_types.into_iter().map(|(_, name)| name).collect(),
    })
}

fn base(name: &Spanned<String>, raw: &RawImage, found: &mut Findings) -> Option<(Base, BaseImage)> {
    let own = match &raw.base {
        None => return named(name, BaseImage::AmazonLinux2023, raw, found),
        Some(base) => match BaseImage::named(base.get_ref()) {
            Some(system) => return named(name, system, raw, found),
            None => base,
        },
    };
    let text = own.get_ref();
    let base = if let Ok(ami) = text.parse() {
        Base::Ami(ami)
    } else if is_parameter(text) {
        Base::Parameter(text.clone())
    } else {
        let names = BaseImage::ALL.map(BaseImage::name);
        let mut diagnostic = Diagnostic::of_value(own.span(), "`base`", text)
            .expected(format!("expected {}, ami-… or an SSM parameter's /name", names.join(", ")));
        let near = names.into_iter().min_by_key(|name| strsim::osa_distance(name, text));
        if let Some(near) = near.filter(|near| strsim::osa_distance(near, text) <= text.chars().count().max(3) / 3) {
            diagnostic = diagnostic.hint(format!("did you mean \"{near}\"?"));
        }
        found.push(diagnostic);
        return None;
    };
    let Some(family) = &raw.family else {
        found.push(
            Diagnostic::new(own.span(), "nothing says which operating system is on the AMI")
                .expected("expected `family` next to it")
                .hint("`family = \"ubuntu-24.04\"`, for one: packages and their names go by it"),
        );
        return None;
    };
    Some((base, *family.get_ref()))
}

/// The newest image of a system's maker.
fn named(name: &Spanned<String>, system: BaseImage, raw: &RawImage, found: &mut Findings) -> Option<(Base, BaseImage)> {
    if let Some(family) = &raw.family {
        let place = raw.base.as_ref().map_or_else(|| name.span(), Spanned::span);
        found.push(
            Diagnostic::new(family.span(), "`family` is for an AMI of your own")
                .expected("expected no `family`")
                .related(place, format!("this is {system}")),
        );
        return None;
    }
    Some((Base::Newest, system))
}

fn runs_actions(name: &Spanned<String>, raw: &RawImage, architecture: Architecture, found: &mut Findings) {
    if architecture == Architecture::Aarch64 {
        let place = raw.architecture.as_ref().map_or_else(|| name.span(), Spanned::span);
        found.push(
            Diagnostic::new(place, "no JavaScript action would run on amazon-linux-2 for aarch64")
                .expected("expected x86_64 on amazon-linux-2")
                .hint(
                    "set `base = \"amazon-linux-2023\"`: the runner's Node needs glibc 2.28, Amazon Linux 2 has 2.26, and \
                     nobody builds Node for that and aarch64",
                ),
        );
    }
}

/// source: <https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_PutParameter.html>, `Name`
fn is_parameter(text: &str) -> bool {
    let fine = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    };
    text.len() <= 1011 && text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(fine))
}

/// A path that leads nowhere else than below the folder of kiln.toml, as far as its text says.
fn local(what: &str, value: &Spanned<String>, found: &mut Findings) -> Option<LocalPath> {
    let path = value.get_ref();
    let wrong = if path.trim().is_empty() || path.chars().any(char::is_control) || path.len() > 256 {
        "expected a path of at most 256 characters"
    } else if path.starts_with(['/', '~', '\\']) || path.get(1..2) == Some(":") {
        "expected a path relative to the folder of kiln.toml"
    } else if path.split('/').any(|part| part == "..") {
        "expected a path below the folder of kiln.toml, without `..`"
    } else {
        return Some(LocalPath { path: path.clone(), place: value.span() });
    };
    found.push(Diagnostic::of_value(value.span(), what, path).expected(wrong));
    None
}

const PACKAGE_EXPECTED: &str = "expected a package's name: letters, digits and any of + . _ : ~ = ^ -";
const CONTAINER_EXPECTED: &str = "expected REGISTRY/NAME@sha256:DIGEST with 64 hexadecimal digits";

fn words(
    key: &str,
    list: Option<&Spanned<Vec<Spanned<String>>>>,
    fits: fn(&str) -> bool,
    expected: &str,
    found: &mut Findings,
) -> Vec<String> {
    let list = list.map(|list| list.get_ref().as_slice()).unwrap_or_default();
    for word in list.iter().filter(|word| !fits(word.get_ref())) {
        found.push(
            Diagnostic::of_value(word.span(), &format!("an entry of `{key}`"), word.get_ref()).expected(expected),
        );
    }
    twice(key, list.iter().map(|word| (word.get_ref().as_str(), word.span())), found);
    list.iter().map(|word| word.get_ref().clone()).collect()
}

fn is_package(text: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"+._:~=^-".contains(&byte);
    text.len() <= 128 && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric()) && text.bytes().all(fine)
}

fn is_container(text: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte);
    let Some((name, digest)) = text.split_once("@sha256:") else { return false };
    text.len() <= 512
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        && name.bytes().all(fine)
        && digest.len() == 64
        && digest.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn twice<'a>(key: &str, entries: impl Iterator<Item = (&'a str, Range<usize>)>, found: &mut Findings) {
    let mut seen: BTreeMap<&str, Range<usize>> = BTreeMap::new();
    for (text, place) in entries {
        if let Some(first) = seen.insert(text, place.clone()) {
            found.push(
                Diagnostic::new(place, format!("`{}` is in `{key}` twice", cut(text)))
                    .expected("expected each once")
                    .related(first, "the first"),
            );
        }
    }
}

/// Where no file of the user's goes: Kiln's own files, what only a running machine has, and what the bake's end removes.
const RESERVED: [&str; 14] = [
    "/opt/kiln",
    "/opt/actions-runner",
    "/etc/kiln",
    "/usr/share/kiln",
    "/usr/local/bin/kiln-bootstrap",
    "/etc/docker/daemon.json",
    "/etc/cloud/cloud.cfg.d/95-kiln.cfg",
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/tmp",
    "/var/log",
    "/etc/machine-id",
];

fn files(raw: &RawImage, found: &mut Findings) -> Vec<ImageFile> {
    let list = raw.files.as_ref().map(|list| list.get_ref().as_slice()).unwrap_or_default();
    let destinations = list.iter().filter_map(|file| file.destination.as_ref());
    twice("files", destinations.map(|path| (path.get_ref().as_str(), path.span())), found);
    list.iter().filter_map(|file| self::file(file, found)).collect()
}

fn file(raw: &RawImageFile, found: &mut Findings) -> Option<ImageFile> {
    let source = raw.source.as_ref().and_then(|source| local("`source`", source, found));
    let destination = raw.destination.as_ref().and_then(|path| destination(path, found));
    let mode = match &raw.mode {
        None => Some(0o644),
        Some(mode) => {
            let digits = mode.get_ref();
            let fits = (3..=4).contains(&digits.len())
                && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit))
                && (digits.len() == 3 || digits.starts_with('0'));
            if !fits {
                found.push(
                    Diagnostic::of_value(mode.span(), "`mode`", digits)
                        .expected("expected three octal digits such as \"0755\"")
                        .hint("a file that runs with its owner's rights is made by a script"),
                );
            }
            u32::from_str_radix(digits, 8).ok().filter(|_| fits)
        }
    };
    Some(ImageFile { source: source?, destination: destination?, mode: mode? })
}

fn destination(value: &Spanned<String>, found: &mut Findings) -> Option<String> {
    let path = value.get_ref();
    let fine = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._+@-".contains(&byte))
    };
    let wrong = Diagnostic::of_value(value.span(), "`destination`", path);
    if path.len() > 256 || !path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(fine)) {
        found.push(wrong.expected("expected the absolute path of a file: letters, digits and any of . _ + @ -"));
        return None;
    }
    let below = |folder: &&str| path == *folder || path.strip_prefix(*folder).is_some_and(|rest| rest.starts_with('/'));
    if let Some(reserved) = RESERVED.iter().find(|folder| below(folder)) {
        found.push(wrong.expected(format!("expected a path outside of {reserved}, which is not yours")));
        return None;
    }
    Some(path.clone())
}

fn components(raw: &RawImage, found: &mut Findings) -> Vec<ComponentSource> {
    let list = raw.components.as_ref().map(|list| list.get_ref().as_slice()).unwrap_or_default();
    twice("components", list.iter().map(|entry| (entry.get_ref().as_str(), entry.span())), found);
    list.iter().filter_map(|entry| component(entry, found)).collect()
}

fn component(entry: &Spanned<String>, found: &mut Findings) -> Option<ComponentSource> {
    let text = entry.get_ref();
    if !text.starts_with("arn:") {
        return local("an entry of `components`", entry, found).map(ComponentSource::Document);
    }
    if is_component_build(text) {
        return Some(ComponentSource::Arn(text.clone()));
    }
    found.push(
        Diagnostic::of_value(entry.span(), "an entry of `components`", text)
            .expected("expected arn:…:imagebuilder:REGION:ACCOUNT:component/NAME/1.2.3/1")
            .hint("with version and build number: another build would be another image under the same inputs"),
    );
    None
}

/// source: `botocore`, `imagebuilder/2019-12-02/service-2.json`, `ComponentVersionArnOrBuildVersionArn`, of which this is the
/// form with a build number
fn is_component_build(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    let [_, partition, "imagebuilder", region, account, resource] = parts.as_slice() else { return false };
    let number = |part: &str| !part.is_empty() && part.bytes().all(|digit| digit.is_ascii_digit());
    let name = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte))
    };
    let rest: Vec<&str> = resource.split('/').collect();
    let ["component", component, version, build] = rest.as_slice() else { return false };
    let version: Vec<&str> = version.split('.').collect();
    partition.starts_with("aws")
        && [partition, region, account, component].into_iter().all(|part| name(part))
        && version.len() == 3
        && version.into_iter().all(number)
        && number(build)
}
