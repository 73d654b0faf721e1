//! A build: the component documents, run into a directory.
//!
//! Components that only lay files down declare the parameter `DestDir`, and run for real. The others need a machine of
//! their own: they are validated, and their steps recorded as skipped, never pretended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use kiln_image::components::{Action, DEST_DIR, Document, OnFailure, Step};
use nix::unistd::{getegid, geteuid};
use serde_json::{Value as Json, json};
use serde_yaml_ng::Value;
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use super::backend::text_of;
use super::image_builder::{Build, LAUNCH_STEP};
use super::{ACCOUNT, REGION, Shared, ec2_describe, lock};

/// The unprivileged user of the stand-in base image, as the packages' component would make it.
const RUNNER_UID: u32 = 61_234;

/// Long enough that a poll sees each state.
const STATE: Duration = Duration::from_millis(60);

/// A step of ours ends within seconds here.
const STEP_LIMIT: Duration = Duration::from_secs(120);

/// An image that was baked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BakedImage {
    /// Its AMI.
    pub ami: String,
    /// What was run, and what was skipped for want of a machine: `phase/step`.
    pub ran: Vec<String>,
    /// See above.
    pub skipped: Vec<String>,
    /// Copies in other regions.
    pub copies: BTreeMap<String, String>,
    /// Accounts that may launch from it and its copies.
    pub shared_with: Vec<String>,
}

pub(super) struct Baking {
    pub(super) arn: String,
    pub(super) components: Vec<(Document, BTreeMap<String, String>)>,
    /// One for each region.
    pub(super) distributions: Vec<Json>,
    /// The root volume's key, where it has one of its own.
    pub(super) kms_key: Option<String>,
    /// Where it is built.
    pub(super) infrastructure: Json,
    /// `PHASE/DOCUMENT/STEP`, or a step's name alone.
    pub(super) fail_step: Option<String>,
}

impl Baking {
    fn is_to_fail(&self, phase: &str, document: &Document, step: &Step) -> bool {
        self.fail_step
            .as_deref()
            .is_some_and(|fail| fail == step.name || fail == format!("{phase}/{}/{}", document.name, step.name))
    }
}

/// A component's parameters: declared ones only, and all of those without a default.
pub(super) fn values(configuration: &Json, document: &Document) -> Result<BTreeMap<String, String>, String> {
    let mut values = BTreeMap::new();
    for parameter in configuration["parameters"].as_array().into_iter().flatten() {
        let name = parameter["name"].as_str().unwrap_or_default();
        if !document.parameters.contains_key(name) {
            return Err(format!("The component {} declares no parameter '{name}'.", document.name));
        }
        // A list, of which a string parameter takes the first.
        let value = parameter["value"][0].as_str().unwrap_or_default();
        values.insert(name.to_owned(), value.to_owned());
    }
    for (name, parameter) in &document.parameters {
        match &parameter.default {
            _ if values.contains_key(name) => {}
            Some(default) => {
                values.insert(name.clone(), default.clone());
            }
            None => return Err(format!("The component {} needs a value for parameter '{name}'.", document.name)),
        }
    }
    Ok(values)
}

/// The "public" base images, and the parameters that name the newest.
pub(super) async fn publish_bases(shared: &Shared) -> anyhow::Result<()> {
    for (name, architecture, parameter) in [
        (
            "amzn2-ami-kernel-5.10-hvm",
            "x86_64",
            "/aws/service/ami-amazon-linux-latest/amzn2-ami-kernel-5.10-hvm-x86_64-gp2",
        ),
        (
            "al2023-ami-kernel-default",
            "x86_64",
            "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64",
        ),
        ("debian-12-amd64", "x86_64", "/aws/service/debian/release/12/latest/amd64"),
        ("debian-12-arm64", "arm64", "/aws/service/debian/release/12/latest/arm64"),
    ] {
        let ami = register_for(shared, REGION, name, architecture, &json!({})).await?;
        lock(&shared.image_builder).bases.insert(parameter.to_owned(), ami);
    }
    Ok(())
}

pub(super) async fn register(shared: &Shared, region: &str, name: &str, tags: &Json) -> anyhow::Result<String> {
    register_for(shared, region, name, "x86_64", tags).await
}

async fn register_for(
    shared: &Shared,
    region: &str,
    name: &str,
    architecture: &str,
    tags: &Json,
) -> anyhow::Result<String> {
    let snapshot = snapshot(shared, region).await?;
    let fields = [
        ("Name", name),
        ("RootDeviceName", "/dev/xvda"),
        ("Architecture", architecture),
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.SnapshotId", &snapshot),
        ("BlockDeviceMapping.1.Ebs.VolumeSize", "30"),
    ];
    let answer = shared.backend.query_in(region, "ec2", "RegisterImage", &fields).await?;
    let ami = text_of(&answer, "imageId")?;
    ec2_describe::date(shared, &ami, SystemTime::now());
    for (key, value) in tags.as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        let fields = [("ResourceId.1", ami.as_str()), ("Tag.1.Key", key), ("Tag.1.Value", value)];
        shared.backend.query_in(region, "ec2", "CreateTags", &fields).await?;
    }
    Ok(ami)
}

/// What an AMI's root volume is made from, tagged as Image Builder does.
async fn snapshot(shared: &Shared, region: &str) -> anyhow::Result<String> {
    let ask = async |operation, fields: &[(&str, &str)], element| {
        text_of(&shared.backend.query_in(region, "ec2", operation, fields).await?, element)
    };
    let zone = format!("{region}a");
    let root = [("AvailabilityZone", zone.as_str()), ("Size", "30"), ("VolumeType", "gp3")];
    let volume = ask("CreateVolume", &root, "volumeId").await?;
    let tagged = [
        ("VolumeId", volume.as_str()),
        ("TagSpecification.1.ResourceType", "snapshot"),
        ("TagSpecification.1.Tag.1.Key", "CreatedBy"),
        ("TagSpecification.1.Tag.1.Value", "EC2 Image Builder"),
    ];
    let snapshot = ask("CreateSnapshot", &tagged, "snapshotId").await?;
    ask("DeleteVolume", &[("VolumeId", &volume)], "return").await?;
    Ok(snapshot)
}

fn update(shared: &Shared, arn: &str, change: impl FnOnce(&mut Build)) {
    if let Some(build) = lock(&shared.image_builder).builds.get_mut(arn) {
        change(build);
    }
}

async fn enter(shared: &Shared, arn: &str, status: &'static str) {
    update(shared, arn, |build| build.status = status);
    tokio::time::sleep(STATE).await;
}

/// Runs a build to its end.
pub(super) async fn run(shared: Arc<Shared>, baking: Baking) {
    let result = bake(&shared, &baking).await;
    if let Err(error) = result {
        update(&shared, &baking.arn, |build| {
            build.status = "FAILED";
            if build.reason.is_empty() {
                build.reason = format!("{error:#}");
            }
        });
    }
}

async fn bake(shared: &Shared, baking: &Baking) -> anyhow::Result<()> {
    let arn = baking.arn.as_str();
    let slug: String = arn.rsplit(":image/").next().unwrap_or_default().replace('/', "-");
    let root = shared.directory.join("images").join(&slug);
    let work = shared.directory.join("work").join(&slug);
    enter(shared, arn, "CREATING").await;
    base(&root)?;
    let mut record = BakedImage {
        ami: String::new(),
        ran: Vec::new(),
        skipped: Vec::new(),
        copies: BTreeMap::new(),
        shared_with: Vec::new(),
    };
    enter(shared, arn, "BUILDING").await;
    launch(shared, baking).await?;
    for phase in ["build", "validate"] {
        run_phase(shared, baking, phase, &root, &work, &mut record).await?;
    }
    enter(shared, arn, "TESTING").await;
    run_phase(shared, baking, "test", &root, &work, &mut record).await?;
    enter(shared, arn, "DISTRIBUTING").await;
    distribute(shared, baking, &mut record).await.inspect_err(|error| {
        let failure = json!({
            "imageStatus": "DISTRIBUTING",
            "distributionFailure": {
                "errorMessage": "Distribution failed",
                "regionFailures": [{ "region": REGION, "status": "FAILED", "errorMessage": format!("{error:#}") }],
            },
        });
        update(shared, arn, |build| {
            build.reason = "Image distribution failed".to_owned();
            build.failure = Some(failure);
        });
    })?;
    let (ami, copies) = (record.ami.clone(), record.copies.clone());
    {
        let mut state = lock(&shared.image_builder);
        state.roots.insert(ami.clone(), root);
        state.baked.push(record);
    }
    enter(shared, arn, "INTEGRATING").await;
    update(shared, arn, |build| {
        build.ami = Some(ami);
        build.copies = copies;
        build.status = "AVAILABLE";
    });
    Ok(())
}

/// The build instance is launched, or not. An account of this world has no default VPC, as those of most organizations.
///
/// source: `CreateInfrastructureConfigurationRequest$subnetId`; aws/aws-parallelcluster#3874, of "environments without a
/// default VPC"; EC2's error `VPCIdNotSpecified`: "No default VPC for this user"
async fn launch(shared: &Shared, baking: &Baking) -> anyhow::Result<()> {
    let Baking { infrastructure, .. } = baking;
    let list = |name: &str| infrastructure[name].as_array().cloned().unwrap_or_default();
    let groups = list("securityGroupIds");
    let launched = match infrastructure["subnetId"].as_str() {
        None => {
            Err("No default VPC for this user. GroupName is only supported for EC2-Classic and default VPC.".to_owned())
        }
        Some(_) if groups.is_empty() => Err("the VPC's default security group lets nothing out".to_owned()),
        Some(subnet) => {
            let known = shared.backend.query("ec2", "DescribeSubnets", &[("SubnetId.1", subnet)]).await;
            known.map(drop).map_err(|error| format!("{error:#}"))
        }
    };
    let step = LAUNCH_STEP;
    let Err(why) = launched else {
        note(shared, baking, "BUILD", step, "COMPLETED");
        return Ok(());
    };
    note(shared, baking, "BUILD", step, "FAILED");
    update(shared, &baking.arn, |build| {
        build.reason = format!("Image Builder failed to launch the build instance: {why}");
        build.failure = Some(json!({ "imageStatus": "BUILDING", "failedStep": step }));
    });
    bail!("{why}")
}

/// Registers the AMI in each region, as far as keys allow it: what an account's own key for EBS encrypts can be shared
/// with nobody, and a key is good in its own region.
async fn distribute(shared: &Shared, baking: &Baking, record: &mut BakedImage) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis().to_string();
    for distribution in &baking.distributions {
        let region = distribution["region"].as_str().unwrap_or_default();
        let settings = &distribution["amiDistributionConfiguration"];
        let key = settings["kmsKeyId"].as_str();
        let accounts: Vec<String> = settings["launchPermission"]["userIds"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|account| account.as_str().map(str::to_owned))
            .collect();
        ensure!(
            accounts.is_empty() || key.or(baking.kms_key.as_deref()).is_some(),
            "Snapshots encrypted with the AWS Managed CMK can't be shared"
        );
        if let Some(key) = key {
            ensure!(key.contains(&format!(":{region}:")), "the key {key} does not exist in region {region}");
        }
        let name = settings["name"].as_str().unwrap_or_default().replace("{{ imagebuilder:buildDate }}", &now);
        let ami = register(shared, region, &name, &settings["amiTags"]).await?;
        record.shared_with.extend(accounts);
        if region == REGION {
            record.ami = ami;
        } else {
            record.copies.insert(region.to_owned(), ami);
        }
    }
    record.shared_with.sort();
    record.shared_with.dedup();
    ensure!(!record.ami.is_empty(), "no distribution names {REGION}");
    Ok(())
}

/// The stand-in base image: a root directory with the user that the packages' component would make.
fn base(root: &Path) -> anyhow::Result<()> {
    let etc = root.join("etc");
    std::fs::create_dir_all(&etc).context("make the image's root")?;
    let (uid, gid) =
        if geteuid().is_root() { (RUNNER_UID, RUNNER_UID) } else { (geteuid().as_raw(), getegid().as_raw()) };
    let home = root.join("opt/actions-runner");
    let passwd = format!("root:x:0:0:root:/root:/bin/bash\nrunner:x:{uid}:{gid}::{}:/bin/bash\n", home.display());
    std::fs::write(etc.join("passwd"), passwd)?;
    std::fs::write(etc.join("group"), format!("root:x:0:\nrunner:x:{gid}:\n"))?;
    Ok(())
}

async fn run_phase(
    shared: &Shared,
    baking: &Baking,
    phase_name: &str,
    root: &Path,
    work: &Path,
    record: &mut BakedImage,
) -> anyhow::Result<()> {
    let workflow = if phase_name == "test" { "TEST" } else { "BUILD" };
    for (document, given) in &baking.components {
        let mut values = given.clone();
        values.insert(DEST_DIR.to_owned(), root.display().to_string());
        values.insert("WorkDir".to_owned(), work.display().to_string());
        for phase in document.phases.iter().filter(|phase| phase.name.as_str() == phase_name) {
            for step in &phase.steps {
                let name = format!("{}/{}", document.name, step.name);
                let injected = baking.is_to_fail(phase_name, document, step);
                if !injected && !document.lays_files_down_only() {
                    note(shared, baking, workflow, &format!("{name} (skipped: needs a machine)"), "SKIPPED");
                    record.skipped.push(format!("{phase_name}/{name}"));
                    continue;
                }
                note(shared, baking, workflow, &name, "RUNNING");
                log(shared, baking, format!("Document {}, phase {phase_name}, step {}", document.name, step.name));
                let done = if injected {
                    Err(anyhow::anyhow!("told to fail"))
                } else {
                    execute(shared, baking, step, &values).await
                };
                note(shared, baking, workflow, &name, if done.is_ok() { "COMPLETED" } else { "FAILED" });
                if let Err(error) = done {
                    if step.on_failure == OnFailure::Ignore {
                        log(shared, baking, format!("ignored: {error:#}"));
                        continue;
                    }
                    failed(shared, baking, (document, phase_name), step, &error);
                    bail!("step {name} failed: {error:#}");
                }
                record.ran.push(format!("{phase_name}/{name}"));
            }
        }
    }
    Ok(())
}

fn note(shared: &Shared, baking: &Baking, workflow: &'static str, name: &str, status: &'static str) {
    update(shared, &baking.arn, |build| {
        match build.steps.iter_mut().find(|(of, known, _)| *of == workflow && known == name) {
            Some(step) => step.2 = status,
            None => build.steps.push((workflow, name.to_owned(), status)),
        }
    });
}

/// A line of the build's log.
fn log(shared: &Shared, baking: &Baking, line: impl Into<String>) {
    let line = line.into();
    update(shared, &baking.arn, |build| build.log.push(line));
}

/// source: `ImageFailureContext`, `ComponentFailureContext`, whose message has 1,024 characters at most
fn failed(shared: &Shared, baking: &Baking, (document, phase): (&Document, &str), step: &Step, error: &anyhow::Error) {
    log(shared, baking, format!("ERROR {error:#}"));
    let message: String = format!("{error:#}").chars().take(1024).collect();
    let failure = json!({
        "imageStatus": if phase == "test" { "TESTING" } else { "BUILDING" },
        "failedStep": if phase == "test" { "ApplyTestComponents" } else { "ApplyBuildComponents" },
        "componentFailure": {
            "componentArn": format!("arn:aws:imagebuilder:{REGION}:{ACCOUNT}:component/{}/1.0.0/1", document.name),
            "phaseName": phase,
            "stepName": step.name,
            "errorMessage": message,
        },
    });
    update(shared, &baking.arn, |build| {
        build.reason = format!("SSM execution failed for step '{}' in phase '{phase}'", step.name);
        build.failure = Some(failure);
    });
}

/// Puts values in the place of `{{ NAME }}`.
pub fn filled(text: &str, values: &BTreeMap<String, String>) -> String {
    values.iter().fold(text.to_owned(), |text, (name, value)| {
        text.replace(&format!("{{{{ {name} }}}}"), value).replace(&format!("{{{{{name}}}}}"), value)
    })
}

async fn execute(
    shared: &Shared,
    baking: &Baking,
    step: &Step,
    values: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(|text| filled(text, values));
    match step.action {
        Action::S3Download => {
            for input in step.inputs.as_sequence().into_iter().flatten() {
                let source = text(input, "source").context("a source")?;
                let (bucket, key) =
                    source.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).context("an s3:// source")?;
                let bytes = shared.backend.object(bucket, key).await.with_context(|| source.clone())?;
                // source: https://docs.aws.amazon.com/imagebuilder/latest/userguide/toe-action-modules.html, S3Download:
                // "All folders in the destination path must exist prior to download, or the download fails."
                let destination = PathBuf::from(text(input, "destination").context("a destination")?);
                std::fs::write(&destination, &bytes).with_context(|| format!("write {}", destination.display()))?;
            }
            Ok(())
        }
        Action::S3Upload => {
            for input in step.inputs.as_sequence().into_iter().flatten() {
                let source = PathBuf::from(text(input, "source").context("a source")?);
                let destination = text(input, "destination").context("a destination")?;
                let (bucket, key) = destination
                    .strip_prefix("s3://")
                    .and_then(|rest| rest.split_once('/'))
                    .context("an s3:// destination")?;
                let bytes = std::fs::read(&source).with_context(|| format!("read {}", source.display()))?;
                shared.backend.put_object(bucket, key, bytes).await.with_context(|| destination.clone())?;
            }
            Ok(())
        }
        Action::WebDownload => {
            for input in step.inputs.as_sequence().into_iter().flatten() {
                let source = text(input, "source").context("a source")?;
                let response = shared.backend.client.get(&source).send().await?.error_for_status()?;
                let bytes = response.bytes().await?;
                let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                let wanted = text(input, "checksum").context("a checksum")?;
                ensure!(found == wanted, "checksum of {source} is {found}, not {wanted}");
                write(&PathBuf::from(text(input, "destination").context("a destination")?), &bytes)?;
            }
            Ok(())
        }
        Action::ExecuteBash => {
            for command in step.inputs.get("commands").and_then(Value::as_sequence).into_iter().flatten() {
                for line in bash(&filled(command.as_str().unwrap_or_default(), values)).await?.lines() {
                    log(shared, baking, line);
                }
            }
            Ok(())
        }
        other => bail!("the stand-in does not execute {other:?} in {REGION}"),
    }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::create_dir_all(path.parent().context("a destination is in a folder")?)?;
    std::fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

/// Runs a script, and gives what it said.
async fn bash(script: &str) -> anyhow::Result<String> {
    let run = Command::new("bash").arg("-c").arg(script).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(STEP_LIMIT, run).await.context("the step's time was up")??;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
