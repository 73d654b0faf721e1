//! The roles of the pipelines: what each needs, whom it trusts, and what the roles that it makes can be at most.

use kiln_stand_ins::iam::{Call, Policies};
use serde_json::Value;

use crate::roles::{ROLES, pipeline, policies, policies_with};
use crate::{call, python, template};

/// Who looks changes nothing, and who changes one thing does not change another.
#[test]
fn each_pipeline_changes_only_what_it_is_for() {
    let on_group = |action| call(action, "autoscaling", "autoScalingGroup:0:autoScalingGroupName/kiln-acme-fleet-x");
    let record = |which: &str| call("ssm:PutParameter", "ssm", &format!("parameter/kiln-acme/{which}"));
    let changes = [
        ("DeployRole", call("cloudformation:ExecuteChangeSet", "cloudformation", "stack/kiln-acme-fleet-linux/0123")),
        ("DeployRole", call("cloudformation:DeleteStack", "cloudformation", "stack/kiln-acme-fleet-linux/0123")),
        ("DeployRole", on_group("autoscaling:StartInstanceRefresh")),
        ("DeployRole", record("fleet/linux/current")),
        ("BakeRole", call("cloudformation:ExecuteChangeSet", "cloudformation", "stack/kiln-acme-bake/0123")),
        ("BakeRole", record("image/al2023-x86-64")),
        ("BakeRole", call("imagebuilder:CreateImage", "imagebuilder", "image/kiln-acme-image-al2023-x86-64/1.0.0")),
        ("BakeRole", Call::new("s3:PutObject", "arn:aws:s3:::kiln-acme-000000000000-eu-central-1/payload/x.tar.gz")),
        ("StackRole", on_group("autoscaling:CreateAutoScalingGroup")),
    ];
    for role in ROLES {
        let (allowed, refused): (Vec<_>, Vec<_>) = changes.iter().partition(|(whose, _)| *whose == role);
        let calls = |of: Vec<&(&str, Call)>| of.into_iter().map(|(_, call)| call.clone()).collect::<Vec<_>>();
        policies(role)
            .check(&python(), &calls(allowed), &calls(refused))
            .unwrap_or_else(|error| panic!("{role}: {error:#}"));
    }
}

/// Who may read the secret has the App's private key; where KMS keeps the key, no pipeline may.
#[test]
fn a_pipeline_reads_the_apps_key_only_where_no_kms_signs() {
    let sign = call("kms:Sign", "kms", "key/1234")
        .with("kms:ResourceAliases", "alias/kiln-acme-app-key")
        .with("kms:SigningAlgorithm", "RSASSA_PKCS1_V1_5_SHA_256");
    let read = call("secretsmanager:GetSecretValue", "secretsmanager", "secret:kiln-acme/app-key-AbCdEf");
    let (sign, read) = ([sign], [read]);
    for role in ["StatusRole", "BakeRole", "DeployRole"] {
        policies(role).check(&python(), &sign, &read).unwrap();
        policies_with(role, &[("KeyStore", "secrets-manager")]).check(&python(), &read, &sign).unwrap();
        policies_with(role, &[("KeyStore", "both")]).check(&python(), &[&sign[..], &read[..]].concat(), &[]).unwrap();
    }
    for role in ["PruneRole", "StackRole"] {
        policies_with(role, &[("KeyStore", "both")]).check(&python(), &[], &[&sign[..], &read[..]].concat()).unwrap();
    }
}

/// Subnets of kiln.toml are in VPCs that no stack of Kiln's made: an administrator names those.
#[test]
fn fleets_run_in_the_networks_that_an_administrator_named() {
    let vpc = |id: &str| call("ec2:CreateSecurityGroup", "ec2", &format!("vpc/{id}")).with("ec2:VpcID", id);
    let subnet = |id: &str| {
        call("ec2:RunInstances", "ec2", "subnet/subnet-1")
            .with("ec2:Vpc", format!("arn:aws:ec2:eu-central-1:000000000000:vpc/{id}"))
    };
    let own = call("ec2:RunInstances", "ec2", "subnet/subnet-1")
        .with("aws:ResourceTag/aws:cloudformation:stack-name", "kiln-acme-network");
    let calls = |id| [vpc(id), subnet(id)];
    policies("StackRole").check(&python(), std::slice::from_ref(&own), &calls("vpc-1")).unwrap();
    let named = policies_with("StackRole", &[("VpcIds", "vpc-1,vpc-2")]);
    named.check(&python(), &[&calls("vpc-1")[..], &calls("vpc-2")].concat(), &calls("vpc-3")).unwrap();
    policies_with("DeployRole", &[("VpcIds", "vpc-1")])
        .check(&python(), &[own, subnet("vpc-1")], &[subnet("vpc-3")])
        .unwrap();
}

/// The first of a kind in an account has the service make its own role, with the rights of whoever asks.
#[test]
fn services_make_their_own_roles_in_a_fresh_account() {
    let make = |service: &str| {
        let principal = format!("{service}.amazonaws.com");
        Call::new(
            "iam:CreateServiceLinkedRole",
            format!("arn:aws:iam::000000000000:role/aws-service-role/{principal}/AWSServiceRole"),
        )
        .with("iam:AWSServiceName", principal)
    };
    let instances = ["autoscaling", "spot", "ec2fleet"].map(make);
    let images = [make("imagebuilder")];
    let others = ["organizations", "rds", "eks"].map(make);
    for role in ["StackRole", "DeployRole"] {
        policies(role).check(&python(), &instances, &[&images[..], &others[..]].concat()).unwrap();
    }
    policies("BakeRole").check(&python(), &images, &others).unwrap();
}

/// The boundary is what the most of our roles need, and no more of what a role could be given.
#[test]
fn the_roles_of_our_stacks_work_under_the_boundary() {
    let boundary = pipeline(&[]).resources().unwrap()["Boundary"].1["PolicyDocument"].clone();
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
    let elsewhere = instance.clone();
    let instance = instance.map(on_instance);
    under(fleet.policies("Role").unwrap()).check(&python(), &instance, &elsewhere).unwrap();

    let bucket = "kiln-acme-000000000000-eu-central-1";
    let bake = template("bake.yaml", "kiln-acme-bake", &[("BucketName", bucket), ("ImagePrefix", "kiln-acme")]);
    let build = [
        Call::new("s3:GetObject", format!("arn:aws:s3:::{bucket}/payload/0123.tar")),
        Call::new("s3:PutObject", format!("arn:aws:s3:::{bucket}/logs/build.log")),
        Call::new("s3:PutObject", format!("arn:aws:s3:::{bucket}/images/0123/manifest.json")),
    ];
    let elsewhere = build.clone();
    under(bake.policies("Role").unwrap()).check(&python(), &build.map(on_instance), &elsewhere).unwrap();

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
    under(vec![everything]).check(&python(), &[], &beyond.map(on_instance)).unwrap();
}

/// A call of a session that EC2 gave an instance.
fn on_instance(call: Call) -> Call {
    let instance = "arn:aws:ec2:eu-central-1:000000000000:instance/i-0123456789abcdef0";
    call.with("ec2:SourceInstanceARN", instance).with("aws:userid", "AROA0:i-0123456789abcdef0")
}

/// Nobody can limit whom a new role trusts: a foreign account, a person. Under the boundary it is worth nothing to them.
#[test]
fn a_role_that_trusts_strangers_is_worth_nothing() {
    let boundary = pipeline(&[]).resources().unwrap()["Boundary"].1["PolicyDocument"].clone();
    let everything = serde_json::json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Action": "*", "Resource": "*" }] });
    let backdoor = Policies { documents: vec![everything], boundaries: vec![boundary] };
    let group = "autoScalingGroup:0b1c:autoScalingGroupName/kiln-acme-fleet-linux";
    let wanted = [
        call("kms:Sign", "kms", "key/1234").with("kms:ResourceAliases", "alias/kiln-acme-app-key"),
        call("secretsmanager:GetSecretValue", "secretsmanager", "secret:kiln-acme/app-key-AbCdEf"),
        call("autoscaling:TerminateInstanceInAutoScalingGroup", "autoscaling", group),
        Call::new("s3:PutObject", "arn:aws:s3:::kiln-acme-000000000000-eu-central-1/payload/x.tar.gz"),
    ];
    backdoor.check(&python(), &wanted.clone().map(on_instance), &wanted).unwrap();
}

#[test]
fn a_bake_reaches_its_payload_and_a_rollout_its_lock() {
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
    let ours = ("ResourceTag/kiln:image", "kiln-acme-image-al2023-x86-64");
    let theirs = ("ResourceTag/kiln:image", "kiln-acme-corp-image-al2023-x86-64");
    let managed = ("ResourceTag/kiln:managed", "true");
    let marked = ("ResourceTag/kiln:pruned-from", "ami-1");
    let marks = [
        ("RequestTag/kiln:image", "kiln-acme-image-al2023-x86-64"),
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
        call("ssm:PutParameter", "ssm", "parameter/kiln-acme/image/al2023-x86-64"),
        call("kms:Sign", "kms", "key/1234").with("kms:ResourceAliases", "alias/kiln-acme-app-key"),
    ];
    policies("PruneRole").check(&python(), &allowed, &refused).unwrap();
}

/// Only the repositories and environments that were named, each role its own, and only for AWS.
#[test]
fn each_role_is_trusted_to_its_own_subjects() {
    let resources = pipeline(&[]).resources().unwrap();
    for (role, environment) in [
        ("StatusRole", "status"),
        ("BakeRole", "bake"),
        ("DeployRole", "deploy"),
        ("PruneRole", "prune"),
        ("RotateKeyRole", "rotate-key"),
    ] {
        let trust: Value =
            serde_json::from_str(resources[role].1["AssumeRolePolicyDocument"].as_str().unwrap()).unwrap();
        let statement = &trust["Statement"][0];
        assert_eq!(trust["Statement"].as_array().map(Vec::len), Some(1), "{role}");
        assert_eq!(statement["Action"], "sts:AssumeRoleWithWebIdentity", "{role}");
        assert_eq!(statement["Principal"], serde_json::json!({ "Federated": "Provider" }), "{role}");
        let mut subjects = vec![format!("repo:acme/runners:environment:{environment}")];
        if role == "StatusRole" {
            subjects.push("repo:acme@1/runners@2:environment:status".to_owned());
        }
        let condition = serde_json::json!({ "StringEquals": {
            "token.actions.githubusercontent.com:aud": "sts.amazonaws.com",
            "token.actions.githubusercontent.com:sub": subjects,
        }});
        assert_eq!(statement["Condition"], condition, "{role}");
    }
}

/// What CloudFormation lets an administrator write: both forms that GitHub sends, a customized one, and no job without an
/// environment.
#[test]
fn a_subject_has_an_environment() {
    let parameters = pipeline(&[]).section("Parameters");
    let subjects: Vec<_> = parameters.iter().filter(|(name, _)| name.ends_with("Subject")).collect();
    assert_eq!(subjects.len(), 5);
    let good = [
        "repo:acme/runners:environment:production",
        "repo:acme@123/runners@456:environment:kiln-deploy",
        "environment:production:repository_id:456",
        "repository_owner_id:123:environment:production:job_workflow_ref:acme/runners/.github/workflows/release.yml@refs/heads/main",
    ];
    let bad = [
        "repo:acme/runners:pull_request",
        "repo:acme/runners:ref:refs/heads/main",
        "repo:acme/*:environment:production",
        "repo:acme/runners:environment:",
        "repo:acme/runners:environment:a?b",
        "repo:acme/runners:environment:${aws:username}",
        "repo:acme/runners:environment:\"x",
    ];
    for (name, parameter) in subjects {
        let pattern = parameter["AllowedPattern"].as_str().unwrap();
        // CloudFormation matches the whole of each value of a list.
        let pattern = regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
        assert_eq!(parameter["Type"], "CommaDelimitedList", "{name}");
        assert!(good.iter().all(|subject| pattern.is_match(subject)), "{name}: {pattern}");
        assert!(!bad.iter().any(|subject| pattern.is_match(subject)), "{name}: {pattern}");
        assert_eq!(pattern.is_match(""), name == "RotateKeySubject", "{name}");
    }
}
