//! Image Builder, and what EC2 and SSM know of images.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_sdk_ec2::types::Tag as Ec2Tag;
use aws_sdk_imagebuilder::error::ProvideErrorMetadata;
use aws_sdk_imagebuilder::types::{
    AmiDistributionConfiguration, ComponentConfiguration, ComponentParameter, Distribution as SdkDistribution,
    EbsInstanceBlockDeviceSpecification, EbsVolumeType, Image, ImageStatus, ImageTestsConfiguration,
    InstanceBlockDeviceMapping, InstanceMetadataOptions, LaunchPermissionConfiguration, Logging, Platform, S3Logs,
};
use aws_sdk_ssm::types::ParameterType;
use kiln_config::model::{AccountId, AmiId, Architecture, BaseImage, KmsKeyArn, Region};
use kiln_operations::ports::{
    Ami, Build, BuildStatus, BuildStep, CloudError, Component, Distribution, Identity as _, Images, Infrastructure,
    Recipe, Result, Versioned,
};
use kiln_operations::wait::Pace;

use crate::Aws;

/// SSM validates an `aws:ec2:image` value behind the call; it takes seconds.
const RECORD_BOUND: Duration = Duration::from_secs(60);

/// Image Builder's own bound of a test phase, in minutes; ours runs a container and a clone.
const TEST_MINUTES: i32 = 60;

/// A build has two workflows of some ten steps; 25 are on a page.
const MOST_PAGES: usize = 8;

/// The prefix of Image Builder's own logs in the bucket.
const LOG_PREFIX: &str = "logs";

/// Image Builder has named what is not there in each of these ways.
fn is_absent<E: ProvideErrorMetadata>(error: &E) -> bool {
    matches!(error.code(), Some("ResourceNotFoundException" | "NotFoundException"))
        || error.code() == Some("InvalidParameterValueException")
            && error.message().is_some_and(|message| message.contains("does not exist"))
}

/// It exists already, which was the aim.
fn is_present<E: ProvideErrorMetadata>(error: &E) -> bool {
    matches!(error.code(), Some("ResourceAlreadyExistsException"))
}

impl Aws {
    /// An Image Builder ARN; it writes names in lower case, with hyphens for spaces.
    async fn arn(&self, kind: &str, name: &str) -> Result<String> {
        let caller = self.caller().await?;
        let name = name.to_ascii_lowercase().replace(' ', "-");
        Ok(format!("arn:{}:imagebuilder:{}:{}:{kind}/{name}", caller.partition, self.region, caller.account))
    }

    async fn component_arn(&self, id: &Versioned) -> Result<String> {
        Ok(format!("{}/{}/1", self.arn("component", &id.name).await?, id.version))
    }

    async fn recipe_arn(&self, id: &Versioned) -> Result<String> {
        Ok(format!("{}/{}", self.arn("image-recipe", &id.name).await?, id.version))
    }

    fn managed() -> Option<std::collections::HashMap<String, String>> {
        Some(std::collections::HashMap::from([("kiln:managed".to_owned(), "true".to_owned())]))
    }

    /// A token for calls whose repetition is harmless by itself.
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

    /// EC2 and SSM of another region, by the same credentials. The other services stay those of this one.
    fn in_region(&self, region: &Region) -> Self {
        let (name, mut there) = (region.to_string(), self.clone());
        let ec2 = self.ec2.config().to_builder().region(aws_config::Region::new(name.clone())).build();
        let ssm = self.ssm.config().to_builder().region(aws_config::Region::new(name.clone())).build();
        there.ec2 = aws_sdk_ec2::Client::from_conf(ec2);
        there.ssm = aws_sdk_ssm::Client::from_conf(ssm);
        there.region = name;
        there
    }

    /// One for each region, this one first.
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

    /// As it stands; a region's settings that differ from this one's make it differ from any that is wanted.
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

    /// A build's AMIs in other regions than this one.
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
        let list = self.imagebuilder.list_workflow_executions().image_build_version_arn(arn).send().await;
        let workflows = list.map_err(|error| self.failed(doing, error))?.workflow_executions.unwrap_or_default();
        let mut steps = Vec::new();
        for workflow in workflows {
            let Some(id) = workflow.workflow_execution_id() else { continue };
            let kind = workflow.r#type().map(|kind| kind.as_str().to_ascii_lowercase()).unwrap_or_default();
            let mut of_this = Vec::new();
            let mut token = None;
            for _ in 0..MOST_PAGES {
                let list =
                    self.imagebuilder.list_workflow_step_executions().workflow_execution_id(id).set_next_token(token);
                let page = list.send().await.map_err(|error| self.failed(format!("list the steps of {id}"), error))?;
                of_this.extend(page.steps.unwrap_or_default());
                token = page.next_token;
                if token.is_none() {
                    break;
                }
            }
            of_this.sort_by(|a, b| a.start_time().cmp(&b.start_time()));
            steps.extend(of_this.into_iter().map(|step| BuildStep {
                name: format!("{kind}: {}", step.name().unwrap_or("step")),
                status: step.status().map(|status| status.as_str().to_owned()).unwrap_or_default(),
            }));
        }
        Ok(steps)
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
            ) => {
                let failure = state.failure_context().and_then(|context| context.component_failure());
                let step = failure.map(|failure| {
                    format!(
                        " (phase {}, step {}: {})",
                        failure.phase_name().unwrap_or("?"),
                        failure.step_name().unwrap_or("?"),
                        failure.error_message().unwrap_or("no message"),
                    )
                });
                let reason = state.reason().unwrap_or("Image Builder gives no reason");
                BuildStatus::Failed { state: status, reason: format!("{reason}{}", step.unwrap_or_default()) }
            }
            _ => BuildStatus::Running(status),
        })
    }
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
            id: id.clone(),
            state: image.state().map(|state| state.as_str().to_owned()).unwrap_or_default(),
            tags: image.tags.unwrap_or_default().into_iter().filter_map(|tag| Some((tag.key?, tag.value?))).collect(),
        }))
    }

    async fn has_component(&self, id: &Versioned) -> Result<bool> {
        let arn = self.component_arn(id).await?;
        match self.imagebuilder.get_component().component_build_version_arn(arn).send().await {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(self.failed(format!("look for component {id}"), error)),
        }
    }

    async fn create_component(&self, component: &Component) -> Result<()> {
        let create = self
            .imagebuilder
            .create_component()
            .name(&component.id.name)
            .semantic_version(&component.id.version)
            .platform(Platform::Linux)
            .set_supported_os_versions(Some(component.supported_os.clone()))
            .data(&component.document)
            .set_tags(Self::managed())
            .client_token(Self::token());
        match create.send().await {
            Ok(_) => Ok(()),
            Err(error) if is_present(&error) => Ok(()),
            Err(error) => Err(self.failed(format!("create component {}", component.id), error)),
        }
    }

    async fn has_recipe(&self, id: &Versioned) -> Result<bool> {
        let arn = self.recipe_arn(id).await?;
        match self.imagebuilder.get_image_recipe().image_recipe_arn(arn).send().await {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(self.failed(format!("look for recipe {id}"), error)),
        }
    }

    async fn create_recipe(&self, recipe: &Recipe) -> Result<()> {
        let doing = format!("create recipe {}", recipe.id);
        let mut create = self
            .imagebuilder
            .create_image_recipe()
            .name(&recipe.id.name)
            .semantic_version(&recipe.id.version)
            .parent_image(recipe.base.as_str())
            .set_tags(Self::managed())
            .client_token(Self::token());
        for used in &recipe.components {
            let mut configuration =
                ComponentConfiguration::builder().component_arn(self.component_arn(&used.id).await?);
            for (name, value) in &used.parameters {
                let parameter = ComponentParameter::builder().name(name).value(value).build();
                configuration =
                    configuration.parameters(parameter.map_err(|error| self.odd(&doing, error.to_string()))?);
            }
            let configuration = configuration.build().map_err(|error| self.odd(&doing, error.to_string()))?;
            create = create.components(configuration);
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
            Ok(_) => Ok(()),
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
            log_bucket: found
                .logging()
                .and_then(|logging| logging.s3_logs()?.s3_bucket_name().map(str::to_owned))
                .unwrap_or_default(),
        }))
    }

    async fn put_infrastructure(&self, wanted: &Infrastructure) -> Result<()> {
        let doing = format!("put infrastructure configuration {}", wanted.name);
        let logs = S3Logs::builder().s3_bucket_name(&wanted.log_bucket).s3_key_prefix(LOG_PREFIX).build();
        let logging = Logging::builder().s3_logs(logs).build();
        // The same as a runner's own: no token without a session, none beyond the instance.
        let metadata =
            InstanceMetadataOptions::builder().http_tokens("required").http_put_response_hop_limit(1).build();
        if self.infrastructure(&wanted.name).await?.is_some() {
            let update = self
                .imagebuilder
                .update_infrastructure_configuration()
                .infrastructure_configuration_arn(self.arn("infrastructure-configuration", &wanted.name).await?)
                .instance_profile_name(&wanted.instance_profile)
                .set_instance_types(Some(wanted.instance_types.clone()))
                .instance_metadata_options(metadata)
                .terminate_instance_on_failure(true)
                .logging(logging)
                .client_token(Self::token());
            Box::pin(update.send()).await.map_err(|error| self.failed(doing, error))?;
            return Ok(());
        }
        let create = self
            .imagebuilder
            .create_infrastructure_configuration()
            .name(&wanted.name)
            .instance_profile_name(&wanted.instance_profile)
            .set_instance_types(Some(wanted.instance_types.clone()))
            .instance_metadata_options(metadata)
            .terminate_instance_on_failure(true)
            .logging(logging)
            .set_tags(Self::managed())
            .client_token(Self::token());
        Box::pin(create.send()).await.map_err(|error| self.failed(doing, error))?;
        Ok(())
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
            let update = self
                .imagebuilder
                .update_distribution_configuration()
                .distribution_configuration_arn(self.arn("distribution-configuration", &wanted.name).await?)
                .set_distributions(Some(distributions))
                .client_token(Self::token());
            Box::pin(update.send()).await.map_err(|error| self.failed(doing, error))?;
            return Ok(());
        }
        let create = self
            .imagebuilder
            .create_distribution_configuration()
            .name(&wanted.name)
            .set_distributions(Some(distributions))
            .set_tags(Self::managed())
            .client_token(Self::token());
        Box::pin(create.send()).await.map_err(|error| self.failed(doing, error))?;
        Ok(())
    }

    async fn newest_build(&self, recipe: &Versioned) -> Result<Option<Build>> {
        let arn = format!("{}/{}", self.arn("image", &recipe.name).await?, recipe.version);
        let mut newest: Option<(u64, String)> = None;
        let mut token = None;
        for _ in 0..MOST_PAGES {
            let list = self.imagebuilder.list_image_build_versions().image_version_arn(&arn).set_next_token(token);
            let page = match list.send().await {
                Ok(page) => page,
                Err(error) if is_absent(&error) => return Ok(None),
                Err(error) => return Err(self.failed(format!("list builds of {recipe}"), error)),
            };
            for summary in page.image_summary_list.unwrap_or_default() {
                let Some(arn) = summary.arn else { continue };
                let number = arn.rsplit('/').next().and_then(|number| number.parse().ok()).unwrap_or_default();
                if newest.as_ref().is_none_or(|(best, _)| number > *best) {
                    newest = Some((number, arn));
                }
            }
            token = page.next_token;
            if token.is_none() {
                break;
            }
        }
        match newest {
            Some((_, arn)) => Ok(Some(self.build(&arn).await?)),
            None => Ok(None),
        }
    }

    async fn start_build(
        &self,
        recipe: &Versioned,
        infrastructure: &str,
        distribution: &str,
        token: &str,
    ) -> Result<Build> {
        let doing = format!("start a build of {recipe}");
        let tests = ImageTestsConfiguration::builder().image_tests_enabled(true).timeout_minutes(TEST_MINUTES).build();
        let create = self
            .imagebuilder
            .create_image()
            .image_recipe_arn(self.recipe_arn(recipe).await?)
            .infrastructure_configuration_arn(self.arn("infrastructure-configuration", infrastructure).await?)
            .distribution_configuration_arn(self.arn("distribution-configuration", distribution).await?)
            .image_tests_configuration(tests)
            .enhanced_image_metadata_enabled(true)
            .set_tags(Self::managed())
            // Its bound is 64 characters.
            .client_token(&token[..token.len().min(64)]);
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
        let mut pace = Pace::new(RECORD_BOUND);
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
        let tags = tags.iter().map(|(key, value)| Ec2Tag::builder().key(key).value(value).build()).collect();
        let tag = self.ec2.create_tags().resources(id.as_str()).set_tags(Some(tags)).send().await;
        tag.map_err(|error: aws_sdk_ec2::error::SdkError<_>| -> CloudError {
            self.failed(format!("tag {id}"), error)
        })?;
        Ok(())
    }
}
