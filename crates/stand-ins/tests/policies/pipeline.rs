//! The roles of the pipelines: what CloudFormation calls for them, and what nobody may call.

use std::collections::{BTreeMap, BTreeSet};

use kiln_stand_ins::iam::{Call, Policies};
use kiln_stand_ins::template::Template;
use serde_json::Value;

use crate::{call, python, template};

const BOUNDARY: &str = "arn:aws:iam::000000000000:policy/kiln-acme-boundary";

fn pipeline() -> Template {
    let parameters = [
        ("Prefix", "kiln-acme"),
        ("Subject", "repo:acme/runners:environment:production"),
        ("RotateKeyPolicy", BOUNDARY),
    ];
    template("pipeline.yaml", "kiln-acme-pipeline", &parameters)
}

fn policies(role: &str) -> Policies {
    Policies::new(pipeline().policies(role).unwrap())
}

/// As CloudFormation makes a call for whoever called it.
fn through_cloudformation(action: &str) -> Call {
    let resource = match action.split_once(':').unwrap() {
        ("iam", name) if name.contains("InstanceProfile") => {
            "arn:aws:iam::000000000000:instance-profile/kiln-acme-fleet-linux-InstanceProfile-AB12".to_owned()
        }
        ("iam", _) => "arn:aws:iam::000000000000:role/kiln-acme-fleet-linux-Role-AB12".to_owned(),
        ("s3", _) => "arn:aws:s3:::kiln-acme-000000000000-eu-central-1".to_owned(),
        (service, _) => format!("arn:aws:{service}:eu-central-1:000000000000:any/thing"),
    };
    Call::new(action, resource)
        .with("aws:CalledVia", "cloudformation.amazonaws.com")
        .with("iam:PermissionsBoundary", BOUNDARY)
        .with("iam:PassedToService", "ec2.amazonaws.com")
}

/// What CloudFormation's registry says that its handlers of these types call, as the linter ships it.
fn handlers_calls(kinds: &BTreeSet<String>) -> BTreeMap<String, BTreeSet<String>> {
    let libraries = python().parent().unwrap().join("../lib");
    let library = std::fs::read_dir(libraries).unwrap().next().unwrap().unwrap().path();
    let schemas = library.join("site-packages/cfnlint/data/schemas/resources");
    let mut calls: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in std::fs::read_dir(schemas).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let Ok(schema) = serde_json::from_str::<Value>(&text) else { continue };
        let Some(kind) = schema["typeName"].as_str().filter(|kind| kinds.contains(*kind)) else { continue };
        // Listing is for the registry's own API, which no stack asks.
        for handler in ["create", "read", "update", "delete"] {
            let permissions = schema["handlers"][handler]["permissions"].as_array().into_iter().flatten();
            calls.entry(kind.to_owned()).or_default().extend(permissions.filter_map(Value::as_str).map(str::to_owned));
        }
    }
    calls
}

/// What a handler could call for a property that none of our templates has, or for what is retained.
#[rustfmt::skip]
const NOT_OURS: &[&str] = &[
    // Encryption, replication, metadata and contents of buckets.
    "kms:", "s3-object-lambda:", "s3tables:", "s3:CreateBucketMetadata", "s3:UpdateBucketMetadata", "s3:DeleteBucket",
    "s3:DeleteObject", "s3:PutObject", "s3:GetObject", "s3:ListBucketVersions", "s3:DeleteAccessPoint",
    // Virtual private gateways, load balancers, notifications, images by parameters.
    "ec2:AttachVpnGateway", "ec2:DetachVpnGateway", "elasticloadbalancing:", "managed-fleets:", "sns:", "vpc-lattice:",
    "ssm:", "iam:CreateServiceLinkedRole",
    // Encryption, policies, indexes, protection and forwarding of log groups.
    "firehose:", "logs:AssociateKmsKey", "logs:CreateLogDelivery", "logs:DeleteDataProtectionPolicy",
    "logs:DeleteIndexPolicy", "logs:DeleteResourcePolicy", "logs:DisassociateKmsKey", "logs:PutBearerTokenAuthentication",
    "logs:PutDataProtectionPolicy", "logs:PutIndexPolicy", "logs:PutLogGroupDeletionProtection", "logs:PutResourcePolicy",
    "s3:REST.PUT.OBJECT",
    // Refused on purpose: a role's trust and its boundary stay what they were at its making.
    "iam:UpdateAssumeRolePolicy", "iam:DeleteRolePermissionsBoundary",
];

#[test]
fn cloudformation_may_do_all_that_the_templates_need() {
    for (role, files) in [("BakeRole", &["bake.yaml"][..]), ("DeployRole", &["fleet.yaml", "network.yaml"])] {
        let kinds: BTreeSet<String> = files
            .iter()
            .flat_map(|file| template(file, "kiln-acme-x", &[]).section("Resources"))
            .filter_map(|(_, resource)| Some(resource["Type"].as_str()?.to_owned()))
            .collect();
        let handlers = handlers_calls(&kinds);
        assert_eq!(handlers.keys().cloned().collect::<BTreeSet<_>>(), kinds, "the linter knows every type");
        let needed: BTreeSet<&String> = handlers.values().flatten().collect();
        let calls: Vec<Call> = needed
            .into_iter()
            .filter(|action| !action.contains('*') && !NOT_OURS.iter().any(|prefix| action.starts_with(prefix)))
            .map(|action| through_cloudformation(action))
            .collect();
        assert!(calls.len() > 20, "{calls:?}");
        policies(role).check(&python(), &calls, &[]).unwrap_or_else(|error| panic!("{role}: {error:#}"));
    }
}

#[test]
fn no_pipeline_becomes_the_accounts_administrator() {
    let role = "arn:aws:iam::000000000000:role/kiln-acme-fleet-linux-Role-AB12";
    let through = |call: Call| call.with("aws:CalledVia", "cloudformation.amazonaws.com");
    let mut refused = vec![
        // Without the boundary, with another, or not by CloudFormation.
        through(Call::new("iam:CreateRole", role)),
        through(Call::new("iam:PutRolePolicy", role))
            .with("iam:PermissionsBoundary", "arn:aws:iam::aws:policy/ReadOnlyAccess"),
        Call::new("iam:CreateRole", role).with("iam:PermissionsBoundary", BOUNDARY),
        Call::new("iam:PutRolePolicy", role).with("iam:PermissionsBoundary", BOUNDARY),
        // What would undo the boundary, or go beyond the prefix.
        through(Call::new("iam:DeleteRolePermissionsBoundary", role)).with("iam:PermissionsBoundary", BOUNDARY),
        through(Call::new("iam:CreatePolicyVersion", BOUNDARY)),
        through(Call::new("iam:UpdateAssumeRolePolicy", role)).with("iam:PermissionsBoundary", BOUNDARY),
        through(Call::new("iam:CreateRole", "arn:aws:iam::000000000000:role/admin"))
            .with("iam:PermissionsBoundary", BOUNDARY),
        through(Call::new("iam:CreateUser", "arn:aws:iam::000000000000:user/kiln-acme-x")),
        Call::new("iam:PassRole", "arn:aws:iam::000000000000:role/admin")
            .with("iam:PassedToService", "ec2.amazonaws.com"),
        Call::new("iam:PassRole", role).with("iam:PassedToService", "lambda.amazonaws.com"),
        // The pipelines' own roles.
        through(Call::new("iam:PutRolePolicy", "arn:aws:iam::000000000000:role/kiln-acme-pipeline-deploy"))
            .with("iam:PermissionsBoundary", BOUNDARY),
        through(Call::new("iam:DeleteRole", "arn:aws:iam::000000000000:role/kiln-acme-pipeline-deploy")),
        Call::new("sts:AssumeRole", "arn:aws:iam::000000000000:role/admin"),
        // Stacks, keys and groups of others.
        call("cloudformation:CreateChangeSet", "cloudformation", "stack/other/0123"),
        call("cloudformation:DeleteStack", "cloudformation", "stack/kiln-acm/0123"),
        call("kms:Sign", "kms", "key/1234").with("kms:ResourceAliases", "alias/other"),
        call("kms:ScheduleKeyDeletion", "kms", "key/1234").with("kms:ResourceAliases", "alias/kiln-acme-app-key"),
        call("secretsmanager:GetSecretValue", "secretsmanager", "secret:other-AbCdEf"),
        call("secretsmanager:PutSecretValue", "secretsmanager", "secret:kiln-acme/app-key-AbCdEf"),
        call("autoscaling:StartInstanceRefresh", "autoscaling", "autoScalingGroup:0b1c:autoScalingGroupName/web"),
        call("ec2:TerminateInstances", "ec2", "instance/i-0123456789abcdef0"),
        call("ec2:AuthorizeSecurityGroupIngress", "ec2", "security-group/sg-1"),
        Call::new("ec2:RunInstances", "arn:aws:ec2:eu-central-1:000000000000:instance/*"),
        Call::new("s3:PutBucketPolicy", "arn:aws:s3:::kiln-acme-000000000000-eu-central-1"),
        Call::new("s3:GetObject", "arn:aws:s3:::other/secret"),
        call("ssm:PutParameter", "ssm", "parameter/other"),
    ];
    for role in ["BakeRole", "DeployRole"] {
        policies(role).check(&python(), &[], &refused).unwrap_or_else(|error| panic!("{role}: {error:#}"));
    }
    let changes = ["cloudformation:ExecuteChangeSet", "cloudformation:DeleteStack"];
    refused.extend(changes.map(|action| call(action, "cloudformation", "stack/kiln-acme-fleet-linux/0123")));
    refused.push(call("ssm:PutParameter", "ssm", "parameter/kiln-acme/image/al2023-x86_64"));
    refused.push(call(
        "autoscaling:StartInstanceRefresh",
        "autoscaling",
        "autoScalingGroup:0:autoScalingGroupName/kiln-acme-fleet-x",
    ));
    policies("StatusRole").check(&python(), &[], &refused).unwrap();
}

/// The boundary is what the most of our roles need, and no more of what a role could be given.
#[test]
fn the_roles_of_our_stacks_work_under_the_boundary() {
    let boundary = pipeline().resources().unwrap()["Boundary"].1["PolicyDocument"].clone();
    let under = |documents| Policies { documents, boundaries: vec![boundary.clone()] };
    let parameters =
        [("KeyAlias", "alias/kiln-acme-app-key"), ("SecretName", "kiln-acme/app-key"), ("SessionManager", "true")];
    let fleet = crate::instance::fleet(&parameters);
    let group = "autoScalingGroup:0b1c:autoScalingGroupName/kiln-acme-fleet-linux";
    let instance = [
        call("kms:Sign", "kms", "key/1234").with("kms:ResourceAliases", "alias/kiln-acme-app-key"),
        call("kms:Sign", "kms", "key/1234").with("kms:RequestAlias", "alias/kiln-acme-app-key"),
        call("secretsmanager:GetSecretValue", "secretsmanager", "secret:kiln-acme/app-key-AbCdEf"),
        call("autoscaling:CompleteLifecycleAction", "autoscaling", group),
        call("autoscaling:RecordLifecycleActionHeartbeat", "autoscaling", group),
        call("autoscaling:SetInstanceHealth", "autoscaling", group),
        call("autoscaling:TerminateInstanceInAutoScalingGroup", "autoscaling", group),
        Call::new("ssmmessages:OpenDataChannel", "*"),
        Call::new("ssm:UpdateInstanceInformation", "*"),
    ];
    under(fleet.policies("Role").unwrap()).check(&python(), &instance, &[]).unwrap();

    let bucket = "kiln-acme-000000000000-eu-central-1";
    let bake = template("bake.yaml", "kiln-acme-bake", &[("BucketName", bucket), ("ImagePrefix", "kiln-acme")]);
    let build = [
        Call::new("s3:GetObject", format!("arn:aws:s3:::{bucket}/payload/0123.tar")),
        Call::new("s3:PutObject", format!("arn:aws:s3:::{bucket}/logs/build.log")),
        Call::new("s3:PutObject", format!("arn:aws:s3:::{bucket}/images/0123/manifest.json")),
    ];
    under(bake.policies("Role").unwrap()).check(&python(), &build, &[]).unwrap();

    let everything = serde_json::json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Action": "*", "Resource": "*" }] });
    let beyond = [
        Call::new("iam:CreateUser", "arn:aws:iam::000000000000:user/x"),
        Call::new("sts:AssumeRole", "arn:aws:iam::000000000000:role/admin"),
        Call::new("ec2:RunInstances", "*"),
        call("kms:Decrypt", "kms", "key/1234"),
        call("secretsmanager:GetSecretValue", "secretsmanager", "secret:other-AbCdEf"),
        call("ssm:GetParameter", "ssm", "parameter/anything"),
        Call::new("s3:GetObject", "arn:aws:s3:::other/secret"),
    ];
    under(vec![everything]).check(&python(), &[], &beyond).unwrap();
}

#[test]
fn a_bake_reaches_its_payload_and_a_roll_out_its_lock() {
    let object = "arn:aws:s3:::kiln-acme-000000000000-eu-central-1/payload/0123.tar.gz";
    let calls = ["s3:GetObject", "s3:PutObject"].map(|action| Call::new(action, object));
    policies("BakeRole").check(&python(), &calls, &[]).unwrap();
    let lock = "arn:aws:s3:::kiln-acme-000000000000-eu-central-1/lock/kiln-acme-fleet-linux";
    let locks = ["s3:DeleteObject", "s3:GetObject", "s3:PutObject"].map(|action| Call::new(action, lock));
    policies("DeployRole").check(&python(), &locks, &calls).unwrap();
    // Without the right to list, S3 answers that a lock which is not there may not be read.
    let look = [locks[1].clone(), Call::new("s3:ListBucket", "arn:aws:s3:::kiln-acme-000000000000-eu-central-1")];
    for role in ["StatusRole", "DeployRole"] {
        policies(role).check(&python(), &look, &calls[1..]).unwrap();
    }
    policies("StatusRole").check(&python(), &[], &locks[2..]).unwrap();
}

/// Nothing but Kiln's own images, of this organization, and the snapshots that Image Builder made for them.
#[test]
fn what_prunes_removes_nothing_of_others() {
    let (image, snapshot) = ("arn:aws:ec2:eu-west-1::image/ami-1", "arn:aws:ec2:eu-west-1::snapshot/snap-1");
    let tagged = |action: &str, resource: &str, tags: &[(&str, &str)]| {
        let call = Call::new(action, resource);
        tags.iter().fold(call, |call, (key, value)| call.with(format!("aws:{key}"), *value))
    };
    let ours = ("ResourceTag/kiln:image", "kiln-acme-al2023-x86_64");
    let theirs = ("ResourceTag/kiln:image", "kiln-other-al2023-x86_64");
    let managed = ("ResourceTag/kiln:managed", "true");
    let marked = ("ResourceTag/kiln:pruned-from", "ami-1");
    let marks = [
        ("RequestTag/kiln:image", "kiln-acme-al2023-x86_64"),
        ("TagKeys", "kiln:image"),
        ("TagKeys", "kiln:pruned-from"),
    ];
    let built = ("ResourceTag/CreatedBy", "EC2 Image Builder");
    let mark = |more: &[(&str, &str)]| tagged("ec2:CreateTags", snapshot, &[&marks[..], more].concat());
    let allowed = [
        tagged("ec2:DeregisterImage", image, &[managed, ours]),
        tagged("ec2:DeleteSnapshot", snapshot, &[ours, marked]),
        mark(&[built]),
    ];
    let refused = [
        Call::new("ec2:DeregisterImage", image),
        tagged("ec2:DeregisterImage", image, &[managed, theirs]),
        tagged("ec2:DeleteSnapshot", snapshot, &[theirs, marked]),
        tagged("ec2:DeleteSnapshot", snapshot, &[ours]),
        mark(&[]),
        mark(&[built, ("TagKeys", "CreatedBy")]),
        tagged("ec2:CreateTags", image, &[&marks[..], &[built]].concat()),
        call(
            "autoscaling:StartInstanceRefresh",
            "autoscaling",
            "autoScalingGroup:0:autoScalingGroupName/kiln-acme-fleet-x",
        ),
        call("ssm:PutParameter", "ssm", "parameter/kiln-acme/image/al2023-x86_64"),
        call("kms:Sign", "kms", "key/1234").with("kms:ResourceAliases", "alias/kiln-acme-app-key"),
    ];
    policies("PruneRole").check(&python(), &allowed, &refused).unwrap();
}

/// Only the repository and environment that were named, and only for AWS.
#[test]
fn roles_are_trusted_to_one_subject() {
    let resources = pipeline().resources().unwrap();
    for role in ["StatusRole", "BakeRole", "DeployRole", "PruneRole", "RotateKeyRole"] {
        let trust: Value =
            serde_json::from_str(resources[role].1["AssumeRolePolicyDocument"].as_str().unwrap()).unwrap();
        let statement = &trust["Statement"][0];
        assert_eq!(trust["Statement"].as_array().map(Vec::len), Some(1), "{role}");
        assert_eq!(statement["Action"], "sts:AssumeRoleWithWebIdentity", "{role}");
        assert_eq!(statement["Principal"], serde_json::json!({ "Federated": "Provider" }), "{role}");
        let condition = serde_json::json!({ "StringEquals": {
            "token.actions.githubusercontent.com:aud": "sts.amazonaws.com",
            "token.actions.githubusercontent.com:sub": "repo:acme/runners:environment:production",
        }});
        assert_eq!(statement["Condition"], condition, "{role}");
    }
}
