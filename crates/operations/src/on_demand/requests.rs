//! What the two stacks are asked to be.

use std::collections::BTreeMap;

use kiln_config::boot::{App, ControllerConfig, UserData};
use kiln_config::config::{Config, Fleet, MOST_EGRESS_PORTS, MOST_TAGS, Network};
use kiln_config::environment;
use kiln_config::model::{AmiId, Architecture, KeyStore};
use kiln_image::payload::sha256;

use crate::ami::bucket_named;
use crate::code::Code;
use crate::error::{Error, Result};
use crate::fleet_stack::{SHORT_NAME, SHORTEST_LIMIT, named, numbered, output, stack_tags};
use crate::ports::{Caller, Stack, StackRequest};

/// The fleet stack's template, as it stands in `infra/`.
pub const ON_DEMAND_TEMPLATE: &str = include_str!("../../../../infra/on-demand.yaml");

/// The controller stack's template, as it stands in `infra/`.
pub const CONTROLLER_TEMPLATE: &str = include_str!("../../../../infra/controller.yaml");

/// How the names of the roles of on-demand fleets' instances end: by it the controller may hand out these alone. A group's
/// role ends in its region or a digest. The longest login leaves room for no longer end.
const ROLE_END: &str = "--od";

/// The bucket of the controller. An organization's login has no two hyphens in a row, so it is no other's bucket.
pub fn control_bucket(config: &Config, caller: &Caller) -> String {
    bucket_named(&format!("{}--control", config.prefix()), config, caller)
}

/// The fleet's stack.
///
/// # Errors
/// [`crate::Kind::Configuration`] when the fleet can't be described to its instances.
pub fn fleet_request(
    config: &Config,
    fleet: &Fleet,
    ami: &AmiId,
    bucket: &str,
    network: Option<&Stack>,
) -> Result<StackRequest> {
    let data = UserData::OnDemand(Box::new(config.on_demand_config(fleet, bucket)));
    let data = data.to_json().map_err(|error| {
        Error::new(Code::BootConfigTooLarge, format!("fleet `{}` can't be described to its instances", fleet.name))
            .caused_by(error)
            .hint("a smaller `environment` makes it fit")
    })?;
    let mut parameters = BTreeMap::new();
    parameters.extend(named([
        ("AmiId", ami.to_string()),
        ("BootConfig", data),
        ("Organization", config.prefix()),
        ("Fleet", fleet.name.to_string()),
        ("ControlBucket", bucket.to_owned()),
        ("VolumeGib", fleet.volume.gib.to_string()),
        ("VolumeIops", fleet.volume.iops.to_string()),
        ("VolumeThroughputMibps", fleet.volume.throughput_mibps.to_string()),
        ("VpcId", vpc(config, fleet, network)),
        ("SessionManager", fleet.session_manager.to_string()),
        ("PermissionsBoundary", config.permissions_boundary.clone().unwrap_or_default()),
        (SHORT_NAME, role_name(config, fleet)),
    ]));
    parameters.extend(numbered("EgressPort", MOST_EGRESS_PORTS, &fleet.egress_ports));
    parameters.extend(numbered("TagKey", MOST_TAGS, config.tags.keys()));
    parameters.extend(numbered("TagValue", MOST_TAGS, config.tags.values()));
    let mut tags = stack_tags(config);
    tags.insert("kiln:fleet".to_owned(), fleet.name.to_string());
    Ok(StackRequest {
        name: config.fleet_stack(&fleet.name),
        template: ON_DEMAND_TEMPLATE.to_owned(),
        parameters,
        tags,
    })
}

/// The controller's stack; it lives where the host does.
///
/// # Errors
/// [`crate::Kind::Configuration`] when the controller's settings are too long.
pub fn controller_request(
    config: &Config,
    host: &Fleet,
    ami: &AmiId,
    bucket: &str,
    network: Option<&Stack>,
) -> Result<StackRequest> {
    let settings = ControllerConfig {
        organization: config.organization.clone(),
        github: config.github.clone(),
        app: App { issuer: config.app.id.issuer(), installation_id: config.app.installation_id },
        key: config.key_source(host.key_store),
        bucket: bucket.to_owned(),
        region: config.region.clone(),
        environment: of_the_controller(host),
    };
    let settings = UserData::Controller(Box::new(settings)).to_json().map_err(|error| {
        Error::new(Code::BootConfigTooLarge, "the controller's settings are too long").caused_by(error)
    })?;
    let (alias, secret) = match host.key_store {
        KeyStore::Kms => (config.key_alias(), String::new()),
        KeyStore::SecretsManager => (String::new(), config.key_secret()),
    };
    let mut parameters = BTreeMap::new();
    parameters.extend(named([
        ("AmiId", ami.to_string()),
        ("ControllerConfig", settings),
        ("Organization", config.prefix()),
        ("InstanceType", instance_type(host.architecture).to_owned()),
        ("BucketName", bucket.to_owned()),
        ("VpcId", vpc(config, host, network)),
        ("SubnetIds", subnets(config, host, network)),
        ("KeyAlias", alias),
        ("SecretName", secret),
        ("PermissionsBoundary", config.permissions_boundary.clone().unwrap_or_default()),
        ("AlarmTopic", config.alarm_topic.clone().unwrap_or_default()),
    ]));
    parameters.extend(numbered("EgressPort", MOST_EGRESS_PORTS, &host.egress_ports));
    Ok(StackRequest {
        name: config.controller_stack(),
        template: CONTROLLER_TEMPLATE.to_owned(),
        parameters,
        tags: stack_tags(config),
    })
}

/// The proxies, and the certificates that go with them: what else is a fleet's is for its jobs.
fn of_the_controller(host: &Fleet) -> BTreeMap<String, String> {
    let reaches = |name: &str| {
        environment::names_a_proxy(name)
            || name.eq_ignore_ascii_case("no_proxy")
            || matches!(name, "SSL_CERT_FILE" | "SSL_CERT_DIR")
    };
    host.environment
        .iter()
        .filter(|(name, _)| reaches(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// A gibibyte of memory: the image starts docker too. The controller itself takes a few megabytes.
///
/// assumption: not measured on EC2.
fn instance_type(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "t3.micro",
        Architecture::Aarch64 => "t4g.micro",
    }
}

fn vpc(config: &Config, fleet: &Fleet, network: Option<&Stack>) -> String {
    match &fleet.network {
        Network::NewVpc => output(config, network, "VpcId"),
        Network::Subnets { vpc, .. } => vpc.clone(),
    }
}

/// The subnets, with commas between them.
pub(super) fn subnets(config: &Config, fleet: &Fleet, network: Option<&Stack>) -> String {
    match &fleet.network {
        Network::NewVpc => output(config, network, "SubnetIds"),
        Network::Subnets { subnets, .. } => subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

/// The stack's name and region, for a role is an account's; the end is replaced by a digest where that is too long.
fn role_name(config: &Config, fleet: &Fleet) -> String {
    let name = format!("{}-{}", config.fleet_stack(&fleet.name), config.region);
    let room = SHORTEST_LIMIT - ROLE_END.len();
    if name.len() <= room {
        return name + ROLE_END;
    }
    let digest = sha256(name.as_bytes());
    format!("{}-{}{ROLE_END}", &name[..room - 7], &digest.as_str()[..6])
}

/// Refuses a fleet whose stack is of the other kind: an update would end the instances of a group with the jobs on them, and
/// leave those of an on-demand fleet to nobody.
///
/// # Errors
/// [`Code::FleetKindChanged`].
pub fn require_kind(fleet: &Fleet, stack: Option<&Stack>) -> Result<()> {
    let Some(stack) = stack else { return Ok(()) };
    let (group, role) = (stack.outputs.contains_key("Group"), stack.outputs.contains_key("RoleId"));
    let (was, is) = match fleet.on_demand {
        Some(_) if group => ("a group", "on demand"),
        None if role => ("on demand", "a group"),
        _ => return Ok(()),
    };
    let name = &fleet.name;
    Err(Error::new(Code::FleetKindChanged, format!("fleet {name} is {was}, and kiln.toml makes it {is}")).hint(format!(
        "`cargo xtask destroy --fleet {name}` waits for its jobs, then `cargo xtask deploy --fleet {name}`; or give the \
         new one another name"
    )))
}
