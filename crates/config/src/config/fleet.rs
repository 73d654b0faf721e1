//! What one `[fleet.NAME]` can have wrong.

use std::collections::BTreeMap;
use std::ops::Range;
use std::str::FromStr;

use toml::Spanned;

use super::diagnostic::{Diagnostic, Findings, cut};
use super::infrastructure::IMAGE_VOLUME_GIB;
use super::raw::{RawFleet, RawNetwork, RawRegistration, RawSha256};
use super::{
    Config, DEFAULT_DRAIN_LIMIT_SECS, DEFAULT_HEARTBEAT_SECS, DEFAULT_REPLACE_PAUSE_SECS, DEFAULT_RUNNER_GROUP, Fleet,
    Image, Network, infrastructure, on_demand,
};
use crate::boot::{self, DockerAccess, MetadataAccess, Retirement};
use crate::environment::{self, Refused};
use crate::model::{Architecture, FleetName, InstanceType, KeyStore, Label, Malformed, Registration, SubnetId, VpcId};

/// Auto Scaling keeps an instance waiting for 48 hours or a hundred heartbeat timeouts, whichever is less; the 48 hours
/// are in the schema.
///
/// Source: <https://docs.aws.amazon.com/autoscaling/ec2/userguide/lifecycle-hooks-overview.html>
const MOST_HEARTBEATS: u32 = 100;

pub(super) fn validate(
    name: &Spanned<String>,
    raw: &RawFleet,
    image: Option<&Image>,
    (default_store, github): (KeyStore, Option<&boot::GitHub>),
    found: &mut Findings,
) -> Option<Fleet> {
    let fleet_name: Option<FleetName> = found.parse("the fleet's name", name);
    // Of an image with a mistake of its own nothing more is said.
    let architecture = image.map_or(Architecture::X86_64, |image| image.architecture);
    let on_demand = on_demand::validate(raw, found);
    let registration = match get(raw.registration.as_ref(), RawRegistration::Persistent) {
        RawRegistration::Persistent => Registration::Persistent,
        RawRegistration::Ephemeral | RawRegistration::OnDemand => Registration::Ephemeral,
    };
    let labels = labels(name, raw, architecture, found);
    let runner_group = runner_group(raw, found);
    let instance_types = raw.instance_types.as_ref().map(|types| instance_types(types, raw, image, found));
    let capacity = capacity(raw, found);
    let network = raw.network.as_ref().and_then(|network| self::network(network.get_ref(), found));
    let (termination_heartbeat_timeout_secs, drain_timeout_secs) = times(name, raw, found);
    let spot = infrastructure::spot(raw, found);
    let volume = infrastructure::volume(raw, image.map_or(IMAGE_VOLUME_GIB, |image| image.volume_gib), found);
    let egress_ports = github.map(|github| infrastructure::egress_ports(raw, github, found));
    access(raw, found);
    let (min, max) = capacity?;
    Some(Fleet {
        name: fleet_name?,
        labels,
        runner_group: runner_group?,
        registration,
        on_demand,
        image: image?.name.clone(),
        architecture,
        instance_types: instance_types?,
        min,
        max,
        spot,
        volume,
        egress_ports: egress_ports?,
        session_manager: get(raw.session_manager.as_ref(), false),
        network: network?,
        key_store: get(raw.key_store.as_ref(), default_store),
        termination_heartbeat_timeout_secs,
        drain_timeout_secs,
        failed_boot_grace_secs: get(raw.failed_boot_grace_secs.as_ref(), DEFAULT_REPLACE_PAUSE_SECS),
        retirement: Retirement {
            max_age_secs: raw.max_age_secs.as_ref().map(|secs| *secs.get_ref()),
            idle_limit_secs: raw.idle_limit_secs.as_ref().map(|secs| *secs.get_ref()),
        },
        canary_check: canary_check(raw, found),
        job_metadata_access: get(raw.job_metadata_access.as_ref(), MetadataAccess::Blocked),
        job_docker_access: get(raw.job_docker_access.as_ref(), DockerAccess::Allowed),
        wait_for_docker: get(raw.wait_for_docker.as_ref(), false),
        environment: environment(raw, found),
    })
}

/// An empty command would take every runner for good.
fn canary_check(raw: &RawFleet, found: &mut Findings) -> Option<String> {
    let check = raw.canary_check.as_ref()?;
    if check.get_ref().trim().is_empty() {
        found.push(Diagnostic::new(check.span(), "the check is empty").expected("expected a command"));
        return None;
    }
    Some(check.get_ref().clone())
}

/// What a job may reach goes with what it waits for.
fn access(raw: &RawFleet, found: &mut Findings) {
    if let Some(access) = raw.job_docker_access.as_ref().filter(|access| *access.get_ref() == DockerAccess::Blocked)
        && let Some(wait) = raw.wait_for_docker.as_ref().filter(|wait| *wait.get_ref())
    {
        found.push(
            Diagnostic::new(wait.span(), "jobs wait for docker, which they may not use")
                .expected("expected false")
                .related(access.span(), "docker is blocked"),
        );
    }
}

/// The runner reads its variables from a file of lines, and takes its own inputs from the environment.
fn environment(raw: &RawFleet, found: &mut Findings) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for (name, value) in raw.environment.iter().flatten() {
        let said = cut(name.get_ref());
        if let Some(refused) = environment::refused(name.get_ref()) {
            found.push(not_settable(name, refused).hiding(value.span()));
        } else if value.get_ref().contains(|c: char| c.is_control() && c != '\t') {
            found.push(
                Diagnostic::new(value.span(), format!("the value of `{said}` has a line break or control character"))
                    .expected("expected one line")
                    .hiding(value.span()),
            );
        } else if environment::names_a_proxy(name.get_ref()) {
            if let Some(address) = infrastructure::proxy(name, value, found) {
                variables.insert(name.get_ref().clone(), address);
            }
        } else if SECRETS_OF_AWS.contains(&name.get_ref().as_str()) && !value.get_ref().is_empty() {
            found.push(
                Diagnostic::new(name.span(), format!("`{said}` is a secret"))
                    .hiding(name.span().start..value.span().end)
                    .hint("take it out: anyone on an instance can read it; give jobs a role by OIDC in place of keys"),
            );
        } else {
            variables.insert(name.get_ref().clone(), value.get_ref().clone());
        }
    }
    variables
}

/// The halves of AWS credentials that nobody may see, by the name under which every SDK reads them.
const SECRETS_OF_AWS: [&str; 2] = ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

fn not_settable(name: &Spanned<String>, refused: Refused) -> Diagnostic {
    let said = cut(&name.get_ref().escape_debug().to_string());
    match refused {
        Refused::Malformed => Diagnostic::new(name.span(), format!("`{said}` is no variable's name"))
            .expected("expected letters, digits and underscores, no digit first"),
        Refused::LoadsCode => Diagnostic::new(name.span(), format!("`{said}` decides what code programs load"))
            .expected("expected a variable for jobs")
            .hint("set it in the workflow's steps that need it"),
        Refused::Reserved => Diagnostic::new(name.span(), format!("`{said}` belongs to the runner or to Kiln"))
            .expected("expected a variable for jobs")
            .hint("Kiln registers the runner, and sets what it needs for that"),
    }
}

fn get<T: Copy>(value: Option<&Spanned<T>>, default: T) -> T {
    value.map_or(default, |value| *value.get_ref())
}

/// A runner must be pinned for every architecture in use.
pub(super) fn pinned(
    name: &Spanned<String>,
    raw: &RawFleet,
    image: &Image,
    pins: &Spanned<RawSha256>,
    found: &mut Findings,
) {
    let architecture = image.architecture;
    let place = raw.image.as_ref().map_or_else(|| name.span(), Spanned::span);
    let pin = match architecture {
        Architecture::X86_64 => &pins.get_ref().x86_64,
        Architecture::Aarch64 => &pins.get_ref().aarch64,
    };
    if pin.is_none() {
        let message = format!("fleet `{}` runs on {architecture}, for which no runner is pinned", name.get_ref());
        found.push(
            Diagnostic::new(place, message)
                .related(pins.span(), format!("expected a digest for {architecture} in here"))
                .hint(format!(
                    "add `{architecture} = \"…\"`: the SHA-256 of actions-runner-linux-{}-VERSION.tar.gz on the \
                     release's page",
                    architecture.runner_name()
                )),
        );
    }
}

/// Parses the entries of an array and refuses those that are there twice; `same` is what makes them the same.
pub(super) fn distinct<T: FromStr<Err = Malformed>>(
    key: &str,
    entries: &[Spanned<String>],
    same: fn(&str) -> String,
    found: &mut Findings,
) -> Vec<(Range<usize>, T)> {
    let mut seen: BTreeMap<String, Range<usize>> = BTreeMap::new();
    let mut parsed = Vec::new();
    for entry in entries {
        let Some(value) = found.parse(&format!("an entry of `{key}`"), entry) else { continue };
        match seen.insert(same(entry.get_ref()), entry.span()) {
            None => parsed.push((entry.span(), value)),
            Some(first) => found.push(
                Diagnostic::new(entry.span(), format!("`{}` is in `{key}` twice", cut(entry.get_ref())))
                    .expected("expected each once")
                    .related(first, "the first"),
            ),
        }
    }
    parsed
}

fn labels(name: &Spanned<String>, raw: &RawFleet, architecture: Architecture, found: &mut Findings) -> Vec<Label> {
    let entries = raw.labels.as_ref().map_or(&[][..], |labels| labels.get_ref().as_slice());
    let registration = get(raw.registration.as_ref(), RawRegistration::Persistent);
    if entries.is_empty() && registration == RawRegistration::OnDemand {
        let span = raw.labels.as_ref().map_or_else(|| name.span(), Spanned::span);
        found.push(
            Diagnostic::new(span, "an on-demand fleet has no label")
                .expected("expected `labels` with at least one")
                .hint("jobs come to it by these alone, GitHub adds none; `labels = [\"linux-x64\"]`, for one"),
        );
    }
    if entries.is_empty() && registration == RawRegistration::Ephemeral {
        let span = raw.labels.as_ref().map_or_else(|| name.span(), Spanned::span);
        found.push(
            Diagnostic::new(span, "an ephemeral fleet has no label")
                .expected("expected `labels` with at least one")
                .hint("GitHub makes no just-in-time configuration without one; `labels = [\"linux-x64\"]`, for one"),
        );
    }
    // GitHub compares labels without regard to case.
    let labels: Vec<(_, Label)> = distinct("labels", entries, str::to_lowercase, found);
    let own = given_labels(architecture);
    for (span, label) in &labels {
        let lower = label.as_str().to_lowercase();
        let is_own = own.iter().any(|own| own.to_lowercase() == lower);
        // GitHub gives a scale set's runners no label by itself, so that these may be asked for.
        if is_own && registration == RawRegistration::OnDemand {
            continue;
        }
        if is_own {
            found.push(
                Diagnostic::new(span.clone(), format!("every runner of the fleet has the label `{label}` already"))
                    .expected("expected a label of your own")
                    .hint(format!("leave it out: {} are there anyway", own.join(", "))),
            );
        } else if matches!(lower.as_str(), "x64" | "arm64") {
            found.push(
                Diagnostic::new(span.clone(), format!("`{label}` is the label of another architecture"))
                    .expected(format!("expected no label that GitHub gives, as the fleet's own {}", own[2])),
            );
        }
    }
    labels.into_iter().map(|(_, label)| label).collect()
}

/// What GitHub gives a runner that config.sh registers, and Kiln a just-in-time one.
///
/// Source: <https://docs.github.com/en/actions/how-tos/manage-runners/self-hosted-runners/apply-labels>
pub(super) fn given_labels(architecture: Architecture) -> [&'static str; 3] {
    let architecture = match architecture {
        Architecture::X86_64 => "X64",
        Architecture::Aarch64 => "ARM64",
    };
    ["self-hosted", "Linux", architecture]
}

fn runner_group(raw: &RawFleet, found: &mut Findings) -> Option<String> {
    let Some(group) = &raw.runner_group else { return Some(DEFAULT_RUNNER_GROUP.to_owned()) };
    let name = group.get_ref();
    if name.trim().is_empty() || name.trim() != name || name.contains(char::is_control) {
        found.push(
            Diagnostic::of_value(group.span(), "`runner_group`", &name.escape_debug().to_string())
                .expected("expected a group's name, without blanks around it")
                .hint(format!("`{DEFAULT_RUNNER_GROUP}` is the one every organization has")),
        );
        return None;
    }
    Some(name.clone())
}

fn instance_types(
    entries: &Spanned<Vec<Spanned<String>>>,
    raw: &RawFleet,
    image: Option<&Image>,
    found: &mut Findings,
) -> Vec<InstanceType> {
    let types: Vec<(_, InstanceType)> = distinct("instance_types", entries.get_ref(), str::to_owned, found);
    for (span, instance_type) in &types {
        if instance_type.as_str().starts_with("mac") {
            found.push(
                Diagnostic::new(span.clone(), format!("{instance_type} is for macOS, on a dedicated host"))
                    .expected("expected a type that runs Linux"),
            );
            continue;
        }
        let is = instance_type.architecture();
        let Some(wanted) = image.map(|image| image.architecture).filter(|wanted| *wanted != is) else { continue };
        let message = format!("{instance_type} has a processor for {is}, the fleet's image is for {wanted}");
        let diagnostic = Diagnostic::new(span.clone(), message).expected(format!("expected a type for {wanted}"));
        found.push(match &raw.image {
            Some(name) => diagnostic
                .related(name.span(), "the fleet's image")
                .hint(format!("choose another type, or set `architecture = \"{is}\"` in [image.{name}]")),
            None => diagnostic.hint("a fleet without `image` has the architecture of its first instance type"),
        });
    }
    types.into_iter().map(|(_, instance_type)| instance_type).collect()
}

fn capacity(raw: &RawFleet, found: &mut Findings) -> Option<(u32, u32)> {
    if get(raw.registration.as_ref(), RawRegistration::Persistent) == RawRegistration::OnDemand {
        return raw.max.as_ref().map(|max| (0, *max.get_ref()));
    }
    let (min, max) = (raw.min.as_ref()?, raw.max.as_ref()?);
    if min > max {
        found.push(
            Diagnostic::new(min.span(), format!("`min` is {min}, more than `max`"))
                .expected(format!("expected at most {max}"))
                .related(max.span(), "`max`"),
        );
        return None;
    }
    Some((*min.get_ref(), *max.get_ref()))
}

fn network(raw: &RawNetwork, found: &mut Findings) -> Option<Network> {
    let RawNetwork::Given(given) = raw else { return Some(Network::NewVpc) };
    let vpc: Option<VpcId> = given.vpc.as_ref().and_then(|vpc| found.parse("`vpc`", vpc));
    let subnets: Option<Vec<SubnetId>> = given.subnets.as_ref().map(|subnets| {
        let subnets = distinct("subnets", subnets.get_ref(), str::to_owned, found);
        subnets.into_iter().map(|(_, subnet)| subnet).collect()
    });
    Some(Network::Subnets { vpc: vpc?.to_string(), subnets: subnets? })
}

fn times(name: &Spanned<String>, raw: &RawFleet, found: &mut Findings) -> (u32, u32) {
    let heartbeat = get(raw.termination_heartbeat_timeout_secs.as_ref(), DEFAULT_HEARTBEAT_SECS);
    let drain = get(raw.drain_timeout_secs.as_ref(), DEFAULT_DRAIN_LIMIT_SECS);
    let longest = heartbeat.saturating_mul(MOST_HEARTBEATS);
    if drain > longest {
        let [drain_place, heartbeat_place] = [&raw.drain_timeout_secs, &raw.termination_heartbeat_timeout_secs];
        let place = drain_place.as_ref().or(heartbeat_place.as_ref());
        let mut diagnostic = Diagnostic::new(
            place.map_or_else(|| name.span(), Spanned::span),
            format!("a drain of {drain} s takes more than {MOST_HEARTBEATS} heartbeats of {heartbeat} s"),
        )
        .expected(format!("Auto Scaling would end it after {longest} s"))
        .hint(format!(
            "set `termination_heartbeat_timeout_secs` to at least {}, or `drain_timeout_secs` to at most {longest}",
            drain.div_ceil(MOST_HEARTBEATS)
        ));
        if let (Some(_), Some(heartbeat)) = (drain_place, heartbeat_place) {
            diagnostic = diagnostic.related(heartbeat.span(), "the heartbeat");
        }
        found.push(diagnostic);
    }
    (heartbeat, drain)
}

/// The controller's bucket is not known here; the name of none is longer.
const LONGEST_BUCKET: &str = "kiln-000000000000000000000000000000000000000000000000000000000";

/// What an instance is told must fit into a parameter of the stack.
pub(super) fn boot_config(config: &Config, name: &Spanned<String>, raw: &RawFleet, found: &mut Findings) {
    let parsed: Result<FleetName, _> = name.get_ref().parse();
    let Some(fleet) = parsed.ok().and_then(|name| config.fleets.get(&name)) else { return };
    let written = match fleet.on_demand {
        Some(_) => boot::UserData::OnDemand(Box::new(config.on_demand_config(fleet, LONGEST_BUCKET))).to_json(),
        None => config.boot_config(fleet).to_json(),
    };
    if let Err(error) = written {
        let span = raw.labels.as_ref().map_or_else(|| name.span(), Spanned::span);
        found.push(
            Diagnostic::new(span, error.to_string())
                .expected("expected fewer or shorter labels, or a smaller `environment`")
                .hint("these are what of it can be of any length; the rest takes less than 1,500 bytes"),
        );
    }
}
