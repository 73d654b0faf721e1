//! `cargo xtask fuzz`: libFuzzer with coverage, which a stable compiler can do when its flags are given by hand.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use xshell::{Shell, cmd};

use kiln_cli::tools;
use kiln_cli::ui::note;

/// Fuzz every parser of outside data, side by side.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask fuzz
  cargo xtask fuzz --seconds 3600")]
pub(crate) struct Args {
    /// For how long.
    #[arg(long, default_value_t = 60, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

const TARGETS: [&str; 4] = ["fuzz-app-key", "fuzz-boot-config", "fuzz-kiln-toml", "fuzz-refusal"];

/// What `cargo fuzz` gives the compiler for coverage without a sanitizer.
const COVERAGE: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Ccodegen-units=1",
];

/// Begins with what is known to be good, of which most of the ways to be bad are a small step away.
fn seed(target: &str, root: &Path, corpus: &Path) -> std::io::Result<()> {
    match target {
        "fuzz-kiln-toml" => std::fs::copy(root.join("docs/kiln.toml"), corpus.join("kiln.toml")).map(drop),
        _ => Ok(()),
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let shell = Shell::new()?;
    let root = tools::workspace_root()?;
    shell.change_dir(root);
    let version = cmd!(shell, "rustc --version --verbose").quiet().read()?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names its host")?;
    let folder = root.join("target/fuzz");
    // For a target, so that build scripts are built without the flags.
    cmd!(shell, "cargo build --locked --release --package kiln-fuzz --target {host} --target-dir {folder}")
        .env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\u{1f}"))
        .env_remove("RUSTFLAGS")
        .run()
        .context("build the fuzz targets")?;
    let mut running = Vec::new();
    for target in TARGETS {
        // What was found before is gone on from; it stays out of the repository.
        let corpus = folder.join("corpus").join(target);
        std::fs::create_dir_all(&corpus)?;
        seed(target, root, &corpus).with_context(|| format!("seed {target}"))?;
        let log = std::fs::File::create(folder.join(format!("{target}.log")))?;
        let child = std::process::Command::new(folder.join(host).join("release").join(target))
            .arg(&corpus)
            .arg(format!("-max_total_time={}", args.seconds))
            .args(["-timeout=10", "-rss_limit_mb=2048", "-max_len=4096"])
            .arg(format!("-artifact_prefix={}/{target}-", folder.display()))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {target}"))?;
        running.push((target, child));
    }
    let mut failed = Vec::new();
    for (target, mut child) in running {
        let status = child.wait()?;
        let log = std::fs::read_to_string(folder.join(format!("{target}.log")))?;
        let done = log.lines().rev().find(|line| line.starts_with("Done ")).unwrap_or("it did not come to its end");
        note(&format!("{target}: {done}"));
        if !status.success() {
            note(&log.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n"));
            failed.push(target);
        }
    }
    if !failed.is_empty() {
        bail!("{} found an input that it can't bear; it is in {}", failed.join(", "), folder.display());
    }
    note(&format!("fuzzed {} targets for {:?}", TARGETS.len(), Duration::from_secs(args.seconds.into())));
    Ok(())
}
