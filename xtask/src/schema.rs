//! `cargo xtask schema`.

use anyhow::Context as _;

/// Write kiln.toml's JSON schema, for editors.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write it here; the default is the committed file.
    #[arg(long, value_name = "FILE")]
    output: Option<std::path::PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let path = match &args.output {
        Some(path) => path.clone(),
        None => crate::tools::workspace_root().join("kiln.schema.json"),
    };
    std::fs::write(&path, kiln_fleet::config::json_schema()).with_context(|| format!("write {}", path.display()))
}
