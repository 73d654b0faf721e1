//! From the raw form to the model: what a file of the right shape can still have wrong. Every check adds to the
//! findings and goes on, so that all is told at once; `None` stands for a value that was complained about.

use std::collections::BTreeMap;

use toml::Spanned;
use url::{Host, Url};

use super::diagnostic::{Diagnostic, Findings};
use super::raw::{RawApp, RawConfig, RawGitHub, RawRunner};
use super::{
    App, AppId, Config, DEFAULT_NODE_URL, DEFAULT_RELEASE_URL, Fleet, Image, RunnerPin, fleet, image, images,
    infrastructure, notice, on_demand, partition,
};
use crate::boot;
use crate::model::{
    Architecture, FleetName, ImageName, KeyStore, OLDEST_RUNNER, Organization, Region, RunnerVersion, Sha256,
};

pub(super) fn validate(raw: &RawConfig, text: &str, found: &mut Findings) -> Option<Config> {
    let organization = raw.organization.as_ref().and_then(|value| found.parse_or("`organization`", value, login));
    let region = raw.region.as_ref().and_then(|value| region(value, found));
    let app = raw.app.as_ref().and_then(|app| self::app(app, found));
    let github = github(raw.github.as_ref(), found);
    let runner = raw.runner.as_ref().and_then(|runner| self::runner(runner, found));
    let image_defaults = image::validate(raw.image_defaults.as_ref(), region.as_ref(), found);
    let (fleets, images) = fleets(raw, github.as_ref(), found);
    let arn = |key: &str, value: Option<&Spanned<String>>, form, found: &mut Findings| {
        infrastructure::arn(key, value, form, region.as_ref(), found)
    };
    let alarm_topic = arn("alarm_topic", raw.alarm_topic.as_ref(), ("sns", true, ""), found);
    let policy = ("iam", false, "policy/");
    let boundary = arn("permissions_boundary", raw.permissions_boundary.as_ref(), policy, found);
    let role = ("iam", false, "role/");
    let cloudformation_role = arn("cloudformation_role", raw.cloudformation_role.as_ref(), role, found);
    let tags = infrastructure::tags(raw.tags.as_ref(), found);
    let version = raw.kiln.as_ref().and_then(|kiln| kiln.version.as_ref()).map(|version| version.get_ref().clone());
    let config = Config {
        version,
        organization: organization?,
        region: region?,
        app: app?,
        github: github?,
        runner: runner?,
        image_defaults,
        alarm_topic,
        permissions_boundary: boundary,
        cloudformation_role,
        tags,
        images,
        fleets,
        notices: Vec::new(),
    };
    on_demand::one_key_store(&config, raw, found);
    for (name, table) in raw.fleet.iter().flatten() {
        fleet::boot_config(&config, name, table, found);
    }
    Some(Config { notices: notice::look_through(&config, raw, text), ..config })
}

fn region(value: &Spanned<String>, found: &mut Findings) -> Option<Region> {
    let region: Region = found.parse_or("`region`", value, zone)?;
    if partition(&region).is_none() {
        let mut diagnostic =
            Diagnostic::of_value(value.span(), "`region`", value.get_ref()).expected("expected one of AWS's regions");
        if let Some(nearest) = partition::nearest(&region) {
            diagnostic = diagnostic.hint(format!("did you mean \"{nearest}\"?"));
        }
        found.push(diagnostic);
        return None;
    }
    Some(region)
}

/// An organization that is given by its address, or with a repository.
fn login(value: &str) -> Option<String> {
    let rest = value.trim().trim_start_matches('@');
    let rest = rest.split_once("://").map_or(rest, |(_, rest)| rest);
    let mut parts = rest.split('/').filter(|part| !part.is_empty());
    let first = parts.next()?;
    // A host's name has a dot, a login never.
    let login = if first.contains('.') { parts.next()? } else { first };
    let login = if login == "orgs" || login == "organizations" { parts.next()? } else { login };
    let login: Organization = login.parse().ok()?;
    (login.as_str() != value.trim()).then(|| format!("write the login alone: \"{login}\""))
}

/// An availability zone's letter behind its region's code.
fn zone(value: &str) -> Option<String> {
    let region: Region = value.strip_suffix(|letter: char| letter.is_ascii_lowercase())?.parse().ok()?;
    Some(format!("`{value}` is an availability zone of {region}"))
}

fn app(raw: &Spanned<RawApp>, found: &mut Findings) -> Option<App> {
    let RawApp { client_id, app_id, installation_id, .. } = raw.get_ref();
    let id = match (client_id, app_id) {
        (Some(client), None) => AppId::Client(self::client_id(client, found)?),
        (None, Some(id)) => AppId::App(*id.get_ref()),
        (Some(client), Some(id)) => {
            found.push(
                Diagnostic::new(id.span(), "both `client_id` and `app_id` name the App")
                    .expected("expected one of them")
                    .related(client.span(), "the other")
                    .hint("keep `client_id`, which GitHub recommends"),
            );
            return None;
        }
        (None, None) if found.was_refused("app.client_id") || found.was_refused("app.app_id") => return None,
        (None, None) => {
            found.push(
                Diagnostic::new(raw.span(), "nothing names the App")
                    .expected("expected `client_id` or `app_id` in [app]")
                    .hint("the App's settings at GitHub show its client id at the top"),
            );
            return None;
        }
    };
    Some(App { id, installation_id: installation_id.as_ref().map(|id| *id.get_ref()) })
}

fn client_id(value: &Spanned<String>, found: &mut Findings) -> Option<String> {
    let id = value.get_ref();
    let number = id.bytes().all(|b| b.is_ascii_digit());
    let starts = id.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && !number && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
        return Some(id.clone());
    }
    let mut diagnostic = Diagnostic::of_value(value.span(), "`client_id`", id)
        .expected("expected a client id such as Iv23liEXAMPLE0000000");
    if number && !id.is_empty() {
        diagnostic = diagnostic.hint(format!("a number is the App's id: write `app_id = {id}`"));
    } else if id.trim() != id && !id.trim().is_empty() {
        diagnostic = diagnostic.hint("take out the blanks around it");
    }
    found.push(diagnostic);
    None
}

/// An address that secrets may be sent to: https, or http on this very machine.
fn address(key: &str, value: &Spanned<String>, found: &mut Findings) -> Option<Url> {
    let text = value.get_ref();
    let wrong = Diagnostic::of_value(value.span(), &format!("`{key}`"), text);
    let Some(mut url) = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https")) else {
        found.push(wrong.expected("expected an address that begins with https://"));
        return None;
    };
    if !url.username().is_empty() || url.password().is_some() {
        let message = format!("`{key}` has a user's name or password in it");
        found.push(Diagnostic::new(value.span(), message).secret().hint("take it out: kiln.toml holds no secret"));
        return None;
    }
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if url.scheme() == "http" && !loopback {
        let hint = "tokens and the runner travel there; http is for an address of this machine, such as 127.0.0.1";
        found.push(wrong.expected("expected an https address").hint(hint));
        return None;
    }
    if url.query().is_some() || url.fragment().is_some() {
        found.push(wrong.expected("expected an address without `?` and `#`"));
        return None;
    }
    // The bake hands addresses to a shell, in quotes.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/[]%+@=".contains(&b);
    if !url.as_str().bytes().all(plain) {
        found.push(wrong.expected("expected letters, digits and any of -._~:/%+@= in the address"));
        return None;
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Some(url)
}

fn github(raw: Option<&RawGitHub>, found: &mut Findings) -> Option<boot::GitHub> {
    let constant = |text: &str| Url::parse(text).expect("a constant address");
    let Some(RawGitHub { url, api_url }) = raw else {
        return Some(boot::GitHub { url: constant("https://github.com"), api_url: constant("https://api.github.com") });
    };
    let api = match api_url {
        Some(value) => Some(address("api_url", value, found)?),
        None => None,
    };
    let Some(value) = url else {
        if let (Some(place), Some(api)) = (api_url, &api)
            && api.host_str() != Some("api.github.com")
        {
            found.push(
                Diagnostic::new(place.span(), "`api_url` is not github.com's, and there is no `url`")
                    .hint("add the `url` of the GitHub that this API belongs to: a runner is configured with it"),
            );
            return None;
        }
        let api_url = api.unwrap_or_else(|| constant("https://api.github.com"));
        return Some(boot::GitHub { url: constant("https://github.com"), api_url });
    };
    let web = address("url", value, found)?;
    let host = web.host_str().unwrap_or_default();
    if web.path() != "/" || host.starts_with("api.github.") || (host.starts_with("api.") && host.ends_with(GHE_COM)) {
        found.push(
            Diagnostic::of_value(value.span(), "`url`", value.get_ref())
                .expected("expected GitHub's web address, without a path")
                .hint("the API's address is `api_url`, the organization's name is `organization`"),
        );
        return None;
    }
    if host == "www.github.com" {
        found.push(
            Diagnostic::of_value(value.span(), "`url`", value.get_ref())
                .expected("expected https://github.com")
                .hint("www.github.com only leads there; for github.com [github] can be left out"),
        );
        return None;
    }
    if let (Some(place), Some(api)) = (api_url, &api) {
        of_the_web(&web, api, place, found)?;
    }
    let api_url = api.unwrap_or_else(|| api_of(&web));
    Some(boot::GitHub { url: web, api_url })
}

/// GitHub Enterprise Cloud with data residency.
const GHE_COM: &str = ".ghe.com";

/// An API at GitHub's own host has the address that follows from the web's; another host is a proxy, which has its own.
fn of_the_web(web: &Url, api: &Url, place: &Spanned<String>, found: &mut Findings) -> Option<()> {
    let wanted = api_of(web);
    let github = |url: &Url| url.host_str().is_some_and(|host| host.ends_with("github.com") || host.ends_with(GHE_COM));
    let same = web.host_str() == api.host_str() || github(api);
    if !same || api == &wanted || api.as_str().trim_end_matches('/') == wanted.as_str().trim_end_matches('/') {
        return Some(());
    }
    found.push(
        Diagnostic::of_value(place.span(), "`api_url`", place.get_ref())
            .expected(format!("expected {wanted}"))
            .hint("leave it out: it follows from `url`"),
    );
    None
}

/// The API that belongs to a web address.
///
/// Source: <https://docs.github.com/en/enterprise-server@latest/rest/using-the-rest-api/getting-started-with-the-rest-api>,
/// and for GHE.com <https://docs.github.com/en/enterprise-cloud@latest/admin/data-residency/network-details-for-ghecom>.
fn api_of(web: &Url) -> Url {
    let mut api = web.clone();
    match web.host_str() {
        Some(host) if host == "github.com" || host.ends_with(".ghe.com") => {
            api.set_host(Some(&format!("api.{host}"))).expect("a host's name stays one with `api.` before it");
        }
        _ => api.set_path("/api/v3"),
    }
    api
}

fn runner(raw: &RawRunner, found: &mut Findings) -> Option<RunnerPin> {
    let version: Option<RunnerVersion> = raw.version.as_ref().and_then(|value| {
        let hint = |text: &str| text.starts_with('v').then(|| "leave out the `v` of the release's tag".to_owned());
        found.parse_or("`version`", value, hint)
    });
    if let (Some(version), Some(place)) = (&version, &raw.version)
        && version.numbers() < OLDEST_RUNNER
    {
        found.push(
            Diagnostic::new(place.span(), format!("runner {version} can't register any more"))
                .expected("expected 2.329.0 or newer")
                .hint("GitHub refuses older ones; https://github.com/actions/runner/releases shows the newest"),
        );
    }
    let sha256 = raw.sha256.as_ref().map(|pins| {
        let (x86_64, aarch64) = (&pins.get_ref().x86_64, &pins.get_ref().aarch64);
        if let (Some(one), Some(other)) = (x86_64, aarch64)
            && one == other
        {
            found.push(
                Diagnostic::new(other.span(), "both architectures have the same digest")
                    .expected("expected the digest of the arm64 tarball")
                    .related(one.span(), "the same"),
            );
        }
        let pins = [(Architecture::X86_64, x86_64), (Architecture::Aarch64, aarch64)];
        let parsed = pins.into_iter().filter_map(|(name, value)| {
            Some((name, digest(&format!("the digest for {name}"), value.as_ref()?, found)?))
        });
        parsed.collect::<BTreeMap<_, _>>()
    });
    let release_url = match &raw.release_url {
        Some(value) => address("release_url", value, found),
        None => Some(Url::parse(DEFAULT_RELEASE_URL).expect("a constant address")),
    };
    let node = image::nodes(raw.node.as_ref(), found);
    let node_url = match &raw.node_url {
        Some(value) => address("node_url", value, found),
        None => Some(Url::parse(DEFAULT_NODE_URL).expect("a constant address")),
    };
    Some(RunnerPin { version: version?, sha256: sha256?, release_url: release_url?, node, node_url: node_url? })
}

pub(super) fn digest(what: &str, value: &Spanned<String>, found: &mut Findings) -> Option<Sha256> {
    found.parse_or(what, value, |text| {
        let digits = text.trim().trim_start_matches("sha256:").to_ascii_lowercase();
        let meant: Sha256 = digits.parse().ok()?;
        Some(format!("write it as \"{meant}\""))
    })
}

/// The fleets, and the images that they run.
type Fleets = (BTreeMap<FleetName, Fleet>, BTreeMap<ImageName, Image>);

fn fleets(raw: &RawConfig, github: Option<&boot::GitHub>, found: &mut Findings) -> Fleets {
    let images = images::tables(raw, found);
    let default_store = raw.app.as_ref().and_then(|app| app.get_ref().key_store.as_ref()).map(|store| *store.get_ref());
    let pins = raw.runner.as_ref().and_then(|runner| runner.sha256.as_ref());
    let (mut fleets, mut used) = (BTreeMap::new(), BTreeMap::new());
    for (name, table) in raw.fleet.iter().flatten() {
        let image = images::of_fleet(table, &images, found);
        let store = default_store.unwrap_or(KeyStore::Kms);
        let fleet = fleet::validate(name, table, image.as_ref(), (store, github), found);
        if let (Some(pins), Some(image)) = (pins, &image) {
            fleet::pinned(name, table, image, pins, found);
        }
        fleets.extend(fleet.map(|fleet| (fleet.name.clone(), fleet)));
        used.extend(image.map(|image| (image.name.clone(), image)));
    }
    (fleets, used)
}
