//! Where AWS puts the reason of a failure.

use std::collections::BTreeMap;
use std::error::Error as _;

use kiln_operations::ports::{Groups as _, Inventory as _, LaunchOutcome, StackRequest, Stacks as _};

use crate::{Answer, query, wire};

fn activity(id: u32, description: &str, status: &str, message: &str) -> String {
    format!(
        "<member><ActivityId>{id}</ActivityId><AutoScalingGroupName>g</AutoScalingGroupName><Cause>c</Cause>\
         <Description>{description}</Description><StartTime>2026-01-01T00:00:00Z</StartTime>\
         <StatusCode>{status}</StatusCode><StatusMessage>{message}</StatusMessage></member>"
    )
}

/// The forms of descriptions are of <https://docs.aws.amazon.com/autoscaling/ec2/userguide/as-verify-scaling-activity.html>,
/// kubernetes/autoscaler#1263 and Jaeminst/devops-01-Final-TeamG#90.
#[tokio::test]
async fn a_groups_activities_say_how_its_launches_went() {
    let abandoned = "Instance failed to complete user's Lifecycle Action: Lifecycle Action with token 1 was abandoned: \
                     Lifecycle Action Completed with ABANDON Result";
    let (cloud, _) = wire(move |asked| {
        assert_eq!(asked.field("AutoScalingGroupName"), "kiln-acme-fleet-linux");
        let activities = [
            activity(5, "Launching a new EC2 instance: i-00000005", "MidLifecycleAction", ""),
            activity(
                4,
                &format!("Launching a new EC2 instance: i-00000004. Status Reason: {abandoned}"),
                "Cancelled",
                abandoned,
            ),
            activity(
                3,
                "Launching a new EC2 instance.  Status Reason: no quota. Launching EC2 instance failed.",
                "Failed",
                "no quota",
            ),
            activity(2, "Terminating EC2 instance: i-00000001", "Successful", ""),
            activity(1, "Launching a new EC2 instance: i-00000001", "Successful", ""),
        ];
        Answer::of(200, query(&asked.operation, &format!("<Activities>{}</Activities>", activities.concat())))
    })
    .await;
    let launches = cloud.launches(&"kiln-acme-fleet-linux".parse().unwrap()).await.unwrap();
    let of: Vec<(&str, Option<&str>)> =
        launches.iter().map(|one| (one.id.as_str(), one.instance.as_ref().map(|id| id.as_str()))).collect();
    assert_eq!(of, [("5", Some("i-00000005")), ("4", Some("i-00000004")), ("3", None), ("1", Some("i-00000001"))]);
    let outcomes: Vec<LaunchOutcome> = launches.into_iter().map(|launch| launch.outcome).collect();
    assert_eq!(
        outcomes,
        [
            LaunchOutcome::UnderWay,
            LaunchOutcome::Failed(abandoned.to_owned()),
            LaunchOutcome::Failed("no quota".to_owned()),
            LaunchOutcome::Succeeded,
        ]
    );
}

#[tokio::test]
async fn a_group_that_is_not_there_has_launched_nothing() {
    let (cloud, _) = wire(|_| {
        let error = "<Code>ValidationError</Code><Message>AutoScalingGroup name not found - AutoScalingGroup g not found</Message>";
        Answer::of(400, format!("<ErrorResponse><Error>{error}</Error></ErrorResponse>"))
    })
    .await;
    assert_eq!(cloud.launches(&"kiln-acme-fleet-linux".parse().unwrap()).await.unwrap(), []);
}

#[tokio::test]
async fn an_instance_that_ended_is_asked_for_its_reason_and_its_console() {
    let (cloud, _) = wire(|asked| match asked.operation.as_str() {
        "DescribeInstances" => {
            let reason = "<stateReason><code>Client.InternalError</code><message>Client.InternalError: Client error on launch\
                          </message></stateReason>";
            let set = format!("<item><instancesSet><item><instanceId>i-00000004</instanceId>{reason}</item></instancesSet></item>");
            Answer::of(200, format!("<DescribeInstancesResponse><reservationSet>{set}</reservationSet></DescribeInstancesResponse>"))
        }
        // "one\r\n\x1b[32mtwo\x1b[0m\r\n\r\n"
        _ => Answer::of(200, "<GetConsoleOutputResponse><output>b25lDQobWzMybXR3bxtbMG0NCg0K</output></GetConsoleOutputResponse>"),
    })
    .await;
    let words = cloud.last_words(&"i-00000004".parse().unwrap()).await.unwrap();
    assert_eq!(words.reason.as_deref(), Some("Client.InternalError: Client error on launch"));
    assert_eq!(words.console, ["one", "[32mtwo[0m"], "nothing in it moves a terminal's cursor");
}

#[tokio::test]
async fn instances_are_asked_how_they_say_they_are() {
    let (cloud, _) = wire(|asked| {
        assert_eq!(asked.field("Filter.1.Name"), "tag:aws:autoscaling:groupName");
        assert_eq!((asked.field("Filter.1.Value.1"), asked.field("Filter.2.Value.1")), ("kiln-acme-fleet-linux", "kiln:state"));
        let tag = |key: &str, value: &str| format!("<item><key>{key}</key><value>{value}</value></item>");
        let of = |id: &str, tags: &str| {
            format!("<item><instancesSet><item><instanceId>{id}</instanceId><tagSet>{tags}</tagSet></item></instancesSet></item>")
        };
        let own = tag("aws:autoscaling:groupName", "kiln-acme-fleet-linux") + &tag("kiln:state", "runner-deprecated");
        let set = of("i-00000004", &own) + &of("i-00000005", &tag("Name", "a stranger"));
        Answer::of(200, format!("<DescribeInstancesResponse><reservationSet>{set}</reservationSet></DescribeInstancesResponse>"))
    })
    .await;
    let shown = cloud.shown_states(&["kiln-acme-fleet-linux".parse().unwrap()]).await.unwrap();
    let shown: Vec<_> =
        shown.iter().map(|one| (one.instance.as_str(), one.state.as_str(), one.trouble().is_some())).collect();
    assert_eq!(shown, [("i-00000004", "runner-deprecated", true)]);
}

#[tokio::test]
async fn a_change_set_that_validation_refused_says_what_it_found() {
    let (cloud, _) = wire(|asked| match asked.operation.as_str() {
        "DescribeStacks" => {
            let error = "<Code>ValidationError</Code><Message>Stack with id x does not exist</Message>";
            Answer::of(400, format!("<ErrorResponse><Error>{error}</Error></ErrorResponse>"))
        }
        "CreateChangeSet" => Answer::of(200, query("CreateChangeSet", "<Id>arn:change-set</Id>")),
        "DescribeChangeSet" => {
            let failed = "<Status>FAILED</Status><StatusReason>The following hook(s)/validation failed: \
                          [AWS::EarlyValidation::PropertyValidation].</StatusReason>";
            Answer::of(200, query("DescribeChangeSet", failed))
        }
        "DescribeEvents" => {
            assert_eq!(asked.field("ChangeSetName"), "arn:change-set");
            let event = "<member><EventId>1</EventId><LogicalResourceId>Group</LogicalResourceId>\
                         <ValidationPath>/Resources/Group/Properties/MinSize</ValidationPath>\
                         <ValidationStatus>FAILED</ValidationStatus>\
                         <ValidationStatusReason>#/MinSize: -1 is not greater or equal to 0</ValidationStatusReason></member>";
            Answer::of(200, query("DescribeEvents", &format!("<OperationEvents>{event}</OperationEvents>")))
        }
        other => panic!("unexpected {other}"),
    })
    .await;
    let request = StackRequest {
        name: "kiln-acme-fleet-linux".to_owned(),
        template: "Resources: {}".to_owned(),
        parameters: BTreeMap::new(),
        tags: BTreeMap::new(),
    };
    let error = cloud.change_set(&request).await.unwrap_err();
    let reason = error.source().unwrap().to_string();
    assert!(reason.contains("/Resources/Group/Properties/MinSize: #/MinSize: -1 is not greater"), "{reason}");
}
