//! `cargo xtask bootstrap`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kiln_cli::ui::Ui;
use kiln_cli::{musl, tools};
use kiln_config::model::Architecture;

use crate::rehearse;

/// Build the static bootstrap binary and print its path.
///
/// For this machine; with `--images`, for every architecture that an image can have. A pipeline builds them where it holds no
/// credentials, and hands them to `ami --bootstrap`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask bootstrap
  cargo xtask bootstrap --images bin

Results: path (the binary, or the folder)")]
pub(crate) struct Args {
    /// Build for every architecture, into this folder.
    #[arg(long, value_name = "FOLDER")]
    images: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> anyhow::Result<()> {
    let path = match &args.images {
        Some(folder) => {
            for_images(folder, ui)?;
            folder.clone()
        }
        None => rehearse::bootstrap(ui)?,
    };
    let path = path.display().to_string();
    ui.data(&path);
    ui.record("path", path);
    Ok(())
}

fn for_images(folder: &Path, ui: &Ui) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let shell = xshell::Shell::new()?;
    shell.change_dir(tools::workspace_root()?);
    for architecture in Architecture::ALL {
        ui.talk(&format!("building the bootstrap binary for {}", architecture.musl_target()));
        let built = musl::build_bootstrap(&shell, architecture, musl::Fallback::Refuse)?.path;
        let copy = folder.join(format!("kiln-bootstrap-{architecture}"));
        std::fs::copy(&built, &copy).with_context(|| format!("copy {}", built.display()))?;
    }
    Ok(())
}
