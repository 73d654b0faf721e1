//! `cargo xtask rehearse`.

use std::path::PathBuf;

use anyhow::Context as _;
use kiln_config::model::Architecture;
use kiln_e2e::story::{RunReport, Story};
use kiln_e2e::world::{Parts, World};
use kiln_operations::{Code, Error};
use kiln_vm as vm;

use kiln_cli::ui::{self, Failure, Ui};
use kiln_cli::{musl, tools};

/// Run all of Kiln on this machine, against a local AWS and GitHub.
///
/// Needs no account and no configuration; sets up what it needs under target/. Prints a timeline of what happened, and
/// fails with the reason when anything is not as it should be. Ctrl-C ends every process it started.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask rehearse
  cargo xtask rehearse --quiet --report rehearsal.html
  cargo xtask rehearse --boot

Results: report (the page's path)")]
pub(crate) struct Args {
    /// Write the report here, a page with the timeline, plans, boots and requests; the default is
    /// target/rehearsal/report.html in the checkout.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,

    /// Boot real machines instead, in QEMU, of an image made by the component documents.
    ///
    /// They register at the stand-in GitHub, run jobs without docker and with it, pass the image's own tests, and drain
    /// when they are switched off. Writes a picture of the boot to target/rehearsal/boot.svg. Needs root, and Debian with
    /// debootstrap and qemu-system-x86; what is slow to make is kept under target/rehearsal.
    #[arg(long)]
    boot: bool,
}

pub(crate) async fn run(args: &Args, ui: &Ui) -> Result<(), Failure> {
    if args.boot {
        return boot(ui).await;
    }
    let world = World::start(parts(ui)?).await?;
    let told = tokio::select! {
        told = Story::new(&world, ui::note).tell() => Ok(told),
        () = ui::interrupt() => Err(Failure::Interrupted),
    };
    world.shutdown().await?;
    let RunReport { timeline, report, result } = told?;
    let path = match &args.report {
        Some(path) => path.clone(),
        None => tools::workspace_root()?.join("target/rehearsal/report.html"),
    };
    report.write(&path).with_context(|| format!("write the report to {}", path.display()))?;
    ui.talk(&format!("\nreport: {}", path.display()));
    ui.record("report", path.display().to_string());
    result?;
    ui.data(&format!("\n{timeline}\nthe rehearsal succeeded"));
    Ok(())
}

async fn boot(ui: &Ui) -> Result<(), Failure> {
    vm::check_needs().map_err(precondition)?;
    let options = vm::Options {
        bootstrap: bootstrap(ui)?,
        directory: tools::workspace_root()?.join("target/rehearsal"),
        say: ui::note,
    };
    let booted = vm::boot(&options, ui::interrupt()).await.map_err(|error| match error.downcast::<vm::Missing>() {
        Ok(missing) => precondition(missing).into(),
        Err(error) => error,
    })?;
    let told = booted.ok_or(Failure::Interrupted)?;
    ui.data(&format!("\n{told}\nthe rehearsal of a boot succeeded"));
    Ok(())
}

fn precondition(missing: vm::Missing) -> Error {
    Error::new(Code::MachineNotReady, missing.message).hint(missing.hint)
}

fn parts(ui: &Ui) -> anyhow::Result<Parts> {
    let tools = tools::setup()?;
    Ok(Parts {
        xtask: std::env::current_exe().context("find this executable")?,
        bootstrap: bootstrap(ui)?,
        ministack: tools.ministack(),
    })
}

/// The binary for instances that are processes on this machine.
pub(crate) fn bootstrap(ui: &Ui) -> anyhow::Result<PathBuf> {
    ui.talk("building the bootstrap binary");
    let shell = xshell::Shell::new()?;
    shell.change_dir(tools::workspace_root()?);
    let architecture = if cfg!(target_arch = "aarch64") { Architecture::Aarch64 } else { Architecture::X86_64 };
    Ok(musl::build_bootstrap(&shell, architecture, musl::Fallback::StaticGlibc)?.path)
}
