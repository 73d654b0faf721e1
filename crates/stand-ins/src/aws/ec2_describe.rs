//! What a pipeline asks of EC2 and the emulator has not, or tells otherwise: the groups' instances, when an image was made,
//! which snapshots are in use, the versions of all launch templates at once.

use std::collections::BTreeMap;
use std::time::SystemTime;

use anyhow::Context as _;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};

use super::ec2::{Answered, answer};
use super::gateway::{self, Call};
use super::{InstanceView, REGION, Shared, lock};

/// EC2's bounds of a page of instances.
const PAGES: std::ops::RangeInclusive<usize> = 5..=1000;

/// source: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeInstances.html>
const GROUP_FILTER: &str = "tag:aws:autoscaling:groupName";

/// Answers a call of EC2's: by itself, or by the emulator.
pub(super) async fn handle(shared: &Shared, call: &Call) -> Response {
    let answered = match call.operation.as_str() {
        "DescribeInstances" => describe_instances(shared, call),
        "DescribeImages" => return dated(shared, gateway::forward(shared, call).await).await,
        "DescribeLaunchTemplateVersions" if call.field("LaunchTemplateId").is_none() => {
            all_versions(shared, call).await
        }
        "DeleteSnapshot" => match in_use(shared, call).await {
            Some(refused) => Err(refused),
            None => return gateway::forward(shared, call).await,
        },
        _ => return gateway::forward(shared, call).await,
    };
    answer(call, answered)
}

/// `Filter.1.Name`, `Filter.1.Value.1`…
fn filters(call: &Call) -> BTreeMap<String, Vec<String>> {
    let filter = |index: usize| {
        let name = call.field(&format!("Filter.{index}.Name"))?;
        let values = (1..).map_while(|value| call.field(&format!("Filter.{index}.Value.{value}"))).collect();
        Some((name, values))
    };
    (1..).map_while(filter).collect()
}

/// EC2's word for Auto Scaling's state.
fn state(instance: &InstanceView) -> &'static str {
    match instance.state.as_str() {
        "Terminated" => "terminated",
        "Terminating:Proceed" => "shutting-down",
        _ => "running",
    }
}

fn describe_instances(shared: &Shared, call: &Call) -> Answered {
    let invalid = |message: String| ("InvalidParameterValue", message);
    let filters = filters(call);
    for (name, values) in &filters {
        if !matches!(name.as_str(), "instance-id" | "image-id" | "instance-state-name" | "tag-key" | GROUP_FILTER) {
            return Err(invalid(format!("The filter '{name}' is invalid")));
        }
        if values.len() > 200 {
            return Err(("FilterLimitExceeded", "The maximum number of filter values is 200".to_owned()));
        }
    }
    let number = |name| call.field(name).map(|value| value.parse::<usize>());
    let (length, from) = match (number("MaxResults"), number("NextToken")) {
        (Some(Ok(length)), _) if !PAGES.contains(&length) => {
            return Err(invalid(format!("Value ( {length} ) for parameter maxResults is invalid.")));
        }
        (Some(Err(_)), _) => return Err(invalid("maxResults is not a number".to_owned())),
        (_, Some(Err(_))) => return Err(invalid("The token is not valid".to_owned())),
        (length, from) => (length.and_then(Result::ok).unwrap_or(1000), from.and_then(Result::ok).unwrap_or(0)),
    };
    let has = |name: &str, value: &str| filters.get(name).is_none_or(|values| values.iter().any(|one| one == value));
    let mut found = if call.region == REGION { lock(&shared.groups).views() } else { Vec::new() };
    found.retain(|instance| {
        has("instance-id", &instance.id)
            && has("image-id", &instance.ami)
            && has("instance-state-name", state(instance))
            && has(GROUP_FILTER, &instance.group)
            && tags_of(shared, instance).keys().any(|key| has("tag-key", key))
    });
    let described = |instance: &InstanceView| described(instance, &tags_of(shared, instance));
    let items: String = found.iter().skip(from).take(length).map(described).collect();
    let next = from + length;
    let token = if next < found.len() { format!("<nextToken>{next}</nextToken>") } else { String::new() };
    Ok(format!("<reservationSet>{items}</reservationSet>{token}"))
}

/// Auto Scaling's own, and those that it has given itself.
fn tags_of(shared: &Shared, instance: &InstanceView) -> BTreeMap<String, String> {
    let own = lock(&shared.groups).metadata_of(&instance.id).map(|metadata| metadata.tags()).unwrap_or_default();
    own.into_iter().chain([("aws:autoscaling:groupName".to_owned(), instance.group.clone())]).collect()
}

fn described(instance: &InstanceView, tags: &BTreeMap<String, String>) -> String {
    let InstanceView { id, ami, .. } = instance;
    let tags: String =
        tags.iter().map(|(key, value)| format!("<item><key>{key}</key><value>{value}</value></item>")).collect();
    let state = state(instance);
    format!(
        "<item><reservationId>r-{id}</reservationId><instancesSet><item><instanceId>{id}</instanceId>\
         <imageId>{ami}</imageId><instanceState><name>{state}</name></instanceState>\
         <launchTime>2026-01-01T00:00:00.000Z</launchTime><tagSet>{tags}</tagSet></item></instancesSet></item>"
    )
}

/// The emulator's images have no date.
async fn dated(shared: &Shared, response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = axum::body::to_bytes(body, usize::MAX).await else {
        return StatusCode::BAD_GATEWAY.into_response();
    };
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    for (ami, made) in &lock(&shared.image_builder).made {
        let id = format!("<imageId>{ami}</imageId>");
        text = text
            .replace(&id, &format!("{id}<creationDate>{}</creationDate>", humantime::format_rfc3339_seconds(*made)));
    }
    parts.headers.remove(axum::http::header::CONTENT_LENGTH);
    Response::from_parts(parts, Bytes::from(text).into())
}

/// Remembers when an image was made.
pub(super) fn date(shared: &Shared, ami: &str, made: SystemTime) {
    lock(&shared.image_builder).made.insert(ami.to_owned(), made);
}

/// The refusal to delete an image's snapshot.
async fn in_use(shared: &Shared, call: &Call) -> Option<(&'static str, String)> {
    let snapshot = call.field("SnapshotId").unwrap_or_default();
    let own = [("Owner.1", "self")];
    let images = shared.backend.query_in(&call.region, "ec2", "DescribeImages", &own).await.ok()?;
    let document = roxmltree::Document::parse(&images).ok()?;
    let used = document
        .descendants()
        .find(|node| node.tag_name().name() == "snapshotId" && node.text() == Some(snapshot.as_str()))?;
    let image = used.ancestors().find_map(|node| {
        node.children().find(|child| child.tag_name().name() == "imageId").and_then(|child| child.text())
    })?;
    Some(("InvalidSnapshot.InUse", format!("The snapshot {snapshot} is currently in use by {image}")))
}

/// `$Latest` and `$Default` of every template, which the emulator tells of one template only.
async fn all_versions(shared: &Shared, call: &Call) -> Answered {
    let wanted: Vec<String> = (1..).map_while(|index| call.field(&format!("LaunchTemplateVersion.{index}"))).collect();
    if wanted.is_empty() || wanted.iter().any(|version| !matches!(version.as_str(), "$Latest" | "$Default")) {
        let message = "You must specify either the launch template ID or the launch template name, or only $Latest and \
                       $Default versions";
        return Err(("MissingParameter", message.to_owned()));
    }
    let items = listed_versions(shared, call, &wanted).await;
    let items = items.map_err(|error| ("InternalError", format!("{error:#}")))?;
    Ok(format!("<launchTemplateVersionSet>{items}</launchTemplateVersionSet>"))
}

async fn listed_versions(shared: &Shared, call: &Call, wanted: &[String]) -> anyhow::Result<String> {
    let ask = async |operation, fields: &[(&str, &str)]| {
        shared.backend.query_in(&call.region, "ec2", operation, fields).await
    };
    let listed = ask("DescribeLaunchTemplates", &[]).await?;
    let ids: Vec<String> = {
        let document = roxmltree::Document::parse(&listed)?;
        let ids = document.descendants().filter(|node| node.tag_name().name() == "launchTemplateId");
        ids.filter_map(|node| node.text().map(str::to_owned)).collect()
    };
    let names: Vec<String> = (1..=wanted.len()).map(|index| format!("LaunchTemplateVersion.{index}")).collect();
    let mut items = String::new();
    for id in ids {
        let mut fields = vec![("LaunchTemplateId", id.as_str())];
        fields.extend(names.iter().map(String::as_str).zip(wanted.iter().map(String::as_str)));
        items.push_str(inner(&ask("DescribeLaunchTemplateVersions", &fields).await?)?);
    }
    Ok(items)
}

fn inner(answer: &str) -> anyhow::Result<&str> {
    let (open, close) = ("<launchTemplateVersionSet>", "</launchTemplateVersionSet>");
    let begin = answer.find(open).context("the answer lists versions")? + open.len();
    let end = answer.rfind(close).context("the answer lists versions")?;
    Ok(&answer[begin..end])
}
