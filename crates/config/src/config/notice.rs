//! What is valid in a `kiln.toml`, but probably not meant.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use toml::Spanned;

use super::raw::{RawConfig, RawFleet};
use super::{Config, Fleet, Registration, partition, secret};

/// One thing to know about a valid file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// From one.
    pub line: usize,
    /// A lower-case fragment.
    pub message: String,
    /// What a person may do about it.
    pub hint: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, message, hint } = self;
        write!(f, "line {line}: {message}; {hint}")
    }
}

/// Families with a GPU or another accelerator: the images have no driver for one.
///
/// Source: <https://docs.aws.amazon.com/ec2/latest/instancetypes/ac.html>
const ACCELERATED: &[&str] = &["dl", "f", "g", "gr", "inf", "p", "trn", "vt"];

/// Looks a valid configuration through.
pub(super) fn look_through(config: &Config, raw: &RawConfig, text: &str) -> Vec<Notice> {
    let mut found: Vec<(Range<usize>, String, String)> = Vec::new();
    if let Some(region) = &raw.region
        && !partition::is_known(&config.region)
    {
        let meant = partition::nearest(&config.region);
        found.push((
            region.span(),
            format!("AWS had no region {} when this version of Kiln was made", config.region),
            match meant {
                Some(meant) => format!("is {meant} meant?"),
                None => "is it spelt right?".to_owned(),
            },
        ));
    }
    for (name, table) in raw.fleet.iter().flatten() {
        let Some(fleet) = config.fleets.values().find(|fleet| fleet.name.as_str() == name.get_ref()) else { continue };
        of_fleet(fleet, name, table, &mut found);
    }
    alike(config, raw, &mut found);
    found.sort_by_key(|(span, ..)| span.start);
    let line = |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
    found.into_iter().map(|(span, message, hint)| Notice { line: line(span.start), message, hint }).collect()
}

fn of_fleet(fleet: &Fleet, name: &Spanned<String>, raw: &RawFleet, found: &mut Vec<(Range<usize>, String, String)>) {
    let subject = format!("fleet `{}`", fleet.name);
    if let Some(min) = raw.min.as_ref().filter(|min| *min.get_ref() == 0)
        && matches!(fleet.registration, Registration::Persistent | Registration::Ephemeral)
    {
        found.push((
            min.span(),
            format!("{subject} has `min = 0`: no instance starts by itself"),
            "set `min` to what is to run, or scale the group yourself".to_owned(),
        ));
    }
    let family = |name: &str| name.chars().take_while(char::is_ascii_alphabetic).collect::<String>();
    let accelerated: Vec<&str> = fleet
        .instance_types
        .iter()
        .map(|name| name.as_str())
        .filter(|name| ACCELERATED.contains(&family(name).as_str()))
        .collect();
    if let (Some(types), [first, ..]) = (&raw.instance_types, accelerated.as_slice()) {
        found.push((
            types.span(),
            format!("{subject}: the image has no driver for the accelerator of {first}"),
            "jobs have to bring their own, or use another image".to_owned(),
        ));
    }
    for (variable, value) in raw.environment.iter().flatten() {
        if secret::is_announced_by(variable.get_ref()) && !value.get_ref().is_empty() {
            found.push((
                variable.span(),
                format!("{subject}: `{}` has the name of a secret", variable.get_ref()),
                "anyone on an instance can read its value, and who reads this file: a secret belongs into GitHub's secrets"
                    .to_owned(),
            ));
        }
    }
    let _ = name;
}

/// Fleets that GitHub can't tell apart: a job goes to any of them.
fn alike(config: &Config, raw: &RawConfig, found: &mut Vec<(Range<usize>, String, String)>) {
    let mut seen: BTreeMap<(BTreeSet<String>, &str, &str), &Fleet> = BTreeMap::new();
    for fleet in config.fleets.values() {
        let labels = fleet.labels.iter().map(|label| label.as_str().to_lowercase()).collect();
        let key = (labels, fleet.runner_group.as_str(), fleet.architecture.rust_name());
        let Some(first) = seen.insert(key, fleet) else { continue };
        let place = raw.fleet.iter().flatten().find(|(name, _)| name.get_ref() == fleet.name.as_str());
        found.push((
            place.map_or(0..0, |(name, _)| name.span()),
            format!("fleets `{}` and `{}` have the same labels and runner group", first.name, fleet.name),
            "a job goes to either of them: give each a label of its own".to_owned(),
        ));
    }
}
