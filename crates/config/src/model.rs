//! Names and numbers shared by the operator's side and the instance. Each is a type of its own, so that a fleet's
//! name can't be passed where a group's is wanted.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A string that does not have the form its type asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not {expected}")]
pub struct Malformed {
    /// What was given.
    pub value: String,
    /// What was expected, with its article: "a runner version such as 2.338.0".
    pub expected: &'static str,
}

/// Declares a string newtype whose only constructor checks its form.
macro_rules! checked_string {
    ($(#[$doc:meta])* $name:ident, $expected:literal, $check:expr) => {
        checked_string! { @ordered by [PartialOrd, Ord] $(#[$doc])* $name, $expected, $check }
    };
    // Of its own order.
    (@ordered by [$($order:ident),*] $(#[$doc:meta])* $name:ident, $expected:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize $(, $order)*)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The value as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Malformed;
            fn from_str(value: &str) -> Result<Self, Malformed> {
                let check: fn(&str) -> bool = $check;
                if check(value) {
                    Ok(Self(value.to_owned()))
                } else {
                    Err(Malformed { value: value.to_owned(), expected: $expected })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = Malformed;
            fn try_from(value: String) -> Result<Self, Malformed> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn all(value: &str, ok: fn(u8) -> bool) -> bool {
    !value.is_empty() && value.bytes().all(ok)
}

fn lower_hyphenated(value: &str) -> bool {
    value.as_bytes().first().is_some_and(u8::is_ascii_lowercase)
        && !value.ends_with('-')
        && all(value, |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn aws_id(value: &str, prefix: &str) -> bool {
    value.strip_prefix(prefix).is_some_and(|rest| {
        (8..=17).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

checked_string! {
    /// A GitHub organization's login.
    Organization, "an organization's login: letters, digits and single hyphens, at most 39 characters",
    |v| v.len() <= 39 && all(v, |b| b.is_ascii_alphanumeric() || b == b'-')
        && !v.starts_with('-') && !v.ends_with('-') && !v.contains("--")
}
impl Organization {
    /// What the name of everything of the organization's begins with, and the value of the tag of its on-demand instances.
    ///
    /// Roles are given rights on `PREFIX-fleet-*` and `PREFIX-image-*`. Were there an organization `acme-fleet` next to `acme`
    /// in the account, its names would be among those, so its prefix has a second hyphen, which no login has:
    /// `kiln-acme--fleet`.
    pub fn prefix(&self) -> String {
        let login = self.as_str().to_ascii_lowercase();
        let mut prefix = String::from("kiln");
        for (place, part) in login.split('-').enumerate() {
            prefix.push_str(if place > 0 && matches!(part, "fleet" | "image") { "--" } else { "-" });
            prefix.push_str(part);
        }
        prefix
    }
}

checked_string! {
    /// A fleet's name, the `NAME` of `[fleet.NAME]`. It becomes part of stack, group and runner names: GitHub allows a
    /// runner name 64 characters, of which the instance id takes 20 and an ephemeral boot's suffix 9.
    FleetName, "a fleet's name: a lower-case letter, then lower-case letters, digits or hyphens, at most 24 characters",
    |v| v.len() <= 24 && lower_hyphenated(v)
}
checked_string! {
    /// An image's name, the `NAME` of `[image.NAME]`. It becomes part of the names of Image Builder's resources, of AMIs and
    /// of the parameter that records the image.
    ImageName, "an image's name: a lower-case letter, then lower-case letters, digits or hyphens, at most 24 characters",
    |v| v.len() <= 24 && lower_hyphenated(v)
}
checked_string! {
    /// An AWS region's code.
    Region, "an AWS region's code such as eu-central-1",
    |v| { let parts: Vec<&str> = v.split('-').collect();
          parts.len() >= 3 && parts.iter().all(|p| all(p, |b| b.is_ascii_lowercase() || b.is_ascii_digit()))
          && parts.last().is_some_and(|p| all(p, |b| b.is_ascii_digit())) }
}
checked_string! {
    /// An Auto Scaling group's name.
    GroupName, "an Auto Scaling group's name of at most 255 characters, without a colon",
    |v| v.len() <= 255 && !v.is_empty() && !v.contains(':')
}
checked_string! {
    /// An EC2 instance id.
    InstanceId, "an instance id such as i-0123456789abcdef0", |v| aws_id(v, "i-")
}
checked_string! {
    /// An Amazon Machine Image id.
    AmiId, "an AMI id such as ami-0123456789abcdef0", |v| aws_id(v, "ami-")
}
checked_string! {
    /// An EC2 security group's id.
    SecurityGroupId, "a security group's id such as sg-0123456789abcdef0", |v| aws_id(v, "sg-")
}
checked_string! {
    /// An EBS snapshot id.
    SnapshotId, "a snapshot id such as snap-0123456789abcdef0", |v| aws_id(v, "snap-")
}
checked_string! {
    /// A VPC subnet id.
    SubnetId, "a subnet id such as subnet-0123456789abcdef0", |v| aws_id(v, "subnet-")
}
checked_string! {
    /// A VPC's id.
    VpcId, "a VPC's id such as vpc-0123456789abcdef0", |v| aws_id(v, "vpc-")
}
checked_string! {
    @ordered by []
    /// A release of actions/runner, without the tag's leading `v`. The newer is the greater.
    RunnerVersion, "a runner version such as 2.338.0",
    |v| v.split('.').count() == 3 && v.split('.').all(|p| p.len() <= 6 && all(p, |b| b.is_ascii_digit()))
}
checked_string! {
    @ordered by []
    /// A release of Node, without the tag's leading `v`. The newer is the greater.
    NodeVersion, "a release of Node such as 24.19.0",
    |v| v.split('.').count() == 3 && v.split('.').all(|p| p.len() <= 6 && all(p, |b| b.is_ascii_digit()))
}
checked_string! {
    /// A KMS key's ARN.
    KmsKeyArn, "a KMS key's ARN such as arn:aws:kms:eu-central-1:111122223333:key/mrk-0123456789abcdef0123456789abcdef",
    |v| match *v.split(':').collect::<Vec<_>>().as_slice() {
        ["arn", partition, "kms", region, account, key] => {
            partition.strip_prefix("aws").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'))
                && all(region, |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && account.len() == 12
                && all(account, |b| b.is_ascii_digit())
                && key.strip_prefix("key/").is_some_and(|id| all(id, |b| b.is_ascii_alphanumeric() || b == b'-'))
        }
        _ => false,
    }
}
checked_string! {
    /// An AWS account's number.
    AccountId, "an AWS account's number: 12 digits", |v| v.len() == 12 && all(v, |b| b.is_ascii_digit())
}
checked_string! {
    /// A SHA-256 digest as 64 lower-case hexadecimal digits.
    Sha256, "a SHA-256 digest: 64 lower-case hexadecimal digits",
    |v| v.len() == 64 && all(v, |b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
checked_string! {
    /// A runner label. GitHub takes any text of 256 characters; a comma would split it in two in config.sh's list, which
    /// also cuts blanks off its ends.
    ///
    /// Source: `GetLabels` and `LabelsValidator` in src/Runner.Listener of actions/runner; assumption: the API takes what those do.
    Label, "a label: at most 256 characters, no comma, no blank at its ends",
    |v| !v.is_empty() && v.chars().count() <= 256 && v.trim() == v && !v.contains(|c: char| c == ',' || c.is_control())
}
checked_string! {
    /// An EC2 instance type.
    InstanceType, "an instance type such as m6i.large",
    |v| v.split('.').count() == 2 && v.split('.').all(|p| all(p, |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))
}

/// Orders versions by their numbers: text would put 2.9.0 above 2.10.0.
macro_rules! ordered_by_numbers {
    ($name:ident) => {
        impl $name {
            /// Major, minor and patch.
            pub fn numbers(&self) -> [u32; 3] {
                let mut numbers = self.0.split('.').map(|part| part.parse().expect("a part is one to six digits"));
                std::array::from_fn(|_| numbers.next().expect("a version has three parts"))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                // 1.0.0 and 1.00.0 are not the same text.
                (self.numbers(), &self.0).cmp(&(other.numbers(), &other.0))
            }
        }

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
    };
}

ordered_by_numbers!(RunnerVersion);
ordered_by_numbers!(NodeVersion);

/// GitHub refuses to register older runners since 2026-09.
///
/// Source: <https://docs.github.com/en/actions/reference/runners/self-hosted-runners>
pub const OLDEST_RUNNER: [u32; 3] = [2, 329, 0];

impl KmsKeyArn {
    /// The partition's part of it.
    pub fn partition(&self) -> &str {
        self.0.split(':').nth(1).unwrap_or_default()
    }

    /// The region's part of it.
    pub fn region(&self) -> &str {
        self.0.split(':').nth(3).unwrap_or_default()
    }

    /// Is it a multi-Region key, which has the same id wherever it has a replica?
    pub fn is_multi_region(&self) -> bool {
        self.0.contains(":key/mrk-")
    }

    /// The replica in a region.
    pub fn in_region(&self, region: &Region) -> Self {
        Self(self.0.replacen(&format!(":{}:", self.region()), &format!(":{region}:"), 1))
    }
}

impl NodeVersion {
    /// The first of its numbers.
    pub fn major(&self) -> u32 {
        self.numbers()[0]
    }
}

impl InstanceType {
    /// The processor's architecture, as the family's name tells it: Graviton families have a `g` among the letters
    /// behind the generation's digit (m6g, c7gn, im4gn, p6e-gb200), and a1 was the first of all. A `g` before the digit
    /// stands for graphics (g5, gr6).
    ///
    /// Source: <https://docs.aws.amazon.com/ec2/latest/instancetypes/instance-type-names.html>
    pub fn architecture(&self) -> Architecture {
        let family = self.0.split('.').next().unwrap_or_default();
        let generation = family.trim_start_matches(|c: char| !c.is_ascii_digit());
        if generation.contains('g') || family == "a1" { Architecture::Aarch64 } else { Architecture::X86_64 }
    }
}

/// A processor architecture, by its Rust target's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// 64-bit x86 (`x64` in the names of actions/runner's assets).
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm (`arm64` in AWS and in actions/runner).
    Aarch64,
}

impl Architecture {
    /// Every architecture Kiln builds for.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// As Rust's targets name it.
    pub fn rust_name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As EC2 and its public parameters name it.
    pub fn aws_name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "arm64",
        }
    }

    /// As Debian and Ubuntu name it.
    pub fn debian_name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// As actions/runner's release assets name it.
    pub fn runner_name(self) -> &'static str {
        match self {
            Self::X86_64 => "x64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The target the bootstrap binary is built for.
    pub fn musl_target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Aarch64 => "aarch64-unknown-linux-musl",
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rust_name())
    }
}

/// The operating system an image is built on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
pub enum BaseImage {
    /// Amazon Linux 2. Its support ended on 2026-06-30.
    #[serde(rename = "amazon-linux-2")]
    AmazonLinux2,
    /// Amazon Linux 2023.
    #[serde(rename = "amazon-linux-2023")]
    AmazonLinux2023,
    /// Ubuntu 24.04.
    #[serde(rename = "ubuntu-24.04")]
    Ubuntu2404,
    /// Ubuntu 22.04.
    #[serde(rename = "ubuntu-22.04")]
    Ubuntu2204,
    /// Debian 13.
    #[serde(rename = "debian-13")]
    Debian13,
    /// Debian 12.
    #[serde(rename = "debian-12")]
    Debian12,
}

/// How packages are installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackageFormat {
    /// By `yum` or `dnf`.
    Rpm,
    /// By `apt-get`.
    Deb,
}

impl BaseImage {
    /// Every operating system that Kiln bakes on.
    pub const ALL: [Self; 6] =
        [Self::AmazonLinux2023, Self::AmazonLinux2, Self::Ubuntu2404, Self::Ubuntu2204, Self::Debian13, Self::Debian12];

    /// The system of that name in kiln.toml.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|base| base.name() == name)
    }

    /// How its packages are installed.
    pub fn packages(self) -> PackageFormat {
        match self {
            Self::AmazonLinux2 | Self::AmazonLinux2023 => PackageFormat::Rpm,
            Self::Ubuntu2404 | Self::Ubuntu2204 | Self::Debian13 | Self::Debian12 => PackageFormat::Deb,
        }
    }

    /// The name in kiln.toml.
    pub fn name(self) -> &'static str {
        match self {
            Self::AmazonLinux2 => "amazon-linux-2",
            Self::AmazonLinux2023 => "amazon-linux-2023",
            Self::Ubuntu2404 => "ubuntu-24.04",
            Self::Ubuntu2204 => "ubuntu-22.04",
            Self::Debian13 => "debian-13",
            Self::Debian12 => "debian-12",
        }
    }

    /// The public SSM parameter that holds the newest AMI id.
    ///
    /// Source: <https://docs.aws.amazon.com/linux/al2/ug/ec2.html>,
    /// <https://docs.aws.amazon.com/linux/al2023/ug/ec2.html>,
    /// <https://documentation.ubuntu.com/aws/aws-how-to/instances/find-ubuntu-images/> and
    /// <https://wiki.debian.org/Cloud/AmazonEC2Image/>.
    pub fn parameter(self, architecture: Architecture) -> String {
        let arch = architecture.aws_name();
        match self {
            Self::AmazonLinux2 => format!("/aws/service/ami-amazon-linux-latest/amzn2-ami-kernel-5.10-hvm-{arch}-gp2"),
            Self::AmazonLinux2023 => {
                format!("/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{arch}")
            }
            Self::Ubuntu2404 => canonical("24.04", "ebs-gp3", architecture),
            Self::Ubuntu2204 => canonical("22.04", "ebs-gp2", architecture),
            Self::Debian13 => format!("/aws/service/debian/release/13/latest/{}", architecture.debian_name()),
            Self::Debian12 => format!("/aws/service/debian/release/12/latest/{}", architecture.debian_name()),
        }
    }
}

/// Canonical's parameter of a release of Ubuntu.
fn canonical(release: &str, volume: &str, architecture: Architecture) -> String {
    let arch = architecture.debian_name();
    format!("/aws/service/canonical/ubuntu/server/{release}/stable/current/{arch}/hvm/{volume}/ami-id")
}

impl fmt::Display for BaseImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an image has beyond what the runner and docker need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Toolset {
    /// Nothing more.
    #[default]
    Minimal,
    /// What most workflows expect, from the distribution: jq, unzip, zip, make, a C compiler, python3 and more.
    Standard,
}

impl Toolset {
    /// The name in kiln.toml.
    pub fn name(self) -> &'static str {
        match self {
            Self::Minimal => "minimal",
            Self::Standard => "standard",
        }
    }
}

/// How a runner registers at GitHub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Registration {
    /// Registers with a registration token and `config.sh`. The runner takes one job after another.
    Persistent,
    /// Registers with a just-in-time configuration. The runner takes one job, then the instance is replaced.
    Ephemeral,
}

/// The Spot allocation strategy of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SpotStrategy {
    /// The pools with the lowest risk of interruption, the cheapest of them first.
    PriceCapacityOptimized,
    /// The pools with the lowest risk of interruption.
    CapacityOptimized,
    /// Like capacity-optimized, but respects the order of `instance_types` on a best-effort basis.
    CapacityOptimizedPrioritized,
}

impl SpotStrategy {
    /// As Auto Scaling names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PriceCapacityOptimized => "price-capacity-optimized",
            Self::CapacityOptimized => "capacity-optimized",
            Self::CapacityOptimizedPrioritized => "capacity-optimized-prioritized",
        }
    }
}

/// Where the GitHub App's private key is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum KeyStore {
    /// AWS KMS: the key is imported once and can only sign. No instance can read it.
    Kms,
    /// AWS Secrets Manager: instances read the PEM file and sign with it.
    SecretsManager,
}

impl fmt::Display for KeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kms => "kms",
            Self::SecretsManager => "secrets-manager",
        })
    }
}
