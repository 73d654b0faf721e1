//! Auto Scaling.

use aws_sdk_autoscaling::error::ProvideErrorMetadata as _;
use aws_sdk_autoscaling::types::{
    Activity, AutoScalingGroup, DesiredConfiguration, InstanceRefresh, InstanceRefreshStatus, LaunchTemplate,
    LaunchTemplateSpecification, MixedInstancesPolicy, RefreshPreferences as SdkPreferences, RefreshStrategy,
    ScaleInProtectedInstances, ScalingActivityStatusCode, StandbyInstances, SuspendedProcess,
};
use kiln_config::model::GroupName;
use kiln_operations::ports::{
    Group, GroupInstance, Groups, Launch, LaunchOutcome, LaunchTemplateVersion, Refresh, RefreshPreferences,
    RefreshStatus, RefreshStop, Result, Suspension,
};

use crate::Aws;

impl Aws {
    async fn described(&self, name: &GroupName) -> Result<Option<AutoScalingGroup>> {
        let answer =
            self.autoscaling.describe_auto_scaling_groups().auto_scaling_group_names(name.as_str()).send().await;
        let answer = answer.map_err(|error| self.failed(format!("describe Auto Scaling group `{name}`"), error))?;
        Ok(answer.auto_scaling_groups.unwrap_or_default().into_iter().next())
    }

    async fn refreshes(&self, name: &GroupName, id: Option<&str>) -> Result<Vec<InstanceRefresh>> {
        let answer = self
            .autoscaling
            .describe_instance_refreshes()
            .auto_scaling_group_name(name.as_str())
            .set_instance_refresh_ids(id.map(|id| vec![id.to_owned()]))
            .max_records(1)
            .send()
            .await;
        let answer = answer.map_err(|error| self.failed(format!("describe instance refreshes of `{name}`"), error))?;
        Ok(answer.instance_refreshes.unwrap_or_default())
    }
}

/// The group's launch template, from its mixed instances policy if it has one.
fn template_of(group: &AutoScalingGroup) -> Option<&LaunchTemplateSpecification> {
    group
        .mixed_instances_policy()
        .and_then(MixedInstancesPolicy::launch_template)
        .and_then(LaunchTemplate::launch_template_specification)
        .or(group.launch_template())
}

fn version_of(template: &LaunchTemplateSpecification) -> Option<LaunchTemplateVersion> {
    Some(LaunchTemplateVersion {
        id: template.launch_template_id()?.to_owned(),
        version: template.version()?.to_owned(),
    })
}

fn suspension(process: &SuspendedProcess) -> Option<Suspension> {
    let reason = process.suspension_reason().unwrap_or_default().to_owned();
    Some(Suspension { process: process.process_name()?.to_owned(), reason })
}

fn number(value: Option<i32>) -> u32 {
    value.and_then(|value| u32::try_from(value).ok()).unwrap_or_default()
}

impl Groups for Aws {
    async fn group(&self, name: &GroupName) -> Result<Option<Group>> {
        let Some(group) = self.described(name).await? else { return Ok(None) };
        let instances = group.instances().iter().filter_map(|instance| {
            Some(GroupInstance {
                id: instance.instance_id()?.parse().ok()?,
                state: instance.lifecycle_state()?.as_str().to_owned(),
                healthy: instance.health_status() == Some("Healthy"),
                launch_template: instance.launch_template().and_then(version_of),
            })
        });
        Ok(Some(Group {
            name: name.clone(),
            launch_template: template_of(&group).and_then(version_of),
            min: number(group.min_size()),
            max: number(group.max_size()),
            desired: number(group.desired_capacity()),
            instances: instances.collect(),
            suspended: group.suspended_processes().iter().filter_map(suspension).collect(),
        }))
    }

    async fn launches(&self, name: &GroupName) -> Result<Vec<Launch>> {
        let describe = self.autoscaling.describe_scaling_activities().auto_scaling_group_name(name.as_str());
        let answer = match describe.max_records(100).send().await {
            Ok(answer) => answer,
            // A group that does not exist yet has launched nothing.
            Err(error) if error.message().is_some_and(|message| message.contains("not found")) => return Ok(Vec::new()),
            Err(error) => return Err(self.failed(format!("read the scaling activities of `{name}`"), error)),
        };
        Ok(answer.activities.unwrap_or_default().iter().filter_map(launch_of).collect())
    }

    async fn newest_refresh(&self, name: &GroupName) -> Result<Option<Refresh>> {
        Ok(self.refreshes(name, None).await?.first().map(refresh_of))
    }

    async fn start_refresh(
        &self,
        name: &GroupName,
        to: &LaunchTemplateVersion,
        preferences: &RefreshPreferences,
    ) -> Result<String> {
        let doing = format!("start an instance refresh of `{name}`");
        let Some(group) = self.described(name).await? else { return Err(self.odd(doing, "the group does not exist")) };
        let specification =
            LaunchTemplateSpecification::builder().launch_template_id(&to.id).version(&to.version).build();
        let desired = match group.mixed_instances_policy() {
            // The overrides and the instances distribution do not change.
            Some(policy) => {
                let template = LaunchTemplate::builder()
                    .launch_template_specification(specification)
                    .set_overrides(policy.launch_template().and_then(|template| template.overrides.clone()))
                    .build();
                let policy = MixedInstancesPolicy::builder()
                    .launch_template(template)
                    .set_instances_distribution(policy.instances_distribution().cloned())
                    .build();
                DesiredConfiguration::builder().mixed_instances_policy(policy).build()
            }
            None => DesiredConfiguration::builder().launch_template(specification).build(),
        };
        let percent = |value: u32| i32::try_from(value).expect("a percentage is small");
        let warmup = i32::try_from(preferences.instance_warmup.as_secs()).unwrap_or(i32::MAX);
        let stop = preferences.stop;
        let pause = |stop: RefreshStop| i32::try_from(stop.pause.as_secs()).unwrap_or(i32::MAX);
        let (on_the_way, at_the_end) = match stop {
            Some(stop) if stop.percent < 100 => (Some(stop), None),
            stop => (None, stop),
        };
        let preferences = SdkPreferences::builder()
            .set_checkpoint_percentages(on_the_way.map(|stop| vec![percent(stop.percent), 100]))
            .set_checkpoint_delay(on_the_way.map(pause))
            .set_bake_time(at_the_end.map(pause))
            .min_healthy_percentage(percent(preferences.min_healthy_percent))
            .max_healthy_percentage(percent(preferences.max_healthy_percent))
            .instance_warmup(warmup)
            .skip_matching(true)
            .auto_rollback(true)
            .scale_in_protected_instances(ScaleInProtectedInstances::Wait)
            .standby_instances(StandbyInstances::Wait)
            .build();
        let answer = self
            .autoscaling
            .start_instance_refresh()
            .auto_scaling_group_name(name.as_str())
            .strategy(RefreshStrategy::Rolling)
            .desired_configuration(desired)
            .preferences(preferences)
            .send()
            .await
            .map_err(|error| self.failed(doing.clone(), error))?;
        answer.instance_refresh_id.ok_or_else(|| self.odd(doing, "the answer names no refresh"))
    }

    async fn cancel_refresh(&self, name: &GroupName) -> Result<()> {
        // Do not wait for terminating instances: a job may take hours.
        let cancel = self.autoscaling.cancel_instance_refresh().wait_for_transitioning_instances(false);
        match cancel.auto_scaling_group_name(name.as_str()).send().await {
            Ok(_) => Ok(()),
            Err(error) if error.code().is_some_and(none_runs) => Ok(()),
            Err(error) => Err(self.failed(format!("cancel the instance refresh of `{name}`"), error)),
        }
    }

    async fn roll_back_refresh(&self, name: &GroupName) -> Result<bool> {
        match self.autoscaling.rollback_instance_refresh().auto_scaling_group_name(name.as_str()).send().await {
            Ok(_) => Ok(true),
            Err(error) if error.code().is_some_and(none_runs) => Ok(false),
            Err(error) => Err(self.failed(format!("roll the instance refresh of `{name}` back"), error)),
        }
    }

    async fn scale_to_zero(&self, name: &GroupName) -> Result<()> {
        let update = self.autoscaling.update_auto_scaling_group().auto_scaling_group_name(name.as_str());
        let update = update.min_size(0).max_size(0).desired_capacity(0).send().await;
        update.map_err(|error| self.failed(format!("scale `{name}` to nothing"), error))?;
        Ok(())
    }

    async fn abandon(&self, name: &GroupName) -> Result<()> {
        let delete = self.autoscaling.delete_auto_scaling_group().auto_scaling_group_name(name.as_str());
        match delete.force_delete(true).send().await {
            Ok(_) => Ok(()),
            // Auto Scaling has no specific error code for this.
            Err(error) if error.message().is_some_and(|message| message.contains("not found")) => Ok(()),
            Err(error) => Err(self.failed(format!("delete Auto Scaling group `{name}`"), error)),
        }
    }

    async fn refresh(&self, name: &GroupName, id: &str) -> Result<Refresh> {
        let refreshes = self.refreshes(name, Some(id)).await?;
        let found = refreshes.first().map(refresh_of);
        found.ok_or_else(|| self.odd(format!("describe instance refresh {id} of `{name}`"), "there is none of that id"))
    }
}

/// Converts an activity, if it is a launch. Its description is `Launching a new EC2 instance: i-…`, followed by `Status Reason: …` if
/// the launch failed.
///
/// Source: <https://docs.aws.amazon.com/autoscaling/ec2/userguide/as-verify-scaling-activity.html>
fn launch_of(activity: &Activity) -> Option<Launch> {
    use ScalingActivityStatusCode as Status;
    let description = activity.description()?.strip_prefix("Launching a new EC2 instance")?;
    let word = description.trim_start_matches([':', ' ']).split([' ', '.']).next().unwrap_or_default();
    let outcome = match activity.status_code() {
        Some(Status::Successful) => LaunchOutcome::Succeeded,
        Some(Status::Failed | Status::Cancelled) => {
            let told = description.split_once("Status Reason: ").map(|(_, reason)| reason);
            let reason = activity.status_message().or(told).unwrap_or("Auto Scaling gives no reason");
            LaunchOutcome::Failed(reason.to_owned())
        }
        _ => LaunchOutcome::UnderWay,
    };
    Some(Launch { id: activity.activity_id()?.to_owned(), instance: word.parse().ok(), outcome })
}

/// The service model names the error with the suffix `Fault`; the service sends it without.
fn none_runs(code: &str) -> bool {
    matches!(code, "ActiveInstanceRefreshNotFound" | "ActiveInstanceRefreshNotFoundFault")
}

fn refresh_of(refresh: &InstanceRefresh) -> Refresh {
    let status = match refresh.status() {
        Some(InstanceRefreshStatus::Successful) => RefreshStatus::Successful,
        Some(
            ended @ (InstanceRefreshStatus::Failed
            | InstanceRefreshStatus::Cancelled
            | InstanceRefreshStatus::RollbackFailed
            | InstanceRefreshStatus::RollbackSuccessful),
        ) => RefreshStatus::Ended(ended.as_str().to_owned()),
        Some(running) => RefreshStatus::Running(running.as_str().to_owned()),
        None => RefreshStatus::Running("Pending".to_owned()),
    };
    let desired = refresh.desired_configuration();
    let to = desired
        .and_then(|desired| desired.mixed_instances_policy())
        .and_then(MixedInstancesPolicy::launch_template)
        .and_then(LaunchTemplate::launch_template_specification)
        .or_else(|| desired.and_then(|desired| desired.launch_template()));
    Refresh {
        id: refresh.instance_refresh_id().unwrap_or_default().to_owned(),
        status,
        percent: number(refresh.percentage_complete()),
        remaining: number(refresh.instances_to_update()),
        reason: refresh.status_reason().map(str::to_owned),
        to: to.and_then(version_of),
        stops: refresh.preferences().is_some_and(|preferences| {
            !preferences.checkpoint_percentages().is_empty() || preferences.bake_time().is_some_and(|secs| secs > 0)
        }),
    }
}
