//! `cargo xtask rotate-key`.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_github::AppKey;
use kiln_release::rotate_key::{self, Request};
use kiln_release::{Error, Kind};
use zeroize::Zeroizing;

use crate::cloud;
use crate::ui::{Failure, Ui};

/// A GitHub App's key is about 1.7 kB; a file beyond 64 KiB is not one.
const MAX_PEM_BYTES: u64 = 64 * 1024;

/// Install or replace the GitHub App's private key.
///
/// Make the key in the App's settings first; GitHub downloads it as a .pem file. The key is proved at GitHub, stored,
/// proved again through the store, and only then made current. The one before stays valid at GitHub until you delete it
/// there: its fingerprint is printed at the end.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask rotate-key --pem my-app.2026-11-23.private-key.pem --dry-run
  vault kv get -field=pem kiln/app | cargo xtask rotate-key --pem -")]
pub(crate) struct Args {
    /// The private key's PEM file, or - for standard input.
    #[arg(long, value_name = "FILE")]
    pem: PathBuf,

    /// Print the plan and change nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(args: &Args, config: &Path, ui: &Ui) -> Result<(), Failure> {
    let config = cloud::read_config(config)?;
    let key = Arc::new(read_key(&args.pem)?);
    let aws = cloud::aws(&config).await;
    let request = Request { config: &config, key: &key };
    let observed = rotate_key::observe(&request, &aws).await?;
    let plan = rotate_key::plan(&observed);
    ui.talk(&plan.to_string());
    if args.dry_run {
        return Ok(());
    }
    let former = rotate_key::apply(&request, &observed, &plan, &aws, ui).await?;
    ui.clear();
    for fingerprint in former {
        ui.talk(&format!("now delete key {fingerprint} in the App's settings at GitHub"));
    }
    Ok(())
}

fn read_key(path: &Path) -> Result<AppKey, Error> {
    let named = if path == Path::new("-") { "standard input".to_owned() } else { format!("`{}`", path.display()) };
    let pem = read_pem(path).map_err(|error| {
        Error::new(Kind::Configuration, format!("can't read the key from {named}"))
            .caused_by(error)
            .hint("give the .pem file that GitHub downloaded when the key was made, or - for standard input")
    })?;
    AppKey::from_pem(&pem).map_err(|error| {
        Error::new(Kind::Configuration, format!("{named} holds no key of a GitHub App"))
            .caused_by(error)
            .hint("make one in the App's settings, \"Generate a private key\", and give the .pem file it downloads")
    })
}

fn read_pem(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    // Of full size from the start: a buffer that grows leaves copies behind.
    let mut pem = Zeroizing::new(Vec::with_capacity(MAX_PEM_BYTES as usize + 1));
    let source: Box<dyn std::io::Read> =
        if path == Path::new("-") { Box::new(std::io::stdin().lock()) } else { Box::new(std::fs::File::open(path)?) };
    source.take(MAX_PEM_BYTES + 1).read_to_end(&mut pem)?;
    Ok(pem)
}
