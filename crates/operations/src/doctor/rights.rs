//! What the commands ask AWS for, as IAM names it.
//!
//! A test holds this list against the calls that the commands make in a rehearsal.

use kiln_config::config::{Config, Network};
use kiln_config::model::KeyStore;

use crate::ami::bucket_name;
use crate::ports::{Caller, IamAction};

/// Actions that `ami`, `deploy` and `rotate-key` need whatever kiln.toml says, on every resource they may be asked on.
const ANYWHERE: &[&str] = &[
    "autoscaling:DescribeAutoScalingGroups",
    "autoscaling:DescribeInstanceRefreshes",
    "ec2:CreateTags",
    "ec2:DescribeImages",
    "ec2:DescribeInstanceTypeOfferings",
    // What instances say of themselves, while they are waited for.
    "ec2:DescribeInstances",
    "ec2:DescribeRouteTables",
    "ec2:DescribeSubnets",
    "sts:GetCallerIdentity",
];

/// On the stacks of Kiln.
const STACKS: &[&str] = &[
    "cloudformation:CreateChangeSet",
    "cloudformation:DeleteChangeSet",
    "cloudformation:DescribeChangeSet",
    "cloudformation:DescribeStackEvents",
    "cloudformation:DescribeStacks",
    "cloudformation:ExecuteChangeSet",
    "cloudformation:GetTemplate",
    "cloudformation:TagResource",
];

/// On the groups of Kiln.
const GROUPS: &[&str] = &[
    // Ends a canary's refresh, each time.
    "autoscaling:CancelInstanceRefresh",
    "autoscaling:RollbackInstanceRefresh",
    "autoscaling:DescribeScalingActivities",
    "autoscaling:StartInstanceRefresh",
];

/// On the objects of the organization's bucket: payloads, locks.
const OBJECTS: &[&str] = &["s3:GetObject", "s3:PutObject"];

/// On Image Builder's resources.
const IMAGE_BUILDER: &[&str] = &[
    "imagebuilder:CreateComponent",
    "imagebuilder:CreateDistributionConfiguration",
    "imagebuilder:CreateImage",
    "imagebuilder:CreateImageRecipe",
    "imagebuilder:CreateInfrastructureConfiguration",
    "imagebuilder:GetComponent",
    "imagebuilder:GetDistributionConfiguration",
    "imagebuilder:GetImage",
    "imagebuilder:GetImageRecipe",
    "imagebuilder:GetInfrastructureConfiguration",
    "imagebuilder:ListImageBuildVersions",
    "imagebuilder:ListWorkflowExecutions",
    "imagebuilder:ListWorkflowStepExecutions",
    "imagebuilder:UpdateDistributionConfiguration",
    "imagebuilder:UpdateInfrastructureConfiguration",
];

const KMS_KEYS: &[&str] = &[
    "kms:DescribeKey",
    "kms:GetParametersForImport",
    "kms:GetPublicKey",
    "kms:ImportKeyMaterial",
    "kms:ListResourceTags",
    "kms:Sign",
    "kms:TagResource",
];

const SECRET: &[&str] = &[
    "secretsmanager:CreateSecret",
    "secretsmanager:DescribeSecret",
    "secretsmanager:GetSecretValue",
    "secretsmanager:PutSecretValue",
    "secretsmanager:TagResource",
    "secretsmanager:UpdateSecretVersionStage",
];

/// What a change set makes in the caller's name.
const MADE_BY_STACKS: &[&str] = &[
    "autoscaling:CreateAutoScalingGroup",
    "autoscaling:CreateOrUpdateTags",
    "autoscaling:EnableMetricsCollection",
    "autoscaling:PutLifecycleHook",
    "autoscaling:UpdateAutoScalingGroup",
    "cloudwatch:PutMetricAlarm",
    "ec2:AuthorizeSecurityGroupEgress",
    "ec2:CreateLaunchTemplate",
    "ec2:CreateLaunchTemplateVersion",
    "ec2:CreateSecurityGroup",
    "ec2:RevokeSecurityGroupEgress",
    "ec2:RunInstances",
    "events:PutRule",
    "events:PutTargets",
    "iam:AddRoleToInstanceProfile",
    "iam:CreateInstanceProfile",
    "iam:CreateRole",
    "iam:PutRolePolicy",
    "iam:TagRole",
    "logs:CreateLogGroup",
    "logs:PutRetentionPolicy",
    "s3:CreateBucket",
    "s3:PutBucketPolicy",
    "s3:PutBucketPublicAccessBlock",
    "s3:PutBucketVersioning",
    "s3:PutEncryptionConfiguration",
];

/// How those requests are told from the caller's own.
const BY_CLOUDFORMATION: &[(&str, &str)] = &[("aws:CalledVia", "cloudformation.amazonaws.com")];

/// A role for EC2's instances, handed over in a change set.
const TO_EC2: &[(&str, &str)] =
    &[("aws:CalledVia", "cloudformation.amazonaws.com"), ("iam:PassedToService", "ec2.amazonaws.com")];

/// The roles of services that the first group and the first image of an account need, where there are none yet.
///
/// Source: <https://docs.aws.amazon.com/autoscaling/ec2/userguide/autoscaling-service-linked-role.html> and
/// <https://docs.aws.amazon.com/imagebuilder/latest/userguide/image-builder-service-linked-role.html>
const LINKED: [(&str, &[(&str, &str)]); 2] = [
    (
        "autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling",
        &[("aws:CalledVia", "cloudformation.amazonaws.com"), ("iam:AWSServiceName", "autoscaling.amazonaws.com")],
    ),
    (
        "imagebuilder.amazonaws.com/AWSServiceRoleForImageBuilder",
        &[("iam:AWSServiceName", "imagebuilder.amazonaws.com")],
    ),
];

/// What a change set makes where kiln.toml asks for a network.
const MADE_BY_NETWORK: &[&str] =
    &["ec2:AllocateAddress", "ec2:CreateNatGateway", "ec2:CreateRoute", "ec2:CreateSubnet", "ec2:CreateVpc"];

/// Everything the commands may be asked to do under this configuration.
pub fn needed(config: &Config, caller: &Caller) -> Vec<IamAction> {
    let Caller { partition, account, .. } = caller;
    let region = &config.region;
    let arn = |service: &str, rest: &str| format!("arn:{partition}:{service}:{region}:{account}:{rest}");
    let mut rights = Vec::new();
    let mut add_in = |actions: &[&str], resource: String, context: &'static [(&'static str, &'static str)]| {
        let right = |action: &&str| IamAction { action: (*action).to_owned(), resource: resource.clone(), context };
        rights.extend(actions.iter().map(right));
    };
    // CloudFormation makes these with names that are not known before.
    add_in(MADE_BY_STACKS, "*".to_owned(), BY_CLOUDFORMATION);
    if config.fleets.values().any(|fleet| fleet.network == Network::NewVpc) {
        add_in(MADE_BY_NETWORK, "*".to_owned(), BY_CLOUDFORMATION);
    }
    add_in(&["iam:PassRole"], format!("arn:{partition}:iam::{account}:role/{}-fleet-role", config.prefix()), TO_EC2);
    for (name, context) in LINKED {
        let role = format!("arn:{partition}:iam::{account}:role/aws-service-role/{name}");
        add_in(&["iam:CreateServiceLinkedRole"], role, context);
    }
    let mut add = |actions: &[&str], resource: String| add_in(actions, resource, &[]);
    add(ANYWHERE, "*".to_owned());
    let bucket = format!("arn:{partition}:s3:::{}", bucket_name(config, caller));
    add(OBJECTS, format!("{bucket}/object"));
    add(&["s3:ListBucket"], bucket);
    add(STACKS, arn("cloudformation", &format!("stack/{}/*", config.bake_stack())));
    for name in config.fleets.keys() {
        add(STACKS, arn("cloudformation", &format!("stack/{}/*", config.fleet_stack(name))));
        let group = config.group(name);
        add(GROUPS, arn("autoscaling", &format!("autoScalingGroup:*:autoScalingGroupName/{group}")));
    }
    for image in config.images.keys() {
        add(IMAGE_BUILDER, arn("imagebuilder", &format!("image/{}/1.0.0/1", config.image_name(image))));
        let parameter = config.image_parameter(image);
        add(&["ssm:GetParameter", "ssm:PutParameter"], arn("ssm", &format!("parameter{parameter}")));
        for region in &config.image_defaults.copy_to {
            let there = format!("arn:{partition}:ssm:{region}:{account}:parameter{parameter}");
            add(&["ssm:GetParameter", "ssm:PutParameter"], there);
        }
    }
    let group = format!("log-group:{}:log-stream:*", config.image_log_group());
    add(&["logs:GetLogEvents"], arn("logs", &group));
    for store in config.key_stores() {
        match store {
            KeyStore::Kms => {
                add(&["kms:CreateKey", "kms:ListKeys"], "*".to_owned());
                add(KMS_KEYS, arn("kms", "key/00000000-0000-0000-0000-000000000000"));
                add(&["kms:CreateAlias", "kms:UpdateAlias"], arn("kms", &config.key_alias()));
            }
            KeyStore::SecretsManager => {
                add(SECRET, arn("secretsmanager", &format!("secret:{}-000000", config.key_secret())));
            }
        }
    }
    rights
}
