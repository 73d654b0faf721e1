//! What the commands ask AWS for, as IAM names it.
//!
//! A test holds this list against the calls that the commands make in a rehearsal.

use kiln_config::config::{Config, Network};
use kiln_config::model::KeyStore;

use crate::ports::{Caller, Right};

/// Actions that `ami`, `deploy` and `rotate-key` need whatever kiln.toml says, on every resource they may be asked on.
const ANYWHERE: &[&str] = &[
    "autoscaling:DescribeAutoScalingGroups",
    "autoscaling:DescribeInstanceRefreshes",
    "ec2:CreateTags",
    "ec2:DescribeImages",
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
];

/// On the groups of Kiln.
const GROUPS: &[&str] = &["autoscaling:StartInstanceRefresh"];

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
    "autoscaling:PutLifecycleHook",
    "autoscaling:UpdateAutoScalingGroup",
    "ec2:CreateLaunchTemplate",
    "ec2:CreateLaunchTemplateVersion",
    "ec2:CreateSecurityGroup",
    "ec2:RunInstances",
    "iam:CreateInstanceProfile",
    "iam:CreateRole",
    "iam:PassRole",
    "iam:PutRolePolicy",
    "logs:CreateLogGroup",
    "logs:PutRetentionPolicy",
    "s3:CreateBucket",
];

/// What a change set makes where kiln.toml asks for a network.
const MADE_BY_NETWORK: &[&str] =
    &["ec2:AllocateAddress", "ec2:CreateNatGateway", "ec2:CreateRoute", "ec2:CreateSubnet", "ec2:CreateVpc"];

/// Everything the commands may be asked to do under this configuration.
pub fn needed(config: &Config, caller: &Caller) -> Vec<Right> {
    let Caller { partition, account, .. } = caller;
    let region = &config.region;
    let arn = |service: &str, rest: &str| format!("arn:{partition}:{service}:{region}:{account}:{rest}");
    let mut rights = Vec::new();
    let mut add = |actions: &[&str], resource: String| {
        rights.extend(actions.iter().map(|action| Right { action: (*action).to_owned(), resource: resource.clone() }));
    };
    add(ANYWHERE, "*".to_owned());
    // CloudFormation makes these with names that are not known before.
    add(MADE_BY_STACKS, "*".to_owned());
    if config.fleets.values().any(|fleet| fleet.network == Network::NewVpc) {
        add(MADE_BY_NETWORK, "*".to_owned());
    }
    add(STACKS, arn("cloudformation", &format!("stack/{}/*", config.bake_stack())));
    for name in config.fleets.keys() {
        add(STACKS, arn("cloudformation", &format!("stack/{}/*", config.fleet_stack(name))));
        let group = config.group(name);
        add(GROUPS, arn("autoscaling", &format!("autoScalingGroup:*:autoScalingGroupName/{group}")));
    }
    for variant in config.images() {
        add(IMAGE_BUILDER, arn("imagebuilder", &format!("image/{}/1.0.0/1", config.image_name(variant))));
        let parameter = config.image_parameter(variant);
        add(&["ssm:GetParameter", "ssm:PutParameter"], arn("ssm", &format!("parameter{parameter}")));
        for region in &config.image.copy_to {
            let there = format!("arn:{partition}:ssm:{region}:{account}:parameter{parameter}");
            add(&["ssm:GetParameter", "ssm:PutParameter"], there);
        }
        let group = format!("log-group:/aws/imagebuilder/{}:log-stream:*", config.image_name(variant));
        add(&["logs:GetLogEvents"], arn("logs", &group));
    }
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
