//! `cargo xtask rotate-key`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiln_aws::Aws;
use kiln_config::config::Config;
use kiln_github::AppKey;
use kiln_operations::deploy::key_names;
use kiln_operations::keys::Timestamp;
use kiln_operations::plan::Plan;
use kiln_operations::ports::Keys as _;
use kiln_operations::rotate_key::{self, Former, Observed, Step, StoreUse};
use kiln_operations::{Code, Error};
use zeroize::Zeroizing;

use crate::shred::Shreddable;
use crate::ui::{Failure, Ui};
use crate::{cloud, files};

/// A GitHub App's key is about 1.7 kB; a file beyond 64 KiB is not one.
const MOST_KEY_BYTES: usize = 64 * 1024;

/// For how many days a former key is kept, unless --keep-days says otherwise.
const KEEP_DAYS: u32 = 7;

/// So long after a rotation an instance may still have GitHub check the former key's signature: KMS says itself that a
/// moved alias is seen everywhere within five minutes, and what was signed until then is good for nine.
const STILL_SIGNED: Duration = Duration::from_secs(15 * 60);

/// Install or replace the GitHub App's private key, go back to the former one, or show which is in use.
///
/// Make the key in the App's settings first; GitHub downloads it as a .pem file. The key is proved at GitHub, stored,
/// proved again through the store, made current, and proved a third time as an instance uses it. Until then the former
/// key serves, and where the last proof fails it serves again. GitHub knows no way to delete a key but by hand: its
/// fingerprint, the page and the time are printed at the end.
///
/// The former key is kept, able to sign, for --keep-days: an instance tries it where GitHub refuses the current one, and
/// --rollback goes back to it. The next run after that, or one with --retire, has the store delete it: KMS seven days
/// later, Secrets Manager at a time of its own. A store that no fleet uses any more is treated alike.
///
/// --shred writes zeros over the file where it lies and removes it. On SSDs, on file systems that copy on write (btrfs,
/// ZFS), that keep a journal of data or snapshots, and in backups and browser folders, the old bytes may survive: what
/// makes a leaked key worthless is to delete it at GitHub.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("what").required(true).args(["pem", "rollback", "retire", "status"]),
    after_help = "\
Examples:
  cargo xtask rotate-key --pem my-app.2026-11-23.private-key.pem --dry-run
  vault kv get -field=pem kiln/app | cargo xtask rotate-key --pem -
  cargo xtask rotate-key --rollback
  cargo xtask rotate-key --status --max-age-days 90 --json

Exit codes of --status, beside the common ones:
  0  GitHub accepts the keys in use
  4  GitHub refuses a key in use
  5  a store in use has no key
  8  a key has been in use for more than --max-age-days

Results: fingerprint (of the key given), keys-to-delete (fingerprints, at GitHub), status (of --status)"
)]
pub struct Args {
    /// The private key's PEM file, or - for standard input.
    #[arg(long, value_name = "FILE")]
    pem: Option<PathBuf>,

    /// Make the former key the current one again, while it is kept.
    #[arg(long)]
    rollback: bool,

    /// Only let the stores delete what has been kept for long enough; needs no key at hand.
    #[arg(long)]
    retire: bool,

    /// Tell which keys there are, since when, until when, and whether GitHub accepts them now.
    #[arg(long, conflicts_with = "dry_run")]
    status: bool,

    /// For how many days a key that stops serving is kept.
    #[arg(long, value_name = "DAYS", default_value_t = KEEP_DAYS, value_parser = clap::value_parser!(u32).range(0..=365))]
    keep_days: u32,

    /// Overwrite and remove the file once the key is installed; on a terminal you are asked.
    #[arg(long, requires = "pem")]
    shred: bool,

    /// Exit with 8 when a key has been in use for longer.
    #[arg(long, value_name = "DAYS", requires = "status")]
    max_age_days: Option<u32>,

    /// Print the plan and change nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(args: &Args, config: &Path, ui: &Ui) -> Result<(), Failure> {
    let config = cloud::read_config(config)?;
    if let Some(pem) = &args.pem {
        return Box::pin(rotate(args, pem, &config, ui)).await;
    }
    let aws = cloud::aws(&config).await;
    if args.status {
        return Box::pin(tell_status(args, &config, &aws, ui)).await;
    }
    let observed = rotate_key::observe(&config, &aws, Timestamp::now()).await?;
    let plan = if args.rollback {
        rotate_key::plan_rollback(&observed, args.keep_days)?
    } else {
        rotate_key::plan_retirement(&observed, args.keep_days)
    };
    show(&observed, &plan, ui);
    if args.dry_run {
        return Ok(());
    }
    rotate_key::apply(&config, None, &observed, &plan, &aws, ui).await?;
    ui.clear();
    let formers = rotate_key::formers(&observed, &plan);
    if !formers.is_empty() {
        advise(&formers, &settings_url(&config, &aws, &observed).await, observed.now, ui);
    }
    Ok(())
}

async fn rotate(args: &Args, pem: &Path, config: &Config, ui: &Ui) -> Result<(), Failure> {
    let file = if args.shred { Some(Shreddable::check(pem)?) } else { Shreddable::check(pem).ok() };
    let key = Arc::new(read_key(pem)?);
    let app = rotate_key::prove_new(config, &key).await?;
    let aws = cloud::aws(config).await;
    let observed = rotate_key::observe(config, &aws, Timestamp::now()).await?;
    let plan = rotate_key::plan_rotation(&observed, &key.fingerprint(), args.keep_days);
    show(&observed, &plan, ui);
    ui.record("fingerprint", key.fingerprint().to_string());
    if args.dry_run {
        if args.shred {
            ui.talk(&format!("then `{}` is overwritten and removed", pem.display()));
        }
        return Ok(());
    }
    rotate_key::apply(config, Some(&key), &observed, &plan, &aws, ui).await?;
    ui.clear();
    let settings = app.settings_url(&config.github.url);
    advise(&rotate_key::formers(&observed, &plan), &settings, observed.now, ui);
    if let Some(file) = file
        && (args.shred || file.is_wanted().await)
    {
        file.shred()?;
        ui.talk(&format!("`{}` is overwritten and removed", pem.display()));
    }
    Ok(())
}

/// Installs a key that is in memory, and never was in a file, as the first run of the command does.
pub(crate) async fn install(key: Arc<AppKey>, config: &Config, ui: &Ui) -> Result<(), Failure> {
    rotate_key::prove_new(config, &key).await?;
    let aws = cloud::aws(config).await;
    let observed = rotate_key::observe(config, &aws, Timestamp::now()).await?;
    let plan = rotate_key::plan_rotation(&observed, &key.fingerprint(), KEEP_DAYS);
    show(&observed, &plan, ui);
    ui.record("fingerprint", key.fingerprint().to_string());
    rotate_key::apply(config, Some(&key), &observed, &plan, &aws, ui).await?;
    ui.clear();
    Ok(())
}

async fn tell_status(args: &Args, config: &Config, aws: &Aws, ui: &Ui) -> Result<(), Failure> {
    let status = rotate_key::status(config, aws, Timestamp::now()).await?;
    ui.data(status.to_string().trim_end());
    ui.record("status", status.to_json());
    Ok(status.check(args.max_age_days)?)
}

/// The plan, and what is odd about the stores.
fn show(observed: &Observed, plan: &Plan<Step>, ui: &Ui) {
    for store in &observed.stores {
        let name = store.store;
        match store.used {
            StoreUse::Configured => {}
            StoreUse::Deployed => ui.talk(&format!(
                "kiln.toml has no fleet with {name} any more, but deployed instances sign with its key until \
                 `cargo xtask deploy` has replaced them: it is kept in step"
            )),
            StoreUse::Unused => ui.talk(&format!("no fleet uses {name} any more")),
        }
    }
    ui.plan(plan);
}

/// Which keys a person deletes at GitHub, where, and when.
fn advise(formers: &[Former], settings: &str, now: Timestamp, ui: &Ui) {
    ui.record("keys-to-delete", formers.iter().map(|former| former.fingerprint.to_string()).collect::<Vec<_>>());
    for Former { fingerprint, keep_until } in formers {
        ui.talk(&format!(
            "\nkey {fingerprint} serves no more. Delete it at GitHub, under \"Private keys\" in {settings}:"
        ));
        match keep_until {
            Some(until) if *until > now => {
                let free = now.plus(STILL_SIGNED);
                ui.talk(&format!(
                    "  on {}, when its time in the store is over too; until then `cargo xtask rotate-key --rollback` may \
                     need it\n  or from {} on, where it may be in wrong hands: by then no instance signs with it",
                    until.date(),
                    free.time_of_day()
                ));
            }
            _ => ui.talk("  now: its time in the store is over"),
        }
    }
}

/// As the App itself tells it; where it does not, the page that leads there.
async fn settings_url(config: &Config, aws: &Aws, observed: &Observed) -> String {
    let names = key_names(config);
    for store in observed.stores.iter().filter(|store| store.is_used()) {
        let signer = aws.current_signer(&names, store.store);
        if let Ok(app) = rotate_key::prove(config, signer.into()).await {
            return app.settings_url(&config.github.url);
        }
    }
    let web = config.github.url.as_str().trim_end_matches('/');
    format!("{web}/organizations/{}/settings/apps", config.organization)
}

fn read_key(path: &Path) -> Result<AppKey, Error> {
    let named = if path == Path::new("-") { "standard input".to_owned() } else { format!("`{}`", path.display()) };
    let pem = read_pem(path).map_err(|error| {
        let otherwise = "give the .pem file that GitHub downloaded when the key was made, or - for standard input";
        let hint = files::hint(&error, otherwise);
        Error::new(Code::KeyFileUnreadable, format!("can't read the key from {named}")).caused_by(error).hint(hint)
    })?;
    AppKey::from_pem(&pem).map_err(|error| {
        Error::new(Code::KeyFileInvalid, format!("{named} holds no key of a GitHub App"))
            .caused_by(error)
            .hint("make one in the App's settings, \"Generate a private key\", and give the .pem file it downloads")
    })
}

fn read_pem(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    if path != Path::new("-") {
        return files::read(path, MOST_KEY_BYTES);
    }
    // Not by Rust's standard input, whose buffer is never wiped.
    let stdin = std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned()?;
    files::read_from(&mut std::fs::File::from(stdin), MOST_KEY_BYTES)
}
