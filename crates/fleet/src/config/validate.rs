//! From the raw form to the model. All that is wrong is told at once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::str::FromStr;

use toml::Spanned;
use url::{Host, Url};

use super::diagnostic::Diagnostic;
use super::raw::{RawApp, RawConfig, RawFleet, RawGitHub, RawNetwork, RawSubnets};
use super::{App, AppId, Config, Fleet, Network, RunnerPin};
use crate::boot;
use crate::model::{
    Architecture, BaseImage, FleetName, InstanceType, KeyStore, Malformed, Registration, RunnerVersion,
};

/// GitHub refuses to register older runners since 2026-09.
const OLDEST_RUNNER: [u64; 3] = [2, 329, 0];

/// Auto Scaling's bounds of a lifecycle hook's heartbeat timeout, in seconds.
///
/// Source: <https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_PutLifecycleHook.html>
const HEARTBEAT_SECS: std::ops::RangeInclusive<u32> = 30..=7200;

/// Auto Scaling keeps an instance waiting for 48 hours or a hundred heartbeat timeouts, whichever is less.
const LONGEST_DRAIN_SECS: u32 = 48 * 3600;

/// The template declares as many parameters for instance types.
const MOST_INSTANCE_TYPES: usize = 5;

#[derive(Default)]
struct Findings(Vec<Diagnostic>);

impl Findings {
    fn add(&mut self, span: Range<usize>, message: impl Into<String>, expected: impl Into<String>) -> &mut Diagnostic {
        self.0.push(Diagnostic { span, message: message.into(), expected: expected.into(), hint: None });
        self.0.last_mut().expect("one was pushed just now")
    }

    fn hint(&mut self, span: Range<usize>, message: impl Into<String>, expected: &str, hint: impl Into<String>) {
        self.add(span, message, expected).hint = Some(hint.into());
    }

    /// Parses a value to its type; what does not fit is added and gives `None`.
    fn parse<T: FromStr<Err = Malformed>>(&mut self, key: &str, value: &Spanned<String>) -> Option<T> {
        match value.get_ref().parse() {
            Ok(parsed) => Some(parsed),
            Err(Malformed { value: text, expected }) => {
                self.add(value.span(), format!("`{key}` is `{text}`"), format!("expected {expected}"));
                None
            }
        }
    }
}

pub(super) fn validate(raw: &RawConfig) -> Result<Config, Vec<Diagnostic>> {
    let mut found = Findings::default();
    let organization = found.parse("organization", &raw.organization);
    let region = found.parse("region", &raw.region);
    let app = app(&raw.app, &mut found);
    let github = github(raw.github.as_ref(), &mut found);
    let runner = runner(raw, &mut found);
    let fleets = fleets(raw, &mut found);
    let (Some(organization), Some(region), Some(app), Some(github), Some(runner)) =
        (organization, region, app, github, runner)
    else {
        return Err(found.0);
    };
    let config = Config { organization, region, app, github, runner, fleets };
    boot_configs(raw, &config, &mut found);
    if found.0.is_empty() { Ok(config) } else { Err(found.0) }
}

fn app(raw: &Spanned<RawApp>, found: &mut Findings) -> Option<App> {
    let RawApp { client_id, app_id, installation_id, .. } = raw.get_ref();
    let id = match (client_id, app_id) {
        (Some(client), None) if client.get_ref().is_empty() || client.get_ref().contains(char::is_whitespace) => {
            found.add(client.span(), "`client_id` is empty or has spaces", "expected a client id such as Iv23liEXAMPLE");
            return None;
        }
        (Some(client), None) => AppId::Client(client.get_ref().clone()),
        (None, Some(id)) => AppId::App(*id.get_ref()),
        (Some(_), Some(id)) => {
            found.hint(id.span(), "both `client_id` and `app_id` name the App", "expected one of them", "keep `client_id`");
            return None;
        }
        (None, None) => {
            let hint = "the App's settings at GitHub show its client id at the top";
            found.hint(raw.span(), "nothing names the App", "expected `client_id` or `app_id` here", hint);
            return None;
        }
    };
    Some(App { id, installation_id: *installation_id })
}

fn url(key: &str, value: &Spanned<String>, found: &mut Findings) -> Option<Url> {
    let expected = "expected an https address (http only on this machine)";
    let parsed = Url::parse(value.get_ref()).ok();
    let loopback = |url: &Url| match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match parsed {
        Some(url) if url.host().is_some() && (url.scheme() == "https" || url.scheme() == "http" && loopback(&url)) => {
            Some(url)
        }
        _ => {
            found.add(value.span(), format!("`{key}` is `{}`", value.get_ref()), expected);
            None
        }
    }
}

fn github(raw: Option<&RawGitHub>, found: &mut Findings) -> Option<boot::GitHub> {
    let constant = |text: &str| Url::parse(text).expect("a constant address");
    let Some(RawGitHub { url: web, api_url }) = raw else {
        return Some(boot::GitHub { url: constant("https://github.com"), api_url: constant("https://api.github.com") });
    };
    let web = match web {
        Some(value) => url("url", value, found)?,
        None => constant("https://github.com"),
    };
    let api_url = match api_url {
        Some(value) => url("api_url", value, found)?,
        None if web.host_str() == Some("github.com") => constant("https://api.github.com"),
        // GitHub Enterprise Server's base.
        None => web.join("/api/v3").expect("a path joins any address with a host"),
    };
    Some(boot::GitHub { url: web, api_url })
}

fn runner(raw: &RawConfig, found: &mut Findings) -> Option<RunnerPin> {
    let version: Option<RunnerVersion> = found.parse("version", &raw.runner.version);
    if let Some(version) = &version {
        let numbers: Vec<u64> = version.as_str().split('.').filter_map(|number| number.parse().ok()).collect();
        if numbers.as_slice() < OLDEST_RUNNER.as_slice() {
            found.hint(
                raw.runner.version.span(),
                format!("runner {version} can't register any more"),
                "expected 2.329.0 or newer",
                "GitHub refuses older runners since 2026-09; https://github.com/actions/runner/releases lists the newest",
            );
        }
    }
    let sha256: BTreeMap<_, _> = raw
        .runner
        .sha256
        .iter()
        .filter_map(|(architecture, value)| Some((*architecture, found.parse("sha256", value)?)))
        .collect();
    let release_url = match &raw.runner.release_url {
        Some(value) => url("release_url", value, found),
        None => Url::parse("https://github.com/actions/runner/releases/download").ok(),
    };
    Some(RunnerPin { version: version?, sha256, release_url: release_url? })
}

fn fleets(raw: &RawConfig, found: &mut Findings) -> BTreeMap<FleetName, Fleet> {
    if raw.fleet.is_empty() {
        let hint = "add a table [fleet.linux] with instance_types, min, max and network";
        found.hint(0..0, "there is no fleet", "", hint);
    }
    let default_store = raw.app.get_ref().key_store.unwrap_or(KeyStore::Kms);
    raw.fleet
        .iter()
        .filter_map(|(name, fleet_table)| fleet(raw, name, fleet_table, default_store, found))
        .map(|fleet| (fleet.name.clone(), fleet))
        .collect()
}

fn fleet(
    config: &RawConfig,
    name: &Spanned<String>,
    raw: &RawFleet,
    default_store: KeyStore,
    found: &mut Findings,
) -> Option<Fleet> {
    let fleet_name: Option<FleetName> = found.parse("fleet", name);
    let architecture = raw.architecture.as_ref().map_or(Architecture::X86_64, |value| *value.get_ref());
    let base_image = raw.base_image.as_ref().map_or(BaseImage::AmazonLinux2, |value| *value.get_ref());
    image(config, name, raw, base_image, architecture, found);
    let labels = labels(raw, found);
    let runner_group = match &raw.runner_group {
        Some(group) if group.get_ref().trim().is_empty() => {
            found.add(group.span(), "`runner_group` is empty", "expected the group's name, such as Default");
            None
        }
        Some(group) => Some(group.get_ref().clone()),
        None => Some("Default".to_owned()),
    };
    let instance_types = instance_types(raw, architecture, found);
    let (min, max) = (*raw.min.get_ref(), *raw.max.get_ref());
    if max == 0 {
        found.add(raw.max.span(), "`max` is 0", "expected at least 1");
    } else if min > max {
        found.add(raw.min.span(), format!("`min` is {min}, more than `max`"), format!("expected at most {max}"));
    }
    let network = network(&raw.network, found);
    let (heartbeat_secs, drain_limit_secs) = times(raw, found);
    Some(Fleet {
        name: fleet_name?,
        labels,
        runner_group: runner_group?,
        registration: raw.registration.unwrap_or(Registration::Persistent),
        base_image,
        architecture,
        instance_types,
        min,
        max,
        network: network?,
        key_store: raw.key_store.unwrap_or(default_store),
        heartbeat_secs,
        drain_limit_secs,
    })
}

/// The contradictions between operating system, architecture and pins.
fn image(
    config: &RawConfig,
    name: &Spanned<String>,
    raw: &RawFleet,
    base: BaseImage,
    architecture: Architecture,
    found: &mut Findings,
) {
    let place = raw.architecture.as_ref().map_or_else(|| name.span(), Spanned::span);
    if base == BaseImage::AmazonLinux2 && architecture == Architecture::Aarch64 {
        found.hint(
            place.clone(),
            "no JavaScript action would run on Amazon Linux 2 for aarch64",
            "expected x86_64 on amazon-linux-2",
            "the runner's Node needs glibc 2.28, Amazon Linux 2 has 2.26, and no other build of Node for aarch64 exists: \
             set base_image = \"amazon-linux-2023\"",
        );
    }
    if !config.runner.sha256.contains_key(&architecture) {
        found.hint(
            place,
            format!("fleet `{}` runs on {architecture}, for which no runner is pinned", name.get_ref()),
            "",
            format!("add `{architecture} = \"…\"` to [runner.sha256]; the release's page shows the digest"),
        );
    }
}

fn labels(raw: &RawFleet, found: &mut Findings) -> Vec<crate::model::Label> {
    let mut seen = BTreeSet::new();
    let mut labels = Vec::new();
    for label in &raw.labels {
        // GitHub compares labels without regard to case.
        if !seen.insert(label.get_ref().to_ascii_lowercase()) {
            found.add(label.span(), format!("label `{}` is there twice", label.get_ref()), "expected each label once");
        } else if let Some(label) = found.parse("labels", label) {
            labels.push(label);
        }
    }
    labels
}

fn instance_types(raw: &RawFleet, architecture: Architecture, found: &mut Findings) -> Vec<InstanceType> {
    let all = raw.instance_types.get_ref();
    if all.is_empty() || all.len() > MOST_INSTANCE_TYPES {
        let message = format!("`instance_types` has {} entries", all.len());
        found.add(raw.instance_types.span(), message, format!("expected 1 to {MOST_INSTANCE_TYPES}"));
    }
    let mut types = Vec::new();
    for value in all {
        let Some(parsed) = found.parse::<InstanceType>("instance_types", value) else { continue };
        let is = processor(parsed.as_str());
        if is != architecture {
            found.hint(
                value.span(),
                format!("{parsed} is an {is} type, the fleet's architecture is {architecture}"),
                "expected a type of the fleet's architecture",
                format!("set architecture = \"{is}\", or choose another type"),
            );
        }
        types.push(parsed);
    }
    types
}

/// A Graviton family has a `g` among the letters behind its generation: m6g, c7gn, im4gn; a1 is the first of all.
///
/// Source: <https://docs.aws.amazon.com/ec2/latest/instancetypes/instance-type-names.html>
fn processor(instance_type: &str) -> Architecture {
    let family = instance_type.split('.').next().unwrap_or_default();
    let attributes = family.trim_start_matches(|c: char| !c.is_ascii_digit()).trim_start_matches(|c: char| c.is_ascii_digit());
    if attributes.split('-').next().is_some_and(|letters| letters.contains('g')) || family == "a1" {
        Architecture::Aarch64
    } else {
        Architecture::X86_64
    }
}

fn network(raw: &Spanned<RawNetwork>, found: &mut Findings) -> Option<Network> {
    let RawNetwork::Given(RawSubnets { vpc, subnets }) = raw.get_ref() else { return Some(Network::NewVpc) };
    if !vpc.starts_with("vpc-") {
        found.add(raw.span(), format!("`vpc` is `{vpc}`"), "expected a VPC's id such as vpc-0123456789abcdef0");
        return None;
    }
    let mut parsed = Vec::new();
    for subnet in subnets {
        match subnet.parse() {
            Ok(subnet) => parsed.push(subnet),
            Err(Malformed { value, expected }) => {
                found.add(raw.span(), format!("`subnets` has `{value}`"), format!("expected {expected}"));
            }
        }
    }
    if subnets.is_empty() {
        found.add(raw.span(), "`subnets` is empty", "expected at least one subnet");
    }
    (parsed.len() == subnets.len() && !parsed.is_empty()).then(|| Network::Subnets { vpc: vpc.clone(), subnets: parsed })
}

fn times(raw: &RawFleet, found: &mut Findings) -> (u32, u32) {
    let heartbeat = raw.heartbeat_secs.as_ref().map_or(300, |value| *value.get_ref());
    if let Some(value) = raw.heartbeat_secs.as_ref().filter(|_| !HEARTBEAT_SECS.contains(&heartbeat)) {
        let (least, most) = (HEARTBEAT_SECS.start(), HEARTBEAT_SECS.end());
        found.add(value.span(), format!("`heartbeat_secs` is {heartbeat}"), format!("expected {least} to {most}"));
    }
    let drain = raw.drain_limit_secs.as_ref().map_or(6 * 3600, |value| *value.get_ref());
    let longest = LONGEST_DRAIN_SECS.min(heartbeat.saturating_mul(100));
    if !(60..=longest).contains(&drain) {
        let span = raw.drain_limit_secs.as_ref().or(raw.heartbeat_secs.as_ref()).map_or(0..0, Spanned::span);
        found.hint(
            span,
            format!("a drain of {drain} s"),
            "expected a bound that Auto Scaling can keep",
            format!("drain_limit_secs may be 60 to {longest}: 48 h or a hundred heartbeats, whichever is less"),
        );
    }
    (heartbeat, drain)
}

/// What an instance is told must fit into a parameter of the stack.
fn boot_configs(raw: &RawConfig, config: &Config, found: &mut Findings) {
    for (name, table) in &raw.fleet {
        let Some(fleet) = name.get_ref().parse().ok().and_then(|name: FleetName| config.fleets.get(&name)) else {
            continue;
        };
        if let Err(error) = config.boot_config(fleet).to_json() {
            let span = table.labels.first().zip(table.labels.last()).map_or_else(
                || name.span(),
                |(first, last)| first.span().start..last.span().end,
            );
            found.hint(span, error.to_string(), "", "fewer or shorter labels make it fit");
        }
    }
}
