//! What a boot came to, from systemd's own timestamps and the binary's own line.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// The binary's unit.
pub(super) const UNIT: &str = "kiln-bootstrap.service";

/// Prints what [`Boot::read`] reads: the manager's timestamps, every unit's, and the binary's log.
pub(super) const SCRIPT: &str = "set -euo pipefail
systemctl show --property=InitRDTimestampMonotonic,UserspaceTimestampMonotonic,FinishTimestampMonotonic
echo ---
systemctl show --all --property=Id,InactiveExitTimestampMonotonic,ActiveEnterTimestampMonotonic,ExecMainStartTimestampMonotonic '*.service' '*.target'
echo ---
journalctl --unit kiln-bootstrap.service --output json --output-fields MESSAGE --no-pager";

/// Something that began and ended, counted from the kernel's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    /// What.
    pub(super) name: String,
    /// When it began.
    pub(super) begin: Duration,
    /// When it ended.
    pub(super) end: Duration,
}

impl Span {
    fn new(name: &str, begin: Duration, end: Duration) -> Self {
        Self { name: name.to_owned(), begin, end: end.max(begin) }
    }

    /// How long it took.
    pub(super) fn took(&self) -> Duration {
        self.end.saturating_sub(self.begin)
    }
}

/// A boot, counted from the kernel's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Boot {
    /// Kernel, start-up archive, services.
    pub(super) stages: Vec<Span>,
    /// The services that took part, by their beginnings, the binary's among them.
    pub(super) units: Vec<Span>,
    /// The binary's phases, from its start on, and behind them what it waits for of the runner.
    pub(super) phases: Vec<Span>,
    /// It was registered.
    pub(super) registered: Duration,
    /// The processor time that the binary had spent by then; the rest it waited, or had to leave the processor to others.
    pub(super) cpu: Duration,
}

/// The runner's own part of a registration: no work of the binary's.
pub(super) const CONFIG_SH: &str = "config.sh";

impl Boot {
    /// What the binary itself adds: from its start until it is registered, without the runner's own part.
    pub(super) fn added(&self) -> Duration {
        self.phases.iter().filter(|phase| phase.name != CONFIG_SH).map(Span::took).sum()
    }

    /// How long the runner's own part took.
    pub(super) fn config_sh(&self) -> Duration {
        self.phases.iter().filter(|phase| phase.name == CONFIG_SH).map(Span::took).sum()
    }

    /// Reads what [`SCRIPT`] printed.
    ///
    /// # Errors
    /// A timestamp is missing: the boot is not over, or the binary not registered.
    pub(super) fn read(printed: &str) -> anyhow::Result<Self> {
        let parts: Vec<&str> = printed.split("---\n").collect();
        let [manager, units, log] = parts[..] else { anyhow::bail!("the machine told something else:\n{printed}") };
        let (started, units) = read_units(units)?;
        let line = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|entry| Some((stamp(&entry)?, serde_json::from_str::<Value>(entry["MESSAGE"].as_str()?).ok()?)))
            .find(|(_, line)| line["message"] == "registered");
        let (registered, line) = line.context("the binary's log does not say that it is registered")?;
        let cpu = Duration::from_millis(line["cpu_ms"].as_u64().unwrap_or_default());
        Ok(Self { stages: stages(manager)?, units, phases: phases(&line, started, registered), registered, cpu })
    }
}

/// When an entry of the journal was written.
fn stamp(entry: &Value) -> Option<Duration> {
    entry["__MONOTONIC_TIMESTAMP"].as_str()?.parse().ok().map(Duration::from_micros)
}

/// A property of `systemctl show`'s, in microseconds; 0 is never.
fn time(properties: &str, name: &str) -> Option<Duration> {
    let value = property(properties, name)?;
    value.parse().ok().filter(|&micros| micros > 0).map(Duration::from_micros)
}

fn property<'a>(properties: &'a str, name: &str) -> Option<&'a str> {
    properties.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

fn stages(manager: &str) -> anyhow::Result<Vec<Span>> {
    let userspace = time(manager, "UserspaceTimestampMonotonic").context("systemd tells no beginning of its own")?;
    let finish = time(manager, "FinishTimestampMonotonic").context("the boot is not over")?;
    // The kernel has no start-up archive to tell of where systemd did not run in it.
    let kernel_end = time(manager, "InitRDTimestampMonotonic").unwrap_or(userspace);
    let mut stages = vec![Span::new("kernel", Duration::ZERO, kernel_end)];
    if kernel_end < userspace {
        stages.push(Span::new("initrd", kernel_end, userspace));
    }
    stages.push(Span::new("services", userspace, finish));
    Ok(stages)
}

/// When the binary was started, and every service that took time.
fn read_units(text: &str) -> anyhow::Result<(Duration, Vec<Span>)> {
    let (mut started, mut units) = (None, Vec::new());
    for properties in text.split("\n\n") {
        let Some(name) = property(properties, "Id") else { continue };
        let begin = time(properties, "InactiveExitTimestampMonotonic");
        let end = time(properties, "ActiveEnterTimestampMonotonic");
        if name == UNIT {
            started = time(properties, "ExecMainStartTimestampMonotonic");
        }
        if let (Some(begin), Some(end)) = (begin, end) {
            units.push(Span::new(name, begin, end));
        }
    }
    units.sort_by_key(|unit| unit.begin);
    ensure!(units.iter().any(|unit| unit.name == UNIT), "{UNIT} is not active");
    Ok((started.with_context(|| format!("{UNIT} was not started"))?, units))
}

/// The phases one after the other, the last of which ends when the line is written. What is before the first one is the
/// start: the kernel loads the binary, which sets itself up.
fn phases(line: &Value, started: Duration, registered: Duration) -> Vec<Span> {
    let took = |key: &str| Duration::from_millis(line[key].as_u64().unwrap_or_default());
    // A registration begins with a request of the binary's, and ends with the runner's part.
    let config_sh = took("config_sh_ms");
    let register = took("register_ms").saturating_sub(config_sh);
    let mut end = registered;
    let mut phases = Vec::new();
    for (name, took) in [
        (CONFIG_SH, config_sh),
        ("register", register),
        ("mint", took("mint_ms")),
        ("configure", took("configure_ms")),
        ("identify", took("identify_ms")),
        ("start", end.saturating_sub(started)),
    ] {
        let begin = end.saturating_sub(took).max(started);
        phases.push(Span::new(name, begin, end));
        end = begin;
    }
    phases.retain(|phase| phase.name != CONFIG_SH || phase.took() > Duration::ZERO);
    phases.reverse();
    phases
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const PRINTED: &str = r#"InitRDTimestampMonotonic=0
UserspaceTimestampMonotonic=2000000
FinishTimestampMonotonic=9000000
---
Id=kiln-bootstrap.service
InactiveExitTimestampMonotonic=6000000
ActiveEnterTimestampMonotonic=7500000
ExecMainStartTimestampMonotonic=6100000

Id=never-started.service
InactiveExitTimestampMonotonic=0
ActiveEnterTimestampMonotonic=0
ExecMainStartTimestampMonotonic=0

Id=systemd-udevd.service
InactiveExitTimestampMonotonic=3000000
ActiveEnterTimestampMonotonic=3500000
ExecMainStartTimestampMonotonic=3000001
---
{"__MONOTONIC_TIMESTAMP":"6000100","MESSAGE":"Starting kiln-bootstrap.service"}
{"__MONOTONIC_TIMESTAMP":"7000000","MESSAGE":"{\"message\":\"registered\",\"identify_ms\":100,\"configure_ms\":1,\"mint_ms\":300,\"register_ms\":400,\"config_sh_ms\":350,\"cpu_ms\":200}"}
"#;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_boot_is_read_from_what_systemd_and_the_binary_tell() {
        let boot = Boot::read(PRINTED).unwrap();
        assert_eq!(boot.stages, [Span::new("kernel", ms(0), ms(2000)), Span::new("services", ms(2000), ms(9000))]);
        let units: Vec<&str> = boot.units.iter().map(|unit| unit.name.as_str()).collect();
        assert_eq!(units, ["systemd-udevd.service", "kiln-bootstrap.service"]);
        assert_eq!((boot.registered, boot.added(), boot.config_sh()), (ms(7000), ms(550), ms(350)));
        assert_eq!(boot.cpu, ms(200));
        let phases: Vec<(&str, Duration)> =
            boot.phases.iter().map(|phase| (phase.name.as_str(), phase.begin)).collect();
        assert_eq!(
            phases,
            [
                ("start", ms(6100)),
                ("identify", ms(6199)),
                ("configure", ms(6299)),
                ("mint", ms(6300)),
                ("register", ms(6600)),
                (CONFIG_SH, ms(6650)),
            ]
        );
        assert_eq!(boot.phases.last().map(|phase| phase.end), Some(ms(7000)));
    }

    #[test]
    fn a_runner_without_config_sh_has_no_part_of_its_own() {
        let boot = Boot::read(&PRINTED.replace(r#",\"config_sh_ms\":350"#, "")).unwrap();
        assert_eq!((boot.added(), boot.config_sh()), (ms(900), ms(0)));
        assert!(boot.phases.iter().all(|phase| phase.name != CONFIG_SH), "{:?}", boot.phases);
    }

    #[test]
    fn a_boot_that_is_not_over_is_no_boot() {
        for (given, instead) in [
            ("FinishTimestampMonotonic=9000000", "FinishTimestampMonotonic=0"),
            ("ActiveEnterTimestampMonotonic=7500000", "ActiveEnterTimestampMonotonic=0"),
            ("\\\"registered\\\"", "\\\"not registered\\\""),
        ] {
            assert!(PRINTED.contains(given));
            assert!(Boot::read(&PRINTED.replace(given, instead)).is_err(), "{instead}");
        }
    }
}
