//! `kiln.toml` as it is written, with the place of each value. Its doc comments are the schema's descriptions.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use crate::model::{Architecture, BaseImage, KeyStore, Registration};

/// Kiln: GitHub Actions self-hosted runners for an organization.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "kiln.toml")]
pub(super) struct RawConfig {
    /// The GitHub organization's login.
    #[schemars(with = "String", example = &"acme")]
    pub(super) organization: Spanned<String>,
    /// The AWS region everything lives in.
    #[schemars(with = "String", example = &"eu-central-1")]
    pub(super) region: Spanned<String>,
    /// The GitHub App.
    #[schemars(with = "RawApp")]
    pub(super) app: Spanned<RawApp>,
    /// GitHub's endpoints, for GitHub Enterprise Server.
    #[schemars(with = "Option<RawGitHub>")]
    pub(super) github: Option<RawGitHub>,
    /// The pinned release of actions/runner.
    pub(super) runner: RawRunner,
    /// The fleets, by name.
    #[schemars(with = "BTreeMap<String, RawFleet>")]
    #[serde(default)]
    pub(super) fleet: BTreeMap<Spanned<String>, RawFleet>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawApp {
    /// The App's client id; either this or `app_id`.
    #[schemars(with = "Option<String>", example = &"Iv23liEXAMPLE0000000")]
    pub(super) client_id: Option<Spanned<String>>,
    /// The App's id; either this or `client_id`.
    #[schemars(with = "Option<u64>")]
    pub(super) app_id: Option<Spanned<u64>>,
    /// The App's installation in the organization. Written down, it saves each boot a request.
    pub(super) installation_id: Option<u64>,
    /// Where fleets keep the App's private key unless they say otherwise; `kms` by default.
    pub(super) key_store: Option<KeyStore>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGitHub {
    /// The web address; `https://github.com` by default.
    #[schemars(with = "Option<String>", example = &"https://github.example.com")]
    pub(super) url: Option<Spanned<String>>,
    /// The REST API's base; follows from `url` by default.
    #[schemars(with = "Option<String>", example = &"https://github.example.com/api/v3")]
    pub(super) api_url: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRunner {
    /// The release, without the tag's `v`.
    #[schemars(with = "String", example = &"2.338.0")]
    pub(super) version: Spanned<String>,
    /// The SHA-256 of the release's tarball, for each architecture in use.
    #[schemars(with = "BTreeMap<Architecture, String>")]
    pub(super) sha256: BTreeMap<Architecture, Spanned<String>>,
    /// Where releases are downloaded from; a mirror of `https://github.com/actions/runner/releases/download`.
    #[schemars(with = "Option<String>")]
    pub(super) release_url: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFleet {
    /// Labels beside the ones GitHub gives every self-hosted runner.
    #[schemars(with = "Vec<String>")]
    #[serde(default)]
    pub(super) labels: Vec<Spanned<String>>,
    /// The runner group; `Default` by default.
    #[schemars(with = "Option<String>")]
    pub(super) runner_group: Option<Spanned<String>>,
    /// One runner for many jobs, or a fresh instance for each; `persistent` by default.
    pub(super) registration: Option<Registration>,
    /// The image's operating system; `amazon-linux-2` by default.
    #[schemars(with = "Option<BaseImage>")]
    pub(super) base_image: Option<Spanned<BaseImage>>,
    /// The image's architecture; `x86_64` by default.
    #[schemars(with = "Option<Architecture>")]
    pub(super) architecture: Option<Spanned<Architecture>>,
    /// Instance types in order of preference, one to five.
    #[schemars(with = "Vec<String>", length(min = 1, max = 5))]
    pub(super) instance_types: Spanned<Vec<Spanned<String>>>,
    /// The least number of instances, which Auto Scaling keeps up.
    #[schemars(with = "u32")]
    pub(super) min: Spanned<u32>,
    /// The largest number of instances.
    #[schemars(with = "u32", range(min = 1))]
    pub(super) max: Spanned<u32>,
    /// `"create-vpc"`, or the VPC and subnets to use.
    #[schemars(with = "RawNetwork")]
    pub(super) network: Spanned<RawNetwork>,
    /// Where this fleet's instances find the App's key.
    pub(super) key_store: Option<KeyStore>,
    /// How long a leaving instance may be silent before Auto Scaling gives it up, in seconds; 300 by default.
    #[schemars(with = "Option<u32>", range(min = 30, max = 7200))]
    pub(super) heartbeat_secs: Option<Spanned<u32>>,
    /// How long a running job may delay an instance's end, in seconds; 21600 (6 h) by default.
    #[schemars(with = "Option<u32>", range(min = 60, max = 172_800))]
    pub(super) drain_limit_secs: Option<Spanned<u32>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected \"create-vpc\" or { vpc = \"vpc-…\", subnets = [\"subnet-…\"] }")]
pub(super) enum RawNetwork {
    /// One VPC for all fleets that ask for it: two private subnets behind a NAT gateway.
    Create(CreateVpc),
    /// Subnets that exist.
    Given(RawSubnets),
}

#[derive(Debug, Deserialize, JsonSchema)]
pub(super) enum CreateVpc {
    #[serde(rename = "create-vpc")]
    CreateVpc,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSubnets {
    /// The VPC of the subnets.
    pub(super) vpc: String,
    /// Subnets with a way out to the internet.
    #[schemars(length(min = 1))]
    pub(super) subnets: Vec<String>,
}
