//! What `status` shows to people.

use std::time::SystemTime;

use comfy_table::{ContentArrangement, Table, presets};
use kiln_operations::on_demand::Statistics;
use kiln_operations::ports::GroupInstance;
use kiln_operations::status::{FleetStatus, ImageStatus, Report, RunnerState};
use kiln_operations::when;

use super::state_of;

/// All of it; with `instances`, each instance too.
pub(super) fn of(report: &Report, instances: bool) -> String {
    let mut parts = vec![
        table(
            &["FLEET", "STACK", "IMAGE", "INSTANCES", "IDLE", "BUSY", "OFFLINE", "ORPHANED", "UNDER WAY"],
            report.fleets.iter().map(fleet_row),
        ),
        table(
            &["IMAGE", "NEWEST OF", "AGE", "RUNNER", "SERVED BY GITHUB"],
            report.images.iter().map(|image| image_row(image, report.at)),
        ),
        table(
            &["KEY STORE", "KEY IN USE"],
            report.keys.iter().map(|(store, key)| {
                vec![store.to_string(), key.as_ref().map_or("none".to_owned(), ToString::to_string)]
            }),
        ),
    ];
    parts.insert(1, table(ON_DEMAND, report.fleets.iter().filter_map(on_demand_row)));
    if instances {
        let rows = report.fleets.iter().flat_map(instance_rows);
        parts.push(table(&["INSTANCE", "FLEET", "STATE", "VERSION", "RUNNER", "RUNNER'S VERSION"], rows));
    }
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

/// As wide as it is, but on a terminal no wider than that: cells are wrapped there.
fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    if let Some((width, _)) = terminal_size::terminal_size_of(std::io::stdout()) {
        table.set_width(width.0).set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    if table.is_empty() { String::new() } else { table.trim_fmt() }
}

fn or_none(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn fleet_row(fleet: &FleetStatus) -> Vec<String> {
    let instances = fleet
        .group
        .as_ref()
        .map(|group| format!("{} of {} ({} to {})", fleet.in_service().count(), group.desired, group.min, group.max));
    let mut row =
        vec![fleet.name.to_string(), or_none(fleet.stack.as_ref()), or_none(fleet.image.as_ref()), or_none(instances)];
    row.extend(RunnerState::ALL.map(|state| fleet.count(state).map_or("?".to_owned(), |count| count.to_string())));
    row.push(under_way(fleet));
    row
}

/// A refresh that runs, or one that did not end well, and who works on the fleet.
fn under_way(fleet: &FleetStatus) -> String {
    let refresh = fleet.refresh.as_ref().map(|refresh| (state_of(refresh), refresh.percent));
    let refresh = match refresh {
        Some(((state, true), percent)) => Some(format!("{state} {percent}%")),
        Some((("Successful", _), _)) | None => None,
        Some(((state, false), _)) => Some(format!("last refresh {state}")),
    };
    let holder = fleet.lock.as_ref().map(|lock| format!("by {}", lock.holder));
    or_none(refresh.into_iter().chain(holder).reduce(|all, one| format!("{all} {one}")))
}

/// By what the controller of on-demand fleets says.
const ON_DEMAND: &[&str] = &["ON DEMAND", "WAITING", "RUNNING", "IDLE", "RUNNERS", "MAX", "VERSION", "CONTROLLER"];

fn on_demand_row(fleet: &FleetStatus) -> Option<Vec<String>> {
    let health = fleet.on_demand.as_ref()?;
    let (settings, said) = (health.settings.as_ref(), health.said.as_ref());
    let counted = |count: fn(&Statistics) -> u32| or_none(said.map(|said| count(&said.statistics)));
    let controller = match (said, health.silent_for()) {
        (None, _) => "-".to_owned(),
        (Some(_), Some(silent)) => format!("silent for {} min", silent.as_secs() / 60),
        (Some(said), None) => said.controller.as_str().to_owned(),
    };
    Some(vec![
        fleet.name.to_string(),
        or_none(health.waiting()),
        counted(|counts| counts.running),
        counted(|counts| counts.idle),
        counted(|counts| counts.registered),
        or_none(settings.map(|settings| settings.max)),
        or_none(settings.map(|settings| settings.version)),
        controller,
    ])
}

fn image_row(image: &ImageStatus, at: SystemTime) -> Vec<String> {
    let age = match image.created {
        _ if !image.exists => "gone".to_owned(),
        Some(created) => when::age(created, at),
        None => "?".to_owned(),
    };
    vec![
        image.ami.to_string(),
        or_none(image.newest_of.as_ref()),
        age,
        image.version.as_ref().map_or("?".to_owned(), ToString::to_string),
        image.lifetime.as_ref().map_or("?".to_owned(), |lifetime| lifetime.describe(at)),
    ]
}

/// Auto Scaling's word, its health, and what it says of itself.
fn state_shown(fleet: &FleetStatus, instance: &GroupInstance) -> String {
    let unhealthy = (!instance.healthy).then_some("unhealthy");
    let shown = fleet.shown.iter().find(|shown| shown.instance == instance.id).map(|shown| shown.state.as_str());
    [Some(instance.state.as_str()), unhealthy, shown].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn instance_rows(fleet: &FleetStatus) -> Vec<Vec<String>> {
    let group = fleet.group.iter().flat_map(|group| &group.instances);
    let rows = group.map(|instance| {
        let known = fleet.runners.as_ref();
        let runner = known.and_then(|all| all.iter().find(|runner| runner.instance.as_ref() == Some(&instance.id)));
        let state = match (known, runner) {
            (None, _) => "?",
            (Some(_), None) => "none",
            (_, Some(runner)) => runner.state.as_str(),
        };
        vec![
            instance.id.to_string(),
            fleet.name.to_string(),
            state_shown(fleet, instance),
            or_none(instance.launch_template.as_ref().map(|template| template.version.clone())),
            state.to_owned(),
            or_none(runner.and_then(|runner| runner.version.clone())),
        ]
    });
    rows.collect()
}
