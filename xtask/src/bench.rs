//! `cargo xtask bench`.

use std::path::PathBuf;

use clap::Subcommand;
use kiln_e2e::bench::{self, Boots, Storm};

use crate::rehearse;
use kiln_cli::ui::{Failure, Ui};

/// Measure what a boot costs.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench boot
  cargo xtask bench boot --instances 0

Results: boot (the last boot's own account of itself)")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// From process start to a registered runner, and many at once. Prints a table on stdout.
    ///
    /// GitHub is a stand-in, 80 ms away over TLS; the same is measured for a script of jq, openssl and curl. Then many
    /// instances boot at once, against a stand-in with GitHub's secondary limits: that takes minutes.
    Boot {
        /// How often a single boot is measured.
        #[arg(long, default_value_t = 20, value_name = "N")]
        runs: usize,
        /// How many boot at once; 0 leaves it out.
        #[arg(long, default_value_t = 500, value_name = "N")]
        instances: usize,
        /// Measure this binary instead of building one, to compare.
        #[arg(long, value_name = "FILE")]
        bootstrap: Option<PathBuf>,
    },
}

pub(crate) async fn run(args: &Args, ui: &Ui) -> Result<(), Failure> {
    let What::Boot { runs, instances, bootstrap } = &args.what;
    let (runs, instances) = (*runs, *instances);
    let bootstrap = match bootstrap {
        Some(path) => path.clone(),
        None => rehearse::bootstrap(ui)?,
    };
    let bytes = std::fs::metadata(&bootstrap).map_err(anyhow::Error::new)?.len();
    if runs > 0 {
        let Boots { registered, classic, line } = bench::boots(&bootstrap, runs).await?;
        ui.record("boot", line.clone());
        ui.data(&format!("one boot, GitHub {} ms away, {runs} runs", bench::ROUND_TRIP.as_millis()));
        ui.data(&format!("  registered        {registered}"));
        ui.data(&format!("  jq, openssl, curl {classic}"));
        ui.data(&format!("  to GitHub         {} request(s), {} connection(s)", line["requests"], line["connections"]));
        ui.data(&format!(
            "  phases            identify {} ms, configure {} ms, mint {} ms, register {} ms",
            line["identify_ms"], line["configure_ms"], line["mint_ms"], line["register_ms"]
        ));
        ui.data(&format!("  processor         {} ms", line["cpu_ms"]));
        ui.data(&format!("  peak memory       {} KiB", line["peak_kib"]));
        ui.data(&format!("  binary            {} KiB", bytes / 1024));
    }
    if instances > 0 {
        ui.talk(&format!("{instances} instances boot at once; GitHub's limits make it take minutes"));
        let Storm { registered, limited, in_a_row } = bench::storm(&bootstrap, instances).await?;
        ui.data(&format!("{instances} boots at once, GitHub's secondary limits enforced"));
        ui.data(&format!("  registered        all: {registered}"));
        ui.data(&format!("  limits met        {limited}, at most {in_a_row} in a row by one client"));
    }
    Ok(())
}
