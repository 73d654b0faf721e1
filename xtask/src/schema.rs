//! `cargo xtask schema`.

use anyhow::Context as _;
use clap::ValueEnum;

/// Write kiln.toml's JSON schema, for editors, the handbook's page of its keys, and the schema of what `--json` prints.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask schema
  cargo xtask schema --of config --output /tmp/kiln.schema.json")]
pub(crate) struct Args {
    /// Which; all of them, unless one is asked for.
    #[arg(long, value_name = "WHICH")]
    of: Option<Of>,

    /// Write it here instead of to the committed file.
    #[arg(long, value_name = "FILE", requires = "of")]
    output: Option<std::path::PathBuf>,
}

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Of {
    /// The schema of kiln.toml.
    Config,
    /// The page of every key of kiln.toml.
    Reference,
    /// The schema of what `--json` prints.
    Output,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let root = kiln_cli::tools::workspace_root()?;
    for of in Of::value_variants() {
        if args.of.is_some_and(|asked| asked != *of) {
            continue;
        }
        let (committed, text) = match of {
            Of::Config => ("kiln.schema.json", kiln_config::config::json_schema()),
            Of::Reference => ("docs/src/kiln-toml.md", reference()?),
            Of::Output => ("docs/output.schema.json", kiln_cli::ui::schema()),
        };
        let path = args.output.clone().unwrap_or_else(|| root.join(committed));
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn reference() -> anyhow::Result<String> {
    let schema = serde_json::from_str(&kiln_config::config::json_schema()).context("read the schema")?;
    Ok(crate::reference::page(&schema))
}
