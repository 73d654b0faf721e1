//! `cargo xtask rehearse`.

use std::path::PathBuf;

use anyhow::Context as _;
use kiln_fleet::model::Architecture;
use kiln_rehearsal::story::Story;
use kiln_rehearsal::world::{Parts, World};

use crate::ui::{self, Failure, Ui};
use crate::{musl, tools};

/// Run all of Kiln on this machine, against a local AWS and GitHub.
///
/// Needs no account and no configuration; sets up what it needs under target/. Prints a timeline of what happened, and
/// fails with the reason when anything is not as it should be. Ctrl-C ends every process it started.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(_args: &Args, ui: &Ui) -> Result<(), Failure> {
    let world = World::start(parts(ui)?).await?;
    let told = tokio::select! {
        told = Story::new(&world, |line| eprintln!("{line}")).tell() => told.map_err(Failure::from),
        () = ui::interrupt() => Err(Failure::Interrupted),
    };
    world.shutdown().await?;
    let timeline = told?;
    println!("\n{timeline}\nthe rehearsal succeeded");
    Ok(())
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
    shell.change_dir(tools::workspace_root());
    let architecture = if cfg!(target_arch = "aarch64") { Architecture::Aarch64 } else { Architecture::X86_64 };
    Ok(musl::build_bootstrap(&shell, architecture, musl::Fallback::StaticGlibc)?.path)
}
