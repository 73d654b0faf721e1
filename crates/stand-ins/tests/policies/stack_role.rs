//! The role that CloudFormation acts by: what its handlers call for our templates, and for nothing else.

use std::collections::{BTreeMap, BTreeSet};

use kiln_stand_ins::iam::Call;
use serde_json::Value;

use crate::roles::{BOUNDARY, pipeline, policies};
use crate::{call, python, template};

/// The templates whose stacks Kiln makes.
const TEMPLATES: [&str; 5] = ["bake.yaml", "controller.yaml", "fleet.yaml", "network.yaml", "on-demand.yaml"];

/// The resources of a template of one type, as they are written.
fn written(file: &str, kind: &str) -> Vec<Value> {
    let resources = template(file, "kiln-acme-x", &[]).section("Resources");
    resources.into_iter().map(|(_, resource)| resource).filter(|resource| resource["Type"] == kind).collect()
}

/// The types of a template's resources.
pub(crate) fn types_of(file: &str) -> BTreeSet<String> {
    let resources = template(file, "kiln-acme-x", &[]).section("Resources");
    resources.into_iter().filter_map(|(_, resource)| Some(resource["Type"].as_str()?.to_owned())).collect()
}

/// What CloudFormation's registry says that its handlers of these types call, as the linter ships it.
pub(crate) fn handlers_calls(kinds: &BTreeSet<String>) -> BTreeMap<String, BTreeSet<String>> {
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
    assert_eq!(calls.keys().cloned().collect::<BTreeSet<_>>(), *kinds, "the linter knows every type");
    calls
}

/// Why a handler's permission is not given. Each is looked up in the templates, so that none outlives its reason.
#[derive(Debug)]
enum Reason {
    /// It is for a property or value that no resource of the type has.
    Absent(&'static [&'static str]),
    /// It is for a property that is taken away, and every template has it.
    Kept(&'static str),
    /// Where the resource does not stay when its stack goes, it is empty then.
    Emptied,
    /// It would undo a wall: whom a role trusts is written in the template as it stands.
    Refused,
}

use Reason::{Absent, Emptied, Kept, Refused};

#[rustfmt::skip]
const NOT_GIVEN: &[(&str, &str, Reason)] = &[
    ("AWS::AutoScaling::AutoScalingGroup", "autoscaling:Attach", Absent(&["LoadBalancerNames", "TargetGroupARNs", "TrafficSources"])),
    ("AWS::AutoScaling::AutoScalingGroup", "autoscaling:Detach", Absent(&["LoadBalancerNames", "TargetGroupARNs", "TrafficSources"])),
    ("AWS::AutoScaling::AutoScalingGroup", "autoscaling:CancelInstanceRefresh", Absent(&["UpdatePolicy"])),
    ("AWS::AutoScaling::AutoScalingGroup", "autoscaling:StartInstanceRefresh", Absent(&["UpdatePolicy"])),
    ("AWS::AutoScaling::AutoScalingGroup", "autoscaling:DeleteNotificationConfiguration", Absent(&["NotificationConfiguration"])),
    ("AWS::AutoScaling::AutoScalingGroup", "autoscaling:PutNotificationConfiguration", Absent(&["NotificationConfiguration"])),
    ("AWS::AutoScaling::AutoScalingGroup", "ec2:Get", Absent(&["InstanceRequirements"])),
    ("AWS::AutoScaling::AutoScalingGroup", "elasticloadbalancing:", Absent(&["LoadBalancerNames", "TargetGroupARNs"])),
    // assumption: the property is documented as reserved, and the service has no other trace in the type.
    ("AWS::AutoScaling::AutoScalingGroup", "managed-fleets:", Absent(&["\"Context\""])),
    ("AWS::AutoScaling::AutoScalingGroup", "ssm:Get", Absent(&["resolve:ssm"])),
    ("AWS::AutoScaling::AutoScalingGroup", "vpc-lattice:", Absent(&["TrafficSources"])),
    ("AWS::EC2::EIP", "ec2:AcceptAddressTransfer", Absent(&["TransferAddress"])),
    ("AWS::EC2::EIP", "ec2:AssociateAddress", Absent(&["InstanceId"])),
    ("AWS::EC2::NatGateway", "ec2:AssociateNatGatewayAddress", Absent(&["Secondary", "AvailabilityMode"])),
    ("AWS::EC2::NatGateway", "ec2:DisassociateNatGatewayAddress", Absent(&["Secondary", "AvailabilityMode"])),
    ("AWS::EC2::NatGateway", "ec2:AssignPrivateNatGatewayAddress", Absent(&["Secondary"])),
    ("AWS::EC2::NatGateway", "ec2:UnassignPrivateNatGatewayAddress", Absent(&["Secondary"])),
    ("AWS::EC2::Subnet", "ec2:AssociateSubnetCidrBlock", Absent(&["Ipv6"])),
    ("AWS::EC2::Subnet", "ec2:DisassociateSubnetCidrBlock", Absent(&["Ipv6"])),
    ("AWS::EC2::VPC", "ec2:CreateVpcEncryptionControl", Absent(&["VpcEncryptionControl"])),
    ("AWS::EC2::VPC", "ec2:ModifyVpcTenancy", Absent(&["InstanceTenancy"])),
    ("AWS::EC2::VPCEndpoint", "vpc-lattice:", Absent(&["ServiceNetworkArn"])),
    ("AWS::EC2::VPCEndpoint", "vpce:AllowMultiRegion", Absent(&["ServiceRegion"])),
    ("AWS::EC2::VPCGatewayAttachment", "ec2:AttachVpnGateway", Absent(&["VpnGatewayId"])),
    ("AWS::EC2::VPCGatewayAttachment", "ec2:DetachVpnGateway", Absent(&["VpnGatewayId"])),
    ("AWS::Events::Rule", "iam:PassRole", Absent(&["RoleArn"])),
    ("AWS::IAM::Role", "iam:UpdateAssumeRolePolicy", Refused),
    ("AWS::IAM::Role", "iam:DeleteRolePermissionsBoundary", Refused),
    ("AWS::Logs::LogGroup", "firehose:", Absent(&["LogGroupClass", "DataProtectionPolicy"])),
    ("AWS::Logs::LogGroup", "logs:AssociateKmsKey", Absent(&["KmsKeyId"])),
    ("AWS::Logs::LogGroup", "logs:CreateLogDelivery", Absent(&["LogGroupClass", "DataProtectionPolicy"])),
    ("AWS::Logs::LogGroup", "logs:DeleteDataProtectionPolicy", Absent(&["DataProtectionPolicy"])),
    ("AWS::Logs::LogGroup", "logs:DeleteIndexPolicy", Absent(&["FieldIndexPolicies"])),
    ("AWS::Logs::LogGroup", "logs:DeleteResourcePolicy", Absent(&["ResourcePolicyDocument"])),
    ("AWS::Logs::LogGroup", "logs:DisassociateKmsKey", Absent(&["KmsKeyId"])),
    ("AWS::Logs::LogGroup", "logs:PutBearerTokenAuthentication", Absent(&["BearerTokenAuthenticationEnabled"])),
    ("AWS::Logs::LogGroup", "logs:PutDataProtectionPolicy", Absent(&["DataProtectionPolicy"])),
    ("AWS::Logs::LogGroup", "logs:PutIndexPolicy", Absent(&["FieldIndexPolicies"])),
    ("AWS::Logs::LogGroup", "logs:PutLogGroupDeletionProtection", Absent(&["DeletionProtectionEnabled"])),
    ("AWS::Logs::LogGroup", "logs:PutResourcePolicy", Absent(&["ResourcePolicyDocument"])),
    ("AWS::Logs::LogGroup", "s3:REST.PUT.OBJECT", Absent(&["LogGroupClass", "DataProtectionPolicy"])),
    ("AWS::S3::Bucket", "iam:PassRole", Absent(&["ReplicationConfiguration"])),
    ("AWS::S3::Bucket", "s3:CreateBucketMetadataTableConfiguration", Absent(&["MetadataConfiguration", "MetadataTableConfiguration"])),
    ("AWS::S3::Bucket", "s3:DeleteBucketMetadataTableConfiguration", Absent(&["MetadataConfiguration", "MetadataTableConfiguration"])),
    ("AWS::S3::Bucket", "s3:DeleteBucketAnalyticsConfiguration", Absent(&["AnalyticsConfigurations"])),
    ("AWS::S3::Bucket", "s3:DeleteBucketCors", Absent(&["CorsConfiguration"])),
    ("AWS::S3::Bucket", "s3:DeleteBucketEncryption", Kept("BucketEncryption")),
    ("AWS::S3::Bucket", "s3:DeleteBucketLifecycle", Kept("LifecycleConfiguration")),
    ("AWS::S3::Bucket", "s3:DeleteBucketMetricsConfiguration", Absent(&["MetricsConfigurations"])),
    ("AWS::S3::Bucket", "s3:DeleteBucketReplication", Absent(&["ReplicationConfiguration"])),
    ("AWS::S3::Bucket", "s3:DeleteBucketWebsite", Absent(&["WebsiteConfiguration"])),
    ("AWS::S3::Bucket", "s3:DeleteObject", Emptied),
    ("AWS::S3::Bucket", "s3:PutObjectAcl", Absent(&["AccessControl"])),
    ("AWS::S3::Bucket", "s3:UpdateBucketMetadata", Absent(&["MetadataConfiguration", "MetadataTableConfiguration"])),
    ("AWS::S3::Bucket", "s3tables:", Absent(&["MetadataConfiguration", "MetadataTableConfiguration"])),
];

/// Does the reason hold for each resource of the type in our templates?
fn holds(kind: &str, reason: &Reason) -> bool {
    TEMPLATES.iter().flat_map(|file| written(file, kind)).all(|resource| {
        let has = |word: &&str| resource.to_string().contains(*word);
        match reason {
            Absent(words) => !words.iter().any(&has),
            Kept(word) => has(word),
            Emptied => {
                let stays = |policy: &Value| policy == "Retain" || policy == "RetainExceptOnCreate";
                // `destroy` empties the controller's bucket, and S3 deletes no other.
                (stays(&resource["DeletionPolicy"]) || resource["DeletionPolicy"] == "Delete")
                    && resource["UpdateReplacePolicy"] == "Retain"
            }
            Refused => {
                let trust = resource["Properties"]["AssumeRolePolicyDocument"].to_string();
                !trust.contains("Ref") && !trust.contains("Fn::")
            }
        }
    })
}

/// Which kinds of resources EC2 asks about: those that a call makes, and those that it changes or links.
/// source: <https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html>
#[rustfmt::skip]
const EC2: &[(&str, &[&str], &[&str])] = &[
    ("AllocateAddress", &["elastic-ip"], &[]),
    ("AssociateRouteTable", &[], &["route-table", "subnet"]),
    ("AttachInternetGateway", &[], &["internet-gateway", "vpc"]),
    ("AuthorizeSecurityGroupEgress", &[], &["security-group"]),
    ("AuthorizeSecurityGroupIngress", &[], &["security-group"]),
    ("CreateInternetGateway", &["internet-gateway"], &[]),
    ("CreateLaunchTemplate", &["launch-template"], &[]),
    ("CreateLaunchTemplateVersion", &[], &["launch-template"]),
    ("CreateNatGateway", &["natgateway"], &["elastic-ip", "subnet"]),
    ("CreateRoute", &[], &["route-table"]),
    ("CreateRouteTable", &["route-table"], &["vpc"]),
    ("CreateSecurityGroup", &["security-group"], &["vpc"]),
    ("CreateSubnet", &["subnet"], &["vpc"]),
    ("CreateTags", &[], &["elastic-ip", "internet-gateway", "launch-template", "natgateway", "route-table", "security-group", "subnet", "vpc", "vpc-endpoint"]),
    ("CreateVpc", &["vpc"], &[]),
    ("CreateVpcEndpoint", &["vpc-endpoint"], &["vpc", "route-table"]),
    ("DeleteInternetGateway", &[], &["internet-gateway"]),
    ("DeleteLaunchTemplate", &[], &["launch-template"]),
    ("DeleteNatGateway", &[], &["natgateway"]),
    ("DeleteRoute", &[], &["route-table"]),
    ("DeleteRouteTable", &[], &["route-table"]),
    ("DeleteSecurityGroup", &[], &["security-group"]),
    ("DeleteSubnet", &[], &["subnet"]),
    ("DeleteTags", &[], &["elastic-ip", "internet-gateway", "launch-template", "natgateway", "route-table", "security-group", "subnet", "vpc", "vpc-endpoint"]),
    ("DeleteVpc", &[], &["vpc"]),
    ("DeleteVpcEndpoints", &[], &["vpc-endpoint"]),
    ("DetachInternetGateway", &[], &["internet-gateway", "vpc"]),
    ("DisassociateAddress", &[], &["elastic-ip"]),
    ("DisassociateRouteTable", &[], &["route-table", "subnet"]),
    ("ModifySubnetAttribute", &[], &["subnet"]),
    ("ModifyVpcAttribute", &[], &["vpc"]),
    ("ModifyVpcEndpoint", &[], &["vpc-endpoint"]),
    ("ReleaseAddress", &[], &["elastic-ip"]),
    ("ReplaceRoute", &[], &["route-table"]),
    ("ReplaceRouteTableAssociation", &[], &["route-table", "subnet"]),
    ("RevokeSecurityGroupEgress", &[], &["security-group"]),
    ("RevokeSecurityGroupIngress", &[], &["security-group"]),
    ("RunInstances", &["instance", "network-interface", "volume"], &["launch-template", "security-group", "subnet"]),
    ("UpdateSecurityGroupRuleDescriptionsEgress", &[], &["security-group"]),
    ("UpdateSecurityGroupRuleDescriptionsIngress", &[], &["security-group"]),
];

const STACK_TAG: &str = "aws:ResourceTag/aws:cloudformation:stack-name";

/// The calls of EC2 about what a stack of ours makes or has made.
fn own_ec2(name: &str) -> Vec<Call> {
    if name.starts_with("Describe") {
        return vec![Call::new(format!("ec2:{name}"), "*")];
    }
    let (_, made, linked) = EC2.iter().find(|(known, ..)| *known == name).unwrap_or_else(|| panic!("ec2:{name}?"));
    let about = |kind: &str| call(&format!("ec2:{name}"), "ec2", &format!("{kind}/x-1"));
    let of_stack = |stack: &str| {
        let made = made.iter().map(|kind| {
            about(kind)
                .with("aws:RequestTag/kiln:stack", stack)
                .with("ec2:LaunchTemplate", "arn:aws:ec2:eu-central-1:000000000000:launch-template/lt-1")
        });
        let linked = linked.iter().map(|kind| match *kind {
            "launch-template" => about(kind).with("aws:ResourceTag/kiln:stack", stack),
            "security-group" => about(kind).with(STACK_TAG, stack),
            _ => about(kind).with(STACK_TAG, "kiln-acme-network"),
        });
        made.chain(linked).collect::<Vec<_>>()
    };
    ["kiln-acme-controller", "kiln-acme-fleet-linux"].into_iter().flat_map(of_stack).collect()
}

/// The calls of a handler about what is ours.
fn own_calls(action: &str) -> Vec<Call> {
    let names = ["kiln-acme-bake-eu-central-1", "kiln-acme-ctl-eu-central-1", "kiln-acme-fleet-linux-eu-central-1"];
    let (service, name) = action.split_once(':').unwrap();
    let on = |resource: String| Call::new(action, resource);
    match (service, name) {
        ("ec2", name) => own_ec2(name),
        (_, name) if name.starts_with("Describe") && !matches!(name, "DescribeRule") => vec![on("*".to_owned())],
        ("autoscaling", _) => ["kiln-acme-controller", "kiln-acme-fleet-linux"]
            .map(|name| call(action, service, &format!("autoScalingGroup:0b1c:autoScalingGroupName/{name}")))
            .to_vec(),
        ("cloudwatch", _) => ["kiln-acme-controller-not-in-service", "kiln-acme-fleet-linux-too-few-in-service"]
            .map(|name| {
                call(action, service, &format!("alarm:{name}"))
                    .with("cloudwatch:AlarmActions", "arn:aws:sns:eu-central-1:000000000000:alarms")
            })
            .to_vec(),
        ("events", _) => vec![
            call(action, service, "rule/kiln-acme-fleet-linux-eu-central-1")
                .with("events:TargetArn", "arn:aws:sns:eu-central-1:000000000000:alarms"),
        ],
        ("logs", _) => {
            vec![call(action, service, "log-group:/aws/imagebuilder/kiln-acme")]
        }
        ("s3", _) => ["kiln-acme", "kiln-acme--control"]
            .map(|name| on(format!("arn:aws:s3:::{name}-000000000000-eu-central-1")))
            .to_vec(),
        ("iam", "CreateServiceLinkedRole") => ["autoscaling", "spot", "ec2fleet"]
            .map(|service| format!("{service}.amazonaws.com"))
            .map(|principal| {
                on(format!("arn:aws:iam::000000000000:role/aws-service-role/{principal}/AWSServiceRole"))
                    .with("iam:AWSServiceName", principal)
            })
            .to_vec(),
        ("iam", name) if name.contains("InstanceProfile") => {
            names.map(|name| on(format!("arn:aws:iam::000000000000:instance-profile/{name}"))).to_vec()
        }
        ("iam", _) => names
            .map(|name| {
                on(format!("arn:aws:iam::000000000000:role/{name}"))
                    .with("iam:PermissionsBoundary", BOUNDARY)
                    .with("iam:PassedToService", "ec2.amazonaws.com")
            })
            .to_vec(),
        _ => vec![call(action, service, "thing")],
    }
}

/// What is not Kiln's, or another organization's Kiln: names that begin alike.
const FOREIGN: [&str; 6] = [
    "production-web",
    "kiln-acme-corp-fleet-linux",
    "kiln-acme--fleet-fleet-linux",
    "kiln-acme-bake-network",
    // Of an organization that is called `acme-controller`.
    "kiln-acme-controller-fleet-linux",
    "kiln-acme-controller-controller",
];

/// The calls of a handler about what is not ours.
pub(crate) fn foreign_calls(action: &str) -> Vec<Call> {
    let (service, name) = action.split_once(':').unwrap();
    if name.starts_with("Describe") || action.contains('*') {
        return Vec::new();
    }
    let shape = |name: &str| match service {
        "autoscaling" => format!("autoScalingGroup:0b1c:autoScalingGroupName/{name}"),
        "cloudwatch" => format!("alarm:{name}"),
        "events" => format!("rule/{name}"),
        "logs" => format!("log-group:/aws/imagebuilder/{name}"),
        _ => name.to_owned(),
    };
    match (service, name) {
        ("ec2", name) => {
            let Some((_, _, linked)) = EC2.iter().find(|(known, ..)| *known == name) else {
                return vec![call(action, "ec2", "anything/x-1")];
            };
            let about = |kind: &str| call(action, "ec2", &format!("{kind}/x-1"));
            let tagged = |kind: &str| {
                let tags =
                    FOREIGN.map(|name| about(kind).with(STACK_TAG, name).with("aws:ResourceTag/kiln:stack", name));
                std::iter::once(about(kind)).chain(tags).collect::<Vec<_>>()
            };
            linked.iter().flat_map(|kind| tagged(kind)).collect()
        }
        ("iam", name) => {
            let kind = if name.contains("InstanceProfile") { "instance-profile" } else { "role" };
            let on = |name: &str| Call::new(action, format!("arn:aws:iam::000000000000:{kind}/{name}"));
            let with = |call: Call| {
                call.with("iam:PermissionsBoundary", BOUNDARY).with("iam:PassedToService", "ec2.amazonaws.com")
            };
            FOREIGN.map(|name| with(on(name))).to_vec()
        }
        ("s3", _) => FOREIGN.map(|name| Call::new(action, format!("arn:aws:s3:::{name}"))).to_vec(),
        _ => FOREIGN.map(|name| call(action, service, &shape(name))).to_vec(),
    }
}

#[test]
fn cloudformation_may_do_all_that_the_templates_need() {
    let mut used = BTreeSet::new();
    for file in TEMPLATES {
        let mut calls = Vec::new();
        for (kind, actions) in handlers_calls(&types_of(file)) {
            for action in actions {
                let reason = NOT_GIVEN.iter().position(|(of, prefix, _)| *of == kind && action.starts_with(prefix));
                match reason {
                    Some(index) => {
                        used.insert(index);
                    }
                    None => calls.extend(own_calls(&action)),
                }
            }
        }
        assert!(calls.len() > 20, "{calls:?}");
        policies("StackRole").check(&python(), &calls, &[]).unwrap_or_else(|error| panic!("{file}: {error:#}"));
    }
    for (index, (kind, prefix, reason)) in NOT_GIVEN.iter().enumerate() {
        assert!(used.contains(&index), "{kind} asks no more for {prefix}: take it off the list");
        assert!(holds(kind, reason), "{kind} needs {prefix} after all: {reason:?}");
    }
}

/// A pipeline's role may send templates of these types only; CloudFormation refuses any other.
#[test]
fn a_stack_holds_the_types_of_its_template_alone() {
    for (role, file, stack) in [
        ("BakeRole", "bake.yaml", "kiln-acme-bake"),
        ("DeployRole", "controller.yaml", "kiln-acme-controller"),
        ("DeployRole", "fleet.yaml", "kiln-acme-fleet-linux"),
        ("DeployRole", "on-demand.yaml", "kiln-acme-fleet-linux"),
        ("BakeRole", "network.yaml", "kiln-acme-network"),
        ("DeployRole", "network.yaml", "kiln-acme-network"),
    ] {
        let change = || {
            call("cloudformation:CreateChangeSet", "cloudformation", &format!("stack/{stack}/0"))
                .with("cloudformation:RoleArn", "arn:aws:iam::000000000000:role/kiln-acme-cloudformation")
        };
        let all =
            types_of(file).into_iter().fold(change(), |call, kind| call.with("cloudformation:ResourceTypes", kind));
        let more =
            ["AWS::EC2::VPCPeeringConnection", "AWS::EC2::Instance", "AWS::IAM::Policy", "AWS::Lambda::Function"]
                .map(|kind| all.clone().with("cloudformation:ResourceTypes", kind));
        policies(role).check(&python(), &[all], &more).unwrap_or_else(|error| panic!("{role} {file}: {error:#}"));
    }
    // Neither has a say in the other's stack.
    let fleet = call("cloudformation:ExecuteChangeSet", "cloudformation", "stack/kiln-acme-fleet-linux/0");
    let bake = call("cloudformation:ExecuteChangeSet", "cloudformation", "stack/kiln-acme-bake/0");
    policies("BakeRole").check(&python(), std::slice::from_ref(&bake), std::slice::from_ref(&fleet)).unwrap();
    policies("DeployRole").check(&python(), &[fleet], &[bake]).unwrap();
}

/// IAM's own limits, which it counts without blanks: 6,144 for a managed policy, 10,240 for all that is written in a role.
/// source: <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>
#[test]
fn the_longest_organizations_policies_fit() {
    let prefix = format!("kiln-{}", "o".repeat(39));
    let vpcs = ["vpc-0123456789abcdef0"; 5].join(",");
    let template = pipeline(&[("Prefix", &prefix), ("VpcIds", &vpcs), ("KeyStore", "both")]);
    for (id, (kind, properties)) in template.resources().unwrap() {
        let length = |document: &Value| document.to_string().len();
        match kind.as_str() {
            "AWS::IAM::ManagedPolicy" => {
                let length = length(&properties["PolicyDocument"]);
                assert!(length <= 6144, "{id} has {length} characters");
            }
            "AWS::IAM::Role" => {
                let inline = properties["Policies"].as_array().into_iter().flatten();
                let length: usize = inline.map(|policy| length(&policy["PolicyDocument"])).sum();
                assert!(length <= 10_240, "{id} has {length} characters");
                assert!(properties["ManagedPolicyArns"].as_array().is_none_or(|arns| arns.len() <= 10), "{id}");
                assert!(properties["RoleName"].as_str().is_some_and(|name| name.len() <= 64), "{id}");
            }
            _ => {}
        }
    }
}
