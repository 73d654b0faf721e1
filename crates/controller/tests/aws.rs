//! The controller's ports on AWS at the wire, against a stand-in of EC2 Fleet and of the bucket.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use kiln_config::boot::{CONTROL_KEY, hand_over_key};
use kiln_controller::aws::{Ec2, S3};
use kiln_controller::documents::LaunchSettings;
use kiln_controller::ids::{FleetName, InstanceId, LaunchToken};
use kiln_controller::ports::{
    Document, Etag, Launch, Machines, MachinesError, Market, Read, Shortage, Store, StoreError,
};
use kiln_instance::aws::{Aws, Credentials, Provided, Provider};
use kiln_stand_ins::aws::{FleetAws, FleetOptions, Pool, Refusal};
use secrecy::SecretString;

const CONTROLLER: &str = "i-0c000000000000001";
const ROLE: &str = "AROASTANDIN";

/// The credentials of an instance's role.
#[derive(Debug)]
struct Of(&'static str);

impl Provider for Of {
    fn credentials(&self) -> Provided<'_> {
        Box::pin(async {
            Ok(Credentials {
                id: "AKIAINSTANCE00000000".to_owned(),
                secret: "instance".into(),
                token: Some(format!("session-{}-0", self.0).into()),
                expires: None,
            })
        })
    }
}

async fn fleets() -> FleetAws {
    let (bucket, role_id) = ("control".to_owned(), ROLE.to_owned());
    FleetAws::start(FleetOptions { bucket, role_id, controller: CONTROLLER.to_owned() }).await.unwrap()
}

fn aws(fleets: &FleetAws, who: &'static str) -> Aws {
    Aws::new("eu-central-1", Arc::new(Of(who))).unwrap().at(Some(fleets.url().to_owned()))
}

fn ec2(fleets: &FleetAws) -> Ec2 {
    Ec2 { aws: aws(fleets, CONTROLLER), organization: "kiln-acme".to_owned() }
}

fn s3(fleets: &FleetAws) -> S3 {
    S3 { aws: aws(fleets, CONTROLLER), bucket: "control".to_owned() }
}

fn launch(token: &str, count: u32, market: Market) -> Launch {
    let texts = |texts: [&str; 2]| texts.map(str::to_owned).to_vec();
    Launch {
        token: LaunchToken::new(token),
        fleet: FleetName::new("linux"),
        count,
        market,
        version: 7,
        from: LaunchSettings {
            template: "lt-0a".to_owned(),
            types: texts(["m7i.large", "m6i.large"]),
            subnets: texts(["subnet-0a", "subnet-0b"]),
            role_id: ROLE.to_owned(),
        },
    }
}

#[tokio::test]
async fn a_launch_is_seen_with_its_tags_and_the_same_token_is_the_same_launch() {
    let fleets = fleets().await;
    let ec2 = ec2(&fleets);
    let first = ec2.launch(&launch("t1", 3, Market::Spot)).await.unwrap();
    assert_eq!((first.ids.len(), first.errors.len()), (3, 0));
    assert_eq!(ec2.launch(&launch("t1", 3, Market::Spot)).await.unwrap(), first);
    let other = ec2.launch(&launch("t1", 4, Market::Spot)).await.unwrap_err();
    assert!(
        matches!(&other, MachinesError::Refused(Shortage::Refused, why) if why.contains("other parameters")),
        "{other}"
    );

    let shown = &fleets.instances()[0];
    assert_eq!((shown.market.as_str(), shown.tags["kiln:organization"].as_str()), ("spot", "kiln-acme"));
    let listed = ec2.list().await.unwrap();
    assert_eq!(listed.len(), 3);
    let one = &listed[0];
    assert_eq!((one.fleet.as_str(), one.token.as_str(), one.version, one.ending), ("linux", "t1", 7, false));
    assert!(one.launched.0 > 1_600_000_000_000, "{:?}", one.launched);
}

/// A pool that has none is passed over in the same call, and says why.
#[tokio::test]
async fn each_pool_that_gives_none_has_its_reason() {
    let fleets = fleets().await;
    let ec2 = ec2(&fleets);
    for (kind, subnet, left, code) in [
        ("m7i.large", "subnet-0a", 2, "InsufficientInstanceCapacity"),
        ("m7i.large", "subnet-0b", 0, "InsufficientInstanceCapacity"),
        ("m6i.large", "subnet-0a", 1, "VcpuLimitExceeded"),
        ("m6i.large", "subnet-0b", 0, "InvalidAMIID.NotFound"),
    ] {
        fleets.set_pool(kind, subnet, Pool { left, code });
    }
    let launched = ec2.launch(&launch("t1", 5, Market::OnDemand)).await.unwrap();
    assert_eq!(launched.ids.len(), 3);
    let kinds: Vec<_> = launched.errors.iter().map(|error| error.kind).collect();
    assert_eq!(kinds, [Shortage::Capacity, Shortage::Capacity, Shortage::Quota, Shortage::Refused]);
    assert_eq!(launched.errors[2].pool, "m6i.large in subnet-0a");
    assert!(launched.errors[2].message.starts_with("VcpuLimitExceeded: "), "{}", launched.errors[2].message);
}

#[tokio::test]
async fn a_call_that_fails_says_whether_it_may_have_happened() {
    let fleets = fleets().await;
    let ec2 = ec2(&fleets);
    for (code, expected) in [
        ("RequestLimitExceeded", MachinesError::Throttled),
        ("UnauthorizedOperation", MachinesError::Refused(Shortage::Refused, String::new())),
        ("VcpuLimitExceeded", MachinesError::Refused(Shortage::Quota, String::new())),
    ] {
        fleets.refuse(Refusal { service: "ec2", operation: "CreateFleet", times: 1, code });
        let error = ec2.launch(&launch(code, 1, Market::Spot)).await.unwrap_err();
        match (&error, &expected) {
            (MachinesError::Refused(kind, _), MachinesError::Refused(wanted, _)) => assert_eq!(kind, wanted),
            _ => assert_eq!(error, expected),
        }
    }
    assert!(fleets.instances().is_empty());
    fleets.lose_answers(1);
    assert!(matches!(ec2.launch(&launch("t2", 2, Market::Spot)).await, Err(MachinesError::InDoubt(_))));
    assert_eq!(ec2.launch(&launch("t2", 2, Market::Spot)).await.unwrap().ids.len(), 2, "the very same launch");
    assert_eq!(fleets.instances().len(), 2);
}

#[tokio::test]
async fn a_long_list_is_read_whole_or_not_at_all() {
    let fleets = fleets().await;
    let ec2 = ec2(&fleets);
    ec2.launch(&launch("t1", 450, Market::Spot)).await.unwrap();
    assert_eq!(ec2.list().await.unwrap().len(), 450);
    assert_eq!(fleets.count("DescribeInstances"), 3);
    fleets.refuse(Refusal { service: "ec2", operation: "DescribeInstances", times: 1, code: "InternalError" });
    assert!(ec2.list().await.is_err());
    fleets.list_late(Duration::from_secs(3600));
    ec2.launch(&launch("t2", 1, Market::Spot)).await.unwrap();
    assert_eq!(ec2.list().await.unwrap().len(), 450, "the newest is not listed yet");
}

#[tokio::test]
async fn instances_are_ended_though_some_are_gone() {
    let fleets = fleets().await;
    let ec2 = ec2(&fleets);
    let mut ids = ec2.launch(&launch("t1", 2, Market::Spot)).await.unwrap().ids;
    ids.insert(1, InstanceId::new("i-0dead"));
    ids.push(InstanceId::new("i-0gone"));
    ec2.terminate(&ids).await.unwrap();
    assert!(fleets.instances().iter().all(|one| !one.alive));
    ec2.terminate(&ids[1..2]).await.unwrap();
    assert!(ec2.list().await.unwrap().is_empty(), "what is terminated is not asked for");
}

#[tokio::test]
async fn a_document_is_written_in_place_of_the_version_that_was_read() {
    let fleets = fleets().await;
    let s3 = s3(&fleets);
    assert_eq!(s3.read(Document::Status, None).await.unwrap(), Read::Missing);
    let first = s3.write(Document::Status, None, b"1".to_vec()).await.unwrap();
    assert_eq!(s3.write(Document::Status, None, b"2".to_vec()).await.unwrap_err(), StoreError::Conflict);
    let second = s3.write(Document::Status, Some(&first), b"2".to_vec()).await.unwrap();
    assert_eq!(s3.write(Document::Status, Some(&first), b"3".to_vec()).await.unwrap_err(), StoreError::Conflict);
    assert_eq!(s3.read(Document::Status, Some(&second)).await.unwrap(), Read::Unchanged);
    assert_eq!(s3.read(Document::Status, Some(&first)).await.unwrap(), Read::Found(second, b"2".to_vec()));
    fleets.put(CONTROL_KEY, b"{}".to_vec());
    assert!(
        matches!(s3.read(Document::Control, Some(&Etag("\"x\"".to_owned()))).await, Ok(Read::Found(_, bytes)) if bytes == b"{}")
    );
}

/// What the controller lays down for one instance that instance reads, and no other.
#[tokio::test]
async fn a_configuration_is_its_own_instances_alone() {
    let fleets = fleets().await;
    let (own, other) = ("i-0a000000000000001", "i-0b000000000000001");
    let id = InstanceId::new(own);
    let key = hand_over_key(&format!("{ROLE}:{own}"));
    let of = |who| {
        let aws = aws(&fleets, who);
        let key = key.clone();
        async move { aws.get_object("control", &key, None).await }
    };
    let early = of(own).await.unwrap_err();
    assert_eq!((early.http_status(), early.code()), (Some(403), "AccessDenied"), "not there, and not said so");
    s3(&fleets).hand_over(ROLE, &id, &SecretString::from("jit")).await.unwrap();
    assert_eq!(of(own).await.unwrap().unwrap().bytes, b"jit");
    assert_eq!(of(other).await.unwrap_err().code(), "AccessDenied");
    assert_eq!(aws(&fleets, own).user_id().await.unwrap(), format!("{ROLE}:{own}"));
    s3(&fleets).take_back(ROLE, &id).await.unwrap();
    s3(&fleets).take_back(ROLE, &id).await.unwrap();
    assert!(fleets.keys().is_empty());
}
