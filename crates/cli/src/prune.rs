//! `cargo xtask prune`.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;

use kiln_aws::Aws;
use kiln_config::config::Config;
use kiln_config::model::{Region, SnapshotId};
use kiln_operations::plan::Plan;
use kiln_operations::ports::OwnImage;
use kiln_operations::prune::{self, Observed, Request, Step, Use};
use kiln_operations::when;
use serde_json::{Value, json};

use crate::cloud;
use crate::ui::{Failure, Ui};

/// Remove images that nothing uses, with their snapshots.
///
/// An image stays while anything names it: a parameter of Kiln's (what is recorded, current, or the way back), a launch
/// template's version, a stack, an instance; and the newest few of each kind stay in any case. What Kiln has not tagged is
/// never touched. Looks in kiln.toml's region and in those that images are copied to.
///
/// CloudFormation keeps every launch template version it ever made, and each keeps its image. With --superseded those from
/// which nothing launches any more (no group's, no instance's, not the newest) give their images up.
///
/// Prints the ids of the AMIs that were removed on stdout, one a line.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask prune --dry-run
  cargo xtask prune --keep 5 --superseded

Results: removed (with --dry-run: what would be), kept, snapshots_left, snapshots_held, gib")]
pub struct Args {
    /// Keep this many of the newest of each image in any case.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    keep: u16,

    /// Remove images too that only superseded launch template versions name.
    #[arg(long)]
    superseded: bool,

    /// Print the plan and change nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(args: &Args, config: &Path, ui: &Ui) -> Result<(), Failure> {
    let config = cloud::read_config(config)?;
    let mut places = Vec::new();
    for region in std::iter::once(&config.region).chain(&config.image_defaults.copy_to) {
        places.push(Place::look(args, &config, region, ui).await?);
    }
    if places.iter().any(|place| !place.plan.is_empty()) && !config.image_defaults.share_with.is_empty() {
        ui.warn(&format!(
            "what the accounts of [image_defaults] share_with launch can't be seen from here: of what they use, only the newest {} \
             of each image are sure to stay",
            args.keep
        ));
    }
    if args.dry_run {
        record(&places, ui);
        return Ok(());
    }
    let mut done: Vec<String> = Vec::new();
    for place in &mut places {
        let Place { plan, aws, stuck, .. } = place;
        *stuck = Box::pin(prune::apply(plan, aws, ui)).await.map_err(|mut error| {
            error.done.splice(0..0, done.clone());
            error
        })?;
        done.extend(plan.texts().steps.iter().filter_map(|step| step.lines().next()).map(str::to_owned));
    }
    ui.clear();
    for snapshot in places.iter().flat_map(|place| &place.stuck) {
        ui.warn(&format!("{snapshot} stays: EC2 says that an AMI uses it, made from it meanwhile"));
    }
    for image in places.iter().flat_map(Place::removed) {
        ui.data(image.id.as_str());
    }
    record(&places, ui);
    Ok(())
}

/// A region, and what is to be done there.
struct Place<'a> {
    request: Request<'a>,
    aws: Aws,
    observed: Observed,
    plan: Plan<Step>,
    stuck: Vec<SnapshotId>,
}

impl<'a> Place<'a> {
    async fn look(args: &Args, config: &'a Config, region: &'a Region, ui: &Ui) -> Result<Self, Failure> {
        let aws = Aws::connect(region).await;
        let observed = Box::pin(prune::observe(config, &aws)).await?;
        let now = SystemTime::now();
        let request = Request { config, region, keep: args.keep.into(), superseded: args.superseded, now };
        let plan = prune::plan(&request, &observed);
        let place = Self { request, aws, observed, plan, stuck: Vec::new() };
        place.tell(ui);
        Ok(place)
    }

    fn tell(&self, ui: &Ui) {
        for (image, uses) in prune::verdicts(&self.request, &self.observed).iter().filter(|(_, uses)| !uses.is_empty())
        {
            ui.talk(&format!("keep {}: {}", image.id, words(uses).join(", ")));
        }
        for held in prune::held(&self.observed) {
            ui.talk(&held.to_string());
        }
        ui.plan(&self.plan);
        if !self.plan.is_empty() {
            ui.talk(&format!("this frees {} GiB of snapshots at most", self.gib()));
        }
        let superseded = self.superseded();
        if !superseded.is_empty() {
            let gib: u32 = superseded.iter().map(|image| size(image)).sum();
            let count = superseded.len();
            ui.talk(&format!(
                "{count} more, {gib} GiB, would go with --superseded: only launch template versions name them from which \
                 nothing launches any more"
            ));
        }
    }

    /// The images that only superseded versions keep.
    fn superseded(&self) -> Vec<&OwnImage> {
        let verdicts = prune::verdicts(&self.request, &self.observed);
        let only =
            |uses: &BTreeSet<Use>| !uses.is_empty() && uses.iter().all(|used| matches!(used, Use::Superseded(_)));
        verdicts.into_iter().filter(|(_, uses)| only(uses)).map(|(image, _)| image).collect()
    }

    fn removed(&self) -> impl Iterator<Item = &OwnImage> {
        let verdicts = prune::verdicts(&self.request, &self.observed).into_iter();
        verdicts.filter(|(_, uses)| uses.is_empty()).map(|(image, _)| image)
    }

    fn gib(&self) -> u32 {
        self.plan.steps.iter().map(Step::gib).sum()
    }

    fn described(&self, image: &OwnImage) -> Value {
        json!({
            "ami": image.id.to_string(),
            "region": self.request.region.to_string(),
            "image": prune::kind_of(image),
            "created": image.created.map(when::stamp),
            "gib": size(image),
            "snapshots": image.snapshots.iter().map(|(id, _)| id.to_string()).collect::<Vec<_>>(),
        })
    }
}

fn size(image: &OwnImage) -> u32 {
    image.snapshots.iter().map(|(_, gib)| gib).sum()
}

fn words(uses: &BTreeSet<Use>) -> Vec<String> {
    uses.iter().map(ToString::to_string).collect()
}

/// What goes, what stays and why, for machines.
fn record(places: &[Place<'_>], ui: &Ui) {
    let (mut removed, mut kept, mut left, mut held) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for place in places {
        removed.extend(place.removed().map(|image| place.described(image)));
        let verdicts = prune::verdicts(&place.request, &place.observed);
        kept.extend(verdicts.iter().filter(|(_, uses)| !uses.is_empty()).map(|(image, uses)| {
            let mut value = place.described(image);
            value["uses"] = words(uses).into();
            value
        }));
        left.extend(place.plan.steps.iter().filter_map(|step| match step {
            Step::DeleteLeft { snapshot, .. } => Some(snapshot.to_string()),
            Step::Remove { .. } => None,
        }));
        let in_removed = place.plan.steps.iter().flat_map(|step| match step {
            Step::Remove { held, .. } => held.as_slice(),
            Step::DeleteLeft { .. } => &[],
        });
        held.extend(prune::held(&place.observed).iter().chain(in_removed).map(|held| held.snapshot.to_string()));
        held.extend(place.stuck.iter().map(ToString::to_string));
    }
    ui.record("removed", removed);
    ui.record("kept", kept);
    ui.record("snapshots_left", left);
    ui.record("snapshots_held", held);
    ui.record("gib", places.iter().map(Place::gib).sum::<u32>());
}
