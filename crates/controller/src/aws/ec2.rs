//! EC2: instances by `CreateFleet` of type `instant`, whose answer has the ids of what was launched and a reason for each
//! pool that gave none.

use kiln_config::boot::{FLEET_TAG, LAUNCH_TAG, ORGANIZATION_TAG};
use kiln_instance::aws::{Aws, Error};
use roxmltree::{Document, Node};

use crate::clock::Timestamp;
use crate::ids::{FleetName, InstanceId, LaunchToken};
use crate::ports::{Launch, Launched, Machine, Machines, MachinesError, Market, PoolError, Shortage};

/// Pools that one fleet may name.
///
/// source: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/fleet-quotas.html> (instance types and subnets per fleet).
const MOST_OVERRIDES: usize = 300;

/// Instances a page: each is described in five to seven kilobytes.
const PAGE: u32 = 200;

/// A list of more pages than this has no end.
const MOST_PAGES: usize = 100;

/// source: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_TerminateInstances.html> (at most 1,000 ids a call).
const MOST_IDS: usize = 1000;

/// EC2 of one region, for one organization's instances.
#[derive(Debug, Clone)]
pub struct Ec2 {
    /// AWS.
    pub aws: Aws,
    /// The organization as its resources are named: `kiln-acme`. It is in a tag of each of its instances.
    pub organization: String,
}

type Fields = Vec<(String, String)>;

impl Machines for Ec2 {
    async fn launch(&self, launch: &Launch) -> Result<Launched, MachinesError> {
        let text = self.aws.ec2("CreateFleet", &self.create_fleet(launch)).await.map_err(failed)?;
        launched(&text).map_err(MachinesError::InDoubt)
    }

    async fn list(&self) -> Result<Vec<Machine>, MachinesError> {
        let mut machines = Vec::new();
        let mut token = None;
        for _ in 0..MOST_PAGES {
            let text = self.aws.ec2("DescribeInstances", &self.describe(token.as_deref())).await.map_err(failed)?;
            let next = page(&text, &mut machines).map_err(MachinesError::InDoubt)?;
            match next {
                Some(next) => token = Some(next),
                None => return Ok(machines),
            }
        }
        Err(MachinesError::InDoubt(format!("EC2's list has more than {MOST_PAGES} pages")))
    }

    async fn terminate(&self, ids: &[InstanceId]) -> Result<(), MachinesError> {
        for some in ids.chunks(MOST_IDS) {
            self.terminate_some(some).await?;
        }
        Ok(())
    }
}

impl Ec2 {
    /// source: `CreateFleetRequest` in the API's model (ec2 2016-11-15). An override of an instant fleet has one subnet, and
    /// tags may be given to the fleet and to its instances.
    fn create_fleet(&self, launch: &Launch) -> Fields {
        let (target, strategy) = match launch.market {
            Market::Spot => ("spot", ("SpotOptions.AllocationStrategy", "price-capacity-optimized")),
            Market::OnDemand => ("on-demand", ("OnDemandOptions.AllocationStrategy", "prioritized")),
        };
        let mut fields = vec![
            field("Type", "instant"),
            field("ClientToken", launch.token.as_str()),
            field("TargetCapacitySpecification.TotalTargetCapacity", &launch.count.to_string()),
            field("TargetCapacitySpecification.DefaultTargetCapacityType", target),
            field(strategy.0, strategy.1),
        ];
        let config = "LaunchTemplateConfigs.1";
        fields.push(field(&format!("{config}.LaunchTemplateSpecification.LaunchTemplateId"), &launch.from.template));
        fields.push(field(&format!("{config}.LaunchTemplateSpecification.Version"), &launch.version.to_string()));
        let pools = launch
            .from
            .types
            .iter()
            .enumerate()
            .flat_map(|(priority, kind)| launch.from.subnets.iter().map(move |subnet| (priority, kind, subnet)));
        for (index, (priority, kind, subnet)) in pools.take(MOST_OVERRIDES).enumerate() {
            let pool = format!("{config}.Overrides.{}", index + 1);
            fields.push(field(&format!("{pool}.InstanceType"), kind));
            fields.push(field(&format!("{pool}.SubnetId"), subnet));
            fields.push(field(&format!("{pool}.Priority"), &priority.to_string()));
        }
        for (index, kind) in ["fleet", "instance"].into_iter().enumerate() {
            let tagged = format!("TagSpecification.{}", index + 1);
            fields.push(field(&format!("{tagged}.ResourceType"), kind));
            let tags = [
                (ORGANIZATION_TAG, self.organization.as_str()),
                (FLEET_TAG, launch.fleet.as_str()),
                (LAUNCH_TAG, launch.token.as_str()),
            ];
            for (index, (key, value)) in tags.into_iter().enumerate() {
                fields.push(field(&format!("{tagged}.Tag.{}.Key", index + 1), key));
                fields.push(field(&format!("{tagged}.Tag.{}.Value", index + 1), value));
            }
        }
        fields
    }

    fn describe(&self, token: Option<&str>) -> Fields {
        let organization = format!("tag:{ORGANIZATION_TAG}");
        let filters: [(&str, &[&str]); 3] = [
            (&organization, &[&self.organization]),
            // What an Auto Scaling group launched is not ours.
            ("tag-key", &[LAUNCH_TAG]),
            ("instance-state-name", &["pending", "running", "shutting-down", "stopping", "stopped"]),
        ];
        let mut fields = vec![field("MaxResults", &PAGE.to_string())];
        for (index, (name, values)) in filters.into_iter().enumerate() {
            fields.push(field(&format!("Filter.{}.Name", index + 1), name));
            for (number, value) in values.iter().enumerate() {
                fields.push(field(&format!("Filter.{}.Value.{}", index + 1, number + 1), value));
            }
        }
        fields.extend(token.map(|token| field("NextToken", token)));
        fields
    }

    async fn terminate_some(&self, ids: &[InstanceId]) -> Result<(), MachinesError> {
        let error = match self.aws.ec2("TerminateInstances", &instance_ids(ids)).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code() == "InvalidInstanceID.NotFound" => error,
            Err(error) => return Err(failed(error)),
        };
        // One unknown id refuses the whole call, and is named in the message. What EC2 does not know has ended.
        let known: Vec<_> = ids.iter().filter(|id| !error.message.contains(id.as_str())).cloned().collect();
        if known.is_empty() {
            return Ok(());
        }
        if known.len() == ids.len() {
            return Err(failed(error));
        }
        self.aws.ec2("TerminateInstances", &instance_ids(&known)).await.map(drop).map_err(failed)
    }
}

fn field(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn instance_ids(ids: &[InstanceId]) -> Fields {
    ids.iter().enumerate().map(|(index, id)| field(&format!("InstanceId.{}", index + 1), id.as_str())).collect()
}

/// A call that was refused as a whole did not happen; one without an answer may have.
fn failed(error: Error) -> MachinesError {
    match error.http_status() {
        _ if error.is_throttling() => MachinesError::Throttled,
        Some(status) if status < 500 => MachinesError::Refused(kind(error.code()), error.message),
        _ => MachinesError::InDoubt(error.message),
    }
}

/// What a pool's error code means for the next launch.
///
/// source: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>.
fn kind(code: &str) -> Shortage {
    match code {
        "InsufficientInstanceCapacity"
        | "InsufficientHostCapacity"
        | "InsufficientReservedInstanceCapacity"
        | "InsufficientCapacity"
        | "InsufficientFreeAddressesInSubnet"
        | "InsufficientAddressCapacity"
        | "UnfulfillableCapacity"
        | "SpotMaxPriceTooLow"
        | "ReservationCapacityExceeded"
        | "Unsupported" => Shortage::Capacity,
        "VcpuLimitExceeded"
        | "MaxSpotInstanceCountExceeded"
        | "MaxSpotFleetRequestCountExceeded"
        | "InstanceLimitExceeded"
        | "VolumeLimitExceeded"
        | "NetworkInterfaceLimitExceeded"
        | "MaxIOPSLimitExceeded"
        | "PendingVerification" => Shortage::Quota,
        _ => Shortage::Refused,
    }
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.tag_name().name() == name)
}

fn text(node: Node<'_, '_>, name: &str) -> Option<String> {
    Some(child(node, name)?.text()?.trim().to_owned())
}

/// The elements `item` of a list.
fn items<'a, 'i>(node: Node<'a, 'i>, list: &str) -> impl Iterator<Item = Node<'a, 'i>> {
    let items = child(node, list).map(|list| list.children().filter(|child| child.tag_name().name() == "item"));
    items.into_iter().flatten()
}

fn launched(answer: &str) -> Result<Launched, String> {
    let document = Document::parse(answer).map_err(|error| format!("EC2's answer is not XML: {error}"))?;
    let root = document.root_element();
    if root.tag_name().name() != "CreateFleetResponse" {
        return Err("EC2's answer is none to CreateFleet".to_owned());
    }
    let instances = items(root, "fleetInstanceSet").flat_map(|set| items(set, "instanceIds"));
    let ids = instances.filter_map(|item| item.text()).map(|id| InstanceId::new(id.trim())).collect();
    let errors = items(root, "errorSet").map(|error| {
        let pool = child(error, "launchTemplateAndOverrides").and_then(|one| child(one, "overrides"));
        let part = |name| pool.and_then(|pool| text(pool, name));
        let place = part("availabilityZone").or_else(|| part("subnetId")).unwrap_or_else(|| "anywhere".to_owned());
        let code = text(error, "errorCode").unwrap_or_default();
        let message = text(error, "errorMessage").unwrap_or_default();
        PoolError {
            pool: format!("{} in {place}", part("instanceType").unwrap_or_else(|| "any type".to_owned())),
            kind: kind(&code),
            message: format!("{code}: {message}"),
        }
    });
    Ok(Launched { ids, errors: errors.collect() })
}

/// Adds a page's instances, and gives the next page's token.
fn page(answer: &str, machines: &mut Vec<Machine>) -> Result<Option<String>, String> {
    let document = Document::parse(answer).map_err(|error| format!("EC2's list is not XML: {error}"))?;
    let root = document.root_element();
    if child(root, "reservationSet").is_none() {
        return Err("EC2's list has no reservations".to_owned());
    }
    for instance in items(root, "reservationSet").flat_map(|reservation| items(reservation, "instancesSet")) {
        let tag = |name: &str| {
            let found = items(instance, "tagSet").find(|tag| text(*tag, "key").as_deref() == Some(name))?;
            text(found, "value")
        };
        let state = child(instance, "instanceState").and_then(|state| text(state, "name")).unwrap_or_default();
        let (Some(id), Some(fleet), Some(token)) = (text(instance, "instanceId"), tag(FLEET_TAG), tag(LAUNCH_TAG))
        else {
            continue;
        };
        let launched = text(instance, "launchTime").and_then(|time| humantime::parse_rfc3339(&time).ok());
        let since = launched.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        machines.push(Machine {
            id: InstanceId::new(id),
            fleet: FleetName::new(fleet),
            token: LaunchToken::new(token),
            launched: Timestamp::default().plus(since.unwrap_or_default()),
            // source: <https://docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-tagging.html> and the launch
            // templates' guide: EC2 adds this tag to what it launches from a template.
            version: tag("aws:ec2launchtemplate:version").and_then(|text| text.parse().ok()).unwrap_or_default(),
            ending: state == "shutting-down",
        });
    }
    Ok(text(root, "nextToken").filter(|token| !token.is_empty()))
}
