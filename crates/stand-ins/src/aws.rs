//! A local AWS at the wire. An emulator serves what it serves well; stand-ins of our own serve what no emulator has:
//! Image Builder, the instances and refreshes of Auto Scaling groups, an instance's metadata service. One gateway in front
//! is what `AWS_ENDPOINT_URL` points at.

mod account;
mod auto_scaling;
mod backend;
mod bake;
mod ec2;
mod ec2_describe;
mod fleets;
mod gateway;
mod groups;
mod image_builder;
mod imds;
mod kms;
mod simulated;
mod single_instance;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::Router;
use tokio::net::TcpListener;
use tokio::process::Child;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::github::GitHub;
use backend::Backend;
pub use bake::BakedImage;
pub use bake::filled;
pub use fleets::{FleetAws, FleetInstance, FleetOptions, Pool};
pub use gateway::{Refusal, Request, When};
use groups::Groups;
pub use groups::InstanceView;
use image_builder::ImageBuilder;
pub use imds::{ADDRESS as IMDS_ADDRESS, Imds, ImdsFault, ImdsOptions};
pub use simulated::ImageFault;
pub use single_instance::{InstanceAws, Place};

/// The region of every rehearsal.
pub(crate) const REGION: &str = "eu-central-1";
/// The emulator's account.
pub(crate) const ACCOUNT: &str = "000000000000";

/// What tells the pipeline's calls from an instance's and from the stand-ins' own.
const PIPELINE_KEY: &str = "AKIAPIPELINE00000000";
pub(crate) const INSTANCE_KEY: &str = "AKIAINSTANCE00000000";

/// Where things are.
#[derive(Debug, Clone)]
pub struct AwsOptions {
    /// For images, instances and logs; the runner's unprivileged user must be able to reach it.
    pub directory: PathBuf,
    /// The emulator's executable.
    pub ministack: PathBuf,
}

/// A call of the pipeline's at which it is to be cut off.
#[derive(Debug)]
struct KillPoint {
    remaining: u32,
    when: When,
    tell: Option<oneshot::Sender<()>>,
}

/// What [`Aws::refuse_from`] tells.
#[derive(Debug)]
struct Outage {
    remaining: u32,
    code: &'static str,
}

#[derive(Debug)]
struct Shared {
    backend: Backend,
    directory: PathBuf,
    endpoint: String,
    requests: Mutex<Vec<Request>>,
    /// What anybody sent, by operation.
    bodies: Mutex<Vec<(String, axum::body::Bytes)>>,
    kill_point: Mutex<Option<KillPoint>>,
    refusals: Mutex<Vec<Refusal>>,
    outage: Mutex<Option<Outage>>,
    image_builder: Mutex<ImageBuilder>,
    groups: Mutex<Groups>,
    vcpu_quota: Mutex<u32>,
    spoil_change_set: Mutex<bool>,
    aliases: Mutex<kms::SlowAliases>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The handle of a running local AWS.
#[derive(Debug)]
pub struct Aws {
    shared: Arc<Shared>,
    emulator: Child,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Aws {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        groups::kill_below(&self.shared.directory);
        let _ = self.emulator.start_kill();
    }
}

impl Aws {
    /// Starts the emulator, the stand-ins and the gateway.
    ///
    /// # Errors
    /// A part does not start.
    pub async fn start(options: AwsOptions) -> anyhow::Result<Self> {
        let AwsOptions { directory, ministack } = options;
        std::fs::create_dir_all(&directory).context("make the local AWS's directory")?;
        let (emulator, backend) = Backend::start(&ministack, &directory).await?;
        account::open_default_vpc(&backend).await.context("open the default VPC")?;
        let listener = TcpListener::bind("127.0.0.1:0").await.context("open a port for the gateway")?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(Shared {
            backend,
            directory,
            endpoint,
            requests: Mutex::default(),
            bodies: Mutex::default(),
            kill_point: Mutex::default(),
            refusals: Mutex::default(),
            outage: Mutex::default(),
            image_builder: Mutex::default(),
            groups: Mutex::default(),
            vcpu_quota: Mutex::new(account::QUOTA),
            spoil_change_set: Mutex::default(),
            aliases: Mutex::default(),
        });
        bake::publish_bases(&shared).await?;
        let app = Router::new().fallback(gateway::handle).with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move {
            // Ends only with the task.
            let _ = axum::serve(listener, app).await;
        });
        let keeping = tokio::spawn(groups::keep(Arc::clone(&shared)));
        Ok(Self { shared, emulator, tasks: vec![serving, keeping] })
    }

    /// What `AWS_ENDPOINT_URL` is set to.
    pub fn endpoint_url(&self) -> String {
        self.shared.endpoint.clone()
    }

    /// The region.
    pub fn region(&self) -> &'static str {
        REGION
    }

    /// The environment of a pipeline's process, with nothing of this machine's own AWS configuration.
    pub fn environment(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", self.shared.endpoint.as_str()),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", PIPELINE_KEY),
            ("AWS_SECRET_ACCESS_KEY", "pipeline"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// Every instance ever launched, as it stands.
    pub fn instances(&self) -> Vec<InstanceView> {
        lock(&self.shared.groups).views()
    }

    /// Every image baked.
    pub fn images(&self) -> Vec<BakedImage> {
        lock(&self.shared.image_builder).images()
    }

    /// Where an image's files are.
    pub fn image_root(&self, ami: &str) -> Option<PathBuf> {
        lock(&self.shared.image_builder).root_of(ami)
    }

    /// An image's tags.
    ///
    /// # Errors
    /// The emulator does not know it.
    pub async fn image_tags(&self, ami: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let answer = self.shared.backend.query("ec2", "DescribeImages", &[("ImageId.1", ami)]).await?;
        let document = roxmltree::Document::parse(&answer)?;
        let sets = document.descendants().filter(|node| node.tag_name().name() == "tagSet");
        let items = sets.flat_map(|set| set.children());
        let tag = |item: roxmltree::Node<'_, '_>| {
            let child = |name: &str| item.children().find(|child| child.tag_name().name() == name)?.text();
            Some((child("key")?.to_owned(), child("value")?.to_owned()))
        };
        Ok(items.filter_map(tag).collect())
    }

    /// An object by its address, `s3://BUCKET/KEY`.
    ///
    /// # Errors
    /// There is none.
    pub async fn object(&self, address: &str) -> anyhow::Result<Vec<u8>> {
        let parts = address.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
        let (bucket, key) = parts.context("an address is s3://BUCKET/KEY")?;
        self.shared.backend.object(bucket, key).await
    }

    /// A parameter's value in a region.
    ///
    /// # Errors
    /// The emulator does not answer.
    pub async fn parameter(&self, region: &str, name: &str) -> anyhow::Result<Option<String>> {
        self.shared.backend.parameter(region, name).await
    }

    /// Tags a KMS key, as a person can.
    ///
    /// # Errors
    /// The emulator refuses.
    pub async fn tag_key(&self, id: &str, tag: &str, value: &str) -> anyhow::Result<()> {
        let fields = serde_json::json!({ "KeyId": id, "Tags": [{ "TagKey": tag, "TagValue": value }] });
        let answer = self.shared.backend.json(REGION, "kms", "TrentService.TagResource", &fields).await?;
        ensure!(answer.get("__type").is_none(), "kms:TagResource answered {answer}");
        Ok(())
    }

    /// Writes a parameter, as a person can.
    ///
    /// # Errors
    /// The emulator refuses.
    pub async fn put_parameter(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let fields = serde_json::json!({ "Name": name, "Value": value, "Type": "String", "Overwrite": true });
        let answer = self.shared.backend.json(REGION, "ssm", "AmazonSSM.PutParameter", &fields).await?;
        ensure!(answer.get("__type").is_none(), "ssm:PutParameter answered {answer}");
        Ok(())
    }

    /// Removes a parameter, as a person can.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn forget_parameter(&self, name: &str) -> anyhow::Result<()> {
        let fields = serde_json::json!({ "Name": name });
        let answer = self.shared.backend.json(REGION, "ssm", "AmazonSSM.DeleteParameter", &fields).await?;
        ensure!(answer.get("__type").is_none(), "ssm:DeleteParameter answered {answer}");
        Ok(())
    }

    /// The pipeline's calls so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// What was sent with each call, the pipeline's and the instances': `kms:Sign` and the body.
    pub fn bodies(&self) -> Vec<(String, Vec<u8>)> {
        lock(&self.shared.bodies).iter().map(|(operation, body)| (operation.clone(), body.to_vec())).collect()
    }

    /// How many of the pipeline's calls changed something, or meant to.
    pub fn mutations(&self) -> usize {
        lock(&self.shared.requests).iter().filter(|request| request.mutating).count()
    }

    /// Resolves when the pipeline's n-th mutating call from now is about to take effect, or has; its connection then hangs,
    /// so that the process can be killed just there. Arming a new one takes the former back.
    pub fn on_mutation(&self, nth: u32, when: When) -> impl Future<Output = ()> + use<> {
        let (tell, told) = oneshot::channel();
        *lock(&self.shared.kill_point) = Some(KillPoint { remaining: nth, when, tell: Some(tell) });
        async move {
            if told.await.is_err() {
                // Taken back.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Takes the kill_point back.
    pub fn disarm(&self) {
        *lock(&self.shared.kill_point) = None;
    }

    /// The next calls of this operation are refused, an instance's too.
    pub fn refuse(&self, refusal: Refusal) {
        lock(&self.shared.refusals).push(refusal);
    }

    /// From the n-th of the pipeline's calls on, all are refused with this code, as by credentials that have expired;
    /// [`Aws::lift`] ends it.
    pub fn refuse_from(&self, nth: u32, code: &'static str) {
        *lock(&self.shared.outage) = Some(Outage { remaining: nth, code });
    }

    /// Ends what [`Aws::refuse_from`] began, and takes back refusals that were not used up.
    pub fn lift(&self) {
        *lock(&self.shared.outage) = None;
        lock(&self.shared.refusals).clear();
    }

    /// From here on instances are simulated: their images are made by [`Aws::add_image`], their runners are online at once.
    pub fn simulate_instances(&self, github: &GitHub) {
        lock(&self.shared.groups).machines.simulate(github.clone());
    }

    /// How long it takes until KMS lets a role use the key that an alias was pointed at. No time, unless told to.
    pub fn delay_aliases(&self, delay: Duration) {
        lock(&self.shared.aliases).delay(delay);
    }

    /// Whether instance refreshes go on only once the instances that they replaced are gone. They do not, unless told to.
    pub fn wait_for_leaving(&self, waits: bool) {
        lock(&self.shared.groups).waits_for_leaving = waits;
    }

    /// An image of a kind, as a bake leaves it, to simulate instances of, with a runner of this version.
    ///
    /// # Errors
    /// The emulator refuses.
    pub async fn add_image(&self, kind: &str, runner_version: &str) -> anyhow::Result<String> {
        let tags = serde_json::json!({
            "kiln:managed": "true",
            "kiln:image": kind,
            "kiln:inputs": format!("{:0>64}", runner_version.replace('.', "")),
            "kiln:runner-version": runner_version,
        });
        let ami = bake::register(&self.shared, REGION, &format!("{kind} {runner_version}"), &tags).await?;
        lock(&self.shared.groups).machines.add(&ami, runner_version);
        Ok(ami)
    }

    /// Something is wrong with an image of simulated instances, for those launched from now on; or nothing any more.
    pub fn spoil_image(&self, ami: &str, fault: Option<ImageFault>) {
        lock(&self.shared.groups).machines.spoil(ami, fault);
    }

    /// Ends an instance without a word, as its hardware may: its runner stays at GitHub.
    pub fn kill_instance(&self, id: &str) {
        let mut groups = lock(&self.shared.groups);
        let Groups { instances, machines, .. } = &mut *groups;
        if let Some(instance) = instances.iter_mut().find(|instance| instance.id == id) {
            instance.die(machines);
        }
    }

    /// The stacks that there are, in order of their names.
    ///
    /// # Errors
    /// The emulator refuses.
    pub async fn stack_names(&self) -> anyhow::Result<Vec<String>> {
        let answer = self.shared.backend.query("cloudformation", "DescribeStacks", &[]).await?;
        let document = roxmltree::Document::parse(&answer)?;
        let nodes = document.descendants().filter(|node| node.tag_name().name() == "StackName");
        let mut names: Vec<String> = nodes.filter_map(|node| node.text().map(str::to_owned)).collect();
        names.sort();
        Ok(names)
    }

    /// Somebody cancels a group's refresh. Is false where none goes forward.
    pub fn cancel_refresh(&self, group: &str) -> bool {
        let mut groups = lock(&self.shared.groups);
        let refresh = groups.groups.get_mut(group).and_then(|group| group.refreshes.last_mut());
        let refresh = refresh.filter(|refresh| refresh.goes_forward());
        refresh.is_some_and(|refresh| {
            refresh.status = "Cancelling";
            true
        })
    }

    /// A bucket of that name, as the stack for bakes makes it.
    ///
    /// # Errors
    /// The emulator refuses.
    pub async fn make_bucket(&self, name: &str) -> anyhow::Result<()> {
        self.shared.backend.make_bucket(name).await
    }

    /// Somebody makes a component of that name first, with another document under the same version.
    pub fn replace_component(&self, name: &str, document: &str) {
        lock(&self.shared.image_builder).replace_component(name, document);
    }

    /// The next build fails at this step: `PHASE/DOCUMENT/STEP`, or its name alone where that is the only one of it.
    pub fn fail_build_step(&self, step: &str) {
        lock(&self.shared.image_builder).fail_step = Some(step.to_owned());
    }

    /// Ends an instance as `TerminateInstanceInAutoScalingGroup` would, through its termination hook.
    ///
    /// # Errors
    /// There is no such instance.
    pub async fn terminate_instance(&self, id: &str) -> anyhow::Result<()> {
        let found = lock(&self.shared.groups).terminate(id);
        found.with_context(|| format!("there is no instance {id}"))
    }

    /// Sets EC2's quota of standard instances, in virtual processors.
    pub fn set_vcpu_quota(&self, vcpus: u32) {
        *lock(&self.shared.vcpu_quota) = vcpus;
    }

    /// Makes an IAM user with this policy, and gives the variables of a process that is this user.
    ///
    /// # Errors
    /// The emulator refuses.
    pub async fn user_with_policy(&self, name: &str, policy: &str) -> anyhow::Result<[(&'static str, String); 2]> {
        let backend = &self.shared.backend;
        backend.query("iam", "CreateUser", &[("UserName", name)]).await?;
        let inline = [("UserName", name), ("PolicyName", "inline"), ("PolicyDocument", policy)];
        backend.query("iam", "PutUserPolicy", &inline).await?;
        let answer = backend.query("iam", "CreateAccessKey", &[("UserName", name)]).await?;
        Ok([
            ("AWS_ACCESS_KEY_ID", backend::text_of(&answer, "AccessKeyId")?),
            ("AWS_SECRET_ACCESS_KEY", backend::text_of(&answer, "SecretAccessKey")?),
        ])
    }

    /// The next change set asks for a resource that can't be made, so that its execution fails and is rolled back.
    pub fn spoil_change_set(&self) {
        *lock(&self.shared.spoil_change_set) = true;
    }

    /// Leaves a stack of this name behind whose first creation failed: `ROLLBACK_COMPLETE`.
    ///
    /// # Errors
    /// The emulator refuses, or brings the stack into another state.
    pub async fn make_dead_stack(&self, name: &str) -> anyhow::Result<()> {
        let backend = &self.shared.backend;
        let template = format!("Resources:\n{}", gateway::FAILING_RESOURCE);
        let fields = [("StackName", name), ("TemplateBody", template.as_str())];
        backend.query("cloudformation", "CreateStack", &fields).await?;
        let settled = async {
            loop {
                let answer = backend.query("cloudformation", "DescribeStacks", &[("StackName", name)]).await?;
                let status = backend::text_of(&answer, "StackStatus")?;
                if !status.ends_with("_IN_PROGRESS") {
                    return anyhow::Ok(status);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let status =
            tokio::time::timeout(Duration::from_secs(60), settled).await.context("the stack does not settle")??;
        ensure!(status == "ROLLBACK_COMPLETE", "stack {name} is in {status}");
        Ok(())
    }

    /// Makes a VPC with one subnet that has no way out, and tells their ids.
    ///
    /// # Errors
    /// The emulator refuses.
    pub async fn make_dead_end(&self) -> anyhow::Result<(String, String)> {
        let backend = &self.shared.backend;
        let answer = backend.query("ec2", "CreateVpc", &[("CidrBlock", "10.9.0.0/16")]).await?;
        let vpc = backend::text_of(&answer, "vpcId")?;
        let fields = [("VpcId", vpc.as_str()), ("CidrBlock", "10.9.0.0/24")];
        let answer = backend.query("ec2", "CreateSubnet", &fields).await?;
        Ok((vpc, backend::text_of(&answer, "subnetId")?))
    }

    /// An image of this kind with a snapshot of 30 GiB, made so long ago, as a bake leaves it in a region.
    ///
    /// # Errors
    /// The emulator refuses.
    pub async fn plant_image(&self, region: &str, kind: &str, age: Duration) -> anyhow::Result<String> {
        let tags = serde_json::json!({ "kiln:managed": "true", "kiln:image": kind });
        let name = format!("{kind} {}", age.as_secs());
        let ami = bake::register(&self.shared, region, &name, &tags).await?;
        ec2_describe::date(&self.shared, &ami, std::time::SystemTime::now() - age);
        Ok(ami)
    }

    /// The account's own images in a region, each with its snapshots.
    ///
    /// # Errors
    /// The emulator does not answer.
    pub async fn own_images(&self, region: &str) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
        let answer = self.shared.backend.query_in(region, "ec2", "DescribeImages", &[("Owner.1", "self")]).await?;
        let document = roxmltree::Document::parse(&answer)?;
        let texts = |node: roxmltree::Node<'_, '_>, name: &str| -> Vec<String> {
            let found = node.descendants().filter(|child| child.tag_name().name() == name);
            found.filter_map(|child| child.text().map(str::to_owned)).collect()
        };
        let images = document.descendants().find(|node| node.tag_name().name() == "imagesSet").context("images")?;
        let image = |item| Some((texts(item, "imageId").pop()?, texts(item, "snapshotId")));
        Ok(images.children().filter(roxmltree::Node::is_element).filter_map(image).collect())
    }

    /// The account's own snapshots in a region.
    ///
    /// # Errors
    /// The emulator does not answer.
    pub async fn snapshots(&self, region: &str) -> anyhow::Result<Vec<String>> {
        let answer = self.shared.backend.query_in(region, "ec2", "DescribeSnapshots", &[("Owner.1", "self")]).await?;
        let document = roxmltree::Document::parse(&answer)?;
        let found = document.descendants().filter(|node| node.tag_name().name() == "snapshotId");
        Ok(found.filter_map(|node| node.text().map(str::to_owned)).collect())
    }

    /// Deregisters an AMI, as a person can.
    ///
    /// # Errors
    /// The emulator refuses.
    pub async fn deregister_image(&self, ami: &str) -> anyhow::Result<()> {
        self.shared.backend.query("ec2", "DeregisterImage", &[("ImageId", ami)]).await.map(drop)
    }

    /// Ends every process it started.
    pub async fn shutdown(mut self) {
        for task in &self.tasks {
            task.abort();
        }
        groups::kill_below(&self.shared.directory);
        let _ = self.emulator.kill().await;
    }
}
