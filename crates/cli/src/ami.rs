//! `cargo xtask ami`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kiln_config::config::{Config, Image};
use kiln_config::model::{AmiId, Architecture, FleetName, ImageName, Sha256};
use kiln_image::contents::Contents;
use kiln_image::payload::{self, Payload};
use kiln_operations::ami::{self, Request};
use kiln_operations::freshness;
use kiln_operations::published::{self, PinCheck};
use kiln_operations::{Code, Error, Kind};

use crate::ui::{Failure, Ui};
use crate::{bundle, cloud, contents, musl, sources, tools};

/// Bake and test the image, and record its AMI.
///
/// One image for each table [image.NAME] that a fleet runs, or the one of fleets without `image`. Packs the bootstrap binary
/// and bakes through EC2 Image Builder. A released `kiln` has the binary built in; in a checkout it is built from source,
/// static for musl. Nothing is done when the recorded AMI was baked from the same inputs, and nothing is built when its
/// sources did not change; a bake that is running already is waited for.
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

    /// Use this bootstrap binary; it must be static. Of a folder, its
    /// `kiln-bootstrap-ARCHITECTURE`.
    #[arg(long, value_name = "FILE")]
    bootstrap: Option<PathBuf>,
}

pub(crate) async fn run(args: &Args, path: &Path, ui: &Ui) -> Result<(), Failure> {
    let config = cloud::read_config(path)?;
    let fleets = cloud::fleets(&config, &args.fleet)?;
    let wanted: BTreeMap<&ImageName, &Image> =
        fleets.into_iter().map(|fleet| (&fleet.image, config.image_of(fleet))).collect();
    // What is missing on this machine is shown before anything is asked of AWS, let alone made there.
    let contents = contents::read(path, wanted.values().copied())?;
    let aws = cloud::aws(&config).await;
    // Missing credentials are told before minutes of compiling, not after.
    kiln_operations::ports::Identity::caller(&aws).await.map_err(Error::from)?;
    let mut baked = BTreeMap::new();
    for (name, image) in wanted {
        let bake = Bake { args, config: &config, image, contents: &contents[name], aws: &aws, ui };
        if let Some(ami) = bake.run().await? {
            ui.data(ami.as_str());
            baked.insert(name.to_string(), ami.to_string());
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

/// The bake of one image.
struct Bake<'a> {
    args: &'a Args,
    config: &'a Config,
    image: &'a Image,
    contents: &'a Contents,
    aws: &'a kiln_aws::Aws,
    ui: &'a Ui,
}

impl Bake<'_> {
    async fn run(&self) -> Result<Option<AmiId>, Failure> {
        let Self { args, config, image, contents, aws, ui } = self;
        // A base that does not fit is shown before minutes of compiling, not after.
        ami::base(image, *aws).await?;
        // A binary that is at hand is packed, which takes less time than a look at its sources.
        let sources = match args.bootstrap.is_some() || bundle::bootstrap(image.architecture).is_some() {
            true => None,
            false => Some(sources::digest(checkout()?, image.architecture)?),
        };
        if let Some(sources) = &sources
            && let Some(ami) = ami::unchanged(config, image, contents, sources, *aws).await?
        {
            ui.plan(&ami::settled(image, &ami));
            return Ok((!args.dry_run).then_some(ami));
        }
        require_served(config, aws, ui).await?;
        let payload = packed(args, image.architecture, ui)?;
        self.bake(&payload, sources).await
    }

    async fn bake(&self, payload: &Payload, sources: Option<Sha256>) -> Result<Option<AmiId>, Failure> {
        let Self { args, config, image, contents, aws, ui } = self;
        let request = Request {
            config,
            image,
            contents,
            payload: &payload.bytes,
            payload_sha256: payload.sha256.clone(),
            sources,
            keep_on_failure: args.keep_on_failure,
        };
        let prepared = ami::observe(&request, *aws, *ui).await?;
        let plan = ami::plan(image, payload.bytes.len(), &prepared);
        ui.plan(&plan);
        if let Some(notice) = ami::notice(image).filter(|_| !plan.is_empty()) {
            ui.warn(notice);
        }
        if !plan.is_empty() {
            self.verify().await?;
        }
        if args.dry_run {
            return Ok(None);
        }
        let id = ami::apply(&request, &prepared, &plan, *aws, *ui).await?;
        ui.clear();
        Ok(Some(id))
    }

    /// The pinned runner is the one that GitHub publishes, as far as it can be asked: an image may be made before the App's
    /// key is installed, and on GitHub's bad day. A pin that differs ends it.
    async fn verify(&self) -> Result<(), Failure> {
        let Self { config, image, aws, ui, .. } = self;
        let version = &config.runner.version;
        let unchecked = |why: &str| {
            ui.talk(&format!("note: the pin of runner {version} was not compared with what GitHub publishes: {why}"));
        };
        let Some(store) = cloud::stored_key(config, aws).await? else {
            unchecked("no key of the App is installed yet");
            return Ok(());
        };
        let github = cloud::github(config, aws, store)?;
        match published::verify(config, image, &github).await {
            Ok(PinCheck::Same) => ui.talk(&format!("the pin of runner {version} is what GitHub publishes")),
            Ok(PinCheck::Newer(newest)) => unchecked(&format!("it publishes digests of its newest, {newest}, only")),
            Ok(PinCheck::Unpublished) => unchecked("it publishes no digest of it"),
            Err(error) if error.kind() == Kind::Configuration => return Err(error.into()),
            Err(error) => unchecked(&error.to_string()),
        }
        Ok(())
    }
}

/// The checkout to build from.
fn checkout() -> Result<&'static Path, Error> {
    tools::workspace_root().map_err(|_| {
        Error::new(
            Code::BootstrapMissing,
            "this `kiln` was built without the instance's binary, and this is no checkout",
        )
        .hint(
            "install a released `kiln`, which has the binaries built in; or run it in a checkout of Kiln, which \
                 builds them; or give `--bootstrap FILE`",
        )
    })
}

/// The binary: the given one, the one that is built in, or one built from this checkout. Proves that it is static; packs it.
fn packed(args: &Args, architecture: Architecture, ui: &Ui) -> Result<Payload, Failure> {
    if let (None, Some(binary)) = (&args.bootstrap, bundle::bootstrap(architecture)) {
        let unfit = |error| Error::new(Code::BootstrapInvalid, "the binary that is built in is unfit").caused_by(error);
        payload::prove_static(binary, architecture).map_err(unfit)?;
        return Ok(Payload::of_bootstrap(binary));
    }
    let path = match &args.bootstrap {
        Some(path) if path.is_dir() => path.join(format!("kiln-bootstrap-{architecture}")),
        Some(path) => path.clone(),
        None => {
            ui.talk(&format!("building the bootstrap binary for {}", architecture.musl_target()));
            let shell = xshell::Shell::new().map_err(anyhow::Error::new)?;
            shell.change_dir(checkout()?);
            musl::build_bootstrap(&shell, architecture, musl::Fallback::Refuse)?.path
        }
    };
    let binary = std::fs::read(&path).map_err(|error| {
        Error::new(Code::BootstrapInvalid, format!("can't read the bootstrap binary `{}`", path.display()))
            .caused_by(error)
    })?;
    payload::prove_static(&binary, architecture).map_err(|error| {
        Error::new(Code::BootstrapInvalid, format!("`{}` can't go into the image", path.display()))
            .caused_by(error)
            .hint("leave `--bootstrap` out: the binary is then built in, or built from the checkout")
    })?;
    Ok(Payload::of_bootstrap(&binary))
}
