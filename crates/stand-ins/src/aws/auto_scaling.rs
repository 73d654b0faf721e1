//! Auto Scaling's query protocol, as far as Kiln and an instance speak it.

use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::gateway::Call;
use super::groups::{self, Group, Groups, Preferences, Refresh};
use super::{ACCOUNT, REGION, Shared, lock};

pub(super) async fn handle(shared: &Shared, call: &Call) -> Response {
    // A group exists as soon as its stack says so.
    if call.operation == "DescribeAutoScalingGroups" {
        let _ = groups::read_stacks(shared).await;
    }
    answer_to(&mut lock(&shared.groups), call)
}

pub(super) fn answer_to(groups: &mut Groups, call: &Call) -> Response {
    let field = |name: &str| call.field(name).unwrap_or_default();
    let hook = || (field("AutoScalingGroupName"), field("LifecycleHookName"), field("InstanceId"));
    let answered = match call.operation.as_str() {
        "DescribeAutoScalingGroups" => Ok(describe(groups, &call.members("AutoScalingGroupNames"))),
        "DescribeScalingActivities" => activities(groups, &field("AutoScalingGroupName"), &field("MaxRecords")),
        "DescribeInstanceRefreshes" => {
            refreshes(groups, &field("AutoScalingGroupName"), &call.members("InstanceRefreshIds"))
        }
        "StartInstanceRefresh" => start(groups, call),
        "CancelInstanceRefresh" => stop(groups, call, "Cancelling"),
        "RollbackInstanceRefresh" => stop(groups, call, "RollbackInProgress"),
        "CompleteLifecycleAction" => {
            let (group, hook, id) = hook();
            let done = groups.complete(&group, &hook, &id, &field("LifecycleActionResult"));
            done.map(|()| String::new()).map_err(|message| ("ValidationError", message))
        }
        "RecordLifecycleActionHeartbeat" => {
            let (group, hook, id) = hook();
            groups.heartbeat(&group, &hook, &id).map(|()| String::new()).map_err(|message| ("ValidationError", message))
        }
        "UpdateAutoScalingGroup" => resize(groups, call),
        "DeleteAutoScalingGroup" => delete(groups, call),
        "TerminateInstanceInAutoScalingGroup" => known(groups.terminate(&field("InstanceId")), &field("InstanceId")),
        "SetInstanceHealth" => known(groups.set_unhealthy(&field("InstanceId")), &field("InstanceId")),
        other => Err(("InvalidAction", format!("the stand-in has no operation {other}"))),
    };
    answer(&call.operation, answered)
}

type Answered = Result<String, (&'static str, String)>;

fn known(found: Option<()>, id: &str) -> Answered {
    found.map(|()| String::new()).ok_or_else(|| {
        ("ValidationError", format!("Instance Id not found - No managed instance found for instance ID: {id}"))
    })
}

fn answer(operation: &str, answered: Answered) -> Response {
    const NAMESPACE: &str = "http://autoscaling.amazonaws.com/doc/2011-01-01/";
    let (status, body) = match answered {
        Ok(result) => (
            StatusCode::OK,
            format!(
                "<{operation}Response xmlns=\"{NAMESPACE}\"><{operation}Result>{result}</{operation}Result>\
                 <ResponseMetadata><RequestId>stand-in</RequestId></ResponseMetadata></{operation}Response>"
            ),
        ),
        Err((code, message)) => (
            StatusCode::BAD_REQUEST,
            format!(
                "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error><Type>Sender</Type><Code>{code}</Code>\
                 <Message>{message}</Message></Error><RequestId>stand-in</RequestId></ErrorResponse>"
            ),
        ),
    };
    (status, [(header::CONTENT_TYPE, "text/xml")], body).into_response()
}

fn specification(group: &Group, version: &str) -> String {
    format!("<LaunchTemplateId>{}</LaunchTemplateId><Version>{version}</Version>", group.template)
}

fn mixed(group: &Group, version: &str) -> String {
    let types: String =
        group.types.iter().map(|t| format!("<member><InstanceType>{t}</InstanceType></member>")).collect();
    format!(
        "<MixedInstancesPolicy><LaunchTemplate><LaunchTemplateSpecification>{}</LaunchTemplateSpecification>\
         <Overrides>{types}</Overrides></LaunchTemplate></MixedInstancesPolicy>",
        specification(group, version)
    )
}

fn describe(groups: &Groups, names: &[String]) -> String {
    let wanted = groups.groups.values().filter(|group| names.is_empty() || names.contains(&group.name));
    let members: String = wanted
        .map(|group| {
            let Group { name, min, max, desired, version, .. } = group;
            let instances: String = groups
                .listed(name)
                .into_iter()
                .map(|(instance, healthy)| {
                    format!(
                        "<member><InstanceId>{}</InstanceId><AvailabilityZone>{REGION}a</AvailabilityZone>\
                         <LifecycleState>{}</LifecycleState><HealthStatus>{}</HealthStatus>\
                         <LaunchTemplate>{}</LaunchTemplate>\
                         <ProtectedFromScaleIn>false</ProtectedFromScaleIn></member>",
                        instance.id,
                        instance.state,
                        if healthy { "Healthy" } else { "Unhealthy" },
                        specification(group, &instance.version),
                    )
                })
                .collect();
            format!(
                "<member><AutoScalingGroupName>{name}</AutoScalingGroupName><AutoScalingGroupARN>arn:aws:autoscaling:\
                 {REGION}:{ACCOUNT}:autoScalingGroup:0:autoScalingGroupName/{name}</AutoScalingGroupARN>\
                 <MinSize>{min}</MinSize><MaxSize>{max}</MaxSize><DesiredCapacity>{desired}</DesiredCapacity>\
                 <DefaultCooldown>300</DefaultCooldown><HealthCheckType>EC2</HealthCheckType>\
                 <CreatedTime>2026-01-01T00:00:00Z</CreatedTime>{}<Instances>{instances}</Instances></member>",
                mixed(group, version)
            )
        })
        .collect();
    format!("<AutoScalingGroups>{members}</AutoScalingGroups>")
}

/// The newest first, at most a hundred.
fn activities(groups: &Groups, name: &str, most: &str) -> Answered {
    groups.groups.get(name).ok_or_else(|| missing(name))?;
    let most = most.parse().unwrap_or(100).min(100);
    let one = |(instance, status, message): &(String, &str, Option<&str>)| {
        let reason = message.map(|message| format!(".  Status Reason: {message}")).unwrap_or_default();
        let told = message.map(|message| format!("<StatusMessage>{message}</StatusMessage>")).unwrap_or_default();
        format!(
            "<member><ActivityId>launch-of-{instance}</ActivityId><AutoScalingGroupName>{name}</AutoScalingGroupName>\
             <Description>Launching a new EC2 instance: {instance}{reason}</Description><Cause>stand-in</Cause>\
             <StartTime>2026-01-01T00:00:00Z</StartTime><StatusCode>{status}</StatusCode>{told}</member>"
        )
    };
    let members: String = groups.launches(name).iter().take(most).map(one).collect();
    Ok(format!("<Activities>{members}</Activities>"))
}

fn refreshes(groups: &Groups, name: &str, ids: &[String]) -> Answered {
    let group = groups.groups.get(name).ok_or_else(|| missing(name))?;
    let newest = group.refreshes.last().map(|refresh| refresh.to.as_str());
    let left = groups.listed(name).iter().filter(|(instance, _)| Some(instance.version.as_str()) != newest).count();
    let members: String = group
        .refreshes
        .iter()
        .rev()
        .filter(|refresh| ids.is_empty() || ids.contains(&refresh.id))
        .map(|refresh| {
            let Refresh { id, status, reason, to, .. } = refresh;
            let (left, percent) = if refresh.running() { (left, if left == 0 { 99 } else { 0 }) } else { (0, 100) };
            let reason =
                if reason.is_empty() { String::new() } else { format!("<StatusReason>{reason}</StatusReason>") };
            format!(
                "<member><InstanceRefreshId>{id}</InstanceRefreshId><AutoScalingGroupName>{name}</AutoScalingGroupName>\
                 <Status>{status}</Status>{reason}<PercentageComplete>{percent}</PercentageComplete>\
                 <InstancesToUpdate>{left}</InstancesToUpdate><DesiredConfiguration>{}</DesiredConfiguration>\
                 <Preferences>{}</Preferences></member>",
                mixed(group, to),
                preferences_of(refresh)
            )
        })
        .collect();
    Ok(format!("<InstanceRefreshes>{members}</InstanceRefreshes>"))
}

fn preferences_of(refresh: &Refresh) -> String {
    let Preferences { checkpoint, checkpoint_delay, bake_time, .. } = refresh.preferences;
    let checkpoint = checkpoint.map(|percent| {
        format!(
            "<CheckpointPercentages><member>{percent}</member><member>100</member></CheckpointPercentages>\
             <CheckpointDelay>{}</CheckpointDelay>",
            checkpoint_delay.as_secs()
        )
    });
    format!("{}<BakeTime>{}</BakeTime>", checkpoint.unwrap_or_default(), bake_time.as_secs())
}

/// Ends the refresh that runs, one way or the other.
fn stop(groups: &mut Groups, call: &Call, status: &'static str) -> Answered {
    let name = call.field("AutoScalingGroupName").unwrap_or_default();
    let group = groups.groups.get_mut(&name).ok_or_else(|| missing(&name))?;
    let running = group.refreshes.last_mut().filter(|refresh| refresh.goes_forward());
    let refresh = running.ok_or_else(|| {
        let message = "No in progress or pending Instance Refresh found for Auto Scaling group".to_owned();
        ("ActiveInstanceRefreshNotFound", message)
    })?;
    refresh.status = status;
    Ok(format!("<InstanceRefreshId>{}</InstanceRefreshId>", refresh.id))
}

fn missing(name: &str) -> (&'static str, String) {
    ("ValidationError", format!("AutoScalingGroup name not found - AutoScalingGroup {name} not found"))
}

fn resize(groups: &mut Groups, call: &Call) -> Answered {
    let name = call.field("AutoScalingGroupName").unwrap_or_default();
    let group = groups.groups.get(&name).ok_or_else(|| missing(&name))?;
    let number = |field: &str, now: u32| call.field(field).map_or(Some(now), |value| value.parse().ok());
    let (Some(min), Some(max)) = (number("MinSize", group.min), number("MaxSize", group.max)) else {
        return Err(("ValidationError", "a size is a number".to_owned()));
    };
    let desired = number("DesiredCapacity", group.desired.clamp(min, max.max(min)));
    match desired.filter(|desired| (min..=max).contains(desired)) {
        Some(desired) => known(groups.resize(&name, min, max, desired), &name),
        None => Err(("ValidationError", "Desired capacity must be between MinSize and MaxSize".to_owned())),
    }
}

fn delete(groups: &mut Groups, call: &Call) -> Answered {
    let name = call.field("AutoScalingGroupName").unwrap_or_default();
    if !groups.groups.contains_key(&name) {
        return Err(missing(&name));
    }
    if call.field("ForceDelete").as_deref() != Some("true") && !groups.listed(&name).is_empty() {
        let message = "You cannot delete an AutoScalingGroup while there are instances or pending Spot instance \
                       request(s) still in the group.";
        return Err(("ResourceInUse", message.to_owned()));
    }
    known(groups.abandon(&name), &name)
}

fn start(groups: &mut Groups, call: &Call) -> Answered {
    let name = call.field("AutoScalingGroupName").unwrap_or_default();
    let group = groups.groups.get_mut(&name).ok_or_else(|| missing(&name))?;
    if group.refreshes.last().is_some_and(Refresh::running) {
        return Err((
            "InstanceRefreshInProgress",
            "An Instance Refresh is already in progress and blocks the execution of this Instance Refresh.".to_owned(),
        ));
    }
    let prefixes = [
        "DesiredConfiguration.MixedInstancesPolicy.LaunchTemplate.LaunchTemplateSpecification",
        "DesiredConfiguration.LaunchTemplate",
    ];
    let part = |part: &str| prefixes.iter().find_map(|prefix| call.field(&format!("{prefix}.{part}")));
    let auto_rollback = call.field("Preferences.AutoRollback").as_deref() == Some("true");
    let to = part("Version").unwrap_or_else(|| group.version.clone());
    if auto_rollback && (part("Version").is_none() || to.starts_with('$') || group.version.starts_with('$')) {
        return Err((
            "ValidationError",
            "AutoRollback needs a desired configuration with a numbered launch template version.".to_owned(),
        ));
    }
    if part("LaunchTemplateId").is_some_and(|id| id != group.template) {
        return Err(("ValidationError", "The launch template is not the group's.".to_owned()));
    }
    let preferences = preferences(call, auto_rollback)?;
    let id = format!("refresh-{}-{}", name, group.refreshes.len() + 1);
    group.begin(id.clone(), to, preferences);
    Ok(format!("<InstanceRefreshId>{id}</InstanceRefreshId>"))
}

/// What the real service checks of a refresh's preferences.
fn preferences(call: &Call, auto_rollback: bool) -> Result<Preferences, (&'static str, String)> {
    /// The longest a refresh may stop, in seconds: 48 h.
    const LONGEST_SECS: u64 = 172_800;
    let refuse = |message: &str| Err(("ValidationError", message.to_owned()));
    let number = |name: &str| call.field(&format!("Preferences.{name}")).and_then(|value| value.parse::<u64>().ok());
    let percent = |name: &str, default: u32| number(name).map_or(Ok(default), u32::try_from).unwrap_or(u32::MAX);
    let (least, most) = (percent("MinHealthyPercentage", 90), percent("MaxHealthyPercentage", 100));
    if least > 100 || !(100..=200).contains(&most) || most - least > 100 {
        return refuse(
            "The difference between MaxHealthyPercentage and MinHealthyPercentage cannot be greater than 100.",
        );
    }
    let checkpoints = call.members("Preferences.CheckpointPercentages");
    let checkpoints: Vec<u32> = checkpoints.iter().filter_map(|value| value.parse().ok()).collect();
    if !checkpoints.is_sorted_by(|one, next| one < next)
        || checkpoints.iter().any(|percent| !(1..=100).contains(percent))
    {
        return refuse("CheckpointPercentages must be unique percentages in ascending order.");
    }
    let (delay, bake) = (number("CheckpointDelay"), number("BakeTime"));
    if delay.is_some() && checkpoints.is_empty() {
        return refuse("CheckpointDelay needs CheckpointPercentages.");
    }
    if delay.max(bake).is_some_and(|secs| secs > LONGEST_SECS) {
        return refuse("CheckpointDelay and BakeTime are 172800 seconds at most.");
    }
    Ok(Preferences {
        auto_rollback,
        most,
        checkpoint: checkpoints.first().copied().filter(|percent| *percent < 100),
        checkpoint_delay: Duration::from_secs(delay.unwrap_or(3600)),
        bake_time: Duration::from_secs(bake.unwrap_or_default()),
    })
}
