//! What a fleet's stack is asked to be: kiln.toml's settings as the parameters of `infra/fleet.yaml`.

use std::collections::BTreeMap;

use kiln_fleet::config::{Config, Fleet, Network};
use kiln_fleet::model::{AmiId, KeyStore};

use crate::error::{Error, Kind, Result};
use crate::ports::{Cloud, Stack, StackRequest};

/// The fleet stack's template, as it stands in `infra/`.
pub const FLEET_TEMPLATE: &str = include_str!("../../../infra/fleet.yaml");

/// The network stack's template, for fleets with `network = "create-vpc"`.
pub const NETWORK_TEMPLATE: &str = include_str!("../../../infra/network.yaml");

/// A parameter's value that is another stack's output, known once that stack exists: `output:STACK:KEY`.
const OUTPUT: &str = "output:";

/// The parameter that holds the group at the version that serves.
pub const SERVING: &str = "ServingLaunchTemplateVersion";

/// Parameters that end up in the launch template. A change to one of them, or to the template, may make a new version.
pub(crate) const LAUNCH_PARAMETERS: &[&str] =
    &["AmiId", "BootConfig", "InstanceType1", "KeyAlias", "SecretName", "VpcId"];

/// The stack's wanted state, with the group held at a version or (`""`) following the newest.
///
/// # Errors
/// [`Kind::Configuration`] when the fleet can't be described to its instances.
pub fn stack_request(
    config: &Config,
    fleet: &Fleet,
    ami: &AmiId,
    network: Option<&Stack>,
    serving: &str,
) -> Result<StackRequest> {
    let boot_config = config.boot_config(fleet).to_json().map_err(|error| {
        Error::new(Kind::Configuration, format!("fleet `{}` can't be described to its instances", fleet.name))
            .caused_by(error)
            .hint("fewer or shorter labels make it fit")
    })?;
    let mut parameters = BTreeMap::from([
        ("AmiId".to_owned(), ami.to_string()),
        ("BootConfig".to_owned(), boot_config),
        ("MinSize".to_owned(), fleet.min.to_string()),
        ("MaxSize".to_owned(), fleet.max.to_string()),
        ("TerminationHeartbeatSecs".to_owned(), fleet.heartbeat_secs.to_string()),
        ("LaunchTimeoutSecs".to_owned(), LAUNCH_TIMEOUT_SECS.to_string()),
        (SERVING.to_owned(), serving.to_owned()),
    ]);
    for index in 0..MAX_INSTANCE_TYPES {
        let value = fleet.instance_types.get(index).map(ToString::to_string).unwrap_or_default();
        parameters.insert(format!("InstanceType{}", index + 1), value);
    }
    let (alias, secret) = match fleet.key_store {
        KeyStore::Kms => (config.key_alias(), String::new()),
        KeyStore::SecretsManager => (String::new(), config.key_secret()),
    };
    parameters.insert("KeyAlias".to_owned(), alias);
    parameters.insert("SecretName".to_owned(), secret);
    let (vpc, subnets) = match &fleet.network {
        Network::NewVpc => (output(config, network, "VpcId"), output(config, network, "SubnetIds")),
        Network::Subnets { vpc, subnets } => {
            (vpc.clone(), subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
        }
    };
    parameters.insert("VpcId".to_owned(), vpc);
    parameters.insert("SubnetIds".to_owned(), subnets);
    Ok(StackRequest {
        name: config.fleet_stack(&fleet.name),
        template: FLEET_TEMPLATE.to_owned(),
        parameters,
        tags: BTreeMap::from([
            ("kiln:managed".to_owned(), "true".to_owned()),
            ("kiln:fleet".to_owned(), fleet.name.to_string()),
        ]),
    })
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
        tags: BTreeMap::from([("kiln:managed".to_owned(), "true".to_owned())]),
    }
}

/// An output of the network's stack, or a reference to it while there is none.
fn output(config: &Config, network: Option<&Stack>, key: &str) -> String {
    network
        .and_then(|stack| stack.outputs.get(key).cloned())
        .unwrap_or_else(|| format!("{OUTPUT}{}:{key}", config.network_stack()))
}

/// Puts the outputs in the place of references to them.
pub(crate) async fn resolved(cloud: &impl Cloud, request: &StackRequest) -> Result<StackRequest> {
    let mut request = request.clone();
    for value in request.parameters.values_mut() {
        let Some((stack, key)) = value.strip_prefix(OUTPUT).and_then(|rest| rest.split_once(':')) else { continue };
        let found = cloud.stack(stack).await?.and_then(|stack| stack.outputs.get(key).cloned());
        *value = found.ok_or_else(|| Error::new(Kind::Failed, format!("stack `{stack}` has no output `{key}`")))?;
    }
    Ok(request)
}

/// The template declares as many parameters for instance types.
pub const MAX_INSTANCE_TYPES: usize = 5;
