//! The page around the charts.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::charts::{self, seconds};
use super::{Plan, Ran, Report};

const STYLE: &str = include_str!("style.css");

/// Nothing is loaded and nothing is run, whatever the page's text says.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'";

pub(super) fn page(report: &Report) -> Markup {
    let verdict = if report.failure.is_some() { "failed" } else { "succeeded" };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Kiln's rehearsal " (verdict) }
                // Without this, browsers ask for one, and the policy has them complain.
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                (header(report, verdict))
                main {
                    @if let Some(failure) = &report.failure { section { h2 { "Why it failed" } pre.failure { (failure) } } }
                    section {
                        h2 { "Timeline" }
                        p { "Each command as a pipeline runs it, and what was seen in the world meanwhile." }
                        (charts::timeline(report))
                    }
                    @if !report.boots.is_empty() {
                        section {
                            h2 { "Boots" }
                            p {
                                "From the process's start to a registered runner, by the instances' own accounts. AWS and \
                                 GitHub are on this machine: against the real ones the network's time comes on top."
                            }
                            (charts::boots(&report.boots))
                        }
                    }
                    section {
                        h2 { "Requests" }
                        p { "The commands' calls to AWS, by service." }
                        (charts::calls("aws-chart", report.aws.iter()))
                        p { "All calls to GitHub's API, the instances' too, by endpoint." }
                        (charts::calls("github-chart", report.github.iter()))
                    }
                    section {
                        h2 { "Commands" }
                        p { "What each planned and said. A dry run's plan is the one that the command after it carried out." }
                        @for ran in &report.commands { (command(ran)) }
                    }
                }
                footer { p { "Kiln " (env!("CARGO_PKG_VERSION")) ", " (httpdate::fmt_http_date(report.begun)) } }
            }
        }
    }
}

fn header(report: &Report, verdict: &str) -> Markup {
    let mutations: usize = report.aws.values().map(|calls| calls.mutations).sum();
    let mut times: Vec<u64> = report.boots.iter().map(|boot| boot.ms).collect();
    times.sort_unstable();
    let median = times.get(times.len() / 2).map_or_else(|| "–".to_owned(), |ms| format!("{ms} ms"));
    let tiles = [
        ("took", seconds(report.took)),
        ("commands", report.commands.len().to_string()),
        ("changes in AWS", mutations.to_string()),
        ("instances booted", report.boots.len().to_string()),
        ("median boot", median),
    ];
    html! {
        header {
            h1 { "Rehearsal " span class={ "verdict " (verdict) } { (verdict) } }
            p { "All of Kiln on one machine, against a local AWS and GitHub: the commands and the binary that are shipped." }
            dl.tiles { @for (name, value) in tiles { div { dt { (name) } dd { (value) } } } }
        }
    }
}

fn command(ran: &Ran) -> Markup {
    let ended = match ran.code {
        Some(0) => "done".to_owned(),
        Some(code) => format!("exit code {code}"),
        None => "killed".to_owned(),
    };
    html! {
        details {
            summary {
                code { (ran.line) }
                span.ended { (ended) ", " (seconds(ran.took)) ", " (ran.calls.reads) " look, " (ran.calls.mutations) " change" }
            }
            @for plan in &ran.plans { (plan_of(plan)) }
            @if !ran.said.trim().is_empty() { pre { (ran.said.trim_end()) } }
        }
    }
}

fn plan_of(plan: &Plan) -> Markup {
    html! {
        div.plan {
            h3 { (plan.subject) }
            @if let Some(settled) = &plan.settled { p { "Nothing to do: " (settled) } }
            ol {
                @for step in &plan.steps {
                    li {
                        (step.text)
                        @if !step.details.is_empty() {
                            pre { @for detail in &step.details { span class=(sign(detail)) { (detail) "\n" } } }
                        }
                    }
                }
            }
        }
    }
}

fn sign(detail: &str) -> &'static str {
    match detail.chars().next() {
        Some('+') => "added",
        Some('-') => "removed",
        Some('~') => "changed",
        _ => "plain",
    }
}
