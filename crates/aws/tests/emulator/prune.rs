//! `prune` on EC2's own words: what is used stays, a snapshot goes with its image, and an interrupted run is gone on with.

use std::time::{Duration, SystemTime};

use aws_sdk_ec2::Client;
use aws_sdk_ec2::types::{BlockDeviceMapping, EbsBlockDevice, RequestLaunchTemplateData};
use kiln_config::config::Config;
use kiln_config::model::{AmiId, SnapshotId};
use kiln_operations::ports::{Images as _, Inventory as _, Progress};
use kiln_operations::prune::{self, Observed, Request, Step};
use kiln_operations::wait::TimeScale;

use crate::{Fixture, config, fixture};

const IMAGE: &str = "kiln-acme-image-al2023-x86-64";

const KILN_TOML: &str = r#"
organization = "acme"
region = "eu-central-1"
[app]
client_id = "Iv23liEXAMPLE0000000"
[runner]
version = "2.338.0"
[runner.sha256]
x86_64 = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32"
[fleet.linux]
labels = ["linux-x64"]
instance_types = ["m6i.large"]
min = 1
max = 4
network = { vpc = "vpc-00000001", subnets = ["subnet-00000001"] }
"#;

struct Quiet;

impl Progress for Quiet {
    fn say(&self, _: &str) {}
    fn state(&self, _: &str) {}
}

/// A place with images, each of so many days.
struct Place {
    fixture: Fixture,
    ec2: Client,
    kiln: Config,
}

impl Place {
    async fn new() -> Self {
        let fixture = fixture().await;
        let ec2 = Client::new(&config(&fixture.local.endpoint_url()).await);
        Self { fixture, ec2, kiln: Config::from_toml("kiln.toml", KILN_TOML).unwrap() }
    }

    /// An image of this kind and age, and its snapshot.
    async fn image(&self, kind: &str, days: u64) -> (AmiId, SnapshotId) {
        let local = &self.fixture.local;
        let age = Duration::from_secs(days * 24 * 3600);
        let ami = local.plant_image("eu-central-1", kind, age).await.unwrap();
        let snapshots = local.own_images("eu-central-1").await.unwrap();
        (ami.parse().unwrap(), snapshots[&ami][0].parse().unwrap())
    }

    async fn template(&self, name: &str, ami: &AmiId) {
        let data = RequestLaunchTemplateData::builder().image_id(ami.as_str()).build();
        let create = self.ec2.create_launch_template().launch_template_name(name).launch_template_data(data);
        create.send().await.unwrap();
    }

    async fn next_version(&self, name: &str, ami: &AmiId) {
        let data = RequestLaunchTemplateData::builder().image_id(ami.as_str()).build();
        let create = self.ec2.create_launch_template_version().launch_template_name(name).launch_template_data(data);
        create.send().await.unwrap();
    }

    /// Somebody registers an AMI of their own from a snapshot.
    async fn register(&self, name: &str, snapshot: &SnapshotId) -> String {
        let ebs = EbsBlockDevice::builder().snapshot_id(snapshot.as_str()).build();
        let mapping = BlockDeviceMapping::builder().device_name("/dev/xvda").ebs(ebs).build();
        let ami = self.ec2.register_image().name(name).root_device_name("/dev/xvda").block_device_mappings(mapping);
        ami.send().await.unwrap().image_id.unwrap()
    }

    async fn observed(&self) -> Observed {
        prune::observe(&self.kiln, &self.fixture.cloud).await.unwrap()
    }

    fn plan(&self, keep: usize, superseded: bool, observed: &Observed) -> kiln_operations::plan::Plan<Step> {
        let (config, region) = (&self.kiln, &self.kiln.region);
        prune::plan(&Request { config, region, keep, superseded, now: SystemTime::now() }, observed)
    }

    async fn removed(&self, keep: usize, superseded: bool) -> Vec<AmiId> {
        let of = |step: Step| if let Step::Remove { image, .. } = step { Some(image) } else { None };
        self.plan(keep, superseded, &self.observed().await).steps.into_iter().filter_map(of).collect()
    }

    async fn exists(&self, snapshot: &SnapshotId) -> bool {
        self.fixture.local.snapshots("eu-central-1").await.unwrap().contains(&snapshot.to_string())
    }
}

#[tokio::test]
async fn unused_images_go_with_their_snapshots_and_nothing_else_does() {
    let place = Place::new().await;
    let cloud = &place.fixture.cloud;
    let mut ours = Vec::new();
    for days in 1..=5 {
        ours.push(place.image(IMAGE, days).await);
    }
    let [recorded, superseded, launched, elsewhere, unused] = ours.try_into().unwrap();
    let foreign = place.image("somebody's", 90).await;
    let other = place.image("kiln-another-image-al2023-x86-64", 90).await;
    cloud.record("/kiln-acme/image/al2023-x86-64", &recorded.0).await.unwrap();
    place.template("kiln-acme-fleet-linux", &superseded.0).await;
    place.next_version("kiln-acme-fleet-linux", &launched.0).await;
    place.template("somebody-elses", &elsewhere.0).await;

    assert_eq!(place.removed(5, true).await, []);
    assert_eq!(place.removed(1, false).await, std::slice::from_ref(&unused.0));
    assert_eq!(place.removed(1, true).await, [unused.0.clone(), superseded.0.clone()]);

    let plan = place.plan(1, true, &place.observed().await);
    assert_eq!(plan.steps.iter().map(Step::gib).sum::<u32>(), 60, "{plan}");
    assert_eq!(prune::apply(&plan, cloud, &Quiet).await.unwrap(), []);
    assert_eq!(place.removed(1, true).await, []);
    for (ami, snapshot) in [&recorded, &launched, &elsewhere, &foreign, &other] {
        assert!(cloud.ami(ami).await.unwrap().is_some(), "{ami} is gone");
        assert!(place.exists(snapshot).await, "{snapshot} is gone");
    }
    for (ami, snapshot) in [&superseded, &unused] {
        assert!(cloud.ami(ami).await.unwrap().is_none(), "{ami} is still there");
        assert!(!place.exists(snapshot).await, "{snapshot} is still there");
    }
    place.fixture.local.shutdown().await;
}

#[tokio::test]
async fn a_snapshot_in_use_is_told_and_left_until_nothing_uses_it() {
    let place = Place::new().await;
    let cloud = &place.fixture.cloud;
    place.image(IMAGE, 1).await;
    let (old, snapshot) = place.image(IMAGE, 7).await;

    // It comes into use only after the look.
    let plan = place.plan(1, false, &place.observed().await);
    let copy = place.register("somebody's own", &snapshot).await;
    let hurried = TimeScale { pauses: 100, bounds: 100 };
    assert_eq!(hurried.run(prune::apply(&plan, cloud, &Quiet)).await.unwrap(), std::slice::from_ref(&snapshot));
    assert!(cloud.ami(&old).await.unwrap().is_none());
    assert!(place.exists(&snapshot).await);

    // From then on it is known to be in use, and found again once it is not.
    let observed = place.observed().await;
    assert!(place.plan(1, false, &observed).is_empty());
    assert_eq!(prune::held(&observed)[0].to_string(), format!("{snapshot} stays: {copy} uses it"));
    place.fixture.local.deregister_image(&copy).await.unwrap();
    let plan = place.plan(1, false, &place.observed().await);
    assert_eq!(plan.steps.len(), 1, "{plan}");
    assert_eq!(prune::apply(&plan, cloud, &Quiet).await.unwrap(), []);
    assert!(!place.exists(&snapshot).await);
    // What is gone already is no error.
    cloud.delete_snapshot(&snapshot).await.unwrap();
    cloud.deregister(&old).await.unwrap();
    place.fixture.local.shutdown().await;
}
