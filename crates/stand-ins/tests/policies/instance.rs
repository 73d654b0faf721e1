//! The role of a fleet's instances. Whoever reaches their metadata service has it.

use kiln_stand_ins::iam::Call;
use kiln_stand_ins::template::Template;

use crate::{call, check, template};

const STACK: &str = "kiln-acme-fleet-linux";
const PARAMETERS: [(&str, &str); 8] = [
    ("AmiId", "ami-00000001"),
    ("BootConfig", "{}"),
    ("InstanceType1", "m6i.large"),
    ("MinSize", "1"),
    ("MaxSize", "4"),
    ("VpcId", "vpc-00000001"),
    ("SubnetIds", "subnet-00000001"),
    ("LaunchTimeoutSecs", "600"),
];

/// The fleet's template, with the least and what is given.
pub(crate) fn fleet(more: &[(&str, &str)]) -> Template {
    template("fleet.yaml", STACK, &[&PARAMETERS[..], more].concat())
}

fn group(action: &str, name: &str) -> Call {
    call(action, "autoscaling", &format!("autoScalingGroup:0b1c:autoScalingGroupName/{name}"))
}

fn sign(alias: &str) -> Call {
    call("kms:Sign", "kms", "key/1234")
        .with("kms:ResourceAliases", alias)
        .with("kms:SigningAlgorithm", "RSASSA_PKCS1_V1_5_SHA_256")
}

/// A signature asked for by an alias that KMS does not yet take for one of the key's.
fn sign_by_request(alias: &str) -> Call {
    call("kms:Sign", "kms", "key/1234")
        .with("kms:RequestAlias", alias)
        .with("kms:SigningAlgorithm", "RSASSA_PKCS1_V1_5_SHA_256")
}

fn secret(name: &str) -> Call {
    call("secretsmanager:GetSecretValue", "secretsmanager", &format!("secret:{name}"))
}

/// What no instance may do, whichever store its key is in.
fn never() -> Vec<Call> {
    let mut calls = vec![
        call("kms:Decrypt", "kms", "key/1234").with("kms:ResourceAliases", "alias/kiln-acme-app-key"),
        call("kms:GetPublicKey", "kms", "key/1234").with("kms:ResourceAliases", "alias/kiln-acme-app-key"),
        call("kms:ScheduleKeyDeletion", "kms", "key/1234").with("kms:ResourceAliases", "alias/kiln-acme-app-key"),
        call("kms:UpdateAlias", "kms", "alias/kiln-acme-app-key"),
        call("kms:CreateGrant", "kms", "key/1234").with("kms:ResourceAliases", "alias/kiln-acme-app-key"),
        call("secretsmanager:PutSecretValue", "secretsmanager", "secret:kiln-acme/app-key-AbCdEf"),
        call("ec2:TerminateInstances", "ec2", "instance/i-0123456789abcdef0"),
        call("ec2:ModifyInstanceAttribute", "ec2", "instance/i-0123456789abcdef0"),
        call("ec2:CreateLaunchTemplateVersion", "ec2", "launch-template/lt-1"),
        Call::new("ec2:RunInstances", "*"),
        Call::new("ec2:DescribeInstances", "*"),
        Call::new("autoscaling:DescribeAutoScalingGroups", "*"),
        Call::new("iam:PassRole", "arn:aws:iam::000000000000:role/kiln-acme-fleet-linux-Role"),
        Call::new("iam:PutRolePolicy", "arn:aws:iam::000000000000:role/kiln-acme-fleet-linux-Role"),
        Call::new("sts:AssumeRole", "arn:aws:iam::000000000000:role/admin"),
        Call::new("s3:GetObject", "arn:aws:s3:::kiln-acme/payload/x"),
        call("ssm:GetParameter", "ssm", "parameter/kiln-acme/image/al2023-x86-64"),
        call("ssm:PutParameter", "ssm", "parameter/kiln-acme/image/al2023-x86-64"),
    ];
    let on_group = ["SetDesiredCapacity", "UpdateAutoScalingGroup", "StartInstanceRefresh", "DetachInstances"];
    calls.extend(on_group.map(|action| group(&format!("autoscaling:{action}"), STACK)));
    calls
}

/// As the instance `i-0123456789abcdef0` of the group asks it, of itself.
fn tag(group: &str, key: &str, value: &str) -> Call {
    call("ec2:CreateTags", "ec2", "instance/i-0123456789abcdef0")
        .with("aws:userid", "AROA0:i-0123456789abcdef0")
        .with("ec2:InstanceID", "i-0123456789abcdef0")
        .with("aws:ResourceTag/aws:autoscaling:groupName", group)
        .with(format!("aws:RequestTag/{key}"), value)
        .with("aws:TagKeys", key)
}

fn lifecycle(name: &str) -> Vec<Call> {
    let actions = [
        "CompleteLifecycleAction",
        "RecordLifecycleActionHeartbeat",
        "SetInstanceHealth",
        "TerminateInstanceInAutoScalingGroup",
    ];
    actions.map(|action| group(&format!("autoscaling:{action}"), name)).to_vec()
}

#[test]
fn an_instance_signs_by_its_alias_and_keeps_to_its_own_group() {
    let fleet = fleet(&[("KeyAlias", "alias/kiln-acme-app-key")]);
    let mut allowed = lifecycle(STACK);
    allowed.push(sign("alias/kiln-acme-app-key"));
    allowed.push(sign("alias/kiln-acme-app-key-previous"));
    allowed.push(sign_by_request("alias/kiln-acme-app-key"));
    allowed.push(sign_by_request("alias/kiln-acme-app-key-previous"));
    // A key that has another alias too is still the one meant.
    allowed.push(sign("alias/other").with("kms:ResourceAliases", "alias/kiln-acme-app-key"));
    let mut refused = never();
    refused.extend(lifecycle("kiln-acme-fleet-linux-arm"));
    refused.extend(lifecycle("kiln-acme-fleet"));
    refused.extend([
        sign("alias/other"),
        sign_by_request("alias/other"),
        sign_by_request("alias/kiln-acme-app-key-2"),
        sign("alias/kiln-acme-app-key-2"),
        call("kms:Sign", "kms", "key/1234").with("kms:SigningAlgorithm", "RSASSA_PKCS1_V1_5_SHA_256"),
        call("kms:Sign", "kms", "key/1234")
            .with("kms:ResourceAliases", "alias/kiln-acme-app-key")
            .with("kms:SigningAlgorithm", "RSASSA_PSS_SHA_256"),
        secret("kiln-acme/app-key-AbCdEf"),
    ]);
    check(&fleet, "Role", &allowed, &refused);
}

#[test]
fn an_instance_marks_those_of_its_group_alone() {
    let mark = |group| tag(group, "kiln:state", "runner-deprecated");
    let allowed = ["runner-deprecated", "github-unreachable", "serving"].map(|state| tag(STACK, "kiln:state", state));
    let switch = call("ec2:ModifyInstanceMetadataOptions", "ec2", "instance/i-0123456789abcdef0");
    let refused = [
        mark("kiln-acme-fleet-other"),
        tag(STACK, "kiln:state", "other"),
        tag(STACK, "Name", "runner-deprecated"),
        mark(STACK).with("aws:TagKeys", "Name"),
        switch.with("aws:ResourceTag/aws:autoscaling:groupName", STACK),
    ];
    check(&fleet(&[("KeyAlias", "alias/kiln-acme-app-key")]), "Role", &allowed, &refused);
}

/// A session is named after the instance that EC2 gave it to.
#[test]
fn an_instance_tags_itself_alone() {
    let mark = tag(STACK, "kiln:state", "runner-deprecated");
    let mut neighbours = mark.clone();
    neighbours.context.insert("aws:userid".to_owned(), vec!["AROA0:i-0fedcba9876543210".to_owned()]);
    let mut nobodys = mark.clone();
    nobodys.context.remove("aws:userid");
    check(&fleet(&[("KeyAlias", "alias/kiln-acme-app-key")]), "Role", &[mark], &[neighbours, nobodys]);
}

#[test]
fn an_instance_without_kms_reads_its_one_secret() {
    let fleet = fleet(&[("SecretName", "kiln-acme/app-key")]);
    let mut allowed = lifecycle(STACK);
    allowed.push(secret("kiln-acme/app-key-AbCdEf"));
    let mut refused = never();
    refused.extend([
        sign("alias/kiln-acme-app-key"),
        secret("kiln-acme/app-key-other-AbCdEf"),
        secret("kiln-acme/app-key"),
        secret("other-AbCdEf"),
    ]);
    check(&fleet, "Role", &allowed, &refused);
}

#[test]
fn a_shell_by_session_manager_is_an_option_and_reads_no_parameters() {
    let session = ["CreateControlChannel", "CreateDataChannel", "OpenControlChannel", "OpenDataChannel"];
    let mut calls: Vec<Call> = session.iter().map(|action| Call::new(format!("ssmmessages:{action}"), "*")).collect();
    calls.push(Call::new("ssm:UpdateInstanceInformation", "arn:aws:ec2:eu-central-1:000000000000:instance/i-1"));
    let mut refused = never();
    refused.extend([
        call("ssm:GetParameters", "ssm", "parameter/anything"),
        call("ssm:SendCommand", "ec2", "instance/i-0123456789abcdef0"),
        call("ssm:StartSession", "ec2", "instance/i-0123456789abcdef0"),
        Call::new("ssm:GetDocument", "*"),
    ]);
    check(&fleet(&[("SessionManager", "true")]), "Role", &calls, &refused);
    check(&fleet(&[]), "Role", &[], &calls);
}

/// Whoever deploys under a boundary can make no role that goes beyond it.
#[test]
fn the_role_has_the_boundary_it_is_given() {
    let boundary = "arn:aws:iam::000000000000:policy/kiln-acme-boundary";
    let role = |template: Template| template.resources().unwrap()["Role"].1["PermissionsBoundary"].clone();
    assert_eq!(role(fleet(&[("PermissionsBoundary", boundary)])), boundary);
    assert_eq!(role(fleet(&[])), serde_json::Value::Null);
}
