//! `cargo xtask up`: the first steps in their order.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use kiln_operations::{Code, Error};

use crate::ui::{Failure, Ui};
use crate::{ami, cloud, deploy, doctor, rotate_key, ui};

/// Start the runners: `doctor`, `rotate-key` where no key is installed, `ami`, `deploy`, in this order.
///
/// Stops at the first one that fails. Run it again at any time: what is done already is found done, and it resumes where the
/// last run stopped. It asks where the commands themselves would ask; --yes agrees beforehand to what `deploy` would ask.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask up --pem my-app.private-key.pem
  cargo xtask up --pem - < my-app.private-key.pem

Results: those of the four commands")]
pub struct Args {
    /// The App's private key, if none is installed yet: its PEM file, or - for standard input.
    #[arg(long, value_name = "FILE")]
    pem: Option<PathBuf>,

    /// Overwrite and remove the file once the key is installed; on a terminal you are asked.
    #[arg(long, requires = "pem")]
    shred: bool,

    /// Agree beforehand to what `deploy` would ask about.
    #[arg(long, short)]
    yes: bool,
}

/// Another command's flags, as if they were typed.
#[derive(Debug, clap::Parser)]
struct Typed<A: clap::Args> {
    #[command(flatten)]
    args: A,
}

fn typed<A: clap::Args>(arguments: &[&std::ffi::OsStr]) -> Result<A, Failure> {
    let arguments = std::iter::once("up".as_ref()).chain(arguments.iter().copied());
    Ok(Typed::try_parse_from(arguments).map_err(Failure::Usage)?.args)
}

pub(crate) async fn run(args: &Args, config: &Path, ui: &Ui) -> Result<(), Failure> {
    ui.talk("1 of 4: doctor");
    Box::pin(doctor::run(&typed(&[])?, config, ui)).await?;
    ui.talk("\n2 of 4: rotate-key");
    Box::pin(key(args, config, ui)).await?;
    ui.talk("\n3 of 4: ami");
    Box::pin(ami::run(&typed(&[])?, config, ui)).await?;
    ui.talk("\n4 of 4: deploy");
    let yes: &[&std::ffi::OsStr] = if args.yes { &["--yes".as_ref()] } else { &[] };
    Box::pin(deploy::run(&typed(yes)?, config, ui)).await
}

/// Installs the key where a store in use has none.
async fn key(args: &Args, config: &Path, ui: &Ui) -> Result<(), Failure> {
    let read = cloud::look_at_config(config)?;
    let missing = cloud::stores_without_key(&read, &cloud::aws(&read).await).await?;
    if missing.is_empty() {
        ui.talk("the App's key is installed already: `cargo xtask rotate-key --pem FILE` replaces it");
        return Ok(());
    }
    let pem = match &args.pem {
        Some(pem) => pem.clone(),
        None => ask()?,
    };
    let mut arguments = vec!["--pem".as_ref(), pem.as_os_str()];
    if args.shred {
        arguments.push("--shred".as_ref());
    }
    Box::pin(rotate_key::run(&typed(&arguments)?, config, ui)).await
}

/// The file of the key, typed on a terminal.
fn ask() -> Result<PathBuf, Error> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Error::new(
            Code::NoTerminal,
            "the App's key is not installed yet, and nobody is there to ask for it",
        )
        .hint("generate a private key in the App's settings, and give the file with `--pem FILE`"));
    }
    ui::prompt("The App's private key, the .pem file that GitHub downloaded:");
    let mut answer = String::new();
    let read = tokio::task::block_in_place(|| std::io::stdin().read_line(&mut answer));
    match read {
        Ok(_) if !answer.trim().is_empty() => Ok(PathBuf::from(answer.trim())),
        _ => Err(Error::new(Code::NoTerminal, "no file was named").hint("run this again, or give `--pem FILE`")),
    }
}
