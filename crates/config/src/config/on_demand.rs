//! Fleets that follow the queue: what of a `[fleet.NAME]` they have, and what they have not.

use std::ops::Range;

use toml::Spanned;

use super::diagnostic::{Diagnostic, Findings};
use super::raw::{RawConfig, RawFleet, RawRegistration};
use super::{Config, DEFAULT_LINGER_SECS};

/// Does this version deploy such fleets? Everything that they need is behind this one switch.
pub(super) const IS_DEPLOYED: bool = false;

/// What an on-demand fleet has in place of a group's least size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnDemand {
    /// Runners that wait for jobs while nothing is queued.
    pub min_idle: u32,
    /// How long a runner that nobody needs is kept, in seconds.
    pub linger_secs: u32,
}

fn is_on_demand(raw: &RawFleet) -> bool {
    raw.registration.as_ref().is_some_and(|registration| *registration.get_ref() == RawRegistration::OnDemand)
}

/// Says of each such fleet that this version can't deploy it.
pub(super) fn refuse(raw: &RawConfig, found: &mut Findings) {
    for (name, fleet) in raw.fleet.iter().flatten() {
        let Some(place) = fleet.registration.as_ref().filter(|_| is_on_demand(fleet)) else { continue };
        found.push(
            Diagnostic::new(place.span(), format!("this version can't deploy fleet `{}` on demand", name.get_ref()))
                .expected("expected \"persistent\" or \"ephemeral\"")
                .hint("on-demand fleets are being built: none has run end to end yet"),
        );
    }
}

pub(super) fn validate(raw: &RawFleet, found: &mut Findings) -> Option<OnDemand> {
    if !is_on_demand(raw) {
        only_of_on_demand(raw, found);
        return None;
    }
    for (key, span) in of_groups(raw) {
        found.push(
            Diagnostic::new(span, format!("`{key}` means nothing to an on-demand fleet"))
                .expected("expected it to be absent")
                .related(place(raw), "on demand")
                .hint(instead_of(key)),
        );
    }
    let value = |value: &Option<Spanned<u32>>, default| value.as_ref().map_or(default, |value| *value.get_ref());
    let min_idle = value(&raw.min_idle, 0);
    if let (Some(place), Some(max)) = (&raw.min_idle, &raw.max)
        && min_idle > *max.get_ref()
    {
        found.push(
            Diagnostic::new(place.span(), format!("`min_idle` is {min_idle}, more than `max`"))
                .expected(format!("expected at most {max}"))
                .related(max.span(), "`max`"),
        );
    }
    Some(OnDemand { min_idle, linger_secs: value(&raw.linger_secs, DEFAULT_LINGER_SECS) })
}

fn place(raw: &RawFleet) -> Range<usize> {
    raw.registration.as_ref().map_or(0..0, Spanned::span)
}

/// What the fleet has of the keys that are about an Auto Scaling group, its hooks, or an instance that signs.
fn of_groups(raw: &RawFleet) -> Vec<(&'static str, Range<usize>)> {
    fn span<T>(value: &Option<Spanned<T>>) -> Option<Range<usize>> {
        value.as_ref().map(Spanned::span)
    }
    let spot = raw.spot.as_ref().map(Spanned::get_ref);
    let all = [
        ("min", span(&raw.min)),
        ("termination_heartbeat_timeout_secs", span(&raw.termination_heartbeat_timeout_secs)),
        ("drain_timeout_secs", span(&raw.drain_timeout_secs)),
        ("failed_boot_grace_secs", span(&raw.failed_boot_grace_secs)),
        ("idle_limit_secs", span(&raw.idle_limit_secs)),
        ("canary_check", span(&raw.canary_check)),
        ("on_demand_base", spot.and_then(|spot| span(&spot.on_demand_base))),
        ("on_demand_percent", spot.and_then(|spot| span(&spot.on_demand_percent))),
        ("strategy", spot.and_then(|spot| span(&spot.strategy))),
        ("capacity_rebalance", spot.and_then(|spot| span(&spot.capacity_rebalance))),
    ];
    all.into_iter().filter_map(|(key, span)| Some((key, span?))).collect()
}

fn instead_of(key: &str) -> &'static str {
    match key {
        "min" => "`min_idle` is how many runners wait for jobs while nothing is queued",
        "idle_limit_secs" => "`linger_secs` is how long a runner that nobody needs is kept",
        "canary_check" => "each instance takes one job, so there is none to try first",
        "on_demand_base" | "on_demand_percent" | "strategy" | "capacity_rebalance" => {
            "`spot = {}` asks for spot capacity first, and for on-demand capacity where there is none"
        }
        _ => "the fleet has no Auto Scaling group; an instance ends with its job",
    }
}

/// And the other way round.
fn only_of_on_demand(raw: &RawFleet, found: &mut Findings) {
    for (key, value) in [("min_idle", &raw.min_idle), ("linger_secs", &raw.linger_secs)] {
        let Some(value) = value else { continue };
        found.push(
            Diagnostic::new(value.span(), format!("`{key}` is a key of on-demand fleets"))
                .expected("expected it to be absent, or `registration = \"on-demand\"`"),
        );
    }
}

/// One controller signs for all of them.
pub(super) fn one_key_store(config: &Config, raw: &RawConfig, found: &mut Findings) {
    let mut fleets = config.on_demand_fleets();
    let Some(first) = fleets.next() else { return };
    for fleet in fleets.filter(|fleet| fleet.key_store != first.key_store) {
        let tables = raw.fleet.iter().flatten();
        let place =
            tables.filter(|(name, _)| name.get_ref() == fleet.name.as_str()).map(|(name, _)| name.span()).next();
        found.push(
            Diagnostic::new(
                place.unwrap_or(0..0),
                format!("fleets `{}` and `{}` have the App's key in different stores", first.name, fleet.name),
            )
            .expected("expected one `key_store` of all on-demand fleets")
            .hint("one controller signs for all of them: leave `key_store` out, and `[app]` says where the key is"),
        );
    }
}
