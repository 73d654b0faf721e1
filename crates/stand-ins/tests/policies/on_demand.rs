//! On-demand fleets: an instance reaches the one object that is its own, and the controller launches and ends what is the
//! organization's.

use kiln_stand_ins::iam::{Call, Policies};
use kiln_stand_ins::template::Template;
use serde_json::Value;

use crate::roles::pipeline;
use crate::{call, check, python, template};

const BUCKET: &str = "kiln-acme--control-000000000000-eu-central-1";
const ROLE_ID: &str = "AROAEXAMPLE0000000000";
const INSTANCE: &str = "i-0123456789abcdef0";
const FLEETS_ROLE: &str = "arn:aws:iam::000000000000:role/kiln-acme-fleet-linux-eu-central-1--od";
const CONTROLLERS_ROLE: &str = "arn:aws:iam::000000000000:role/kiln-acme-ctl-eu-central-1";

/// An on-demand fleet's template, with the least and what is given.
pub(crate) fn fleet(more: &[(&str, &str)]) -> Template {
    let parameters = [
        ("AmiId", "ami-00000001"),
        ("BootConfig", "{}"),
        ("Organization", "kiln-acme"),
        ("Fleet", "linux"),
        ("ControlBucket", BUCKET),
        ("VpcId", "vpc-00000001"),
        ("ShortName", "kiln-acme-fleet-linux-eu-central-1--od"),
    ];
    template("on-demand.yaml", "kiln-acme-fleet-linux", &[&parameters[..], more].concat())
}

/// The controller's template, where KMS signs.
pub(crate) fn controller(more: &[(&str, &str)]) -> Template {
    let parameters = [
        ("AmiId", "ami-00000001"),
        ("ControllerConfig", "{}"),
        ("Organization", "kiln-acme"),
        ("InstanceType", "t3.micro"),
        ("BucketName", BUCKET),
        ("VpcId", "vpc-00000001"),
        ("SubnetIds", "subnet-00000001"),
        ("KeyAlias", "alias/kiln-acme-app-key"),
    ];
    template("controller.yaml", "kiln-acme-controller", &[&parameters[..], more].concat())
}

/// As the instance of that id asks it, with the credentials that EC2 gave it.
fn asked_by(id: &str, call: Call) -> Call {
    call.with("aws:userid", format!("{ROLE_ID}:{id}"))
        .with("ec2:SourceInstanceARN", format!("arn:aws:ec2:eu-central-1:000000000000:instance/{id}"))
}

fn object(action: &str, key: &str) -> Call {
    Call::new(action, format!("arn:aws:s3:::{BUCKET}/{key}"))
}

fn own(action: &str) -> Call {
    asked_by(INSTANCE, object(action, &format!("runners/{ROLE_ID}:{INSTANCE}/config")))
}

/// What whoever is root on an instance would try with its role.
fn attacks_of_a_job() -> Vec<Call> {
    let others = "runners/AROAEXAMPLE0000000000:i-0fedcba9876543210/config";
    let mut calls = vec![
        // Another instance's configuration, by its name, by a name that begins as one's own does, or by the literal variable.
        object("s3:GetObject", others),
        object("s3:DeleteObject", others),
        object("s3:GetObject", &format!("runners/{ROLE_ID}:{INSTANCE}0/config")),
        object("s3:GetObject", "runners/AROAOTHER000000000000:i-0123456789abcdef0/config"),
        object("s3:GetObject", "runners/${aws:userid}/config"),
        object("s3:GetObject", "runners/*/config"),
        // Its own configuration again, with what it likes in it.
        own("s3:PutObject"),
        own("s3:GetObjectVersion"),
        own("s3:PutObjectAcl"),
        // What the controller is to do.
        object("s3:GetObject", "control/control.json"),
        object("s3:PutObject", "control/control.json"),
        object("s3:PutObject", "control/status.json"),
        // Which instances there are.
        Call::new("s3:ListBucket", format!("arn:aws:s3:::{BUCKET}")),
        Call::new("ec2:DescribeInstances", "*"),
        // To be the App, or another role.
        call("kms:Sign", "kms", "key/1234").with("kms:ResourceAliases", "alias/kiln-acme-app-key"),
        call("secretsmanager:GetSecretValue", "secretsmanager", "secret:kiln-acme/app-key-AbCdEf"),
        Call::new("sts:AssumeRole", FLEETS_ROLE),
        Call::new("sts:AssumeRole", CONTROLLERS_ROLE),
        Call::new("iam:PassRole", FLEETS_ROLE).with("iam:PassedToService", "ec2.amazonaws.com"),
        // To launch, change or end an instance, itself included.
        call("ec2:RunInstances", "ec2", "launch-template/lt-1")
            .with("aws:ResourceTag/kiln:stack", "kiln-acme-fleet-linux"),
        call("ec2:TerminateInstances", "ec2", &format!("instance/{INSTANCE}"))
            .with("aws:ResourceTag/kiln:organization", "kiln-acme"),
        call("ec2:CreateTags", "ec2", &format!("instance/{INSTANCE}")).with("aws:RequestTag/kiln:fleet", "other"),
        call("ec2:AssociateIamInstanceProfile", "ec2", &format!("instance/{INSTANCE}")),
        call("ec2:ModifyInstanceMetadataOptions", "ec2", &format!("instance/{INSTANCE}")),
        Call::new("logs:PutLogEvents", "*"),
        Call::new("ssmmessages:OpenDataChannel", "*"),
    ];
    calls.retain(|call| !call.context.contains_key("aws:userid"));
    calls.into_iter().map(|call| asked_by(INSTANCE, call)).chain(["s3:PutObject", "s3:PutObjectAcl"].map(own)).collect()
}

/// The evaluator takes variables literally, so they are replaced before it is asked: first of all, its own object is allowed.
#[test]
fn an_instance_reads_and_deletes_the_one_object_that_is_its_own() {
    let allowed = [own("s3:GetObject"), own("s3:DeleteObject")];
    // The same with credentials that EC2 gave no instance: none has an instance's id in its name.
    let nobodys = allowed.clone().map(|mut call| {
        call.context.remove("aws:userid");
        call
    });
    let carried_off = allowed.clone().map(|mut call| {
        call.context.remove("ec2:SourceInstanceARN");
        call
    });
    let refused = [attacks_of_a_job(), nobodys.to_vec(), carried_off.to_vec()].concat();
    check(&fleet(&[]), "Role", &allowed, &refused);
}

/// Whoever could take the role under a session name of their choice would read what another instance was handed.
#[test]
fn nobody_but_ec2_takes_the_roles() {
    let trust = serde_json::json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Allow", "Principal": { "Service": "ec2.amazonaws.com" }, "Action": "sts:AssumeRole",
        }],
    });
    for template in [fleet(&[("SessionManager", "true")]), controller(&[])] {
        let resources = template.resources().unwrap();
        let roles: Vec<&Value> =
            resources.values().filter(|(kind, _)| kind == "AWS::IAM::Role").map(|(_, role)| role).collect();
        assert_eq!(roles.len(), 1);
        assert_eq!(roles[0]["AssumeRolePolicyDocument"], trust);
        assert_eq!(roles[0]["ManagedPolicyArns"], Value::Null, "a policy of AWS's changes without us");
    }
}

#[test]
fn a_shell_by_session_manager_is_all_that_an_option_adds() {
    let session = [Call::new("ssmmessages:OpenDataChannel", "*"), Call::new("ssm:UpdateInstanceInformation", "*")];
    let mut refused = attacks_of_a_job();
    refused.retain(|call| !call.action.starts_with("ssm"));
    check(&fleet(&[("SessionManager", "true")]), "Role", &session, &refused);
}

/// An instance that powers off is gone, and one that is up is nothing to anybody else.
#[test]
fn the_launch_template_is_of_instances_that_end_by_themselves() {
    let template = fleet(&[("TagKey1", "team"), ("TagValue1", "ci")]);
    let data = template.resources().unwrap()["LaunchTemplate"].1["LaunchTemplateData"].clone();
    assert_eq!(data["InstanceInitiatedShutdownBehavior"], "terminate");
    assert_eq!(data["MetadataOptions"]["HttpTokens"], "required");
    assert_eq!(data["MetadataOptions"]["HttpPutResponseHopLimit"], 1);
    assert_eq!(data["MetadataOptions"]["InstanceMetadataTags"], "disabled");
    assert_eq!(data["BlockDeviceMappings"][0]["Ebs"]["Encrypted"], true);
    let tagged: Vec<(&str, &Value)> = data["TagSpecifications"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tags| (tags["ResourceType"].as_str().unwrap(), &tags["Tags"]))
        .collect();
    // What the controller may launch has the organization's tag, whatever kind of thing it is.
    let kinds: Vec<&str> = tagged.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, ["instance", "volume", "network-interface"]);
    for (kind, tags) in tagged {
        for (key, value) in [("kiln:organization", "kiln-acme"), ("kiln:fleet", "linux"), ("team", "ci")] {
            let tag = serde_json::json!({ "Key": key, "Value": value });
            assert!(tags.as_array().unwrap().contains(&tag), "{kind}: {tags}");
        }
    }
}

/// What one CreateFleet asks EC2 for, and RunInstances by which EC2 does it.
fn launch() -> Vec<Call> {
    let tagged =
        |kind: &str| call("", "ec2", &format!("{kind}/x-1")).with("aws:RequestTag/kiln:organization", "kiln-acme");
    let mut parts = ["fleet", "instance", "volume", "network-interface"].map(tagged).to_vec();
    parts.extend([
        call("", "ec2", "spot-instances-request/sir-1"),
        call("", "ec2", "launch-template/lt-1").with("aws:ResourceTag/kiln:stack", "kiln-acme-fleet-linux"),
        call("", "ec2", "security-group/sg-1")
            .with("aws:ResourceTag/aws:cloudformation:stack-name", "kiln-acme-fleet-linux"),
        call("", "ec2", "subnet/subnet-1"),
        Call::new("", "arn:aws:ec2:eu-central-1::image/ami-1"),
        Call::new("", "arn:aws:ec2:eu-central-1::snapshot/snap-1"),
    ]);
    let actions = ["ec2:CreateFleet", "ec2:RunInstances"];
    let mut calls: Vec<Call> = parts
        .iter()
        .flat_map(|part| actions.map(|action| Call { action: action.to_owned(), ..part.clone() }))
        .collect();
    for kind in ["fleet", "instance", "volume", "network-interface"] {
        calls.push(
            call("ec2:CreateTags", "ec2", &format!("{kind}/x-1"))
                .with("aws:RequestTag/kiln:organization", "kiln-acme")
                .with("ec2:CreateAction", if kind == "fleet" { "CreateFleet" } else { "RunInstances" }),
        );
    }
    calls
}

fn terminate(organization: &str) -> Call {
    call("ec2:TerminateInstances", "ec2", "instance/i-0123456789abcdef0")
        .with("aws:ResourceTag/kiln:organization", organization)
}

fn pass(role: &str, service: &str) -> Call {
    Call::new("iam:PassRole", format!("arn:aws:iam::000000000000:role/{role}")).with("iam:PassedToService", service)
}

/// All that the controller does.
fn controllers_calls() -> Vec<Call> {
    let sign = |key: &str, alias: &str| {
        call("kms:Sign", "kms", "key/1234").with(key, alias).with("kms:SigningAlgorithm", "RSASSA_PKCS1_V1_5_SHA_256")
    };
    let own_role = |service: &str| {
        Call::new(
            "iam:CreateServiceLinkedRole",
            format!("arn:aws:iam::000000000000:role/aws-service-role/{service}.amazonaws.com/AWSServiceRole"),
        )
        .with("iam:AWSServiceName", format!("{service}.amazonaws.com"))
    };
    let mut calls = launch();
    calls.extend([
        terminate("kiln-acme"),
        pass("kiln-acme-fleet-linux-eu-central-1--od", "ec2.amazonaws.com"),
        Call::new("ec2:DescribeInstances", "*"),
        own_role("ec2fleet"),
        own_role("spot"),
        sign("kms:ResourceAliases", "alias/kiln-acme-app-key"),
        sign("kms:RequestAlias", "alias/kiln-acme-app-key-previous"),
        object("s3:PutObject", &format!("runners/{ROLE_ID}:{INSTANCE}/config")),
        object("s3:DeleteObject", &format!("runners/{ROLE_ID}:{INSTANCE}/config")),
        object("s3:GetObject", "control/control.json"),
        object("s3:GetObject", "control/status.json"),
        object("s3:PutObject", "control/status.json"),
        Call::new("s3:ListBucket", format!("arn:aws:s3:::{BUCKET}")),
        Call::new("cloudwatch:PutMetricData", "*").with("cloudwatch:namespace", "Kiln"),
    ]);
    calls
}

/// What whoever has taken the controller over would try beyond that.
fn attacks_of_a_controller() -> Vec<Call> {
    let mut calls = vec![
        // Instances that are not Kiln's, another organization's, or its own machine, which has no such tag.
        call("ec2:TerminateInstances", "ec2", "instance/i-of-production"),
        terminate("kiln-acme-corp"),
        call("ec2:StopInstances", "ec2", "instance/i-1").with("aws:ResourceTag/kiln:organization", "kiln-acme"),
        call("ec2:ModifyInstanceAttribute", "ec2", "instance/i-1")
            .with("aws:ResourceTag/kiln:organization", "kiln-acme"),
        // Take one for Kiln's first.
        call("ec2:CreateTags", "ec2", "instance/i-of-production").with("aws:RequestTag/kiln:organization", "kiln-acme"),
        // Another role, among them those of the fleets that can sign and lead their own groups, and its own.
        pass("admin", "ec2.amazonaws.com"),
        pass("kiln-acme-fleet-linux-eu-central-1", "ec2.amazonaws.com"),
        pass("kiln-acme-corp-fleet-linux-eu-central-1--od", "ec2.amazonaws.com"),
        pass("kiln-acme-ctl-eu-central-1", "ec2.amazonaws.com"),
        pass("kiln-acme-fleet-linux-eu-central-1--od", "lambda.amazonaws.com"),
        // Templates and groups of others, and what has no tag.
        call("ec2:RunInstances", "ec2", "launch-template/lt-of-an-administrator"),
        call("ec2:CreateFleet", "ec2", "launch-template/lt-1")
            .with("aws:ResourceTag/kiln:stack", "kiln-acme-corp-fleet-linux"),
        call("ec2:CreateFleet", "ec2", "launch-template/lt-1")
            .with("aws:ResourceTag/kiln:stack", "kiln-acme-controller"),
        call("ec2:RunInstances", "ec2", "security-group/sg-of-the-payroll-database"),
        call("ec2:RunInstances", "ec2", "instance/i-1"),
        call("ec2:CreateFleet", "ec2", "fleet/fleet-1").with("aws:RequestTag/kiln:organization", "kiln-acme-corp"),
        call("ec2:RunInstances", "ec2", "key-pair/mine"),
        call("ec2:CreateLaunchTemplateVersion", "ec2", "launch-template/lt-1")
            .with("aws:ResourceTag/kiln:stack", "kiln-acme-fleet-linux"),
        // What it handed over before, what it is to do, and other buckets.
        object("s3:GetObject", &format!("runners/{ROLE_ID}:{INSTANCE}/config")),
        object("s3:PutObject", "control/control.json"),
        object("s3:DeleteObject", "control/control.json"),
        Call::new("s3:GetObject", "arn:aws:s3:::kiln-acme-000000000000-eu-central-1/payload/x.tar.gz"),
        Call::new("s3:PutBucketPolicy", format!("arn:aws:s3:::{BUCKET}")),
        // The key itself, and other keys.
        call("kms:Decrypt", "kms", "key/1234").with("kms:ResourceAliases", "alias/kiln-acme-app-key"),
        call("kms:Sign", "kms", "key/1234").with("kms:ResourceAliases", "alias/other"),
        call("secretsmanager:GetSecretValue", "secretsmanager", "secret:kiln-acme/app-key-AbCdEf"),
        Call::new("sts:AssumeRole", FLEETS_ROLE),
        Call::new("iam:PutRolePolicy", CONTROLLERS_ROLE),
        Call::new("cloudwatch:PutMetricData", "*").with("cloudwatch:namespace", "AWS/AutoScaling"),
        call(
            "autoscaling:SetDesiredCapacity",
            "autoscaling",
            "autoScalingGroup:0:autoScalingGroupName/kiln-acme-fleet-x",
        ),
        call("ssm:GetParameter", "ssm", "parameter/kiln-acme/image/al2023-x86-64"),
    ];
    calls.push(
        Call::new("iam:CreateServiceLinkedRole", "arn:aws:iam::000000000000:role/aws-service-role/rds.amazonaws.com/X")
            .with("iam:AWSServiceName", "rds.amazonaws.com"),
    );
    calls
}

#[test]
fn the_controller_launches_and_ends_what_is_the_organizations() {
    check(&controller(&[]), "Role", &controllers_calls(), &attacks_of_a_controller());
}

/// Where no KMS signs, it reads the one secret.
#[test]
fn the_controller_without_kms_reads_its_one_secret() {
    let secret = |name: &str| call("secretsmanager:GetSecretValue", "secretsmanager", &format!("secret:{name}"));
    let template = controller(&[("KeyAlias", ""), ("SecretName", "kiln-acme/app-key")]);
    let sign = call("kms:Sign", "kms", "key/1234").with("kms:ResourceAliases", "alias/kiln-acme-app-key");
    check(&template, "Role", &[secret("kiln-acme/app-key-AbCdEf")], &[sign, secret("other-AbCdEf")]);
}

/// The bucket's own policy holds against those who may do anything in the account.
#[test]
fn an_administrator_reads_nothing_that_is_handed_over() {
    let resources =
        controller(&[]).with_outputs([("Role".to_owned(), CONTROLLERS_ROLE.to_owned())].into()).resources().unwrap();
    let everything = serde_json::json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Action": "*", "Resource": "*" }] });
    let policies = Policies::new(vec![everything, resources["BucketPolicy"].1["PolicyDocument"].clone()]);
    let key = format!("runners/{ROLE_ID}:{INSTANCE}/config");
    let by = |principal: &str, call: Call| call.with("aws:PrincipalArn", principal).with("aws:SecureTransport", "true");
    let administrator = "arn:aws:iam::000000000000:role/admin";
    let allowed = [
        by(FLEETS_ROLE, object("s3:GetObject", &key)),
        by(CONTROLLERS_ROLE, object("s3:PutObject", &key)),
        by(administrator, object("s3:DeleteObject", &key)),
        by(administrator, object("s3:GetObject", "control/control.json")),
    ];
    let refused = [
        by(administrator, object("s3:GetObject", &key)),
        by(administrator, object("s3:PutObject", &key)),
        by(CONTROLLERS_ROLE, object("s3:GetObject", &key)),
        by(FLEETS_ROLE, object("s3:PutObject", &key)),
        by("arn:aws:iam::000000000000:role/kiln-acme-fleet-old-eu-central-1", object("s3:GetObject", &key)),
    ];
    policies.check(&python(), &allowed, &refused).unwrap();
}

/// A version that stays could be read after its object is gone.
#[test]
fn what_is_deleted_from_the_bucket_is_gone() {
    let resources = controller(&[]).resources().unwrap();
    let bucket = &resources["Bucket"].1;
    assert_eq!(bucket["VersioningConfiguration"], Value::Null);
    assert_eq!(bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"].as_array().map(Vec::len), Some(1));
    let rules = bucket["LifecycleConfiguration"]["Rules"].as_array().unwrap();
    let expires = |rule: &&Value| rule["Prefix"] == "runners/" && rule["ExpirationInDays"] == 1;
    assert_eq!(rules.iter().filter(expires).count(), 1, "{rules:?}");
}

/// Both roles work under the boundary, which gives them nothing elsewhere than on an instance.
#[test]
fn the_roles_work_under_the_boundary() {
    let boundary = pipeline(&[]).resources().unwrap()["Boundary"].1["PolicyDocument"].clone();
    let under = |documents| Policies { documents, boundaries: vec![boundary.clone()] };
    let own = [own("s3:GetObject"), own("s3:DeleteObject")];
    under(fleet(&[]).policies("Role").unwrap()).check(&python(), &own, &attacks_of_a_job()).unwrap();
    let calls = controllers_calls();
    let on_instance: Vec<Call> = calls.iter().cloned().map(|call| asked_by(INSTANCE, call)).collect();
    let attacks: Vec<Call> = attacks_of_a_controller().into_iter().map(|call| asked_by(INSTANCE, call)).collect();
    let refused = [attacks, calls].concat();
    under(controller(&[]).policies("Role").unwrap()).check(&python(), &on_instance, &refused).unwrap();
}

/// The controller's machine is none of those that it may end.
#[test]
fn the_controller_does_not_take_itself_for_a_runner() {
    let resources = controller(&[]).resources().unwrap();
    let data = resources["LaunchTemplate"].1["LaunchTemplateData"].to_string();
    assert!(!data.contains("kiln:organization"), "{data}");
    let group = &resources["AutoScalingGroup"].1;
    assert_eq!((group["MinSize"].as_str(), group["MaxSize"].as_str()), (Some("1"), Some("1")));
}
