//! `cargo xtask ami`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kiln_config::config::{Config, ImageVariant};
use kiln_config::model::{AmiId, Architecture, FleetName, Sha256};
use kiln_image::payload::{self, Payload};
use kiln_operations::ami::{self, Request};
use kiln_operations::freshness;
use kiln_operations::published::{self, Verdict};
use kiln_operations::{Code, Error, Kind};

use crate::ui::{Failure, Ui};
use crate::{cloud, musl, sources, tools};

/// Bake and test the image, and record its AMI.
///
/// Builds the bootstrap binary static for musl, packs it, and bakes through EC2 Image Builder. Nothing is done when the
/// recorded AMI was baked from the same inputs, and nothing built when its sources did not change; a bake that is running
/// already is waited for.
///
/// Prints the AMI's id alone on stdout; one a line when the fleets need several images.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask ami --dry-run
  cargo xtask ami --fleet linux
  image=$(cargo xtask ami --fleet linux)

Results: images (an AMI's id for each image), ami (where there is just one)")]
pub struct Args {
    /// Bake the image of this fleet only; may be repeated.
    #[arg(long, value_name = "NAME")]
    fleet: Vec<FleetName>,

    /// Print the plan and change nothing.
    #[arg(long)]
    dry_run: bool,

    /// Leave the instance on which a build fails running, for a look; the error says how to get in and how to end it.
    #[arg(long)]
    keep_on_failure: bool,

    /// Use this bootstrap binary instead of building one; it must be static. Of a folder, the one for the image's
    /// architecture, as `cargo xtask bootstrap --images` leaves them.
    #[arg(long, value_name = "FILE")]
    bootstrap: Option<PathBuf>,
}

pub(crate) async fn run(args: &Args, config: &Path, ui: &Ui) -> Result<(), Failure> {
    let config = cloud::read_config(config)?;
    let images: BTreeSet<ImageVariant> =
        cloud::fleets(&config, &args.fleet)?.into_iter().map(|fleet| fleet.image()).collect();
    let aws = cloud::aws(&config).await;
    // Missing credentials are told before minutes of compiling, not after.
    kiln_operations::ports::Identity::caller(&aws).await.map_err(Error::from)?;
    let mut baked = BTreeMap::new();
    for variant in images {
        if let Some(ami) = image(args, &config, variant, &aws, ui).await? {
            ui.data(ami.as_str());
            baked.insert(variant.to_string(), ami.to_string());
            ui.record("images", serde_json::json!(baked));
        }
    }
    if let Some((_, ami)) = baked.first_key_value().filter(|_| baked.len() == 1) {
        ui.record("ami", ami.as_str());
    }
    Ok(())
}

/// A runner that GitHub would not serve is not worth half an hour's bake. Where GitHub can't be asked, the bake goes on:
/// an image may be made before the App's key is installed, or on GitHub's bad day.
async fn require_served(config: &Config, aws: &kiln_aws::Aws, ui: &Ui) -> Result<(), Error> {
    let Some(store) = cloud::stored_key(config, aws).await? else {
        ui.talk(
            "note: no key of the App is installed yet, so GitHub was not asked whether it still serves this runner",
        );
        return Ok(());
    };
    let github = cloud::github(config, aws, store)?;
    match freshness::require_served(&config.runner.version, &github, SystemTime::now()).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == Kind::Precondition => Err(error),
        Err(error) => {
            ui.warn(&format!("GitHub could not be asked whether it still serves this runner: {error}"));
            Ok(())
        }
    }
}

async fn image(
    args: &Args,
    config: &Config,
    variant: ImageVariant,
    aws: &kiln_aws::Aws,
    ui: &Ui,
) -> Result<Option<AmiId>, Failure> {
    let sources = match &args.bootstrap {
        Some(_) => None,
        None => Some(sources::digest(tools::workspace_root()?, variant.architecture)?),
    };
    if let Some(sources) = &sources
        && let Some(ami) = ami::unchanged(config, variant, sources, aws).await?
    {
        ui.plan(&ami::settled(variant, &ami));
        return Ok((!args.dry_run).then_some(ami));
    }
    require_served(config, aws, ui).await?;
    let payload = packed(args, variant.architecture, ui)?;
    bake(args, config, variant, &payload, sources, aws, ui).await
}

async fn bake(
    args: &Args,
    config: &Config,
    variant: ImageVariant,
    payload: &Payload,
    sources: Option<Sha256>,
    aws: &kiln_aws::Aws,
    ui: &Ui,
) -> Result<Option<AmiId>, Failure> {
    let request = Request {
        config,
        variant,
        payload: &payload.bytes,
        payload_sha256: payload.sha256.clone(),
        sources,
        keep_on_failure: args.keep_on_failure,
    };
    let prepared = ami::observe(&request, aws, ui).await?;
    let plan = ami::plan(variant, payload.bytes.len(), &prepared);
    ui.plan(&plan);
    if let Some(notice) = ami::notice(variant).filter(|_| !plan.is_empty()) {
        ui.warn(notice);
    }
    if !plan.is_empty() {
        verify(config, variant, aws, ui).await?;
    }
    if args.dry_run {
        return Ok(None);
    }
    let id = ami::apply(&request, &prepared, &plan, aws, ui).await?;
    ui.clear();
    Ok(Some(id))
}

/// The pinned runner is the one that GitHub publishes, as far as it can be asked: an image may be made before the App's key
/// is installed, and on GitHub's bad day. A pin that differs ends it.
async fn verify(config: &Config, variant: ImageVariant, aws: &kiln_aws::Aws, ui: &Ui) -> Result<(), Failure> {
    let version = &config.runner.version;
    let unchecked = |why: &str| {
        ui.talk(&format!("note: the pin of runner {version} was not compared with what GitHub publishes: {why}"));
    };
    let Some(store) = cloud::stored_key(config, aws).await? else {
        unchecked("no key of the App is installed yet");
        return Ok(());
    };
    let github = cloud::github(config, aws, store)?;
    match published::verify(config, variant, &github).await {
        Ok(Verdict::Same) => ui.talk(&format!("the pin of runner {version} is what GitHub publishes")),
        Ok(Verdict::Newer(newest)) => unchecked(&format!("it publishes digests of its newest, {newest}, only")),
        Ok(Verdict::Unpublished) => unchecked("it publishes no digest of it"),
        Err(error) if error.kind() == Kind::Configuration => return Err(error.into()),
        Err(error) => unchecked(&error.to_string()),
    }
    Ok(())
}

/// Builds the binary, or takes the given one; proves that it is static; packs it.
fn packed(args: &Args, architecture: Architecture, ui: &Ui) -> Result<Payload, Failure> {
    let path = match &args.bootstrap {
        Some(path) if path.is_dir() => path.join(format!("kiln-bootstrap-{architecture}")),
        Some(path) => path.clone(),
        None => {
            ui.talk(&format!("building the bootstrap binary for {}", architecture.musl_target()));
            let shell = xshell::Shell::new().map_err(anyhow::Error::new)?;
            shell.change_dir(tools::workspace_root()?);
            musl::build_bootstrap(&shell, architecture, musl::Fallback::Refuse)?.path
        }
    };
    let binary = std::fs::read(&path).map_err(|error| {
        Error::new(Code::BootstrapUnfit, format!("can't read the bootstrap binary `{}`", path.display()))
            .caused_by(error)
    })?;
    payload::prove_static(&binary, architecture).map_err(|error| {
        Error::new(Code::BootstrapUnfit, format!("`{}` can't go into the image", path.display()))
            .caused_by(error)
            .hint("leave out --bootstrap to have it built")
    })?;
    Ok(Payload::of_bootstrap(&binary))
}
