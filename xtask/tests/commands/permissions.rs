//! Every call that a command makes is one that its pipeline's role may make: infra/pipeline.yaml.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use kiln_e2e::story::{FLEETS, VERSIONS};
use kiln_stand_ins::aws::Request;
use kiln_stand_ins::iam::{Call, Policies};
use kiln_stand_ins::template::Template;

use crate::models::assert_modelled;
use crate::support::{World, quiet, world};

const PREFIX: &str = "kiln-rehearsal";
const STACK_ROLE: &str = "arn:aws:iam::000000000000:role/kiln-rehearsal-cloudformation";

/// A kiln.toml as pipelines need it: CloudFormation acts by a role of its own.
fn write_config(world: &World, version: &str) {
    world.write_config(version, FLEETS).unwrap();
    let text = std::fs::read_to_string(world.config()).unwrap();
    std::fs::write(world.config(), format!("cloudformation_role = \"{STACK_ROLE}\"\n{text}")).unwrap();
}

fn arn(service: &str, resource: &str) -> String {
    format!("arn:aws:{service}:eu-central-1:000000000000:{resource}")
}

/// What AWS asks about a call, and of which resource. The emulator is not asked for permissions, so here is said what the
/// service authorization reference says: <https://docs.aws.amazon.com/service-authorization/latest/reference/>.
fn asked(role: &str, request: &Request, body: &[u8]) -> Option<Call> {
    let Request { service, operation, .. } = request;
    let kind = format!("{PREFIX}-image-al2023-x86-64");
    let group = arn("autoscaling", &format!("autoScalingGroup:0:autoScalingGroupName/{PREFIX}-fleet-linux"));
    Some(match (service.as_str(), operation.as_str()) {
        // No permission is needed to ask who one is.
        ("sts", "GetCallerIdentity") => return None,
        ("s3", operation) => {
            let (method, path) = operation.split_once(' ').unwrap();
            let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
            assert!(!key.is_empty(), "{operation}");
            let action = match method {
                "PUT" => "s3:PutObject",
                "DELETE" => "s3:DeleteObject",
                _ => "s3:GetObject",
            };
            Call::new(action, format!("arn:aws:s3:::{bucket}/{key}"))
        }
        ("autoscaling", operation) if operation.starts_with("Describe") => {
            Call::new(format!("autoscaling:{operation}"), "*")
        }
        ("autoscaling", operation) => Call::new(format!("autoscaling:{operation}"), group),
        ("cloudformation", operation) => about_a_stack(operation, body),
        ("ec2", "CreateTags") if role == "PruneRole" => {
            Call::new("ec2:CreateTags", "arn:aws:ec2:eu-central-1::snapshot/snap-1")
                .with("aws:ResourceTag/CreatedBy", "EC2 Image Builder")
                .with("aws:RequestTag/kiln:image", kind)
                .with("aws:TagKeys", "kiln:image")
                .with("aws:TagKeys", "kiln:pruned-from")
        }
        ("ec2", "DeregisterImage") => Call::new("ec2:DeregisterImage", "arn:aws:ec2:eu-central-1::image/ami-1")
            .with("aws:ResourceTag/kiln:managed", "true")
            .with("aws:ResourceTag/kiln:image", kind),
        ("ec2", "DeleteSnapshot") => Call::new("ec2:DeleteSnapshot", "arn:aws:ec2:eu-central-1::snapshot/snap-1")
            .with("aws:ResourceTag/kiln:image", kind)
            .with("aws:ResourceTag/kiln:pruned-from", "ami-1"),
        ("ec2", "CreateTags") => Call::new("ec2:CreateTags", "arn:aws:ec2:eu-central-1::image/ami-1")
            .with("aws:ResourceTag/kiln:managed", "true")
            .with("aws:ResourceTag/kiln:image", kind),
        ("ec2", "GetConsoleOutput") => Call::new("ec2:GetConsoleOutput", arn("ec2", "instance/i-1"))
            .with("aws:ResourceTag/aws:autoscaling:groupName", format!("{PREFIX}-fleet-linux")),
        ("ec2" | "servicequotas", operation) => Call::new(format!("{service}:{operation}"), "*"),
        ("iam", "GetRole") => {
            Call::new("iam:GetRole", "arn:aws:iam::000000000000:role/aws-service-role/autoscaling.amazonaws.com/x")
        }
        ("imagebuilder", operation) => Call::new(
            format!("imagebuilder:{operation}"),
            arn("imagebuilder", &format!("image/{PREFIX}-image-al2023-x86-64/1.0.0")),
        ),
        ("kms", "ListKeys") => Call::new("kms:ListKeys", "*"),
        ("kms", operation) => Call::new(format!("kms:{operation}"), arn("kms", "key/1234"))
            .with("kms:ResourceAliases", format!("alias/{PREFIX}-app-key"))
            .with("kms:SigningAlgorithm", "RSASSA_PKCS1_V1_5_SHA_256"),
        ("logs", operation) => Call::new(
            format!("logs:{operation}"),
            arn("logs", &format!("log-group:/aws/imagebuilder/{PREFIX}:log-stream:1.0.0/1")),
        ),
        ("secretsmanager", operation) => Call::new(
            format!("secretsmanager:{operation}"),
            arn("secretsmanager", &format!("secret:{PREFIX}/app-key-AbCdEf")),
        ),
        ("ssm", "GetParametersByPath") => {
            Call::new("ssm:GetParametersByPath", arn("ssm", &format!("parameter/{PREFIX}")))
        }
        ("ssm", operation) => {
            let name = serde_json::from_slice::<serde_json::Value>(body).unwrap()["Name"].as_str().unwrap().to_owned();
            Call::new(format!("ssm:{operation}"), arn("ssm", &format!("parameter{name}")))
        }
        (service, operation) => panic!("say here what AWS asks about {service}:{operation}"),
    })
}

/// What AWS knows of a call of CloudFormation's: the stack, the role, and what types a change set may hold.
fn about_a_stack(operation: &str, body: &[u8]) -> Call {
    let fields: Vec<(String, String)> = url::form_urlencoded::parse(body).into_owned().collect();
    let value = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str());
    let action = format!("cloudformation:{operation}");
    let Some(stack) = value("StackName") else { return Call::new(action, "*") };
    // Who names a stack by its ARN is asked about that.
    let stack =
        if stack.starts_with("arn:") { stack.to_owned() } else { arn("cloudformation", &format!("stack/{stack}/0")) };
    let call = Call::new(action, stack);
    let call = value("RoleARN").into_iter().fold(call, |call, role| call.with("cloudformation:RoleArn", role));
    let types = fields.iter().filter(|(field, _)| field.starts_with("ResourceTypes.member."));
    types.fold(call, |call, (_, kind)| call.with("cloudformation:ResourceTypes", kind))
}

/// Image Builder's operations are paths; the action is the same word, with a capital.
fn as_action(call: Call) -> Call {
    match call.action.split_once(':') {
        Some(("imagebuilder", word)) => {
            let (first, rest) = word.split_at(1);
            Call { action: format!("imagebuilder:{}{rest}", first.to_uppercase()), ..call }
        }
        _ => call,
    }
}

/// Runs a command and sees that its role may make each of its calls.
async fn permitted(world: &World, role: &str, arguments: &[&str]) {
    let (before, bodies_before) = (world.aws.requests().len(), world.aws.bodies().len());
    world.run(arguments, quiet).await.unwrap().success().unwrap();
    // In the order of the requests, both.
    let (requests, bodies) = (world.aws.requests(), world.aws.bodies());
    let bodies: Vec<_> = bodies.into_iter().skip(bodies_before).collect();
    let mut sent: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    bodies.into_iter().for_each(|(call, body)| sent.entry(call).or_default().push(body));
    let calls: BTreeSet<Call> = requests[before..]
        .iter()
        .flat_map(|request| {
            let name = format!("{}:{}", request.service, request.operation);
            let bodies = sent.get(&name).cloned().unwrap_or_else(|| vec![Vec::new()]);
            bodies.into_iter().filter_map(move |body| asked(role, request, &body)).collect::<Vec<_>>()
        })
        .map(as_action)
        .collect();
    assert!(calls.len() > 3, "{calls:?}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("infra/pipeline.yaml")).unwrap();
    let subject = "repo:rehearsal/runners:environment:runners";
    let subjects = ["Status", "Bake", "Deploy", "Prune"].map(|role| (format!("{role}Subject"), subject.to_owned()));
    let parameters = [("Prefix", PREFIX), ("KeyStore", "both")];
    let parameters: BTreeMap<_, _> =
        parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().chain(subjects).collect();
    let role_arn = ("StackRole".to_owned(), STACK_ROLE.to_owned());
    let template = Template::new("pipelines", &text, parameters).unwrap().with_outputs([role_arn].into());
    let policies = Policies::new(template.policies(role).unwrap());
    let calls: Vec<Call> = calls.into_iter().collect();
    let checked = policies.check(&root.join("target/tools/venv/bin/python"), &calls, &[]);
    checked.unwrap_or_else(|error| panic!("{role} runs {arguments:?}: {error:#}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_pipelines_role_may_do_what_its_command_does() {
    let world = world().await;
    write_config(&world, VERSIONS[0]);
    let pem = world.download_key("key.pem").unwrap();
    world.run(&["rotate-key", "--pem", pem.to_str().unwrap()], quiet).await.unwrap().success().unwrap();
    permitted(&world, "BakeRole", &["ami"]).await;
    permitted(&world, "DeployRole", &["deploy"]).await;

    write_config(&world, VERSIONS[1]);
    permitted(&world, "BakeRole", &["ami"]).await;
    permitted(&world, "DeployRole", &["deploy"]).await;
    // Where nothing is to be changed, the role that can change nothing is enough.
    permitted(&world, "StatusRole", &["deploy", "--dry-run"]).await;
    permitted(&world, "StatusRole", &["rotate-key", "--status"]).await;
    permitted(&world, "StatusRole", &["pin", "--check"]).await;
    let kind = format!("{PREFIX}-image-al2023-x86-64");
    world.aws.plant_image(world.aws.region(), &kind, Duration::from_secs(90 * 24 * 3600)).await.unwrap();
    permitted(&world, "PruneRole", &["prune", "--keep", "1"]).await;
    permitted(&world, "StatusRole", &["status"]).await;
    // Without `--now`: a pipeline that was taken over loses nobody's jobs.
    permitted(&world, "DeployRole", &["destroy", "--all", "--yes"]).await;
    assert_modelled(&world);
    world.shutdown().await.unwrap();
}
