//! Carrying the plan out, and waiting for the build.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kiln_config::model::{AmiId, Region};

use super::place::first;
use super::plan::{Prepared, Step};
use super::tags::{INPUTS_TAG, SOURCES_TAG, bake_tags, content_tags, manifest_tags};
use super::{BaseAmi, Request, Wanted, sources_digest};
use crate::code::Code;
use crate::error::{Error, Result};
use crate::fleet_stack::{resolve, resolved};
use crate::plan::{Plan, StepTracker};
use crate::ports::{Build, BuildRequest, BuildStatus, Cloud, Images, Infrastructure, ObjectStore, Progress};
use crate::stacks::{self, StackStep};
use crate::wait::{PollBackoff, human};

/// A bake takes 20 to 30 minutes; Image Builder's own steps may be retried. Three hours is beyond any bake that ends.
const BAKE_LIMIT: Duration = Duration::from_secs(3 * 3600);

/// What is shown of a failed build's log: a step's own complaint is in its last lines.
const LOG_LINES: u32 = 20;

/// Carries the plan out; the AMI's id is the result.
///
/// # Errors
/// The first step that fails, with the steps done before it.
pub async fn apply(
    request: &Request<'_>,
    prepared: &Prepared,
    plan: &Plan<Step>,
    cloud: &impl Cloud,
    progress: &dyn Progress,
) -> Result<AmiId> {
    if plan.is_empty() {
        let recorded = prepared.observed.recorded.as_ref();
        return Ok(recorded.expect("an empty plan means a recorded AMI").id.clone());
    }
    let finished = prepared.observed.build.as_ref().map(|build| build.copies.clone());
    let mut run =
        Run { request, wanted: &prepared.wanted, build: None, ami: None, copies: finished.unwrap_or_default() };
    let mut tally = StepTracker::new(plan, progress);
    for step in &plan.steps {
        tally.begin(&step.to_string());
        run.step(step, cloud, progress).await.map_err(|error| tally.failed(error))?;
    }
    Ok(run.ami.expect("every plan ends by recording an AMI"))
}

struct Run<'a> {
    request: &'a Request<'a>,
    wanted: &'a Wanted,
    build: Option<String>,
    ami: Option<AmiId>,
    copies: BTreeMap<String, AmiId>,
}

impl Run<'_> {
    async fn step(&mut self, step: &Step, cloud: &impl Cloud, progress: &dyn Progress) -> Result<()> {
        let Wanted { tags, .. } = self.wanted;
        match step {
            Step::Stack(step) => {
                let request = resolved(cloud, &step.request).await?;
                let step = StackStep { request, difference: step.difference.clone() };
                stacks::apply(cloud, &step, progress).await?;
            }
            Step::Upload { bucket, key, .. } => self.upload(bucket, key, cloud).await?,
            Step::UploadContents { bucket, key, .. } => {
                let (_, archive) = self.wanted.contents.as_ref().expect("an upload of contents follows from them");
                cloud.put_blob(bucket, key, archive.bytes.clone(), &archive.sha256).await?;
            }
            Step::Component(component) => cloud.create_component(component, tags).await?,
            Step::Recipe(recipe) => cloud.create_recipe(recipe, tags).await?,
            Step::Infrastructure(infrastructure) => put_infrastructure(infrastructure, cloud).await?,
            Step::Distribution(distribution) => cloud.put_distribution(distribution).await?,
            Step::Start { token } => self.start(token, cloud).await?,
            Step::Await { resumed } => {
                let arn = resolved_build(resumed.as_ref(), self.build.as_ref());
                let (ami, copies) = wait(&arn, self.request, self.wanted, cloud, progress).await?;
                self.ami = Some(ami);
                self.copies = copies;
            }
            Step::RecordCopies { regions, parameter } => self.record_copies(regions, parameter, cloud).await?,
            Step::Record { built, parameter } => {
                let ami = built.clone().or_else(|| self.ami.clone()).expect("a record follows a build");
                cloud.tag_ami(&ami, &self.tags(cloud).await?).await?;
                cloud.record(parameter, &ami).await?;
                self.ami = Some(ami);
            }
        }
        Ok(())
    }

    async fn upload(&self, bucket: &str, key: &str, cloud: &impl ObjectStore) -> Result<()> {
        let Request { payload, payload_sha256, .. } = self.request;
        Ok(cloud.put_blob(bucket, key, payload.to_vec(), payload_sha256).await?)
    }

    async fn start(&mut self, token: &str, cloud: &impl Images) -> Result<()> {
        let Wanted { recipe, infrastructure, distribution, log_group, tags, .. } = self.wanted;
        let request = BuildRequest {
            recipe: recipe.id.clone(),
            infrastructure: infrastructure.name.clone(),
            distribution: distribution.name.clone(),
            log_group: log_group.clone(),
            tags: tags.clone(),
            token: token.to_owned(),
        };
        self.build = Some(cloud.start_build(&request).await?.arn);
        Ok(())
    }

    async fn record_copies(&self, regions: &[Region], parameter: &str, cloud: &impl Cloud) -> Result<()> {
        let tags = self.tags(cloud).await?;
        for region in regions {
            let Some(ami) = self.copies.get(region.as_str()) else {
                let message = format!("the build names no copy of the AMI in {region}");
                return Err(Error::new(Code::ImageCopyMissing, message)
                    .hint("Image Builder's console shows what became of the distribution"));
            };
            cloud.record_copy(region, parameter, ami, &tags).await?;
        }
        Ok(())
    }

    /// What is in the image, as far as it can be told in a tag; where the rest of it is.
    async fn tags(&self, cloud: &impl Cloud) -> Result<BTreeMap<String, String>> {
        let Self { request, wanted, .. } = self;
        let mut tags = bake_tags(request.config, request.image);
        tags.extend(content_tags(request.config, request.image, wanted.recipe.base.as_str()));
        tags.insert(INPUTS_TAG.to_owned(), wanted.inputs.to_string());
        tags.insert("kiln:payload".to_owned(), request.payload_sha256.to_string());
        tags.insert("kiln:sbom".to_owned(), format!("s3://{}/{}", wanted.bucket, wanted.record));
        if let Some(sources) = &request.sources {
            let recipe = &wanted.recipe;
            let base = BaseAmi { id: recipe.base.clone(), root_device: recipe.root_device.clone() };
            let digest = sources_digest(request, sources, &cloud.caller().await?, &base)?;
            tags.insert(SOURCES_TAG.to_owned(), digest.to_string());
        }
        let manifest = cloud.document(&wanted.bucket, &format!("{}/manifest.json", wanted.record)).await?;
        tags.extend(manifest.map(|manifest| manifest_tags(&manifest.text)).unwrap_or_default());
        Ok(tags)
    }
}

fn resolved_build(resumed: Option<&String>, started: Option<&String>) -> String {
    resumed.or(started).expect("a wait follows a start or resumes").clone()
}

/// With the stacks' outputs in the place of references to them: the stacks exist by now.
async fn put_infrastructure(wanted: &Infrastructure, cloud: &impl Cloud) -> Result<()> {
    let mut known = wanted.clone();
    known.subnet = first(&resolve(cloud, &wanted.subnet).await?).to_owned();
    for group in &mut known.security_groups {
        *group = resolve(cloud, group).await?;
    }
    Ok(cloud.put_infrastructure(&known).await?)
}

/// Waits for a build, saying each step of its workflows as it begins and ends.
async fn wait(
    arn: &str,
    request: &Request<'_>,
    wanted: &Wanted,
    cloud: &impl Cloud,
    progress: &dyn Progress,
) -> Result<(AmiId, BTreeMap<String, AmiId>)> {
    let mut pace = PollBackoff::new(BAKE_LIMIT);
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    loop {
        let build = cloud.build(arn).await?;
        for step in &build.steps {
            if told.insert(step.name.clone(), step.status.clone()).as_ref() != Some(&step.status) {
                progress.say(&format!("{:<10} {}", step.status.to_ascii_lowercase(), step.name));
                pace.reset();
            }
        }
        match &build.status {
            BuildStatus::Available(ami) => return Ok((ami.clone(), build.copies)),
            BuildStatus::Failed { .. } => return Err(failed(&build, request, wanted, cloud, progress).await),
            BuildStatus::Running(state) => {
                progress.state(&format!("build is {state}"));
                if pace.pause().await.is_err() {
                    let bound = human(BAKE_LIMIT);
                    return Err(Error::new(Code::BuildTimeout, format!("build {arn} was still {state} after {bound}"))
                        .hint("run the same command again: it waits for this very build"));
                }
            }
        }
    }
}

/// Everything that AWS says of a failure: the state's reason, the steps that failed, the log's end, and the instances that
/// were kept for a look.
async fn failed(
    build: &Build,
    request: &Request<'_>,
    wanted: &Wanted,
    cloud: &impl Cloud,
    progress: &dyn Progress,
) -> Error {
    let Build { arn, status, steps, .. } = build;
    let (state, reason) = match status {
        BuildStatus::Failed { state, reason } => (state.as_str(), reason.as_str()),
        _ => ("no state", "no reason"),
    };
    for step in steps.iter().filter(|step| step.failed()) {
        let message = step.message.as_deref().unwrap_or("without a message");
        progress.say(&format!("step {} failed: {message}", step.name));
    }
    tell_log(arn, &wanted.log_group, cloud, progress).await;
    let kept = if request.keep_on_failure { kept(build, wanted) } else { String::new() };
    Error::new(Code::BuildFailed, format!("build {arn} ended in {state}: {reason}")).hint(format!(
        "no AMI was recorded, and none that was before is touched; fix what is named and run this again: it starts a new \
         build{kept}"
    ))
}

/// How to get onto the instances that were kept, and how to end them.
fn kept(build: &Build, wanted: &Wanted) -> String {
    let instances: BTreeSet<&str> = build.steps.iter().filter_map(|step| step.instance.as_deref()).collect();
    if instances.is_empty() {
        return format!(
            ". The instance was kept: `aws ec2 describe-instances --filters Name=tag:kiln:image,Values={}` finds it, \
             `aws ssm start-session --target ID` opens a shell, `aws ec2 terminate-instances --instance-ids ID` ends it",
            wanted.infrastructure.name
        );
    }
    let all = instances.iter().copied().collect::<Vec<_>>().join(" ");
    let shells: Vec<String> =
        instances.iter().map(|instance| format!("`aws ssm start-session --target {instance}`")).collect();
    format!(
        ". The instance was kept: {} opens a shell, `aws ec2 terminate-instances --instance-ids {all}` ends it",
        shells.join(" or ")
    )
}

/// Says the end of a build's log. That it can't be read is told, and hides no failure.
async fn tell_log(arn: &str, group: &str, cloud: &impl Cloud, progress: &dyn Progress) {
    // …:image/NAME/VERSION/BUILD; the stream is VERSION/BUILD.
    // source: https://docs.aws.amazon.com/imagebuilder/latest/userguide/monitor-cwlogs.html
    let Some((_, stream)) = arn.split_once(":image/").and_then(|(_, rest)| rest.split_once('/')) else { return };
    match cloud.log_tail(group, stream, LOG_LINES).await {
        Ok(lines) if lines.is_empty() => progress.say(&format!("there is no log {stream} in {group}")),
        Ok(lines) => {
            progress.say(&format!("the last lines of log {stream} in {group}:"));
            for line in lines {
                progress.say(&format!("  | {line}"));
            }
        }
        Err(error) => progress.say(&format!("log {stream} in {group} can't be read: {}", Error::from(error))),
    }
}
