//! What a fleet's stack is asked to be: kiln.toml's settings as the parameters of `infra/fleet.yaml`.

use std::collections::BTreeMap;

use kiln_config::config::{Config, Fleet, MOST_EGRESS_PORTS, MOST_TAGS, Network, Spot};
use kiln_config::model::{AmiId, KeyStore, SpotStrategy};
use kiln_image::payload::sha256;

use crate::code::Code;
use crate::error::{Error, Result};
use crate::ports::{Cloud, Stack, StackRequest};

/// The fleet stack's template, as it stands in `infra/`.
pub const FLEET_TEMPLATE: &str = include_str!("../../../infra/fleet.yaml");

/// The network stack's template, for fleets with `network = "create-vpc"`.
pub const NETWORK_TEMPLATE: &str = include_str!("../../../infra/network.yaml");

/// A parameter's value that is another stack's output, known once that stack exists: `output:STACK:KEY`.
const OUTPUT: &str = "output:";

/// The parameter that holds the group at the version that serves.
pub const SERVING: &str = "ServingLaunchTemplateVersion";

/// The parameter with the name of what may have only a short one.
pub const SHORT_NAME: &str = "ShortName";

/// Roles and rules have names of 64 characters at most.
///
/// Source: <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>,
/// <https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutRule.html>
pub(crate) const SHORTEST_LIMIT: usize = 64;

/// Parameters that end up in the launch template. A change to one of them, or to the template, may make a new version.
#[rustfmt::skip]
pub const LAUNCH_PARAMETERS: &[&str] = &[
    "AmiId", "BootConfig", "InstanceType1", "KeyAlias", "SecretName", "VpcId", "PermissionsBoundary", "ShortName",
    "VolumeGib", "VolumeIops", "VolumeThroughputMibps",
    "TagKey1", "TagKey2", "TagKey3", "TagKey4", "TagKey5", "TagKey6", "TagKey7", "TagKey8", "TagKey9", "TagKey10",
    "TagValue1", "TagValue2", "TagValue3", "TagValue4", "TagValue5",
    "TagValue6", "TagValue7", "TagValue8", "TagValue9", "TagValue10",
];

/// The stack's wanted state, with the group held at a version or (`""`) following the newest.
///
/// # Errors
/// [`crate::Kind::Configuration`] when the fleet can't be described to its instances.
pub fn stack_request(
    config: &Config,
    fleet: &Fleet,
    ami: &AmiId,
    network: Option<&Stack>,
    serving: &str,
) -> Result<StackRequest> {
    let boot_config = config.boot_config(fleet).to_json().map_err(|error| {
        Error::new(Code::BootConfigTooLarge, format!("fleet `{}` can't be described to its instances", fleet.name))
            .caused_by(error)
            .hint("fewer or shorter labels make it fit")
    })?;
    let text = |value: &dyn ToString| value.to_string();
    let (alias, secret) = match fleet.key_store {
        KeyStore::Kms => (config.key_alias(), String::new()),
        KeyStore::SecretsManager => (String::new(), config.key_secret()),
    };
    let (vpc, subnets) = match &fleet.network {
        Network::NewVpc => (output(config, network, "VpcId"), output(config, network, "SubnetIds")),
        Network::Subnets { vpc, subnets } => {
            (vpc.clone(), subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
        }
    };
    let mut parameters = BTreeMap::new();
    parameters.extend(named([
        ("AmiId", text(ami)),
        ("BootConfig", boot_config),
        ("MinSize", text(&fleet.min)),
        ("MaxSize", text(&fleet.max)),
        ("VolumeGib", text(&fleet.volume.gib)),
        ("VolumeIops", text(&fleet.volume.iops)),
        ("VolumeThroughputMibps", text(&fleet.volume.throughput_mibps)),
        ("VpcId", vpc),
        ("SubnetIds", subnets),
        ("KeyAlias", alias),
        ("SecretName", secret),
        ("SessionManager", text(&fleet.session_manager)),
        ("PermissionsBoundary", config.permissions_boundary.clone().unwrap_or_default()),
        ("AlarmTopic", config.alarm_topic.clone().unwrap_or_default()),
        ("TerminationHeartbeatSecs", text(&fleet.termination_heartbeat_timeout_secs)),
        ("LaunchTimeoutSecs", text(&LAUNCH_TIMEOUT_SECS)),
        (SHORT_NAME, short_name(config, fleet)),
        (SERVING, serving.to_owned()),
    ]));
    parameters.extend(named(spot(fleet.spot.as_ref())));
    parameters.extend(numbered("InstanceType", MAX_INSTANCE_TYPES, &fleet.instance_types));
    parameters.extend(numbered("EgressPort", MOST_EGRESS_PORTS, &fleet.egress_ports));
    parameters.extend(numbered("TagKey", MOST_TAGS, config.tags.keys()));
    parameters.extend(numbered("TagValue", MOST_TAGS, config.tags.values()));
    let mut tags = stack_tags(config);
    tags.insert("kiln:fleet".to_owned(), fleet.name.to_string());
    Ok(StackRequest { name: config.fleet_stack(&fleet.name), template: FLEET_TEMPLATE.to_owned(), parameters, tags })
}

/// The stack's name and region, for a role is an account's; the end is replaced by a digest where that is too long. It begins
/// as the stack's name does, which rights go by: what CloudFormation cuts out of a long one does not.
fn short_name(config: &Config, fleet: &Fleet) -> String {
    let name = format!("{}-{}", config.fleet_stack(&fleet.name), config.region);
    if name.len() <= SHORTEST_LIMIT {
        return name;
    }
    let digest = sha256(name.as_bytes());
    format!("{}-{}", &name[..SHORTEST_LIMIT - 7], &digest.as_str()[..6])
}

/// A stack keeps the names it was made with: another one would replace the role that its instances work by.
pub fn keep_names(request: &mut StackRequest, stack: &Stack) {
    let name = stack.parameters.get(SHORT_NAME).cloned().unwrap_or_default();
    request.parameters.insert(SHORT_NAME.to_owned(), name);
}

pub(crate) fn named<const N: usize>(values: [(&str, String); N]) -> [(String, String); N] {
    values.map(|(name, value)| (name.to_owned(), value))
}

/// `NAME1`, `NAME2`…, empty where there are fewer values than parameters.
pub(crate) fn numbered<T: ToString>(
    name: &str,
    count: usize,
    values: impl IntoIterator<Item = T>,
) -> impl Iterator<Item = (String, String)> {
    let values = values.into_iter().map(|value| value.to_string()).chain(std::iter::repeat(String::new()));
    values.take(count).enumerate().map(move |(index, value)| (format!("{name}{}", index + 1), value))
}

fn spot(spot: Option<&Spot>) -> [(&'static str, String); 4] {
    // No spot capacity is a hundred percent on-demand; what else is said of spot has no meaning then.
    let none = Spot { on_demand_base: 0, on_demand_percent: 100, strategy: NO_STRATEGY, capacity_rebalance: false };
    let spot = spot.unwrap_or(&none);
    [
        ("OnDemandBase", spot.on_demand_base.to_string()),
        ("OnDemandPercent", spot.on_demand_percent.to_string()),
        ("SpotStrategy", spot.strategy.as_str().to_owned()),
        ("CapacityRebalance", spot.capacity_rebalance.to_string()),
    ]
}

/// What Auto Scaling is told where there is nothing to choose.
const NO_STRATEGY: SpotStrategy = SpotStrategy::PriceCapacityOptimized;

/// The tags of every stack, which CloudFormation hands on to what is in it.
pub fn stack_tags(config: &Config) -> BTreeMap<String, String> {
    let own = ("kiln:managed".to_owned(), "true".to_owned());
    config.tags.clone().into_iter().chain([own]).collect()
}

/// How long an instance may take to register, in seconds. Measured boots take well under a minute; ten leave room for
/// GitHub's and AWS's own bad minutes, which the bootstrap binary rides out with retries.
const LAUNCH_TIMEOUT_SECS: u32 = 600;

/// The organization's network, shared by the fleets that ask for one.
pub fn network_request(config: &Config) -> StackRequest {
    StackRequest {
        name: config.network_stack(),
        template: NETWORK_TEMPLATE.to_owned(),
        parameters: BTreeMap::new(),
        tags: stack_tags(config),
    }
}

/// An output of the network's stack, or a reference to it while there is none.
pub(crate) fn output(config: &Config, network: Option<&Stack>, key: &str) -> String {
    network
        .and_then(|stack| stack.outputs.get(key).cloned())
        .unwrap_or_else(|| output_reference(&config.network_stack(), key))
}

/// A reference to an output that is known once its stack exists.
pub(crate) fn output_reference(stack: &str, key: &str) -> String {
    format!("{OUTPUT}{stack}:{key}")
}

/// Is it a reference to an output that is not known yet?
pub(crate) fn is_reference(value: &str) -> bool {
    value.starts_with(OUTPUT)
}

/// What a reference to an output of this stack stands for.
pub(crate) fn referred(value: &str, stack: &Stack) -> Option<String> {
    let (name, key) = value.strip_prefix(OUTPUT)?.split_once(':')?;
    (name == stack.name).then(|| stack.outputs.get(key).cloned())?
}

/// Puts the outputs in the place of references to them.
pub(crate) async fn resolved(cloud: &impl Cloud, request: &StackRequest) -> Result<StackRequest> {
    let mut request = request.clone();
    for value in request.parameters.values_mut() {
        *value = resolve(cloud, value).await?;
    }
    Ok(request)
}

/// What a value stands for, where it is a reference to an output.
pub(crate) async fn resolve(cloud: &impl Cloud, value: &str) -> Result<String> {
    let Some((stack, key)) = value.strip_prefix(OUTPUT).and_then(|rest| rest.split_once(':')) else {
        return Ok(value.to_owned());
    };
    let found = cloud.stack(stack).await?.and_then(|stack| stack.outputs.get(key).cloned());
    found.ok_or_else(|| Error::new(Code::StackDrifted, format!("stack `{stack}` has no output `{key}`")))
}

/// The template declares as many parameters for instance types.
pub const MAX_INSTANCE_TYPES: usize = 5;
