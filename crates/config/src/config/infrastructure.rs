//! What of a `kiln.toml` only AWS is told: spot capacity, the volume, tags, ports, alarms.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use url::Url;

use super::diagnostic::{Diagnostic, Findings, cut};
use super::partition::partition;
use super::raw::{RawFleet, RawSpot, RawVolume};
use crate::boot;
use crate::environment;
use crate::model::{Region, SpotStrategy};

/// The root volume of an image that asks for no larger one, and so the least an instance can have.
pub const IMAGE_VOLUME_GIB: u32 = 30;

/// What gp3 gives at no extra charge.
pub(super) const DEFAULT_IOPS: u32 = 3000;
/// The same.
pub(super) const DEFAULT_THROUGHPUT_MIBPS: u32 = 125;

/// A gp3 volume has at most so many IOPS for each GiB, and needs so many for each MiB/s.
///
/// Source: <https://docs.aws.amazon.com/ebs/latest/userguide/general-purpose.html>
const MOST_IOPS_A_GIB: u32 = 500;
const IOPS_A_MIBPS: u32 = 4;

/// The template has parameters for as many: CloudFormation makes no list of tags out of a list of texts.
pub const MOST_TAGS: usize = 10;

/// The same for ports.
pub const MOST_EGRESS_PORTS: usize = 4;

/// The security group lets every runner out there.
const HTTPS: u16 = 443;

/// Spot capacity beside on-demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// So many instances are on-demand before any is spot.
    pub on_demand_base: u32,
    /// Of those beyond the base, so many in a hundred are on-demand.
    pub on_demand_percent: u32,
    /// Which spot pools are preferred.
    pub strategy: SpotStrategy,
    /// Does Auto Scaling replace an instance at risk by itself?
    pub capacity_rebalance: bool,
}

/// An instance's root volume: gp3, encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    /// Its size.
    pub gib: u32,
    /// I/O operations a second.
    pub iops: u32,
    /// MiB a second.
    pub throughput_mibps: u32,
}

fn get<T: Copy>(value: Option<&Spanned<T>>, default: T) -> T {
    value.map_or(default, |value| *value.get_ref())
}

pub(super) fn spot(raw: &RawFleet, found: &mut Findings) -> Option<Spot> {
    let table = raw.spot.as_ref()?;
    let RawSpot { on_demand_base, on_demand_percent, strategy, capacity_rebalance } = table.get_ref();
    let base = get(on_demand_base.as_ref(), 0);
    if let (Some(place), Some(max)) = (on_demand_base, &raw.max)
        && base >= *max.get_ref()
    {
        found.push(
            Diagnostic::new(place.span(), format!("`on_demand_base` is {base}, which leaves no instance to be spot"))
                .expected(format!("expected less than {max}"))
                .related(max.span(), "`max`"),
        );
    }
    Some(Spot {
        on_demand_base: base,
        on_demand_percent: get(on_demand_percent.as_ref(), 0),
        strategy: get(strategy.as_ref(), SpotStrategy::PriceCapacityOptimized),
        capacity_rebalance: get(capacity_rebalance.as_ref(), false),
    })
}

pub(super) fn volume(raw: &RawFleet, image_gib: u32, found: &mut Findings) -> Volume {
    let Some(table) = &raw.volume else {
        return Volume { gib: image_gib, iops: DEFAULT_IOPS, throughput_mibps: DEFAULT_THROUGHPUT_MIBPS };
    };
    let RawVolume { gib, iops, throughput_mibps } = table.get_ref();
    let volume = Volume {
        gib: get(gib.as_ref(), image_gib),
        iops: get(iops.as_ref(), DEFAULT_IOPS),
        throughput_mibps: get(throughput_mibps.as_ref(), DEFAULT_THROUGHPUT_MIBPS),
    };
    let place = |value: &Option<Spanned<u32>>| value.as_ref().map_or_else(|| table.span(), Spanned::span);
    if volume.gib < image_gib {
        found.push(
            Diagnostic::new(place(gib), format!("a volume of {} GiB can't hold the fleet's image", volume.gib))
                .expected(format!("expected at least {image_gib}, the image's `volume_gib`")),
        );
    }
    let most = volume.gib.saturating_mul(MOST_IOPS_A_GIB);
    if volume.iops > most {
        found.push(
            Diagnostic::new(place(iops), format!("a gp3 volume of {} GiB can't have {} IOPS", volume.gib, volume.iops))
                .expected(format!("expected at most {most}"))
                .hint(format!("or make `gib` at least {}", volume.iops.div_ceil(MOST_IOPS_A_GIB))),
        );
    }
    let most = volume.iops / IOPS_A_MIBPS;
    if volume.throughput_mibps > most {
        let message = format!("{} MiB/s are too much for {} IOPS", volume.throughput_mibps, volume.iops);
        found.push(
            Diagnostic::new(place(throughput_mibps), message)
                .expected(format!("expected at most {most}"))
                .hint(format!("or make `iops` at least {}", volume.throughput_mibps * IOPS_A_MIBPS)),
        );
    }
    volume
}

/// Ports beside 443 that the runners reach: those asked for, GitHub's, and those of proxies.
pub(super) fn egress_ports(raw: &RawFleet, github: &boot::GitHub, found: &mut Findings) -> BTreeSet<u16> {
    let asked = raw.egress_ports.as_ref();
    let listed = asked.into_iter().flat_map(|ports| ports.get_ref()).map(|port| *port.get_ref());
    let proxies = raw.environment.iter().flatten().filter_map(|(name, value)| {
        let address = environment::names_a_proxy(name.get_ref()).then(|| environment::with_scheme(value.get_ref()))?;
        Url::parse(&address).ok()
    });
    let addresses = proxies.chain([github.url.clone(), github.api_url.clone()]);
    let mut ports: BTreeSet<u16> = addresses.filter_map(|address| address.port_or_known_default()).collect();
    ports.extend(listed);
    ports.remove(&HTTPS);
    if ports.len() > MOST_EGRESS_PORTS {
        let list = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let place: Range<usize> = asked.map_or(0..0, Spanned::span);
        found.push(
            Diagnostic::new(place, format!("runners reach {} ports beside 443: {list}", ports.len()))
                .expected(format!("expected at most {MOST_EGRESS_PORTS}"))
                .hint("GitHub's own port and those of the proxies in `environment` count too"),
        );
    }
    ports
}

/// A proxy's address, with its scheme. Its port becomes a rule of the security group, so it has to be known.
pub(super) fn proxy(name: &Spanned<String>, value: &Spanned<String>, found: &mut Findings) -> Option<String> {
    let text = value.get_ref();
    let address = environment::with_scheme(text);
    if address.is_empty() {
        return Some(address);
    }
    let url = Url::parse(&address).ok().filter(|url| url.host_str().is_some_and(|host| !host.is_empty()));
    if url.as_ref().is_some_and(|url| url.password().is_some()) {
        let message = format!("`{}` has a password in it", name.get_ref());
        found.push(Diagnostic::new(value.span(), message).secret().hint("take it out: kiln.toml holds no secret"));
        return None;
    }
    if url.as_ref().is_none_or(|url| url.port_or_known_default().is_none()) {
        found.push(
            Diagnostic::of_value(value.span(), &format!("`{}`", name.get_ref()), text)
                .expected("expected a proxy's address with its port, such as http://proxy.example.com:3128"),
        );
        return None;
    }
    Some(address)
}

pub(super) fn tags(
    raw: Option<&BTreeMap<Spanned<String>, Spanned<String>>>,
    found: &mut Findings,
) -> BTreeMap<String, String> {
    // Sources: https://docs.aws.amazon.com/tag-editor/latest/userguide/tagging.html on what AWS takes, and
    // https://github.com/aws-cloudformation/cloudformation-coverage-roadmap/issues/1220 on what comes back as `?`.
    let letters = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || " _.:/=+-@".contains(c));
    let foreign = |diagnostic: Diagnostic, text: &str| match text.chars().all(char::is_alphanumeric) {
        _ if text.is_ascii() => diagnostic,
        _ => diagnostic
            .hint("write it in ASCII: CloudFormation gives back other letters as `?`, and no deploy would settle"),
    };
    let mut tags: BTreeMap<String, String> = BTreeMap::new();
    let mut seen: BTreeMap<String, Range<usize>> = BTreeMap::new();
    for (key, value) in raw.into_iter().flatten() {
        let name = key.get_ref();
        let lower = name.to_ascii_lowercase();
        if lower.starts_with("aws:") || lower.starts_with("kiln:") || lower == "name" {
            found.push(
                Diagnostic::new(key.span(), format!("the tag `{}` is not yours to set", cut(name)))
                    .expected("expected a key that is not `Name` and begins neither with `aws:` nor with `kiln:`"),
            );
        } else if !(1..=128).contains(&name.chars().count()) || !letters(name) {
            let wrong =
                Diagnostic::new(key.span(), format!("`{}` is no tag's key", cut(&name.escape_debug().to_string())))
                    .expected("expected 1 to 128 letters, digits, spaces or any of _.:/=+-@");
            found.push(foreign(wrong, name));
        } else if value.get_ref().chars().count() > 256 || !letters(value.get_ref()) {
            let wrong =
                Diagnostic::new(value.span(), format!("the value of the tag `{name}` is none that Kiln can set"))
                    .expected("expected at most 256 letters, digits, spaces or any of _.:/=+-@");
            found.push(foreign(wrong, value.get_ref()));
        } else if let Some(first) = seen.insert(lower, key.span()) {
            // Source: https://docs.aws.amazon.com/IAM/latest/UserGuide/id_tags.html: a role's keys differ not by case alone.
            found.push(
                Diagnostic::new(key.span(), format!("the tag `{name}` is there twice, but for the case"))
                    .expected("expected each once: IAM takes both for the same")
                    .related(first, "the first"),
            );
        } else {
            tags.insert(name.clone(), value.get_ref().clone());
        }
    }
    if let (true, Some((key, _))) = (tags.len() > MOST_TAGS, raw.and_then(|raw| raw.iter().nth(MOST_TAGS))) {
        found.push(
            Diagnostic::new(key.span(), format!("[tags] has {} tags", tags.len()))
                .expected(format!("expected at most {MOST_TAGS}")),
        );
    }
    tags
}

/// `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`, where the region of a global service is empty, and so is `own`.
pub(super) fn arn(
    key: &str,
    value: Option<&Spanned<String>>,
    (service, own, resource): (&str, bool, &str),
    region: Option<&Region>,
    found: &mut Findings,
) -> Option<String> {
    let value = value?;
    let parts: Vec<&str> = value.get_ref().splitn(6, ':').collect();
    let wanted = region.filter(|_| own).map_or("", Region::as_str);
    let home = region.and_then(partition).unwrap_or("aws");
    // AWS's own policies belong to no account: arn:aws:iam::aws:policy/…
    let is_account = |text: &str| {
        (text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())) || (resource == "policy/" && text == "aws")
    };
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@/-".contains(&b));
    let fits = matches!(parts.as_slice(), ["arn", partition, found, there, account, rest]
        if *partition == home && *found == service && *there == wanted && is_account(account)
            && rest.strip_prefix(resource).is_some_and(|name| !name.is_empty() && plain(name)));
    if !fits {
        let example = format!("arn:{home}:{service}:{wanted}:123456789012:{resource}NAME");
        found.push(
            Diagnostic::of_value(value.span(), &format!("`{key}`"), value.get_ref())
                .expected(format!("expected an ARN such as {example}")),
        );
        return None;
    }
    Some(value.get_ref().clone())
}
