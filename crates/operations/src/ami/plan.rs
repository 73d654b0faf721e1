//! What `ami` would do: observe, then plan.

use std::fmt;

use kiln_config::config::Image;
use kiln_config::model::{AmiId, Region};

use super::inputs::sha256;
use super::place::{self, Place};
use super::tags::INPUTS_TAG;
use super::{Request, Wanted, wanted};
use crate::code::Code;
use crate::error::{Error, Result};
use crate::fleet_stack::referred;
use crate::plan::Plan;
use crate::ports::{
    Account, Ami, Build, BuildStatus, Cloud, Component, Distribution, Images, Infrastructure, Progress, Recipe, Stack,
};
use crate::stacks::{self, StackStep};
use kiln_image::components::Document;

/// The world as `ami` found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The network's stack, where it is missing.
    pub network: Option<StackStep>,
    /// The bake stack's difference from the wanted one.
    pub stack: Option<stacks::Difference>,
    /// The payload is in its bucket.
    pub payload: bool,
    /// The archive with what kiln.toml adds is there, or there is none.
    pub contents: bool,
    /// For each wanted component: it exists.
    pub components: Vec<bool>,
    /// The recipe exists.
    pub recipe: bool,
    /// The infrastructure configuration as it stands.
    pub infrastructure: Option<Infrastructure>,
    /// The distribution configuration as it stands.
    pub distribution: Option<Distribution>,
    /// The newest build of the wanted recipe.
    pub build: Option<Build>,
    /// The AMI of that build, if it is there and still exists.
    pub built: Option<Ami>,
    /// The recorded AMI, if it still exists.
    pub recorded: Option<Ami>,
}

/// What the plan is made from.
#[derive(Debug)]
pub struct Prepared {
    /// What has to exist.
    pub wanted: Wanted,
    /// What does.
    pub observed: Observed,
}

/// A step of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Create the network's stack, or create or update the bake stack.
    Stack(StackStep),
    /// Put the payload into its bucket.
    Upload {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// The payload's length.
        bytes: usize,
    },
    /// Put the archive with what kiln.toml adds into the bucket.
    UploadContents {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// The archive's length.
        bytes: usize,
    },
    /// Make a component.
    Component(Component),
    /// Make the recipe.
    Recipe(Recipe),
    /// Create or update the infrastructure configuration.
    Infrastructure(Infrastructure),
    /// Create or update the distribution configuration.
    Distribution(Distribution),
    /// Start a build.
    Start {
        /// Makes a repeated start the same one.
        token: String,
    },
    /// Wait for the build, started just now or by an earlier run.
    Await {
        /// The running build, when it is an earlier run's.
        resumed: Option<String>,
    },
    /// Tag the copies and record each in a parameter of its region.
    RecordCopies {
        /// Where they are.
        regions: Vec<Region>,
        /// The parameter.
        parameter: String,
    },
    /// Tag the AMI with its inputs and record it in the parameter.
    Record {
        /// The AMI, when it is an earlier run's.
        built: Option<AmiId>,
        /// The parameter.
        parameter: String,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stack(step) => step.fmt(f),
            Self::Upload { bucket, key, bytes } => {
                write!(f, "upload the payload, {bytes} bytes, to s3://{bucket}/{key}")
            }
            Self::UploadContents { bucket, key, bytes } => {
                write!(f, "upload what kiln.toml adds, {bytes} bytes, to s3://{bucket}/{key}")
            }
            Self::Component(component) => write!(f, "create component {}", component.id),
            Self::Recipe(recipe) => {
                write!(f, "create recipe {} on {}", recipe.id, recipe.base)?;
                for used in &recipe.components {
                    write!(f, "\n+ {}", used.id)?;
                }
                Ok(())
            }
            Self::Infrastructure(infrastructure) => {
                write!(f, "put infrastructure configuration {}", infrastructure.name)
            }
            Self::Distribution(distribution) => write!(f, "put distribution configuration {}", distribution.name),
            Self::Start { .. } => f.write_str("start the build"),
            Self::Await { resumed: None } => f.write_str("wait until the AMI is built and tested"),
            Self::Await { resumed: Some(arn) } => {
                write!(f, "wait until the running build {arn} is built and tested")
            }
            Self::RecordCopies { regions, parameter } => {
                let regions = regions.iter().map(Region::as_str).collect::<Vec<_>>().join(", ");
                write!(f, "tag the copies in {regions} and record them there in {parameter}")
            }
            Self::Record { built: None, parameter } => write!(f, "tag the AMI and record it in {parameter}"),
            Self::Record { built: Some(ami), parameter } => write!(f, "tag {ami} and record it in {parameter}"),
        }
    }
}

/// Looks at the world. Makes no mutating call.
///
/// # Errors
/// What AWS answers, and [`wanted`]'s.
pub async fn observe(
    request: &Request<'_>,
    cloud: &(impl Cloud + Account),
    progress: &dyn Progress,
) -> Result<Prepared> {
    let caller = cloud.caller().await?;
    let base = super::base(request.image, cloud).await?;
    let place = place::observe(request.config, request.image, cloud, progress).await?;
    let mut wanted = wanted(request, &caller, &base, &place)?;
    let stack = stacks::settled_stack(cloud, &wanted.stack.name, progress).await?;
    let difference = stacks::difference(stack.as_ref(), &wanted.stack);
    if let (Some(stack), None) = (&stack, &difference) {
        wanted.infrastructure = known(&wanted.infrastructure, stack);
    }
    // The bucket exists with the stack; a look at a bucket that does not exist would be a permission error.
    let bucket = stack.as_ref().is_some_and(|s| s.outputs.contains_key("Bucket"));
    let payload = bucket && cloud.has_blob(&wanted.bucket, &wanted.key).await?;
    let contents = match &wanted.contents {
        Some((key, _)) => bucket && cloud.has_blob(&wanted.bucket, key).await?,
        None => true,
    };
    let mut components = Vec::new();
    for component in &wanted.components {
        components.push(is_there(component, cloud).await?);
    }
    let recipe = recipe_is_there(&wanted.recipe, cloud).await?;
    let build = if recipe { cloud.newest_build(&wanted.recipe.id).await? } else { None };
    let built = match &build {
        Some(Build { status: BuildStatus::Available(ami), .. }) => existing(cloud, ami).await?,
        _ => None,
    };
    let recorded = match cloud.recorded(&wanted.parameter).await? {
        Some(ami) => existing(cloud, &ami).await?,
        None => None,
    };
    let infrastructure = cloud.infrastructure(&wanted.infrastructure.name).await?;
    let distribution = cloud.distribution(&wanted.distribution.name).await?;
    let Place { network, .. } = place;
    let observed = Observed {
        network,
        stack: difference,
        payload,
        contents,
        components,
        recipe,
        infrastructure,
        distribution,
        build,
        built,
        recorded,
    };
    Ok(Prepared { wanted, observed })
}

/// The configuration with the bake stack's outputs in the place of references to them. A stack that will be changed may
/// have others then.
fn known(infrastructure: &Infrastructure, stack: &Stack) -> Infrastructure {
    let known = |value: &String| referred(value, stack).unwrap_or_else(|| value.clone());
    let security_groups = infrastructure.security_groups.iter().map(known).collect();
    Infrastructure { security_groups, ..infrastructure.clone() }
}

/// Does the component exist, with the content that it would be made with? Its version is a part of its content's digest,
/// which anyone can compute; whoever made it first decides what runs as root.
async fn is_there(component: &Component, cloud: &impl Images) -> Result<bool> {
    let Some(document) = cloud.component(&component.id).await? else { return Ok(false) };
    // Compared as documents: how a text is wrapped is the service's affair.
    let same = document == component.document
        || Document::parse(&document).is_ok_and(|found| Document::parse(&component.document) == Ok(found));
    if same {
        return Ok(true);
    }
    Err(differs(
        "component",
        &component.id.to_string(),
        "its document is another one",
        "aws imagebuilder delete-component --component-build-version-arn",
    ))
}

async fn recipe_is_there(recipe: &Recipe, cloud: &impl Images) -> Result<bool> {
    let Some(found) = cloud.recipe(&recipe.id).await? else { return Ok(false) };
    let what = if found.base != recipe.base {
        format!("it builds on {}, not on {}", found.base, recipe.base)
    } else if found.components != recipe.components {
        "its components or their parameters are others".to_owned()
    } else if found != *recipe {
        "its volume or its user data are others".to_owned()
    } else {
        return Ok(true);
    };
    Err(differs("recipe", &recipe.id.to_string(), &what, "aws imagebuilder delete-image-recipe --image-recipe-arn"))
}

fn differs(kind: &str, id: &str, what: &str, delete: &str) -> Error {
    let message = format!("{kind} {id} exists already, and is not the one that Kiln makes: {what}");
    Error::new(Code::ImageResourceForeign, message).hint(format!(
        "find out who made it (CloudTrail, Image Builder's Create calls), then delete it with `{delete} ARN` and run this again"
    ))
}

pub(super) async fn existing(cloud: &impl Images, ami: &AmiId) -> Result<Option<Ami>> {
    Ok(cloud.ami(ami).await?.filter(|ami| matches!(ami.state.as_str(), "available" | "pending")))
}

/// The plan where an AMI holds all of it already.
pub fn settled(image: &Image, ami: &AmiId) -> Plan<Step> {
    Plan {
        subject: format!("image {}", image.name),
        steps: Vec::new(),
        settled: format!("{ami} holds these inputs already"),
    }
}

/// What has to be done; pure.
pub fn plan(image: &Image, bytes: usize, prepared: &Prepared) -> Plan<Step> {
    let Prepared { wanted, observed } = prepared;
    let mut plan = Plan { subject: format!("image {}", image.name), steps: Vec::new(), settled: String::new() };
    let is_current = |ami: &Ami| ami.tags.get(INPUTS_TAG).map(String::as_str) == Some(wanted.inputs.as_str());
    if let Some(ami) = observed.recorded.as_ref().filter(|ami| is_current(ami)) {
        return settled(image, &ami.id);
    }
    let record = |built| Step::Record { built, parameter: wanted.parameter.clone() };
    let copies = (!wanted.distribution.copy_to.is_empty()).then(|| Step::RecordCopies {
        regions: wanted.distribution.copy_to.clone(),
        parameter: wanted.parameter.clone(),
    });
    if let Some(ami) = &observed.built {
        plan.steps.extend(copies);
        plan.steps.push(record(Some(ami.id.clone())));
        return plan;
    }
    if let Some(Build { arn, status: BuildStatus::Running(_), .. }) = &observed.build {
        plan.steps.push(Step::Await { resumed: Some(arn.clone()) });
        plan.steps.extend(copies);
        plan.steps.push(record(None));
        return plan;
    }
    plan.steps.extend(prerequisites(wanted, observed, bytes));
    plan.steps.push(Step::Start { token: token(wanted, observed.build.as_ref()) });
    plan.steps.push(Step::Await { resumed: None });
    plan.steps.extend(copies);
    plan.steps.push(record(None));
    plan
}

/// A repeated start with the same token is the same build; a failed or removed one asks for a new token.
///
/// Image Builder's models have had 36 and 64 characters for the longest one; 36 is good in both.
/// source: `botocore`, `imagebuilder/2019-12-02/service-2.json`, `ClientToken`: 36 in 1.35, 64 in 1.43.
fn token(wanted: &Wanted, last: Option<&Build>) -> String {
    let last = last.map_or("", |build| build.arn.as_str());
    let digest = sha256(format!("{}\n{last}", wanted.inputs).as_bytes());
    digest.as_str()[..MOST_TOKEN].to_owned()
}

/// See `token`.
pub const MOST_TOKEN: usize = 36;

fn prerequisites(wanted: &Wanted, observed: &Observed, bytes: usize) -> Vec<Step> {
    let mut steps: Vec<Step> = observed.network.iter().cloned().map(Step::Stack).collect();
    if let Some(difference) = &observed.stack {
        steps.push(Step::Stack(StackStep { request: wanted.stack.clone(), difference: difference.clone() }));
    }
    if !observed.payload {
        steps.push(Step::Upload { bucket: wanted.bucket.clone(), key: wanted.key.clone(), bytes });
    }
    if let Some((key, archive)) = wanted.contents.as_ref().filter(|_| !observed.contents) {
        let (bucket, bytes) = (wanted.bucket.clone(), archive.bytes.len());
        steps.push(Step::UploadContents { bucket, key: key.clone(), bytes });
    }
    for (component, exists) in wanted.components.iter().zip(&observed.components) {
        if !exists {
            steps.push(Step::Component(component.clone()));
        }
    }
    if !observed.recipe {
        steps.push(Step::Recipe(wanted.recipe.clone()));
    }
    if observed.infrastructure.as_ref() != Some(&wanted.infrastructure) {
        steps.push(Step::Infrastructure(wanted.infrastructure.clone()));
    }
    if observed.distribution.as_ref() != Some(&wanted.distribution) {
        steps.push(Step::Distribution(wanted.distribution.clone()));
    }
    steps
}
