//! `cargo xtask doctor`.

use std::path::Path;

use kiln_config::model::Architecture;
use kiln_operations::doctor::{self, Finding, Verdict};
use kiln_operations::{Code, Error};
use xshell::{Shell, cmd};

use crate::ui::{Failure, Ui};
use crate::{bundle, cloud, musl, tools};

/// Check every precondition, on this machine, in AWS and at GitHub, and say how to fix what is wrong.
///
/// Changes nothing. Ends with 5 when a check fails, with 3 or 4 when kiln.toml or the credentials stop all the others, as
/// every command does; a note or what could not be checked is no failure.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask doctor
  cargo xtask doctor --skip-machine      # in a pipeline that does not build the image
  cargo xtask doctor --json | jq '.result.findings[] | select(.verdict == \"wrong\")'

Results: findings (each with check, verdict, what, hint)")]
pub struct Args {
    /// Leave out what only building the image needs: compilers, Python.
    #[arg(long)]
    skip_machine: bool,
}

pub(crate) async fn run(args: &Args, config: &Path, ui: &Ui) -> Result<(), Failure> {
    let mut findings = if args.skip_machine { Vec::new() } else { machine() };
    match cloud::look_at_config(config) {
        Ok(read) => {
            let fleets: Vec<&str> = read.fleets.keys().map(|name| name.as_str()).collect();
            findings
                .push(Finding::good("kiln.toml", format!("`{}`, fleets: {}", read.organization, fleets.join(", "))));
            findings.extend(read.notices.iter().map(|notice| {
                Finding::notice("kiln.toml", format!("line {}: {}", notice.line, notice.message), notice.hint.as_str())
            }));
            let aws = cloud::aws(&read).await;
            findings.extend(Box::pin(doctor::examine(&read, &aws)).await);
        }
        Err(error) => {
            findings.push(Finding::failed("kiln.toml", Verdict::Wrong, &error));
            findings.push(Finding::unknown("account", "nothing of AWS and GitHub was checked", "fix kiln.toml first"));
        }
    }
    tell(&findings, ui)
}

fn tell(findings: &[Finding], ui: &Ui) -> Result<(), Failure> {
    for finding in findings {
        ui.talk(&finding.to_string());
    }
    ui.record("findings", findings.iter().map(as_json).collect::<Vec<_>>());
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (wrong, unknown) = (count(Verdict::Wrong), count(Verdict::Unknown));
    let unchecked = if unknown > 0 { format!("; {unknown} could not be checked") } else { String::new() };
    if wrong > 0 {
        let what = format!("{wrong} of {} checks failed{unchecked}", findings.len());
        return Err(Error::new(code(findings), what).hint("follow the hints above, then run `doctor` again").into());
    }
    ui.talk(&format!("\nnothing is wrong{unchecked}"));
    Ok(())
}

/// As the other commands end: they stop at kiln.toml or the credentials, and come no further.
fn code(findings: &[Finding]) -> Code {
    let stops =
        |finding: &&Finding| finding.verdict == Verdict::Wrong && matches!(finding.check, "kiln.toml" | "credentials");
    findings.iter().find(stops).and_then(|finding| finding.code).unwrap_or(Code::PreconditionsUnmet)
}

fn as_json(finding: &Finding) -> serde_json::Value {
    let Finding { check, verdict, what, hint, .. } = finding;
    serde_json::json!({ "check": check, "verdict": verdict.word(), "what": what, "hint": hint })
}

/// What building the image needs of this machine.
fn machine() -> Vec<Finding> {
    let check = "machine";
    if Architecture::ALL.into_iter().all(|architecture| bundle::bootstrap(architecture).is_some()) {
        return vec![Finding::good(check, "the instance's binaries are built in: no compiler is needed")];
    }
    let Ok(shell) = Shell::new() else {
        return vec![Finding::unknown(check, "this directory can't be read", "change into the checkout")];
    };
    let Ok(root) = tools::workspace_root() else {
        return vec![Finding::unknown(
            check,
            "`ami` needs the instance's binary: this `kiln` has none built in, and this is no checkout to build it from",
            "install a released `kiln`, or change into a checkout, or give `ami --bootstrap FILE`",
        )];
    };
    shell.change_dir(root);
    let works = |program: &str, arguments: &[&str]| {
        cmd!(shell, "{program} {arguments...}").quiet().ignore_stdout().ignore_stderr().run().is_ok()
    };
    let mut findings = Vec::new();
    let mut need = |found: bool, what: &str, hint: &str| {
        findings.push(match found {
            true => Finding::good(check, what),
            false => Finding::wrong(check, format!("missing: {what}"), hint),
        });
    };
    need(
        works("python3", &["-c", "import ensurepip, venv"]),
        "Python 3 with venv, which the C compiler for musl comes by",
        "Debian: apt install python3-venv",
    );
    need(works("git", &["--version"]), "git", "install git");
    for architecture in Architecture::ALL {
        let target = architecture.musl_target();
        need(
            musl::is_possible(&shell, target),
            &format!("a standard library for {target}"),
            &format!(
                "rustup target add {target}; without rustup, Debian: apt install rustc-web cargo-web rust-web-src"
            ),
        );
    }
    findings
}
