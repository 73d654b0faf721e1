//! Images: Image Builder, AMIs in EC2, and parameters in SSM.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_ec2::types::Tag as Ec2Tag;
use aws_sdk_imagebuilder::error::ProvideErrorMetadata;
use aws_sdk_imagebuilder::types::{
    AmiDistributionConfiguration, ComponentConfiguration, ComponentParameter, Distribution as SdkDistribution,
    EbsInstanceBlockDeviceSpecification, EbsVolumeType, Image, ImageFailureContext, ImageLoggingConfiguration,
    ImageRecipe, ImageStatus, ImageTestsConfiguration, InstanceBlockDeviceMapping, InstanceMetadataOptions,
    LaunchPermissionConfiguration, Logging, Platform, S3Logs, WorkflowStepMetadata,
};
use aws_sdk_ssm::types::ParameterType;
use kiln_config::model::{AccountId, AmiId, Architecture, BaseImage, KmsKeyArn, Region};
use kiln_operations::ports::{
    Ami, Build, BuildRequest, BuildStatus, BuildStep, CloudError, Component, ComponentUse, Distribution, Identity as _,
    Images, Infrastructure, Recipe, ResourceVersion, Result,
};
use kiln_operations::wait::PollBackoff;

use crate::Aws;

/// How long SSM may take to validate an `aws:ec2:image` value after the call. It takes seconds.
const RECORD_LIMIT: Duration = Duration::from_secs(60);

/// How long a new instance profile may be invisible to other services. It takes seconds.
///
/// source: <https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html>, "Changes that I make are not always
/// immediately visible"
const PROFILE_LIMIT: Duration = Duration::from_secs(120);

/// The maximum number of pages to read. A build has two workflows with about ten steps each, and a recipe has a few builds.
const MOST_PAGES: usize = 40;

/// The prefix of Image Builder's own logs in the bucket.
const LOG_PREFIX: &str = "logs";

/// Image Builder's error codes for a resource that does not exist.
fn is_absent<E: ProvideErrorMetadata>(error: &E) -> bool {
    matches!(error.code(), Some("ResourceNotFoundException" | "NotFoundException"))
        || error.code() == Some("InvalidParameterValueException")
            && error.message().is_some_and(|message| message.contains("does not exist"))
}

/// Whether the error says that the resource already exists, which is success for a creation.
fn is_present<E: ProvideErrorMetadata>(error: &E) -> bool {
    matches!(error.code(), Some("ResourceAlreadyExistsException"))
}

/// Whether the error says that the instance profile does not exist, because it was created a moment ago.
///
/// source: rhythmictech/terraform-aws-imagebuilder-pipeline#16: "The provided instance profile does not exist"
fn is_invisible_profile<E: ProvideErrorMetadata>(error: &E) -> bool {
    error.message().map(str::to_ascii_lowercase).is_some_and(|message| {
        message.contains("instance profile") && (message.contains("not exist") || message.contains("not found"))
    })
}

/// Converts a name to the form that Image Builder uses in ARNs: lower case, with hyphens instead of spaces and underscores.
///
/// source: `botocore`, `imagebuilder/2019-12-02/service-2.json`, `Filter$name`: "the name segment of the resource ARN, which
/// Image Builder converts to lowercase with hyphens in place of spaces and underscores"
pub(crate) fn arn_segment(name: &str) -> String {
    name.to_ascii_lowercase().replace([' ', '_'], "-")
}

fn tag_map(tags: &BTreeMap<String, String>) -> Option<std::collections::HashMap<String, String>> {
    Some(tags.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
}

impl Aws {
    /// The ARN that Image Builder gives to a resource with that name. It is compared with the ARN in the response to a creation.
    async fn arn(&self, kind: &str, name: &str) -> Result<String> {
        let caller = self.caller().await?;
        let name = arn_segment(name);
        Ok(format!("arn:{}:imagebuilder:{}:{}:{kind}/{name}", caller.partition, self.region, caller.account))
    }

    /// Fails if a resource was created with an unexpected ARN, because Kiln would not find it again.
    fn require_arn(&self, doing: &str, wanted: &str, made: Option<&str>) -> Result<()> {
        match made {
            Some(made) if made != wanted => {
                Err(self.odd(doing, format!("Image Builder made {made}, and {wanted} is what is looked for")))
            }
            _ => Ok(()),
        }
    }

    async fn component_arn(&self, id: &ResourceVersion) -> Result<String> {
        Ok(format!("{}/{}/1", self.arn("component", &id.name).await?, id.version))
    }

    async fn recipe_arn(&self, id: &ResourceVersion) -> Result<String> {
        Ok(format!("{}/{}", self.arn("image-recipe", &id.name).await?, id.version))
    }

    /// A random client token, for calls that are safe to repeat without one.
    fn token() -> String {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        format!("kiln-{}", since.as_nanos())
    }

    async fn parameter(&self, name: &str) -> Result<Option<String>> {
        match self.ssm.get_parameter().name(name).send().await {
            Ok(answer) => Ok(answer.parameter.and_then(|parameter| parameter.value)),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_parameter_not_found()) => Ok(None),
            Err(error) => Err(self.failed(format!("read parameter {name}"), error)),
        }
    }

    /// Clients for EC2 and SSM in another region, with the same credentials. The other services stay in this region.
    fn in_region(&self, region: &Region) -> Self {
        let (name, mut there) = (region.to_string(), self.clone());
        let ec2 = self.ec2.config().to_builder().region(aws_config::Region::new(name.clone())).build();
        let ssm = self.ssm.config().to_builder().region(aws_config::Region::new(name.clone())).build();
        there.ec2 = aws_sdk_ec2::Client::from_conf(ec2);
        there.ssm = aws_sdk_ssm::Client::from_conf(ssm);
        there.region = name;
        there
    }

    /// The distributions of all regions, this region first.
    fn distributions_of(&self, doing: &str, wanted: &Distribution) -> Result<Vec<SdkDistribution>> {
        let parsed: std::result::Result<Region, _> = self.region.parse();
        let here = parsed.map_err(|error| self.odd(doing, error.to_string()))?;
        let permission = (!wanted.share_with.is_empty()).then(|| {
            let accounts = wanted.share_with.iter().map(AccountId::to_string).collect();
            LaunchPermissionConfiguration::builder().set_user_ids(Some(accounts)).build()
        });
        let distribution = |region: &Region| {
            let tags = wanted.ami_tags.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            let ami = AmiDistributionConfiguration::builder()
                .name(&wanted.ami_name)
                .set_ami_tags(Some(tags))
                .set_launch_permission(permission.clone())
                .set_kms_key_id(wanted.kms_key.as_ref().map(|key| key.in_region(region).to_string()))
                .build();
            let distribution = SdkDistribution::builder().region(region.as_str()).ami_distribution_configuration(ami);
            distribution.build().map_err(|error| self.odd(doing, error.to_string()))
        };
        std::iter::once(&here).chain(&wanted.copy_to).map(distribution).collect()
    }

    /// Reads the current configuration. If the settings of the regions differ from each other, the result never equals a desired
    /// configuration, which forces an update.
    fn distribution_of(&self, name: &str, found: &[SdkDistribution]) -> Distribution {
        let ami = found
            .iter()
            .find(|distribution| distribution.region() == self.region)
            .and_then(|distribution| distribution.ami_distribution_configuration());
        let tags = ami.and_then(|ami| ami.ami_tags()).cloned().unwrap_or_default();
        let shared = ami.and_then(|ami| ami.launch_permission()).map(|permission| permission.user_ids());
        let others = found.iter().map(SdkDistribution::region).filter(|region| *region != self.region);
        Distribution {
            name: name.to_owned(),
            ami_name: ami.and_then(|ami| ami.name()).unwrap_or_default().to_owned(),
            ami_tags: tags.into_iter().collect(),
            copy_to: others.filter_map(|region| region.parse().ok()).collect(),
            share_with: shared.unwrap_or_default().iter().filter_map(|account| account.parse().ok()).collect(),
            kms_key: ami.and_then(|ami| ami.kms_key_id()?.parse().ok()),
        }
    }

    /// The AMIs of a build in other regions.
    fn copies_of(&self, doing: &str, image: &Image) -> Result<BTreeMap<String, AmiId>> {
        let amis = image.output_resources().map(|output| output.amis()).unwrap_or_default();
        let others = amis.iter().filter_map(|ami| Some((ami.region()?, ami.image()?)));
        let others = others.filter(|(region, _)| *region != self.region);
        others.map(|(region, ami)| Ok((region.to_owned(), self.ami_of(doing, ami)?))).collect()
    }

    fn ami_of(&self, doing: &str, value: &str) -> Result<AmiId> {
        value.parse().map_err(|error| self.odd(doing, format!("{error}")))
    }

    async fn steps(&self, arn: &str) -> Result<Vec<BuildStep>> {
        let doing = format!("list the workflows of {arn}");
        let mut workflows = Vec::new();
        let list = self.imagebuilder.list_workflow_executions().image_build_version_arn(arn);
        let mut pages = list.into_paginator().send();
        for page in 0.. {
            let Some(answer) = pages.next().await else { break };
            self.require_few(page, &doing)?;
            workflows
                .extend(answer.map_err(|error| self.failed(&doing, error))?.workflow_executions.unwrap_or_default());
        }
        let mut steps = Vec::new();
        for workflow in workflows {
            let Some(id) = workflow.workflow_execution_id() else { continue };
            let kind = workflow.r#type().map(|kind| kind.as_str().to_ascii_lowercase()).unwrap_or_default();
            let doing = format!("list the steps of {id}");
            let mut of_this = Vec::new();
            let mut pages =
                self.imagebuilder.list_workflow_step_executions().workflow_execution_id(id).into_paginator().send();
            for page in 0.. {
                let Some(answer) = pages.next().await else { break };
                self.require_few(page, &doing)?;
                of_this.extend(answer.map_err(|error| self.failed(&doing, error))?.steps.unwrap_or_default());
            }
            of_this.sort_by(|a, b| a.start_time().cmp(&b.start_time()));
            steps.extend(of_this.iter().map(|step| step_of(&kind, step)));
        }
        Ok(steps)
    }

    /// Reads all pages. Fails instead of returning an incomplete list.
    fn require_few(&self, page: usize, doing: &str) -> Result<()> {
        if page < MOST_PAGES {
            return Ok(());
        }
        Err(self.odd(doing, format!("the list has more than {MOST_PAGES} pages")))
    }

    fn status_of(&self, image: &Image) -> Result<BuildStatus> {
        let doing = format!("read build {}", image.arn().unwrap_or_default());
        let Some(state) = image.state() else { return Err(self.odd(doing, "it has no state")) };
        let status = state.status().map(ImageStatus::as_str).unwrap_or_default().to_owned();
        Ok(match state.status() {
            Some(ImageStatus::Available) => {
                let ami = image.output_resources().and_then(|output| {
                    output.amis().iter().find(|ami| ami.region() == Some(&self.region))?.image().map(str::to_owned)
                });
                let Some(ami) = ami else {
                    return Err(self.odd(doing, "it is available without an AMI in this region"));
                };
                BuildStatus::Available(self.ami_of(&doing, &ami)?)
            }
            Some(
                ImageStatus::Failed
                | ImageStatus::Cancelled
                | ImageStatus::Deprecated
                | ImageStatus::Deleted
                | ImageStatus::Disabled,
            ) => BuildStatus::Failed { state: status, reason: reason_of(state.reason(), state.failure_context()) },
            _ => BuildStatus::Running(status),
        })
    }
}

/// The same metadata options as on runners: IMDSv2 only, and a hop limit of 1.
fn metadata_options() -> InstanceMetadataOptions {
    InstanceMetadataOptions::builder().http_tokens("required").http_put_response_hop_limit(1).build()
}

fn logging(wanted: &Infrastructure) -> Logging {
    let logs = S3Logs::builder().s3_bucket_name(&wanted.log_bucket).s3_key_prefix(LOG_PREFIX).build();
    Logging::builder().s3_logs(logs).build()
}

impl Aws {
    /// An update replaces the whole configuration; it clears values that the request does not set.
    async fn update_infrastructure(&self, wanted: &Infrastructure) -> Result<()> {
        let doing = format!("put infrastructure configuration {}", wanted.name);
        let update = self
            .imagebuilder
            .update_infrastructure_configuration()
            .infrastructure_configuration_arn(self.arn("infrastructure-configuration", &wanted.name).await?)
            .instance_profile_name(&wanted.instance_profile)
            .set_instance_types(Some(wanted.instance_types.clone()))
            .subnet_id(&wanted.subnet)
            .set_security_group_ids(Some(wanted.security_groups.clone()))
            .instance_metadata_options(metadata_options())
            .terminate_instance_on_failure(!wanted.keep_on_failure)
            .logging(logging(wanted))
            .set_resource_tags(tag_map(&wanted.tags))
            .client_token(Self::token());
        Box::pin(update.send()).await.map_err(|error| self.failed(doing, error))?;
        Ok(())
    }

    async fn update_distribution(&self, wanted: &Distribution, distributions: Vec<SdkDistribution>) -> Result<()> {
        let doing = format!("put distribution configuration {}", wanted.name);
        let update = self
            .imagebuilder
            .update_distribution_configuration()
            .distribution_configuration_arn(self.arn("distribution-configuration", &wanted.name).await?)
            .set_distributions(Some(distributions))
            .client_token(Self::token());
        Box::pin(update.send()).await.map_err(|error| self.failed(doing, error))?;
        Ok(())
    }

    async fn component_configuration(&self, doing: &str, used: &ComponentUse) -> Result<ComponentConfiguration> {
        // What is not this account's has its ARN as name.
        let foreign = used.id.version.is_empty();
        let arn = if foreign { used.id.name.clone() } else { self.component_arn(&used.id).await? };
        let mut configuration = ComponentConfiguration::builder().component_arn(arn);
        for (name, value) in &used.parameters {
            let parameter = ComponentParameter::builder().name(name).value(value).build();
            configuration = configuration.parameters(parameter.map_err(|error| self.odd(doing, error.to_string()))?);
        }
        configuration.build().map_err(|error| self.odd(doing, error.to_string()))
    }

    /// Reads the current recipe. Settings that Kiln never writes make the result differ from every desired recipe.
    async fn recipe_of(&self, id: &ResourceVersion, found: &ImageRecipe) -> Result<Recipe> {
        let doing = format!("read recipe {id}");
        let own = self.arn("component", "").await?;
        let used = found.components().iter().map(|used| {
            let arn = used.component_arn();
            let parts = arn.strip_prefix(&own).map(|rest| rest.split('/').collect::<Vec<_>>());
            let id = match parts.as_deref() {
                Some(&[name, version, "1"]) => ResourceVersion { name: name.to_owned(), version: version.to_owned() },
                _ => ResourceVersion { name: arn.to_owned(), version: String::new() },
            };
            let values = used.parameters().iter().map(|given| (given.name().to_owned(), given.value().join(",")));
            ComponentUse { id, parameters: values.collect() }
        });
        let mut devices = found.block_device_mappings().iter();
        let (device, others) = (devices.next(), devices.next().is_some());
        let volume = device.and_then(|device| device.ebs());
        let encrypted = volume.and_then(|volume| volume.encrypted()) == Some(true);
        let size = volume.and_then(|volume| volume.volume_size()).and_then(|size| u32::try_from(size).ok());
        let instance = found.additional_instance_configuration();
        Ok(Recipe {
            id: id.clone(),
            base: self.ami_of(&doing, found.parent_image().unwrap_or_default())?,
            components: used.collect(),
            volume_gib: size.filter(|_| encrypted && !others).unwrap_or_default(),
            kms_key: volume.and_then(|volume| volume.kms_key_id()?.parse().ok()),
            root_device: device.and_then(|device| device.device_name()).unwrap_or_default().to_owned(),
            user_data: instance.and_then(|instance| instance.user_data_override()).map(str::to_owned),
        })
    }
}

/// Converts a step of a workflow, with the instance that it launched or used.
///
/// source: `botocore`, `imagebuilder/2019-12-02/service-2.json`, `WorkflowStepMetadata$outputs`: "a step that launches an
/// instance outputs the instance ID"
fn step_of(kind: &str, step: &WorkflowStepMetadata) -> BuildStep {
    let outputs: serde_json::Value =
        step.outputs().and_then(|outputs| serde_json::from_str(outputs).ok()).unwrap_or_default();
    let instance = outputs.as_object().into_iter().flatten().find_map(|(key, value)| {
        let id = value.as_str().filter(|id| id.starts_with("i-"))?;
        key.to_ascii_lowercase().contains("instanceid").then(|| id.to_owned())
    });
    BuildStep {
        name: format!("{kind}: {}", step.name().unwrap_or("step")),
        status: step.status().map(|status| status.as_str().to_owned()).unwrap_or_default(),
        message: step.message().map(str::to_owned),
        instance,
    }
}

/// The size of an AMI's root volume.
fn root_gib(image: &aws_sdk_ec2::types::Image) -> u32 {
    let is_root = |device: &&aws_sdk_ec2::types::BlockDeviceMapping| device.device_name() == image.root_device_name();
    let root = image.block_device_mappings().iter().find(is_root).and_then(|device| device.ebs());
    root.and_then(|volume| volume.volume_size()).and_then(|size| u32::try_from(size).ok()).unwrap_or_default()
}

/// All reasons that the service gives for the end of a build.
fn reason_of(reason: Option<&str>, context: Option<&ImageFailureContext>) -> String {
    let mut told = vec![reason.unwrap_or("Image Builder gives no reason").to_owned()];
    let Some(context) = context else { return told.remove(0) };
    let mut place = Vec::new();
    if let Some(status) = context.image_status() {
        place.push(format!("while {}", status.as_str().to_ascii_lowercase()));
    }
    if let Some(step) = context.failed_step() {
        place.push(format!("in workflow step {step}"));
    }
    if !place.is_empty() {
        told.push(place.join(", "));
    }
    if let Some(failure) = context.component_failure() {
        // …:component/NAME/VERSION/BUILD
        let component = failure.component_arn().and_then(|arn| arn.split('/').nth(1));
        told.push(format!(
            "component {}, phase {}, step {}: {}",
            component.unwrap_or("?"),
            failure.phase_name().unwrap_or("?"),
            failure.step_name().unwrap_or("?"),
            failure.error_message().unwrap_or("no message"),
        ));
    }
    if let Some(failure) = context.distribution_failure() {
        told.extend(failure.error_message().map(|message| format!("distribution: {message}")));
        told.extend(failure.region_failures().iter().map(|failure| {
            format!(
                "{} {}{}: {}",
                failure.region().unwrap_or("a region"),
                failure.status().map_or("failed", |status| status.as_str()).to_ascii_lowercase(),
                failure.target_account_id().map(|account| format!(" for account {account}")).unwrap_or_default(),
                failure.error_message().unwrap_or("no message"),
            )
        }));
    }
    told.join("; ")
}

impl Images for Aws {
    async fn newest_base(&self, base: BaseImage, architecture: Architecture) -> Result<AmiId> {
        let name = base.parameter(architecture);
        let doing = format!("look up the newest {base} for {architecture} in {name}");
        let value = self.parameter(&name).await?;
        let value = value.ok_or_else(|| self.odd(&doing, "AWS publishes no such parameter in this region any more"))?;
        self.ami_of(&doing, &value)
    }

    async fn ami(&self, id: &AmiId) -> Result<Option<Ami>> {
        let answer = match self.ec2.describe_images().image_ids(id.as_str()).send().await {
            Ok(answer) => answer,
            Err(error) if error.code().is_some_and(|code| code.starts_with("InvalidAMIID")) => return Ok(None),
            Err(error) => return Err(self.failed(format!("describe {id}"), error)),
        };
        let image = answer.images.unwrap_or_default().into_iter().next();
        Ok(image.map(|image| Ami {
            root_gib: root_gib(&image),
            architecture: image.architecture().map(|name| name.as_str().to_owned()).unwrap_or_default(),
            root_device: image.root_device_name().unwrap_or_default().to_owned(),
            id: id.clone(),
            name: image.name().unwrap_or_default().to_owned(),
            owner: image.owner_id().unwrap_or_default().to_owned(),
            state: image.state().map(|state| state.as_str().to_owned()).unwrap_or_default(),
            tags: image.tags.unwrap_or_default().into_iter().filter_map(|tag| Some((tag.key?, tag.value?))).collect(),
        }))
    }

    async fn component(&self, id: &ResourceVersion) -> Result<Option<String>> {
        let doing = format!("look for component {id}");
        let arn = self.component_arn(id).await?;
        match self.imagebuilder.get_component().component_build_version_arn(arn).send().await {
            Ok(answer) => {
                let data = answer.component.and_then(|component| component.data);
                data.map(Some).ok_or_else(|| self.odd(doing, "the answer holds no document"))
            }
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(self.failed(doing, error)),
        }
    }

    async fn create_component(&self, component: &Component, tags: &BTreeMap<String, String>) -> Result<()> {
        let doing = format!("create component {}", component.id);
        let create = self
            .imagebuilder
            .create_component()
            .name(&component.id.name)
            .semantic_version(&component.id.version)
            .platform(Platform::Linux)
            .data(&component.document)
            .set_tags(tag_map(tags))
            .client_token(Self::token());
        match create.send().await {
            Ok(made) => {
                let arn = self.component_arn(&component.id).await?;
                self.require_arn(&doing, &arn, made.component_build_version_arn())
            }
            Err(error) if is_present(&error) => Ok(()),
            Err(error) => Err(self.failed(doing, error)),
        }
    }

    async fn recipe(&self, id: &ResourceVersion) -> Result<Option<Recipe>> {
        let doing = format!("look for recipe {id}");
        let arn = self.recipe_arn(id).await?;
        match self.imagebuilder.get_image_recipe().image_recipe_arn(arn).send().await {
            Ok(answer) => {
                let found = answer.image_recipe.ok_or_else(|| self.odd(&doing, "the answer holds no recipe"))?;
                self.recipe_of(id, &found).await.map(Some)
            }
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(self.failed(doing, error)),
        }
    }

    async fn create_recipe(&self, recipe: &Recipe, tags: &BTreeMap<String, String>) -> Result<()> {
        let doing = format!("create recipe {}", recipe.id);
        let mut create = self
            .imagebuilder
            .create_image_recipe()
            .name(&recipe.id.name)
            .semantic_version(&recipe.id.version)
            .parent_image(recipe.base.as_str())
            .set_tags(tag_map(tags))
            .client_token(Self::token());
        for used in &recipe.components {
            create = create.components(self.component_configuration(&doing, used).await?);
        }
        let volume = EbsInstanceBlockDeviceSpecification::builder()
            .volume_size(i32::try_from(recipe.volume_gib).unwrap_or(i32::MAX))
            .volume_type(EbsVolumeType::Gp3)
            .encrypted(true)
            .set_kms_key_id(recipe.kms_key.as_ref().map(KmsKeyArn::to_string))
            .delete_on_termination(true)
            .build();
        let mapping = InstanceBlockDeviceMapping::builder().device_name(&recipe.root_device).ebs(volume).build();
        match Box::pin(create.block_device_mappings(mapping).send()).await {
            Ok(made) => self.require_arn(&doing, &self.recipe_arn(&recipe.id).await?, made.image_recipe_arn()),
            Err(error) if is_present(&error) => Ok(()),
            Err(error) => Err(self.failed(doing, error)),
        }
    }

    async fn infrastructure(&self, name: &str) -> Result<Option<Infrastructure>> {
        let arn = self.arn("infrastructure-configuration", name).await?;
        let get = self.imagebuilder.get_infrastructure_configuration().infrastructure_configuration_arn(arn);
        let found = match get.send().await {
            Ok(answer) => answer.infrastructure_configuration,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(self.failed(format!("read infrastructure configuration {name}"), error)),
        };
        Ok(found.map(|found| Infrastructure {
            name: name.to_owned(),
            instance_profile: found.instance_profile_name().unwrap_or_default().to_owned(),
            instance_types: found.instance_types().to_vec(),
            subnet: found.subnet_id().unwrap_or_default().to_owned(),
            security_groups: found.security_group_ids().to_vec(),
            tags: found.resource_tags().cloned().unwrap_or_default().into_iter().collect(),
            keep_on_failure: found.terminate_instance_on_failure() == Some(false),
            log_bucket: found
                .logging()
                .and_then(|logging| logging.s3_logs()?.s3_bucket_name().map(str::to_owned))
                .unwrap_or_default(),
        }))
    }

    async fn put_infrastructure(&self, wanted: &Infrastructure) -> Result<()> {
        if self.infrastructure(&wanted.name).await?.is_some() {
            return self.update_infrastructure(wanted).await;
        }
        let doing = format!("put infrastructure configuration {}", wanted.name);
        let arn = self.arn("infrastructure-configuration", &wanted.name).await?;
        let mut pace = PollBackoff::new(PROFILE_LIMIT);
        loop {
            let create = self
                .imagebuilder
                .create_infrastructure_configuration()
                .name(&wanted.name)
                .instance_profile_name(&wanted.instance_profile)
                .set_instance_types(Some(wanted.instance_types.clone()))
                .subnet_id(&wanted.subnet)
                .set_security_group_ids(Some(wanted.security_groups.clone()))
                .instance_metadata_options(metadata_options())
                .terminate_instance_on_failure(!wanted.keep_on_failure)
                .logging(logging(wanted))
                .set_resource_tags(tag_map(&wanted.tags))
                .set_tags(tag_map(&wanted.tags))
                .client_token(Self::token());
            match Box::pin(create.send()).await {
                Ok(made) => return self.require_arn(&doing, &arn, made.infrastructure_configuration_arn()),
                // Another caller has created it meanwhile.
                Err(error) if is_present(&error) => return self.update_infrastructure(wanted).await,
                Err(error) if is_invisible_profile(&error) && pace.pause().await.is_ok() => {}
                Err(error) => return Err(self.failed(doing, error)),
            }
        }
    }

    async fn distribution(&self, name: &str) -> Result<Option<Distribution>> {
        let arn = self.arn("distribution-configuration", name).await?;
        let get = self.imagebuilder.get_distribution_configuration().distribution_configuration_arn(arn);
        let found = match get.send().await {
            Ok(answer) => answer.distribution_configuration,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(self.failed(format!("read distribution configuration {name}"), error)),
        };
        Ok(found.map(|found| self.distribution_of(name, found.distributions())))
    }

    async fn put_distribution(&self, wanted: &Distribution) -> Result<()> {
        let doing = format!("put distribution configuration {}", wanted.name);
        let distributions = self.distributions_of(&doing, wanted)?;
        if self.distribution(&wanted.name).await?.is_some() {
            return self.update_distribution(wanted, distributions).await;
        }
        let create = self
            .imagebuilder
            .create_distribution_configuration()
            .name(&wanted.name)
            .set_distributions(Some(distributions.clone()))
            .set_tags(tag_map(&wanted.ami_tags))
            .client_token(Self::token());
        match Box::pin(create.send()).await {
            Ok(made) => {
                let arn = self.arn("distribution-configuration", &wanted.name).await?;
                self.require_arn(&doing, &arn, made.distribution_configuration_arn())
            }
            Err(error) if is_present(&error) => self.update_distribution(wanted, distributions).await,
            Err(error) => Err(self.failed(doing, error)),
        }
    }

    async fn newest_build(&self, recipe: &ResourceVersion) -> Result<Option<Build>> {
        let doing = format!("list builds of {recipe}");
        let arn = format!("{}/{}", self.arn("image", &recipe.name).await?, recipe.version);
        let mut newest: Option<(u64, String)> = None;
        let mut pages = self.imagebuilder.list_image_build_versions().image_version_arn(&arn).into_paginator().send();
        for page in 0.. {
            let Some(answer) = pages.next().await else { break };
            self.require_few(page, &doing)?;
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) if is_absent(&error) => return Ok(None),
                Err(error) => return Err(self.failed(doing, error)),
            };
            for summary in answer.image_summary_list.unwrap_or_default() {
                let Some(arn) = summary.arn else { continue };
                let number = arn.rsplit('/').next().and_then(|number| number.parse().ok()).unwrap_or_default();
                if newest.as_ref().is_none_or(|(best, _)| number > *best) {
                    newest = Some((number, arn));
                }
            }
        }
        match newest {
            Some((_, arn)) => Ok(Some(self.build(&arn).await?)),
            None => Ok(None),
        }
    }

    async fn start_build(&self, request: &BuildRequest) -> Result<Build> {
        let BuildRequest { recipe, infrastructure, distribution, log_group, tags, token } = request;
        let doing = format!("start a build of {recipe}");
        // The API also accepts a limit in minutes, but its reference says that "this value is ignored".
        let tests = ImageTestsConfiguration::builder().image_tests_enabled(true).build();
        let create = self
            .imagebuilder
            .create_image()
            .image_recipe_arn(self.recipe_arn(recipe).await?)
            .infrastructure_configuration_arn(self.arn("infrastructure-configuration", infrastructure).await?)
            .distribution_configuration_arn(self.arn("distribution-configuration", distribution).await?)
            .image_tests_configuration(tests)
            .enhanced_image_metadata_enabled(true)
            .logging_configuration(ImageLoggingConfiguration::builder().log_group_name(log_group).build())
            .set_tags(tag_map(tags))
            .client_token(token);
        let answer = Box::pin(create.send()).await.map_err(|error| self.failed(&doing, error))?;
        let arn = answer.image_build_version_arn.ok_or_else(|| self.odd(&doing, "the answer names no build"))?;
        let status = BuildStatus::Running("PENDING".to_owned());
        Ok(Build { arn, status, steps: Vec::new(), copies: BTreeMap::new() })
    }

    async fn build(&self, arn: &str) -> Result<Build> {
        let doing = format!("read build {arn}");
        let get = self.imagebuilder.get_image().image_build_version_arn(arn).send().await;
        let image = get.map_err(|error| self.failed(&doing, error))?.image;
        let image = image.ok_or_else(|| self.odd(&doing, "the answer holds no image"))?;
        let status = self.status_of(&image)?;
        let steps = self.steps(arn).await?;
        let copies = self.copies_of(&doing, &image)?;
        Ok(Build { arn: arn.to_owned(), status, steps, copies })
    }

    async fn recorded(&self, parameter: &str) -> Result<Option<AmiId>> {
        let Some(value) = self.parameter(parameter).await? else { return Ok(None) };
        self.ami_of(&format!("read parameter {parameter}"), &value).map(Some)
    }

    async fn record(&self, parameter: &str, ami: &AmiId) -> Result<()> {
        let doing = format!("record {ami} in parameter {parameter}");
        let put = self
            .ssm
            .put_parameter()
            .name(parameter)
            .value(ami.as_str())
            .r#type(ParameterType::String)
            .data_type("aws:ec2:image")
            .overwrite(true);
        put.send().await.map_err(|error| self.failed(&doing, error))?;
        let mut pace = PollBackoff::new(RECORD_LIMIT);
        while self.recorded(parameter).await?.as_ref() != Some(ami) {
            if pace.pause().await.is_err() {
                return Err(self.odd(doing, "SSM did not take it over within a minute: it validates the AMI's id"));
            }
        }
        Ok(())
    }

    async fn forget(&self, parameter: &str) -> Result<()> {
        match self.ssm.delete_parameter().name(parameter).send().await {
            Ok(_) => Ok(()),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_parameter_not_found()) => Ok(()),
            Err(error) => Err(self.failed(format!("remove parameter {parameter}"), error)),
        }
    }

    async fn record_copy(
        &self,
        region: &Region,
        parameter: &str,
        ami: &AmiId,
        tags: &BTreeMap<String, String>,
    ) -> Result<()> {
        let there = self.in_region(region);
        there.tag_ami(ami, tags).await?;
        there.record(parameter, ami).await
    }

    async fn tag_ami(&self, id: &AmiId, tags: &BTreeMap<String, String>) -> Result<()> {
        let described = self.ec2.describe_images().image_ids(id.as_str()).send().await;
        let images =
            described.map_err(|error| self.failed(format!("describe {id}"), error))?.images.unwrap_or_default();
        let devices = images.iter().flat_map(|image| image.block_device_mappings());
        let snapshots = devices.filter_map(|device| device.ebs()?.snapshot_id());
        let resources = std::iter::once(id.as_str()).chain(snapshots).map(str::to_owned).collect();
        let tags = tags.iter().map(|(key, value)| Ec2Tag::builder().key(key).value(value).build()).collect();
        let tag = self.ec2.create_tags().set_resources(Some(resources)).set_tags(Some(tags)).send().await;
        tag.map_err(|error: aws_sdk_ec2::error::SdkError<_>| -> CloudError {
            self.failed(format!("tag {id} and its snapshots"), error)
        })?;
        Ok(())
    }
}
