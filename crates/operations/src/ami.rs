//! `cargo xtask ami`: brings the recorded AMI of a variant to what kiln.toml and this checkout say.
//!
//! The digest of all inputs (documents, payload, pins, base image) is the recipe's version and a tag on the AMI. That
//! makes the command idempotent without a file of its own: whatever an interrupted run left is found by its name.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kiln_config::config::{Config, IMAGE_VOLUME_GIB, ImageVariant};
use kiln_config::model::{AmiId, Architecture, BaseImage, Region, Sha256};
use sha2::{Digest, Sha256 as Hasher};

use crate::code::Code;
use crate::error::{Error, Result};
use crate::fleet_stack::stack_tags;
use crate::plan::{Plan, Tally};
use crate::ports::{
    Ami, Blobs, Build, BuildStatus, Caller, Cloud, Component, ComponentUse, Distribution, Images, Infrastructure,
    Progress, Recipe, StackRequest, Versioned,
};
use crate::stacks::{self, StackStep};
use crate::wait::{Pace, human};
use kiln_image::components;
use kiln_image::payload;

/// A bake takes 20 to 30 minutes; Image Builder's own steps may be retried. Three hours is beyond any bake that ends.
const BAKE_BOUND: Duration = Duration::from_secs(3 * 3600);

/// Tag on an AMI: the digest of the inputs it was baked from.
pub const INPUTS_TAG: &str = "kiln:inputs";

/// Tag on an AMI: the same with the bootstrap binary's sources in place of the binary, so that a checkout of which nothing
/// changed is known without a build.
pub const SOURCES_TAG: &str = "kiln:sources";

/// What is shown of a failed build's log: a step's own complaint is in its last lines.
const LOG_LINES: u32 = 20;

/// The bake stack's template, as it stands in `infra/`.
pub const BAKE_TEMPLATE: &str = include_str!("../../../infra/bake.yaml");

/// What is to be baked.
#[derive(Debug)]
pub struct Request<'a> {
    /// The validated kiln.toml.
    pub config: &'a Config,
    /// Which of its images.
    pub variant: ImageVariant,
    /// The packed payload.
    pub payload: &'a [u8],
    /// Its digest.
    pub payload_sha256: Sha256,
    /// The digest of what the binary in it was built from, when it was built from this checkout.
    pub sources: Option<Sha256>,
}

/// Everything to be made for an image, all names derived from the inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The bake stack.
    pub stack: StackRequest,
    /// The payload's bucket.
    pub bucket: String,
    /// The payload's key.
    pub key: String,
    /// The components, in order.
    pub components: Vec<Component>,
    /// The recipe, whose version is [`Wanted::inputs`], shortened.
    pub recipe: Recipe,
    /// Where it is built.
    pub infrastructure: Infrastructure,
    /// What the AMI is called.
    pub distribution: Distribution,
    /// The digest of all inputs.
    pub inputs: Sha256,
    /// The folder in the bucket for what the image writes down of itself.
    pub record: String,
    /// The parameter that records the AMI.
    pub parameter: String,
}

/// The world as `ami` found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The bake stack's difference from the wanted one.
    pub stack: Option<stacks::Difference>,
    /// The payload is in its bucket.
    pub payload: bool,
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

/// A step of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Create or update the bake stack.
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

/// The digest of text, as 64 hexadecimal digits.
fn sha256(parts: &[&str]) -> Sha256 {
    let mut hasher = Hasher::new();
    for part in parts {
        // Lengths keep ["ab", "c"] and ["a", "bc"] apart.
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let hex = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    hex.parse().expect("32 bytes are 64 hexadecimal digits")
}

/// Image Builder's versions are three numbers below 2^30; two of them hold 60 bits of a digest.
fn version_of(digest: &Sha256) -> String {
    let node = |range: std::ops::Range<usize>| {
        u32::from_str_radix(&digest.as_str()[range], 16).expect("eight hexadecimal digits") & ((1 << 30) - 1)
    };
    format!("1.{}.{}", node(0..8), node(8..16))
}

/// A bucket's name has at most 63 characters. Of a prefix that leaves no room for account and region the end is replaced by
/// a digest, or two organizations with long logins would share a bucket.
pub(crate) fn bucket_name(config: &Config, caller: &Caller) -> String {
    let (prefix, place) = (config.prefix(), format!("-{}-{}", caller.account, config.region));
    let room = MOST_OF_A_BUCKETS_NAME - place.len();
    if prefix.len() <= room {
        return prefix + &place;
    }
    let digest = sha256(&[&prefix]);
    format!("{}-{}{place}", prefix[..room - 9].trim_end_matches('-'), &digest.as_str()[..8])
}

/// Source: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html>
const MOST_OF_A_BUCKETS_NAME: usize = 63;

/// Derives all that has to exist.
///
/// # Errors
/// [`crate::Kind::Configuration`] when kiln.toml has no digest for the architecture.
pub fn wanted(request: &Request<'_>, caller: &Caller, base: &AmiId) -> Result<Wanted> {
    let Request { config, variant, payload_sha256, .. } = request;
    let bucket = bucket_name(config, caller);
    let key = format!("payload/{payload_sha256}.tar.gz");
    let stack = StackRequest {
        name: config.bake_stack(),
        template: BAKE_TEMPLATE.to_owned(),
        parameters: BTreeMap::from([
            ("BucketName".to_owned(), bucket.clone()),
            ("ImagePrefix".to_owned(), config.prefix()),
            ("PermissionsBoundary".to_owned(), config.permissions_boundary.clone().unwrap_or_default()),
        ]),
        tags: stack_tags(config),
    };
    let mut values = component_values(request, &format!("s3://{bucket}/{key}"), base)?;
    let components = components();
    let recipe_of = |values: &BTreeMap<&'static str, String>, version: String| Recipe {
        id: Versioned { name: config.image_name(*variant), version },
        base: base.clone(),
        components: components.iter().map(|component| component_use(component, values)).collect(),
        volume_gib: IMAGE_VOLUME_GIB,
        kms_key: config.image.kms_key.clone(),
        root_device: "/dev/xvda".to_owned(),
        uninstall_ssm_agent: false,
    };
    let undated = recipe_of(&values, String::new());
    let inputs = sha256(&[&format!("{undated:?}"), &format!("{:?}", config.image)]);
    // What the image writes down of itself is named by its inputs, and so is no part of them.
    let record = format!("images/{inputs}");
    values.insert("Inputs", inputs.to_string());
    values.insert("RecordUri", format!("s3://{bucket}/{record}"));
    let recipe = recipe_of(&values, version_of(&inputs));
    Ok(Wanted {
        infrastructure: Infrastructure {
            name: config.image_name(*variant),
            instance_profile: config.bake_role(),
            instance_types: vec![build_instance_type(*variant).to_owned()],
            log_bucket: bucket.clone(),
        },
        distribution: Distribution {
            name: config.image_name(*variant),
            ami_name: format!("{} {{{{ imagebuilder:buildDate }}}}", config.image_name(*variant)),
            ami_tags: BTreeMap::from([
                ("kiln:managed".to_owned(), "true".to_owned()),
                ("kiln:image".to_owned(), config.image_name(*variant)),
            ]),
            copy_to: config.image.copy_to.clone(),
            share_with: config.image.share_with.clone(),
            kms_key: config.image.kms_key.clone(),
        },
        parameter: config.image_parameter(*variant),
        stack,
        bucket,
        key,
        components,
        recipe,
        inputs,
        record,
    })
}

/// The digest that [`SOURCES_TAG`] holds.
fn sources_digest(request: &Request<'_>, sources: &Sha256, caller: &Caller, base: &AmiId) -> Result<Sha256> {
    let instead = Request {
        payload: &[],
        payload_sha256: payload::digest_of_sources(sources),
        sources: None,
        config: request.config,
        variant: request.variant,
    };
    Ok(wanted(&instead, caller, base)?.inputs)
}

/// The recorded AMI, when it was baked from these very sources and everything else is as it was too: nothing has to be
/// built to know that there is nothing to do.
///
/// # Errors
/// What AWS answers, and [`wanted`]'s.
pub async fn unchanged(
    config: &Config,
    variant: ImageVariant,
    sources: &Sha256,
    cloud: &impl Cloud,
) -> Result<Option<AmiId>> {
    let caller = cloud.caller().await?;
    let base = cloud.newest_base(variant.base, variant.architecture).await?;
    let request = Request { config, variant, payload: &[], payload_sha256: sources.clone(), sources: None };
    // First, since what kiln.toml lacks is told before minutes of compiling, not after.
    let digest = sources_digest(&request, sources, &caller, &base)?;
    let Some(recorded) = cloud.recorded(&config.image_parameter(variant)).await? else { return Ok(None) };
    let Some(ami) = existing(cloud, &recorded).await? else { return Ok(None) };
    Ok((ami.tags.get(SOURCES_TAG).map(String::as_str) == Some(digest.as_str())).then_some(recorded))
}

fn build_instance_type(variant: ImageVariant) -> &'static str {
    match variant.architecture {
        Architecture::X86_64 => "m5.large",
        Architecture::Aarch64 => "m6g.large",
    }
}

/// The documents of `ami/components` as components, each with a version of its own content.
fn components() -> Vec<Component> {
    components::COMPONENTS
        .iter()
        .map(|(name, document)| Component {
            id: Versioned { name: format!("kiln-{name}"), version: version_of(&sha256(&[document])) },
            document: (*document).to_owned(),
            supported_os: vec!["Amazon Linux 2".to_owned(), "Amazon Linux 2023".to_owned()],
        })
        .collect()
}

/// Every value that the documents may ask for.
fn component_values(
    request: &Request<'_>,
    payload_uri: &str,
    base_image: &AmiId,
) -> Result<BTreeMap<&'static str, String>> {
    let Request { config, variant, payload_sha256, .. } = request;
    let pin = &config.runner;
    let Some(runner_sha256) = pin.sha256.get(&variant.architecture) else {
        return Err(Error::new(
            Code::RunnerDigestMissing,
            format!("kiln.toml pins no sha256 of runner {} for {}", pin.version, variant.architecture),
        )
        .hint(format!("add `{} = \"…\"` to [runner.sha256]", variant.architecture)));
    };
    let file = format!("actions-runner-linux-{}-{}.tar.gz", variant.architecture.runner_name(), pin.version);
    let base = pin.release_url.as_str().trim_end_matches('/');
    Ok(BTreeMap::from([
        ("RunnerVersion", pin.version.to_string()),
        ("RunnerUrl", format!("{base}/v{}/{file}", pin.version)),
        ("RunnerSha256", runner_sha256.to_string()),
        ("NodeBuilds", node_builds(config, *variant)?),
        ("PayloadUri", payload_uri.to_owned()),
        ("PayloadSha256", payload_sha256.to_string()),
        ("DiskGib", IMAGE_VOLUME_GIB.to_string()),
        ("BaseImage", base_image.to_string()),
    ]))
}

/// What stands in for the runner's own Node, as the document wants it. Only Amazon Linux 2 needs it, and builds for glibc
/// 2.17 exist for x86_64 only; the configuration's check has refused the other.
fn node_builds(config: &Config, variant: ImageVariant) -> Result<String> {
    if variant.base != BaseImage::AmazonLinux2 {
        return Ok("none".to_owned());
    }
    let pin = &config.runner;
    if pin.node.is_empty() {
        return Err(Error::new(
            Code::NodePinMissing,
            "kiln.toml pins no Node for amazon-linux-2: the runner's own needs glibc 2.28, Amazon Linux 2 has 2.26, and no \
             JavaScript action would run",
        )
        .hint("`cargo xtask pin` writes [runner.node] into kiln.toml; or set `base_image = \"amazon-linux-2023\"`"));
    }
    let url = pin.node_url.as_str().trim_end_matches('/');
    let builds = pin.node.iter().map(|(major, node)| format!("{major}={}={url}/{}", node.sha256, node.path()));
    Ok(builds.collect::<Vec<_>>().join(","))
}

fn component_use(component: &Component, values: &BTreeMap<&'static str, String>) -> ComponentUse {
    let document = components::Document::parse(&component.document).expect("the committed documents are tested");
    let parameters = values
        .iter()
        .filter(|(name, _)| document.parameters.contains_key(**name))
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect();
    ComponentUse { id: component.id.clone(), parameters }
}

/// What the plan is made from.
#[derive(Debug)]
pub struct Prepared {
    /// What has to exist.
    pub wanted: Wanted,
    /// What does.
    pub observed: Observed,
}

/// Looks at the world. Makes no mutating call.
///
/// # Errors
/// What AWS answers, and [`wanted`]'s.
pub async fn observe(request: &Request<'_>, cloud: &impl Cloud, progress: &dyn Progress) -> Result<Prepared> {
    let caller = cloud.caller().await?;
    let base = cloud.newest_base(request.variant.base, request.variant.architecture).await?;
    let wanted = wanted(request, &caller, &base)?;
    let stack = stacks::settled_stack(cloud, &wanted.stack.name, progress).await?;
    let difference = stacks::difference(stack.as_ref(), &wanted.stack);
    // The bucket exists with the stack; a look at a bucket that does not exist would be a permission error.
    let payload =
        stack.is_some_and(|s| s.outputs.contains_key("Bucket")) && cloud.has_blob(&wanted.bucket, &wanted.key).await?;
    let mut components = Vec::new();
    for component in &wanted.components {
        components.push(cloud.has_component(&component.id).await?);
    }
    let recipe = cloud.has_recipe(&wanted.recipe.id).await?;
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
    let observed = Observed {
        stack: difference,
        payload,
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

async fn existing(cloud: &impl Images, ami: &AmiId) -> Result<Option<Ami>> {
    Ok(cloud.ami(ami).await?.filter(|ami| matches!(ami.state.as_str(), "available" | "pending")))
}

/// The plan where an AMI holds all of it already.
pub fn settled(variant: ImageVariant, ami: &AmiId) -> Plan<Step> {
    Plan {
        subject: format!("image {variant}"),
        steps: Vec::new(),
        settled: format!("{ami} holds these inputs already"),
    }
}

/// What has to be done; pure.
pub fn plan(variant: ImageVariant, bytes: usize, prepared: &Prepared) -> Plan<Step> {
    let Prepared { wanted, observed } = prepared;
    let mut plan = Plan { subject: format!("image {variant}"), steps: Vec::new(), settled: String::new() };
    let is_current = |ami: &Ami| ami.tags.get(INPUTS_TAG).map(String::as_str) == Some(wanted.inputs.as_str());
    if let Some(ami) = observed.recorded.as_ref().filter(|ami| is_current(ami)) {
        return settled(variant, &ami.id);
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
    // A repeated start with the same token is the same build; a failed or removed one asks for a new token.
    let last = observed.build.as_ref().map_or("", |build| build.arn.as_str());
    plan.steps.push(Step::Start { token: sha256(&[wanted.inputs.as_str(), last]).to_string() });
    plan.steps.push(Step::Await { resumed: None });
    plan.steps.extend(copies);
    plan.steps.push(record(None));
    plan
}

fn prerequisites(wanted: &Wanted, observed: &Observed, bytes: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(difference) = &observed.stack {
        steps.push(Step::Stack(StackStep { request: wanted.stack.clone(), difference: difference.clone() }));
    }
    if !observed.payload {
        steps.push(Step::Upload { bucket: wanted.bucket.clone(), key: wanted.key.clone(), bytes });
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
    let mut tally = Tally::new(plan, progress);
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
        match step {
            Step::Stack(step) => stacks::apply(cloud, step, progress).await?,
            Step::Upload { bucket, key, .. } => self.upload(bucket, key, cloud).await?,
            Step::Component(component) => cloud.create_component(component).await?,
            Step::Recipe(recipe) => cloud.create_recipe(recipe).await?,
            Step::Infrastructure(infrastructure) => cloud.put_infrastructure(infrastructure).await?,
            Step::Distribution(distribution) => cloud.put_distribution(distribution).await?,
            Step::Start { token } => self.start(token, cloud).await?,
            Step::Await { resumed } => {
                let arn = resumed.clone().or_else(|| self.build.clone()).expect("a wait follows a start or resumes");
                let (ami, copies) = wait(&arn, cloud, progress).await?;
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

    async fn upload(&self, bucket: &str, key: &str, cloud: &impl Blobs) -> Result<()> {
        let Request { payload, payload_sha256, .. } = self.request;
        Ok(cloud.put_blob(bucket, key, payload.to_vec(), payload_sha256).await?)
    }

    async fn start(&mut self, token: &str, cloud: &impl Images) -> Result<()> {
        let Wanted { recipe, infrastructure, distribution, .. } = self.wanted;
        let build = cloud.start_build(&recipe.id, &infrastructure.name, &distribution.name, token).await?;
        self.build = Some(build.arn);
        Ok(())
    }

    async fn record_copies(&self, regions: &[Region], parameter: &str, cloud: &impl Cloud) -> Result<()> {
        let tags = self.tags(cloud).await?;
        for region in regions {
            let Some(ami) = self.copies.get(region.as_str()) else {
                return Err(Error::new(
                    Code::ImageCopyMissing,
                    format!("the build names no copy of the AMI in {region}"),
                )
                .hint("Image Builder's console shows what became of the distribution"));
            };
            cloud.record_copy(region, parameter, ami, &tags).await?;
        }
        Ok(())
    }

    /// What is in the image, as far as it can be told in a tag; where the rest of it is.
    async fn tags(&self, cloud: &impl Cloud) -> Result<BTreeMap<String, String>> {
        let Self { request, wanted, .. } = self;
        let runner = &request.config.runner;
        let mut tags = BTreeMap::from([
            (INPUTS_TAG.to_owned(), wanted.inputs.to_string()),
            ("kiln:base-image".to_owned(), wanted.recipe.base.to_string()),
            ("kiln:runner-version".to_owned(), runner.version.to_string()),
            ("kiln:payload".to_owned(), request.payload_sha256.to_string()),
            ("kiln:sbom".to_owned(), format!("s3://{}/{}", wanted.bucket, wanted.record)),
        ]);
        if let Some(digest) = runner.sha256.get(&request.variant.architecture) {
            tags.insert("kiln:runner-sha256".to_owned(), digest.to_string());
        }
        if let Some(sources) = &request.sources {
            let digest = sources_digest(request, sources, &cloud.caller().await?, &wanted.recipe.base)?;
            tags.insert(SOURCES_TAG.to_owned(), digest.to_string());
        }
        let manifest = cloud.document(&wanted.bucket, &format!("{}/manifest.json", wanted.record)).await?;
        tags.extend(manifest.map(|manifest| tags_of(&manifest.text)).unwrap_or_default());
        Ok(tags)
    }
}

/// Of what the image wrote down of itself, the versions that people ask for. EC2 takes 256 characters for a value and 50
/// tags.
fn tags_of(manifest: &str) -> BTreeMap<String, String> {
    let manifest: serde_json::Value = serde_json::from_str(manifest).unwrap_or_default();
    let mut tags = BTreeMap::new();
    let mut tag = |name: &str, value: &serde_json::Value| {
        if let Some(value) = value.as_str().filter(|value| !value.is_empty()) {
            tags.insert(format!("kiln:{name}"), value.chars().take(256).collect());
        }
    };
    for name in ["kernel", "glibc", "docker", "git"] {
        tag(name, &manifest[name]);
    }
    tag("bootstrap-version", &manifest["bootstrap"]["version"]);
    tag("bootstrap-sha256", &manifest["bootstrap"]["sha256"]);
    // The runner has two or three of them.
    for (major, version) in manifest["node"].as_object().into_iter().flatten().take(8) {
        tag(&format!("node-{major}"), version);
    }
    tags
}

/// Waits for a build, saying each step of its workflows as it begins and ends.
async fn wait(arn: &str, cloud: &impl Cloud, progress: &dyn Progress) -> Result<(AmiId, BTreeMap<String, AmiId>)> {
    let mut pace = Pace::new(BAKE_BOUND);
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    loop {
        let build = cloud.build(arn).await?;
        for step in &build.steps {
            if told.insert(step.name.clone(), step.status.clone()).as_ref() != Some(&step.status) {
                progress.say(&format!("{:<10} {}", step.status.to_ascii_lowercase(), step.name));
                pace.quicken();
            }
        }
        match build.status {
            BuildStatus::Available(ami) => return Ok((ami, build.copies)),
            BuildStatus::Failed { state, reason } => {
                tell_log(arn, cloud, progress).await;
                return Err(Error::new(Code::BuildFailed, format!("build {arn} ended in {state}: {reason}")).hint(
                    "no AMI was recorded, the one before still serves; mend what is named and run this again: it starts \
                     a new build",
                ));
            }
            BuildStatus::Running(state) => {
                progress.state(&format!("build is {state}"));
                if pace.pause().await.is_err() {
                    let bound = human(BAKE_BOUND);
                    return Err(Error::new(Code::BuildSlow, format!("build {arn} was still {state} after {bound}"))
                        .hint("run the same command again: it waits for this very build"));
                }
            }
        }
    }
}

/// Says the end of a build's log. That it can't be read is told, and hides no failure.
async fn tell_log(arn: &str, cloud: &impl Cloud, progress: &dyn Progress) {
    // …:image/NAME/VERSION/BUILD
    let Some((name, stream)) = arn.split_once(":image/").and_then(|(_, rest)| rest.split_once('/')) else { return };
    let group = format!("/aws/imagebuilder/{name}");
    match cloud.log_tail(&group, stream, LOG_LINES).await {
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

/// What is said once about a base image that should not be chosen anew.
pub fn notice(variant: ImageVariant) -> Option<&'static str> {
    match variant.base {
        BaseImage::AmazonLinux2 => Some(
            "Amazon Linux 2 is out of support since 2026-06-30: no more security updates; base_image = \
             \"amazon-linux-2023\" is the way on",
        ),
        BaseImage::AmazonLinux2023 => None,
    }
}
