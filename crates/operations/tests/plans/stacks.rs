//! Stacks in the states that a pipeline finds them in.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use kiln_operations::Code;
use kiln_operations::ports::{ChangeSet, Progress, ResourceChange, Result, Stack, StackEvent, StackRequest, Stacks};
use kiln_operations::stacks::{Difference, StackStep, difference, grave, settled_stack};

fn stack(status: &str) -> Stack {
    Stack {
        name: "kiln-acme-fleet-linux".to_owned(),
        status: status.to_owned(),
        reason: None,
        template: Some("Resources: {}".to_owned()),
        parameters: BTreeMap::from([("MinSize".to_owned(), "1".to_owned())]),
        outputs: BTreeMap::new(),
        tags: BTreeMap::new(),
    }
}

fn event(resource: &str, kind: &str, status: &str, reason: Option<&str>) -> StackEvent {
    StackEvent {
        id: format!("{resource}-{status}"),
        resource: resource.to_owned(),
        kind: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.map(str::to_owned),
    }
}

/// A stack that is in one state after another; the last one stays.
struct Script(Mutex<VecDeque<Stack>>, Vec<StackEvent>);

impl Stacks for Script {
    async fn stack(&self, _: &str) -> Result<Option<Stack>> {
        let mut states = self.0.lock().unwrap();
        let first = states.front().cloned();
        if states.len() > 1 {
            states.pop_front();
        }
        Ok(first)
    }
    async fn change_set(&self, _: &StackRequest) -> Result<ChangeSet> {
        panic!("reading a stack changes nothing")
    }
    async fn execute(&self, _: &ChangeSet) -> Result<()> {
        panic!("reading a stack changes nothing")
    }
    async fn discard(&self, _: &ChangeSet) -> Result<()> {
        panic!("reading a stack changes nothing")
    }
    async fn events(&self, _: &str) -> Result<Vec<StackEvent>> {
        Ok(self.1.clone())
    }
    async fn delete_stack(&self, _: &str) -> Result<()> {
        panic!("reading a stack changes nothing")
    }
}

struct Silent;

impl Progress for Silent {
    fn say(&self, _: &str) {}
    fn state(&self, _: &str) {}
}

#[tokio::test(start_paused = true)]
async fn a_stack_in_rollback_complete_is_made_again_and_says_what_failed_first() {
    let group = "AWS::AutoScaling::AutoScalingGroup";
    let events = vec![
        event("kiln-acme-fleet-linux", "AWS::CloudFormation::Stack", "CREATE_IN_PROGRESS", None),
        event("Group", group, "CREATE_FAILED", Some("subnet-00000001 does not exist")),
        event("Role", "AWS::IAM::Role", "CREATE_FAILED", Some("Resource creation cancelled")),
        event("kiln-acme-fleet-linux", "AWS::CloudFormation::Stack", "ROLLBACK_COMPLETE", None),
    ];
    let cloud = Script(Mutex::new([stack("ROLLBACK_COMPLETE")].into()), events);
    let found = settled_stack(&cloud, "kiln-acme-fleet-linux", &Silent).await.unwrap().unwrap();
    let request = StackRequest {
        name: found.name.clone(),
        template: "Resources: {}".to_owned(),
        parameters: BTreeMap::from([("MinSize".to_owned(), "1".to_owned())]),
        tags: BTreeMap::new(),
    };
    let difference = difference(Some(&found), &request).unwrap();
    assert!(matches!(&difference, Difference::Dead { status, .. } if status == "ROLLBACK_COMPLETE"), "{difference:?}");
    let plan = StackStep { request, difference }.to_string();
    assert!(plan.starts_with("delete stack kiln-acme-fleet-linux, which is in ROLLBACK_COMPLETE"), "{plan}");
    assert!(plan.contains("and create it again") && plan.contains("subnet-00000001 does not exist"), "{plan}");
    assert!(!plan.contains("cancelled"), "what only followed is not the reason: {plan}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_rollback_is_continued_not_deleted() {
    let cloud = Script(Mutex::new([stack("UPDATE_ROLLBACK_FAILED")].into()), Vec::new());
    let error = settled_stack(&cloud, "kiln-acme-fleet-linux", &Silent).await.unwrap_err();
    assert_eq!(error.code, Code::StackNotUpdatable);
    assert!(error.hint.unwrap().contains("continue-update-rollback"));
}

#[tokio::test(start_paused = true)]
async fn an_operation_under_way_is_waited_for() {
    let states = [stack("UPDATE_IN_PROGRESS"), stack("UPDATE_COMPLETE_CLEANUP_IN_PROGRESS"), stack("UPDATE_COMPLETE")];
    let cloud = Script(Mutex::new(states.into()), Vec::new());
    let found = settled_stack(&cloud, "kiln-acme-fleet-linux", &Silent).await.unwrap().unwrap();
    assert_eq!(found.status, "UPDATE_COMPLETE");
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_does_not_end_is_a_timeout() {
    let cloud = Script(Mutex::new([stack("UPDATE_IN_PROGRESS")].into()), Vec::new());
    let error = settled_stack(&cloud, "kiln-acme-fleet-linux", &Silent).await.unwrap_err();
    assert_eq!(error.code, Code::StackTimeout);
}

#[test]
fn stacks_are_compared_by_template_and_parameters() {
    let now = stack("CREATE_COMPLETE");
    let wanted = StackRequest {
        name: now.name.clone(),
        template: "Resources: {}".to_owned(),
        parameters: now.parameters.clone(),
        tags: BTreeMap::new(),
    };
    assert_eq!(difference(Some(&now), &wanted), None);
    assert_eq!(difference(None, &wanted), Some(Difference::Absent));
    let review = stack("REVIEW_IN_PROGRESS");
    assert_eq!(difference(Some(&review), &wanted), Some(Difference::Absent), "a stack in review holds nothing");
    let other = StackRequest { parameters: BTreeMap::from([("MaxSize".to_owned(), "2".to_owned())]), ..wanted.clone() };
    let changed = Difference::Changed {
        template: false,
        parameters: vec![
            ("MaxSize".to_owned(), None, Some("2".to_owned())),
            ("MinSize".to_owned(), Some("1".to_owned()), None),
        ],
        tags: Vec::new(),
    };
    assert_eq!(difference(Some(&now), &other), Some(changed));
    let template = StackRequest { template: "Resources: { }".to_owned(), ..wanted };
    assert!(matches!(difference(Some(&now), &template), Some(Difference::Changed { template: true, .. })));
}

#[test]
fn changed_tags_are_a_difference_of_every_stack() {
    let tags = |value: &str| BTreeMap::from([("kiln:managed".to_owned(), value.to_owned())]);
    let now = Stack { tags: tags("true"), ..stack("CREATE_COMPLETE") };
    let wanted = |tags| StackRequest {
        name: now.name.clone(),
        template: "Resources: {}".to_owned(),
        parameters: now.parameters.clone(),
        tags,
    };
    assert_eq!(difference(Some(&now), &wanted(tags("true"))), None);
    let mut more = tags("true");
    more.insert("team".to_owned(), "ci".to_owned());
    let changed = difference(Some(&now), &wanted(more)).unwrap();
    assert!(!changed.touches(&["AmiId"]), "an instance need not be replaced for a stack's tag");
    let step = StackStep { request: wanted(BTreeMap::new()), difference: changed };
    assert_eq!(step.to_string(), "update stack kiln-acme-fleet-linux\n+ tag team = ci");
    let fewer = difference(Some(&now), &wanted(BTreeMap::new()));
    let gone = ("kiln:managed".to_owned(), Some("true".to_owned()), None);
    assert_eq!(fewer, Some(Difference::Changed { template: false, parameters: Vec::new(), tags: vec![gone] }));
}

/// CloudFormation gives a question mark in place of each letter beyond ASCII.
#[test]
fn letters_that_cloudformation_does_not_give_back_are_no_difference() {
    for (given_back, wanted, same) in [
        ("J?rgen M?ller", "Jürgen Müller", true),
        // Two bytes of one letter.
        ("J??rgen", "Jürgen", true),
        ("J?rgen", "Jorgen", false),
        ("Jorgen", "Jürgen", false),
        ("what?", "what??", false),
        ("? team", "日本 team", true),
        ("?? teams", "日本 team", false),
    ] {
        let texts = |text: &str| BTreeMap::from([("Name".to_owned(), text.to_owned())]);
        let now = Stack { parameters: texts(given_back), tags: texts(given_back), ..stack("UPDATE_COMPLETE") };
        let wanted = StackRequest {
            name: now.name.clone(),
            template: "Resources: {}".to_owned(),
            parameters: texts(wanted),
            tags: texts(wanted),
        };
        assert_eq!(difference(Some(&now), &wanted).is_none(), same, "{given_back} for {wanted:?}");
    }
}

#[test]
fn what_jobs_run_on_is_not_replaced_unasked() {
    let change = |action: &str, kind: &str, replacement| ResourceChange {
        action: action.to_owned(),
        resource: "It".to_owned(),
        kind: kind.to_owned(),
        replacement,
        details: Vec::new(),
    };
    let question = |changes| {
        grave(&ChangeSet { id: "arn:change-set".to_owned(), stack: "kiln-acme-fleet-linux".to_owned(), changes })
    };
    let group = "AWS::AutoScaling::AutoScalingGroup";
    assert_eq!(question(vec![change("Modify", group, false), change("Add", group, true)]), None);
    assert_eq!(question(vec![change("Modify", "AWS::EC2::LaunchTemplate", true)]), None);
    let asked = question(vec![change("Modify", group, true), change("Remove", "AWS::S3::Bucket", false)]).unwrap();
    assert_eq!(
        asked,
        "in stack kiln-acme-fleet-linux, replace It (AWS::AutoScaling::AutoScalingGroup), remove It (AWS::S3::Bucket)?"
    );
}

/// BootConfig is a document of a thousand letters: what changes in it is told, not both of it.
#[test]
fn a_document_in_a_parameter_is_compared_place_by_place() {
    let mut now = stack("UPDATE_COMPLETE");
    let was = r#"{"version":1,"labels":["a"],"runner":{"version":"2.337.1","user":"runner"},"retirement":{"max_age_secs":9}}"#;
    now.parameters.insert("BootConfig".to_owned(), was.to_owned());
    let wanted =
        r#"{"version":1,"labels":["a","b"],"runner":{"version":"2.338.0","user":"runner"},"wait_for_docker":true}"#;
    let parameters =
        BTreeMap::from([("MinSize".to_owned(), "2".to_owned()), ("BootConfig".to_owned(), wanted.to_owned())]);
    let template = now.template.clone().unwrap();
    let request = StackRequest { name: now.name.clone(), template, parameters, tags: BTreeMap::new() };
    let difference = difference(Some(&now), &request).unwrap();
    let expected = r#"update stack kiln-acme-fleet-linux
~ BootConfig: labels = ["a"] -> ["a","b"]
- BootConfig: retirement = {"max_age_secs":9}
~ BootConfig: runner.version = "2.337.1" -> "2.338.0"
+ BootConfig: wait_for_docker = true
~ MinSize = 1 -> 2"#;
    assert_eq!(StackStep { request, difference }.to_string(), expected);
}
