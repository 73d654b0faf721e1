//! EC2's, SSM's and CloudFormation's lists, read by pages.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::SystemTime;

use aws_sdk_cloudformation::error::ProvideErrorMetadata as _;
use aws_sdk_cloudformation::types::StackStatus;
use aws_sdk_ec2::types::{Filter, Image, Instance, LaunchTemplateVersion, Tag};
use kiln_config::model::{AmiId, InstanceId, SnapshotId};
use kiln_operations::ports::{Inventory, Machine, OwnImage, OwnSnapshot, Result, TemplateVersion};
use kiln_operations::when;

use crate::Aws;

/// The tag on everything that is Kiln's, and its value.
const MANAGED: (&str, &str) = ("tag:kiln:managed", "true");

/// EC2 takes two hundred values in a filter.
///
/// Source: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html>
const MOST_VALUES: usize = 200;

/// What EC2 allows in a page of images; snapshots, templates and instances are read in pages of the same length.
const PAGE: i32 = 1000;

/// EC2 allows two hundred versions in a page.
const VERSIONS_PAGE: i32 = 200;

/// A hundred thousand of a kind in an account and region is beyond EC2's quotas for all that is listed here.
const MOST_PAGES: usize = 100;

fn filter(name: &str, values: impl IntoIterator<Item = impl Into<String>>) -> Filter {
    Filter::builder().name(name).set_values(Some(values.into_iter().map(Into::into).collect())).build()
}

/// The states of an instance that exists.
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

/// The version, if it names an AMI by id: one that names a parameter of SSM's is none of Kiln's.
fn version_of(version: &LaunchTemplateVersion, latest: bool) -> Option<TemplateVersion> {
    Some(TemplateVersion {
        template: version.launch_template_id()?.to_owned(),
        name: version.launch_template_name()?.to_owned(),
        version: version.version_number()?.to_string(),
        ami: version.launch_template_data()?.image_id()?.parse().ok()?,
        latest,
    })
}

impl Aws {
    /// The account's own images, by another filter.
    async fn listed_images(&self, doing: &str, by: &Filter) -> Result<Vec<OwnImage>> {
        let mut found = Vec::new();
        let mut token = None;
        for _ in 0..MOST_PAGES {
            let list = self.ec2.describe_images().owners("self").filters(by.clone()).max_results(PAGE);
            let page = list.set_next_token(token).send().await.map_err(|error| self.failed(doing, error))?;
            found.extend(page.images().iter().filter_map(image_of));
            token = page.next_token;
            if token.is_none() {
                break;
            }
        }
        Ok(found)
    }

    /// Instances that exist, by another filter.
    async fn listed_machines(&self, doing: &str, name: &str, values: Vec<String>) -> Result<Vec<Machine>> {
        let mut found = Vec::new();
        for values in values.chunks(MOST_VALUES) {
            let mut token = None;
            for _ in 0..MOST_PAGES {
                let list = self
                    .ec2
                    .describe_instances()
                    .filters(filter(name, values))
                    .filters(existing())
                    .max_results(PAGE)
                    .set_next_token(token);
                let page = list.send().await.map_err(|error| self.failed(doing, error))?;
                found.extend(page.reservations().iter().flat_map(|one| one.instances()).filter_map(machine_of));
                token = page.next_token;
                if token.is_none() {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The ids of the templates whose names begin so.
    async fn templates(&self, prefix: &str) -> Result<Vec<String>> {
        let doing = "list launch templates";
        let mut found = Vec::new();
        let mut token = None;
        for _ in 0..MOST_PAGES {
            let list = self.ec2.describe_launch_templates().max_results(VERSIONS_PAGE).set_next_token(token);
            let page = list.send().await.map_err(|error| self.failed(doing, error))?;
            let own = page
                .launch_templates()
                .iter()
                .filter(|template| template.launch_template_name().is_some_and(|name| name.starts_with(prefix)));
            found.extend(own.filter_map(|template| template.launch_template_id().map(str::to_owned)));
            token = page.next_token;
            if token.is_none() {
                break;
            }
        }
        Ok(found)
    }

    /// Versions of a template, or of all templates (for which EC2 takes `$Latest` and `$Default` only).
    async fn listed_versions(&self, template: Option<&str>, versions: &[&str]) -> Result<Vec<LaunchTemplateVersion>> {
        let doing = format!("list versions of launch template {}", template.unwrap_or("(all)"));
        let wanted: Vec<String> = versions.iter().map(|&version| version.to_owned()).collect();
        let mut found = Vec::new();
        let mut token = None;
        for _ in 0..MOST_PAGES {
            let list = self
                .ec2
                .describe_launch_template_versions()
                .set_launch_template_id(template.map(str::to_owned))
                .set_versions((!wanted.is_empty()).then(|| wanted.clone()))
                .set_max_results((versions.len() != 1).then_some(VERSIONS_PAGE))
                .set_next_token(token);
            let page = list.send().await.map_err(|error| self.failed(&doing, error))?;
            found.extend(page.launch_template_versions.unwrap_or_default());
            token = page.next_token;
            if token.is_none() {
                break;
            }
        }
        Ok(found)
    }
}

/// Marks the newest version of each template, where all or the newest of its versions are listed.
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
        let doing = "list Kiln's snapshots";
        let mut found = Vec::new();
        let mut token = None;
        for _ in 0..MOST_PAGES {
            let list = self
                .ec2
                .describe_snapshots()
                .owner_ids("self")
                .filters(filter(MANAGED.0, [MANAGED.1]))
                .max_results(PAGE)
                .set_next_token(token);
            let page = list.send().await.map_err(|error| self.failed(doing, error))?;
            found.extend(page.snapshots().iter().filter_map(|snapshot| {
                Some(OwnSnapshot {
                    id: snapshot.snapshot_id()?.parse().ok()?,
                    gib: snapshot.volume_size().and_then(|size| u32::try_from(size).ok()).unwrap_or_default(),
                    tags: tags_of(snapshot.tags()),
                })
            }));
            token = page.next_token;
            if token.is_none() {
                break;
            }
        }
        Ok(found)
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

    async fn machines(&self, ids: &[InstanceId]) -> Result<Vec<Machine>> {
        let ids = ids.iter().map(ToString::to_string).collect();
        self.listed_machines("look for instances", "instance-id", ids).await
    }

    async fn machines_of(&self, amis: &[AmiId]) -> Result<Vec<Machine>> {
        let amis = amis.iter().map(ToString::to_string).collect();
        self.listed_machines("look for instances of images", "image-id", amis).await
    }

    async fn parameters_below(&self, path: &str) -> Result<BTreeMap<String, String>> {
        let doing = format!("list the parameters below {path}");
        let mut found = BTreeMap::new();
        let mut token = None;
        for _ in 0..MOST_PAGES {
            let list = self.ssm.get_parameters_by_path().path(path).recursive(true).set_next_token(token);
            let page = list.send().await.map_err(|error| self.failed(&doing, error))?;
            let pairs = page.parameters.unwrap_or_default().into_iter();
            found.extend(pairs.filter_map(|parameter| Some((parameter.name?, parameter.value?))));
            token = page.next_token;
            if token.is_none() {
                break;
            }
        }
        Ok(found)
    }

    async fn stacks_named(&self, prefix: &str) -> Result<Vec<String>> {
        let doing = format!("list the stacks named {prefix}…");
        let mut found = Vec::new();
        let mut token = None;
        for _ in 0..MOST_PAGES {
            // Summaries: what is in others' stacks is none of Kiln's business.
            let list = self.cloudformation.list_stacks().set_next_token(token).send().await;
            let page = list.map_err(|error| self.failed(&doing, error))?;
            let there = page.stack_summaries.unwrap_or_default().into_iter();
            let there = there.filter(|stack| stack.stack_status() != Some(&StackStatus::DeleteComplete));
            found.extend(there.filter_map(|stack| stack.stack_name).filter(|name| name.starts_with(prefix)));
            token = page.next_token;
            if token.is_none() {
                break;
            }
        }
        found.sort();
        Ok(found)
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

    async fn delete_parameter(&self, name: &str) -> Result<()> {
        match self.ssm.delete_parameter().name(name).send().await {
            Ok(_) => Ok(()),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_parameter_not_found()) => Ok(()),
            Err(error) => Err(self.failed(format!("delete parameter {name}"), error)),
        }
    }
}
