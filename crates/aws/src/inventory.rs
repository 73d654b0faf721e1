//! Lists of EC2, SSM and CloudFormation, read page by page.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::SystemTime;

use aws_sdk_cloudformation::error::ProvideErrorMetadata as _;
use aws_sdk_cloudformation::types::StackStatus;
use aws_sdk_ec2::types::{Filter, Image, Instance, LaunchTemplateVersion, Tag};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_config::boot::STATE_TAG;
use kiln_config::model::{AmiId, GroupName, InstanceId, SnapshotId};
use kiln_operations::ports::{
    Inventory, LastWords, Machine, OwnImage, OwnSnapshot, Result, ShownState, TemplateVersion,
};
use kiln_operations::when;

use crate::Aws;
use crate::pages::pages;

/// The tag, and its value, on all of Kiln's resources.
const MANAGED: (&str, &str) = ("tag:kiln:managed", "true");

/// The tag by which Auto Scaling names an instance's group, and its filter.
///
/// Source: <https://docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-tagging.html>
const GROUP_TAG: &str = "aws:autoscaling:groupName";
const GROUP_FILTER: &str = "tag:aws:autoscaling:groupName";

/// EC2 accepts 200 values in a filter.
///
/// Source: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html>
const MOST_VALUES: usize = 200;

/// The largest page size for images in EC2. Snapshots, launch templates and instances use the same page size.
const PAGE: i32 = 1000;

/// The largest page size for launch template versions in EC2.
const VERSIONS_PAGE: i32 = 200;

/// The largest page size for parameters in Systems Manager.
const PARAMETERS_PAGE: i32 = 10;

/// The default quota is 10,000 parameters for each account and region.
///
/// Source: <https://docs.aws.amazon.com/general/latest/gr/ssm.html>
const MOST_PARAMETER_PAGES: usize = 1000;

/// All stack statuses except `DELETE_COMPLETE`.
fn existing_stacks() -> Vec<StackStatus> {
    let all = StackStatus::values().iter().map(|&status| StackStatus::from(status));
    all.filter(|status| *status != StackStatus::DeleteComplete).collect()
}

fn filter(name: &str, values: impl IntoIterator<Item = impl Into<String>>) -> Filter {
    Filter::builder().name(name).set_values(Some(values.into_iter().map(Into::into).collect())).build()
}

/// The states of an instance that is not terminating or terminated.
fn existing() -> Filter {
    filter("instance-state-name", ["pending", "running", "shutting-down", "stopping", "stopped"])
}

fn tags_of(tags: &[Tag]) -> BTreeMap<String, String> {
    let pair = |tag: &Tag| Some((tag.key()?.to_owned(), tag.value()?.to_owned()));
    tags.iter().filter_map(pair).collect()
}

fn image_of(image: &Image) -> Option<OwnImage> {
    let snapshot = |mapping: &aws_sdk_ec2::types::BlockDeviceMapping| {
        let ebs = mapping.ebs()?;
        let gib = ebs.volume_size().and_then(|size| u32::try_from(size).ok()).unwrap_or_default();
        Some((ebs.snapshot_id()?.parse().ok()?, gib))
    };
    Some(OwnImage {
        id: image.image_id()?.parse().ok()?,
        name: image.name().unwrap_or_default().to_owned(),
        created: image.creation_date().and_then(when::parse),
        tags: tags_of(image.tags()),
        snapshots: image.block_device_mappings().iter().filter_map(snapshot).collect(),
    })
}

fn machine_of(instance: &Instance) -> Option<Machine> {
    Some(Machine {
        id: instance.instance_id()?.parse().ok()?,
        state: instance.state()?.name()?.as_str().to_owned(),
        ami: instance.image_id()?.parse().ok()?,
        launched: instance.launch_time().and_then(|at| SystemTime::try_from(*at).ok()),
        tags: tags_of(instance.tags()),
    })
}

/// Converts a version that names an AMI by id. A version that names an SSM parameter is not Kiln's.
fn version_of(version: &LaunchTemplateVersion, latest: bool) -> Option<TemplateVersion> {
    Some(TemplateVersion {
        template: version.launch_template_id()?.to_owned(),
        name: version.launch_template_name()?.to_owned(),
        version: version.version_number()?.to_string(),
        ami: version.launch_template_data()?.image_id()?.parse().ok()?,
        latest,
    })
}

fn shown_state(instance: &Instance) -> Option<ShownState> {
    let mut tags = tags_of(instance.tags());
    let (group, state) = (tags.remove(GROUP_TAG)?.parse().ok()?, tags.remove(STATE_TAG)?);
    Some(ShownState { instance: instance.instance_id()?.parse().ok()?, group, state: printable(&state) })
}

/// Removes terminal control sequences from a line of console output.
fn printable(line: &str) -> String {
    line.chars().filter(|letter| !letter.is_control()).collect::<String>().trim_end().to_owned()
}

impl Aws {
    /// The account's own images that match one more filter.
    async fn listed_images(&self, doing: &str, by: &Filter) -> Result<Vec<OwnImage>> {
        let list = self.ec2.describe_images().owners("self").filters(by.clone()).max_results(PAGE);
        let pages = pages!(self, doing, list).await?;
        Ok(pages.iter().flat_map(|page| page.images()).filter_map(image_of).collect())
    }

    /// The existing instances that match one more filter.
    async fn listed_machines(&self, doing: &str, name: &str, values: Vec<String>) -> Result<Vec<Machine>> {
        let mut found = Vec::new();
        for values in values.chunks(MOST_VALUES) {
            let list =
                self.ec2.describe_instances().filters(filter(name, values)).filters(existing()).max_results(PAGE);
            let pages = pages!(self, doing, list).await?;
            let reservations = pages.iter().flat_map(|page| page.reservations());
            found.extend(reservations.flat_map(|one| one.instances()).filter_map(machine_of));
        }
        Ok(found)
    }

    /// The ids of the launch templates whose names begin with the prefix.
    async fn templates(&self, prefix: &str) -> Result<Vec<String>> {
        let list = self.ec2.describe_launch_templates().max_results(VERSIONS_PAGE);
        let pages = pages!(self, "list launch templates", list).await?;
        let templates = pages.iter().flat_map(|page| page.launch_templates());
        let own = templates.filter(|one| one.launch_template_name().is_some_and(|name| name.starts_with(prefix)));
        Ok(own.filter_map(|template| template.launch_template_id().map(str::to_owned)).collect())
    }

    /// Versions of one launch template, or of all (for which EC2 accepts only `$Latest` and `$Default`).
    async fn listed_versions(&self, template: Option<&str>, versions: &[&str]) -> Result<Vec<LaunchTemplateVersion>> {
        let doing = format!("list versions of launch template {}", template.unwrap_or("(all)"));
        let wanted: Vec<String> = versions.iter().map(|&version| version.to_owned()).collect();
        let list = self
            .ec2
            .describe_launch_template_versions()
            .set_launch_template_id(template.map(str::to_owned))
            .set_versions((!wanted.is_empty()).then_some(wanted))
            .set_max_results((template.is_none() || versions.is_empty()).then_some(VERSIONS_PAGE));
        let pages = pages!(self, doing, list).await?;
        Ok(pages.into_iter().flat_map(|page| page.launch_template_versions.unwrap_or_default()).collect())
    }
}

/// Marks the newest version of each launch template in the list. The list must contain it.
fn marked(versions: &[LaunchTemplateVersion]) -> Vec<TemplateVersion> {
    let mut newest: HashMap<&str, i64> = HashMap::new();
    for version in versions {
        let (Some(template), Some(number)) = (version.launch_template_id(), version.version_number()) else { continue };
        let known = newest.entry(template).or_default();
        *known = number.max(*known);
    }
    let latest = |version: &LaunchTemplateVersion| {
        version.launch_template_id().and_then(|template| newest.get(template).copied()) == version.version_number()
    };
    versions.iter().filter_map(|version| version_of(version, latest(version))).collect()
}

impl Inventory for Aws {
    async fn own_images(&self) -> Result<Vec<OwnImage>> {
        self.listed_images("list Kiln's images", &filter(MANAGED.0, [MANAGED.1])).await
    }

    async fn own_snapshots(&self) -> Result<Vec<OwnSnapshot>> {
        let ours = filter(MANAGED.0, [MANAGED.1]);
        let list = self.ec2.describe_snapshots().owner_ids("self").filters(ours).max_results(PAGE);
        let pages = pages!(self, "list Kiln's snapshots", list).await?;
        let own = pages.iter().flat_map(|page| page.snapshots()).filter_map(|snapshot| {
            Some(OwnSnapshot {
                id: snapshot.snapshot_id()?.parse().ok()?,
                gib: snapshot.volume_size().and_then(|size| u32::try_from(size).ok()).unwrap_or_default(),
                tags: tags_of(snapshot.tags()),
            })
        });
        Ok(own.collect())
    }

    async fn holders(&self, snapshots: &[SnapshotId]) -> Result<BTreeMap<SnapshotId, BTreeSet<AmiId>>> {
        let mut holders: BTreeMap<SnapshotId, BTreeSet<AmiId>> = BTreeMap::new();
        for some in snapshots.chunks(MOST_VALUES) {
            let with = filter("block-device-mapping.snapshot-id", some.iter().map(SnapshotId::as_str));
            for image in self.listed_images("look for AMIs of snapshots", &with).await? {
                for (snapshot, _) in image.snapshots {
                    holders.entry(snapshot).or_default().insert(image.id.clone());
                }
            }
        }
        Ok(holders)
    }

    async fn template_versions(&self, prefix: &str) -> Result<Vec<TemplateVersion>> {
        let own = self.templates(prefix).await?;
        let mut found = Vec::new();
        for template in &own {
            found.extend(marked(&self.listed_versions(Some(template), &[]).await?));
        }
        let others = marked(&self.listed_versions(None, &["$Latest", "$Default"]).await?);
        found.extend(others.into_iter().filter(|version| !own.contains(&version.template)));
        Ok(found)
    }

    async fn template_version(&self, template: &str, version: &str) -> Result<Option<TemplateVersion>> {
        let found = self.listed_versions(Some(template), &[version]).await?;
        Ok(found.first().and_then(|version| version_of(version, false)))
    }

    async fn same_versions(&self, template: &str, version: &str, among: &BTreeSet<String>) -> Result<BTreeSet<String>> {
        let wanted: Vec<&str> = among.iter().map(String::as_str).chain([version]).collect();
        let found = self.listed_versions(Some(template), &wanted).await?;
        let number = |found: &LaunchTemplateVersion| found.version_number().map(|number| number.to_string());
        let this = found.iter().find(|found| number(found).as_deref() == Some(version));
        let Some(data) = this.and_then(LaunchTemplateVersion::launch_template_data) else { return Ok(BTreeSet::new()) };
        let same = found.iter().filter(|found| found.launch_template_data() == Some(data)).filter_map(number);
        Ok(same.filter(|number| number != version).collect())
    }

    async fn machines_of(&self, amis: &[AmiId]) -> Result<Vec<Machine>> {
        let amis = amis.iter().map(ToString::to_string).collect();
        self.listed_machines("look for instances of images", "image-id", amis).await
    }

    async fn shown_states(&self, groups: &[GroupName]) -> Result<Vec<ShownState>> {
        let mut found = Vec::new();
        for groups in groups.chunks(MOST_VALUES) {
            let of_groups = filter(GROUP_FILTER, groups.iter().map(GroupName::as_str));
            let list = self.ec2.describe_instances().filters(of_groups).filters(filter("tag-key", [STATE_TAG]));
            let list = list.filters(existing()).max_results(PAGE);
            let pages = pages!(self, "look for what instances show of themselves", list).await?;
            let instances = pages.iter().flat_map(|page| page.reservations()).flat_map(|one| one.instances());
            found.extend(instances.filter_map(shown_state));
        }
        Ok(found)
    }

    async fn machines_tagged(&self, key: &str, value: &str) -> Result<Vec<Machine>> {
        let doing = format!("look for instances with the tag {key}={value}");
        self.listed_machines(&doing, &format!("tag:{key}"), vec![value.to_owned()]).await
    }

    async fn last_words(&self, id: &InstanceId) -> Result<LastWords> {
        let instances = self.ec2.describe_instances().filters(filter("instance-id", [id.as_str()])).send().await;
        let instances = instances.map_err(|error| self.failed(format!("describe {id}"), error))?;
        let instance = instances.reservations().iter().flat_map(|one| one.instances()).next();
        let state = instance.and_then(|instance| instance.state_reason()).and_then(|reason| reason.message());
        // If the console output can't be read, the reason is still useful.
        let console = self.ec2.get_console_output().instance_id(id.as_str()).send().await.ok();
        let text = console.and_then(|answer| STANDARD.decode(answer.output?).ok()).unwrap_or_default();
        Ok(LastWords {
            reason: state.map(str::to_owned),
            console: String::from_utf8_lossy(&text).lines().map(printable).filter(|line| !line.is_empty()).collect(),
        })
    }

    async fn parameters_below(&self, path: &str) -> Result<BTreeMap<String, String>> {
        let list = self.ssm.get_parameters_by_path().path(path).recursive(true).max_results(PARAMETERS_PAGE);
        let pages = pages!(self, format!("list the parameters below {path}"), list, MOST_PARAMETER_PAGES).await?;
        let parameters = pages.into_iter().flat_map(|page| page.parameters.unwrap_or_default());
        Ok(parameters.filter_map(|parameter| Some((parameter.name?, parameter.value?))).collect())
    }

    async fn stacks_named(&self, prefix: &str) -> Result<Vec<String>> {
        // Only summaries: Kiln need not read the contents of other stacks. Without a status filter, the list contains deleted stacks
        // for 90 days.
        let list = self.cloudformation.list_stacks().set_stack_status_filter(Some(existing_stacks()));
        let pages = pages!(self, format!("list the stacks named {prefix}…"), list).await?;
        let there = pages.into_iter().flat_map(|page| page.stack_summaries.unwrap_or_default());
        let names = there.filter_map(|stack| stack.stack_name).filter(|name| name.starts_with(prefix));
        let mut names: Vec<String> = names.collect();
        names.sort();
        Ok(names)
    }

    async fn tag_snapshot(&self, id: &SnapshotId, tags: &BTreeMap<String, String>) -> Result<()> {
        let tags = tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let tag = self.ec2.create_tags().resources(id.as_str()).set_tags(Some(tags)).send().await;
        match tag {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("InvalidSnapshot.NotFound") => Ok(()),
            Err(error) => Err(self.failed(format!("tag {id}"), error)),
        }
    }

    async fn deregister(&self, id: &AmiId) -> Result<()> {
        match self.ec2.deregister_image().image_id(id.as_str()).send().await {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.code(), Some("InvalidAMIID.NotFound" | "InvalidAMIID.Unavailable")) => Ok(()),
            Err(error) => Err(self.failed(format!("deregister {id}"), error)),
        }
    }

    async fn delete_snapshot(&self, id: &SnapshotId) -> Result<()> {
        match self.ec2.delete_snapshot().snapshot_id(id.as_str()).send().await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("InvalidSnapshot.NotFound") => Ok(()),
            Err(error) => Err(self.failed(format!("delete {id}"), error)),
        }
    }
}
