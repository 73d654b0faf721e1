//! What of a `kiln.toml` only AWS is told: spot capacity, the volume, tags, ports, alarms.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use url::Url;

use super::diagnostic::{Diagnostic, Findings};
use super::raw::{RawFleet, RawSpot, RawVolume};
use crate::boot;
use crate::model::{Region, SpotStrategy};

/// The root volume of every image, and so the least an instance can have.
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

pub(super) fn volume(raw: &RawFleet, found: &mut Findings) -> Volume {
    let Some(table) = &raw.volume else {
        return Volume { gib: IMAGE_VOLUME_GIB, iops: DEFAULT_IOPS, throughput_mibps: DEFAULT_THROUGHPUT_MIBPS };
    };
    let RawVolume { gib, iops, throughput_mibps } = table.get_ref();
    let volume = Volume {
        gib: get(gib.as_ref(), IMAGE_VOLUME_GIB),
        iops: get(iops.as_ref(), DEFAULT_IOPS),
        throughput_mibps: get(throughput_mibps.as_ref(), DEFAULT_THROUGHPUT_MIBPS),
    };
    let place = |value: &Option<Spanned<u32>>| value.as_ref().map_or_else(|| table.span(), Spanned::span);
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
        let proxy = name.get_ref().to_ascii_lowercase().ends_with("_proxy");
        Url::parse(value.get_ref()).ok().filter(|_| proxy)
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

pub(super) fn tags(
    raw: Option<&BTreeMap<Spanned<String>, Spanned<String>>>,
    found: &mut Findings,
) -> BTreeMap<String, String> {
    // Source: https://docs.aws.amazon.com/tag-editor/latest/userguide/tagging.html
    let letters = |text: &str| text.chars().all(|c| c.is_alphanumeric() || " _.:/=+-@".contains(c));
    let mut tags = BTreeMap::new();
    for (key, value) in raw.into_iter().flatten() {
        let name = key.get_ref();
        let lower = name.to_ascii_lowercase();
        if lower.starts_with("aws:") || lower.starts_with("kiln:") || lower == "name" {
            found.push(
                Diagnostic::new(key.span(), format!("the tag `{name}` is not yours to set"))
                    .expected("expected a key that is not `Name` and begins neither with `aws:` nor with `kiln:`"),
            );
        } else if !(1..=128).contains(&name.chars().count()) || !letters(name) {
            found.push(
                Diagnostic::new(key.span(), format!("`{}` is no tag's key", name.escape_debug()))
                    .expected("expected 1 to 128 letters, digits, spaces or any of _.:/=+-@"),
            );
        } else if value.get_ref().chars().count() > 256 || !letters(value.get_ref()) {
            found.push(
                Diagnostic::new(value.span(), format!("the value of the tag `{name}` is none that AWS takes"))
                    .expected("expected at most 256 letters, digits, spaces or any of _.:/=+-@"),
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

/// `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`, where the region of a global service is empty.
pub(super) fn arn(
    key: &str,
    value: Option<&Spanned<String>>,
    (service, region, resource): (&str, Option<&Region>, &str),
    found: &mut Findings,
) -> Option<String> {
    let value = value?;
    let parts: Vec<&str> = value.get_ref().splitn(6, ':').collect();
    let region = region.map_or("", Region::as_str);
    let fits = matches!(parts.as_slice(), ["arn", partition, found, there, account, rest]
        if partition.starts_with("aws") && *found == service && *there == region
            && account.len() == 12 && account.chars().all(|c| c.is_ascii_digit())
            && rest.strip_prefix(resource).is_some_and(|name| !name.is_empty()));
    if !fits {
        let example = format!("arn:aws:{service}:{region}:123456789012:{resource}NAME");
        found.push(
            Diagnostic::new(value.span(), format!("`{key}` is `{}`", value.get_ref()))
                .expected(format!("expected an ARN such as {example}")),
        );
        return None;
    }
    Some(value.get_ref().clone())
}
