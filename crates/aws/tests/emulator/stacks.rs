//! CloudFormation, S3 in a bucket that a stack made, and groups that are not there.

use std::collections::BTreeMap;

use kiln_config::model::{GroupName, Sha256};
use kiln_operations::Code;
use kiln_operations::ports::{
    CloudErrorKind, Groups as _, Inventory as _, ObjectStore as _, Progress, StackRequest, Stacks as _,
};
use kiln_operations::stacks::{self, StackStep, difference};

use crate::fixture;

const TEMPLATE: &str = include_str!("../../../../infra/bake.yaml");
const BUCKET: &str = "kiln-acme-000000000000-eu-central-1";

fn wanted() -> StackRequest {
    StackRequest {
        name: "kiln-acme-bake".to_owned(),
        template: TEMPLATE.to_owned(),
        parameters: BTreeMap::from([
            ("BucketName".to_owned(), BUCKET.to_owned()),
            ("ImagePrefix".to_owned(), "kiln-acme".to_owned()),
            ("VpcId".to_owned(), String::new()),
            ("PermissionsBoundary".to_owned(), String::new()),
        ]),
        tags: BTreeMap::from([("kiln:managed".to_owned(), "true".to_owned())]),
    }
}

#[derive(Default)]
struct Said(std::sync::Mutex<Vec<String>>);

impl Progress for Said {
    fn say(&self, line: &str) {
        self.0.lock().unwrap().push(line.to_owned());
    }
    fn state(&self, _: &str) {}
}

#[tokio::test]
async fn a_stack_is_made_once_and_holds_the_payload() {
    let fixture = fixture().await;
    let cloud = &fixture.cloud;
    let wanted = wanted();
    assert_eq!(cloud.stack(&wanted.name).await.unwrap(), None);
    let step = StackStep { request: wanted.clone(), difference: difference(None, &wanted).unwrap() };
    let said = Said::default();
    stacks::apply(cloud, &step, &said).await.unwrap();
    let said = said.0.into_inner().unwrap();
    assert!(said.iter().any(|line| line.starts_with("+ Bucket (AWS::S3::Bucket)")), "{said:?}");
    assert!(said.iter().any(|line| line.starts_with("CREATE_COMPLETE kiln-acme-bake")), "{said:?}");

    let stack = cloud.stack(&wanted.name).await.unwrap().unwrap();
    assert_eq!(difference(Some(&stack), &wanted), None, "what was asked for is what is read back");
    assert_eq!(stack.outputs["Bucket"], BUCKET);
    assert_eq!(cloud.stacks_named("kiln-acme-").await.unwrap(), ["kiln-acme-bake"]);

    let bytes = b"payload".to_vec();
    let sha256: Sha256 = "239f59ed55e737c77147cf55ad0c1b030b6d7ee748a7426952f9b852d5a935e5".parse().unwrap();
    let key = "payload/239f59ed.tar.gz";
    assert!(!cloud.has_blob(BUCKET, key).await.unwrap());
    cloud.put_blob(BUCKET, key, bytes, &sha256).await.unwrap();
    assert!(cloud.has_blob(BUCKET, key).await.unwrap());

    let said = Said::default();
    stacks::delete(cloud, &wanted.name, &said).await.unwrap();
    assert_eq!(cloud.stack(&wanted.name).await.unwrap(), None);
    assert_eq!(cloud.stacks_named("kiln-acme-").await.unwrap(), [""; 0], "a deleted one is none");
    stacks::delete(cloud, &wanted.name, &said).await.unwrap();
    fixture.local.shutdown().await;
}

#[tokio::test]
async fn of_two_who_write_a_document_one_gets_it() {
    let fixture = fixture().await;
    let (cloud, key) = (&fixture.cloud, "lock/kiln-acme-fleet-linux");
    fixture.local.make_bucket(BUCKET).await.unwrap();
    assert_eq!(cloud.document(BUCKET, key).await.unwrap(), None);
    let first = cloud.put_document(BUCKET, key, "first", None).await.unwrap().unwrap();
    assert_eq!(cloud.put_document(BUCKET, key, "second", None).await.unwrap(), None, "it is there by now");
    let found = cloud.document(BUCKET, key).await.unwrap().unwrap();
    assert_eq!((found.text.as_str(), &found.version), ("first", &first));
    let third = cloud.put_document(BUCKET, key, "third", Some(&first)).await.unwrap().unwrap();
    assert_eq!(
        cloud.put_document(BUCKET, key, "fourth", Some(&first)).await.unwrap(),
        None,
        "it is in another version"
    );
    let found = cloud.document(BUCKET, key).await.unwrap().unwrap();
    assert_eq!((found.text.as_str(), found.version), ("third", third));
    let error = cloud.document("kiln-somebody-elses", key).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::NotFound, "{error:?}");
    fixture.local.shutdown().await;
}

#[tokio::test]
async fn a_group_that_is_not_there_is_none() {
    let fixture = fixture().await;
    let name: GroupName = "kiln-acme-fleet-linux".parse().unwrap();
    assert_eq!(fixture.cloud.group(&name).await.unwrap(), None);
    fixture.cloud.abandon(&name).await.unwrap();
    fixture.cloud.scale_to_zero(&name).await.unwrap_err();
    fixture.local.shutdown().await;
}

/// The fleet's stack is tried with the command itself; the emulator knows no NAT gateway, and so not the network's.
#[tokio::test]
async fn a_stack_whose_first_creation_failed_is_made_by_the_same_command_again() {
    let fixture = fixture().await;
    let (cloud, wanted) = (&fixture.cloud, wanted());
    let apply = async || {
        let said = Said::default();
        let stack = stacks::settled_stack(cloud, &wanted.name, &said).await.unwrap();
        let difference = difference(stack.as_ref(), &wanted).unwrap();
        let step = StackStep { request: wanted.clone(), difference };
        (step.to_string(), stacks::apply(cloud, &step, &said).await)
    };
    fixture.local.spoil_change_set();
    let (plan, failed) = apply().await;
    assert!(plan.starts_with("create stack"), "{plan}");
    let error = failed.unwrap_err();
    assert_eq!(error.code, Code::StackFailed, "{error:?}");
    assert!(error.message.contains("Unmakeable"), "{error}");
    assert!(error.hint.unwrap().contains("run the same command again: it deletes the stack and creates it again"));

    let (plan, made) = apply().await;
    assert!(plan.starts_with(&format!("delete stack {}", wanted.name)) && plan.contains("Unmakeable"), "{plan}");
    made.unwrap();
    let stack = cloud.stack(&wanted.name).await.unwrap().unwrap();
    assert_eq!(difference(Some(&stack), &wanted), None);
    fixture.local.shutdown().await;
}

/// CloudFormation puts a stack's tags on what is in it: a change of `[tags]` alone is a change of the stack.
#[tokio::test]
async fn a_tag_that_is_added_reaches_the_stack() {
    let fixture = fixture().await;
    let cloud = &fixture.cloud;
    let first = wanted();
    let mut tagged = wanted();
    tagged.tags.insert("cost-center".to_owned(), "4711".to_owned());
    for request in [first, tagged] {
        let stack = cloud.stack(&request.name).await.unwrap();
        let difference = difference(stack.as_ref(), &request).unwrap();
        stacks::apply(cloud, &StackStep { request: request.clone(), difference }, &Said::default()).await.unwrap();
        let stack = cloud.stack(&request.name).await.unwrap().unwrap();
        assert_eq!(stack.tags, request.tags);
        assert_eq!(stacks::difference(Some(&stack), &request), None);
    }
    fixture.local.shutdown().await;
}

/// Who may use the role may for templates of certain types only, so each change set says what it holds, and what the stack
/// held before.
#[tokio::test]
async fn a_role_for_stacks_comes_with_the_types_that_a_template_holds() {
    let fixture = fixture().await;
    let role = "arn:aws:iam::000000000000:role/kiln-acme-cloudformation";
    let sent = |operation: &str| {
        let bodies =
            fixture.local.bodies().into_iter().filter(|(call, _)| *call == format!("cloudformation:{operation}"));
        bodies.map(|(_, body)| String::from_utf8(body).unwrap()).next_back().unwrap()
    };
    let types = |change: &str| -> Vec<String> {
        let kinds = change.split('&').filter(|field| field.starts_with("ResourceTypes.member."));
        kinds.map(|field| field.rsplit("%3A").next().unwrap().to_owned()).collect()
    };
    let logs = "Resources:\n  Logs:\n    Type: AWS::Logs::LogGroup\n";
    let both = format!("{logs}  Topic:\n    Type: AWS::SNS::Topic\n");
    for (cloud, has_role) in [(fixture.cloud.clone().with_stack_role(Some(role)), true), (fixture.cloud.clone(), false)]
    {
        let names =
            |kinds: &[&str]| kinds.iter().filter(|_| has_role).map(|kind| (*kind).to_owned()).collect::<Vec<_>>();
        for (template, kinds) in [(&*both, ["LogGroup", "Topic"]), (logs, ["LogGroup", "Topic"])] {
            let wanted = StackRequest { template: template.to_owned(), parameters: BTreeMap::new(), ..wanted() };
            let now = cloud.stack(&wanted.name).await.unwrap();
            let step = StackStep { difference: difference(now.as_ref(), &wanted).unwrap(), request: wanted };
            stacks::apply(&cloud, &step, &Said::default()).await.unwrap();
            let change = sent("CreateChangeSet");
            assert_eq!(change.contains("role%2Fkiln-acme-cloudformation"), has_role, "{change}");
            assert_eq!(types(&change), names(&kinds), "{change}");
        }
        stacks::delete(&cloud, &wanted().name, &Said::default()).await.unwrap();
        assert_eq!(sent("DeleteStack").contains("role%2Fkiln-acme-cloudformation"), has_role);
    }
    fixture.local.shutdown().await;
}
