//! Bars, as SVG of percentages: they take whatever width there is, and their words are the page's own text.

use std::time::Duration;

use maud::{Markup, html};

use super::{Boot, Calls, Report, Span, SpanKind};

/// The phases of a boot, with the classes that colour them.
const PHASES: [(&str, &str); 4] = [("identify", "one"), ("configure", "two"), ("mint", "three"), ("register", "four")];

/// A part of a bar.
struct Part {
    class: &'static str,
    from_percent: f64,
    percent: f64,
    says: String,
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole * 100.0 } else { 0.0 }
}

/// One bar. What is too short to be seen is shown as a line.
fn bar(label: &str, parts: &[Part]) -> Markup {
    html! {
        svg.bar role="img" aria-label=(label) width="100%" height="16" {
            rect.track x="0" y="0" width="100%" height="16" rx="3" {}
            @for part in parts {
                rect class=(part.class) x=(format!("{:.3}%", part.from_percent)) y="0"
                    width=(format!("{:.3}%", part.percent.max(0.25))) height="16" rx="2" {
                    title { (part.says) }
                }
            }
        }
    }
}

fn row(label: &Markup, bar: &Markup, value: &str) -> Markup {
    html! {
        div.row { div.label { (label) } (bar) div.value { (value) } }
    }
}

/// Words for the classes that bars are coloured by.
fn legend(entries: &[(&str, &str)]) -> Markup {
    html! {
        p.legend {
            @for (words, class) in entries {
                span { svg.swatch width="12" height="12" aria-hidden="true" { rect class=(class) width="12" height="12" rx="3" {} } (words) }
            }
        }
    }
}

fn class(kind: SpanKind) -> &'static str {
    match kind {
        SpanKind::DryRun => "four",
        SpanKind::Command => "one",
        SpanKind::Refused => "five",
        SpanKind::Event => "three",
    }
}

/// When everything happened.
pub(super) fn timeline(report: &Report) -> Markup {
    let whole = report.took.as_secs_f64();
    let one = |span: &Span| {
        let says = format!("{} at {}, {}", span.what, seconds(span.at), seconds(span.took));
        let part = Part {
            class: class(span.kind),
            from_percent: percent(span.at.as_secs_f64(), whole),
            percent: percent(span.took.as_secs_f64(), whole),
            says: says.clone(),
        };
        row(&html! { (span.what) }, &bar(&says, &[part]), &format!("{} +{}", seconds(span.at), seconds(span.took)))
    };
    html! {
        div.chart #timeline-chart { @for span in &report.timeline { (one(span)) } }
        (legend(&[("dry run", "four"), ("command", "one"), ("refused, as it had to be", "five"), ("seen in the world", "three")]))
    }
}

/// What each boot's time went into.
pub(super) fn boots(boots: &[Boot]) -> Markup {
    let longest = boots.iter().map(|boot| boot.ms).max().unwrap_or_default() as f64;
    let one = |boot: &Boot| {
        let mut from = 0.0;
        let times = [boot.identify_ms, boot.configure_ms, boot.mint_ms, boot.register_ms];
        let parts: Vec<Part> = PHASES
            .iter()
            .zip(times)
            .map(|((phase, class), ms)| {
                let percent = percent(ms as f64, longest);
                let part = Part { class, from_percent: from, percent, says: format!("{phase}: {ms} ms") };
                from += percent;
                part
            })
            .collect();
        let phases: Vec<_> = parts.iter().map(|part| part.says.clone()).collect();
        let label = format!("{}: {}", boot.runner, phases.join(", "));
        let value =
            format!("{} ms, {} ms of processor, {:.1} MiB", boot.ms, boot.cpu_ms, boot.peak_kib as f64 / 1024.0);
        row(&html! { code { (boot.runner) } }, &bar(&label, &parts), &value)
    };
    html! {
        div.chart #boots-chart { @for boot in boots { (one(boot)) } }
        (legend(&PHASES))
    }
}

/// Calls by whom they were made to.
pub(super) fn calls<'a>(id: &str, calls: impl Iterator<Item = (&'a String, &'a Calls)>) -> Markup {
    let mut calls: Vec<_> = calls.collect();
    calls.sort_by_key(|(_, calls)| std::cmp::Reverse(calls.all()));
    let most = calls.first().map(|(_, calls)| calls.all()).unwrap_or_default() as f64;
    let one = |name: &str, calls: Calls| {
        let reads = percent(calls.reads as f64, most);
        let mut parts = vec![
            Part { class: "one", from_percent: 0.0, percent: reads, says: format!("{} look", calls.reads) },
            Part {
                class: "three",
                from_percent: reads,
                percent: percent(calls.mutations as f64, most),
                says: format!("{} change", calls.mutations),
            },
        ];
        parts.retain(|part| part.percent > 0.0);
        let refused = if calls.refused > 0 { format!(", {} refused", calls.refused) } else { String::new() };
        let value = format!("{} look, {} change{refused}", calls.reads, calls.mutations);
        row(&html! { code { (name) } }, &bar(&format!("{name}: {value}"), &parts), &value)
    };
    html! {
        div.chart id=(id) { @for (name, counted) in calls { (one(name, *counted)) } }
        (legend(&[("looks", "one"), ("changes something", "three")]))
    }
}

/// `12.3 s`.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
