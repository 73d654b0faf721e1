//! Where images are built: network and instance types, looked up before anything is made.

use kiln_config::config::{BakeNetwork, Config, Image};
use kiln_config::model::{Architecture, InstanceType};

use crate::code::Code;
use crate::error::{Error, Result};
use crate::fleet_stack::{network_request, output};
use crate::ports::{Account, Cloud, Egress, Progress, Stack, SubnetFacts};
use crate::stacks::{self, Difference, StackStep};

/// Types to build on, in order of preference: two processors and 8 GiB, which .NET, docker and a tarball of 220 MB need. No
/// type is offered in every region and zone; among these there is one in each.
///
/// assumption: read off the offerings of the public price lists, in 2026-11.
const TYPES: [(Architecture, &[&str]); 2] = [
    (Architecture::X86_64, &["m6i.large", "m5.large", "m7i.large", "m6a.large", "t3.large"]),
    (Architecture::Aarch64, &["m6g.large", "m7g.large", "m8g.large", "t4g.large"]),
];

/// Where an image is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The network's stack, where it has to be made first.
    pub network: Option<StackStep>,
    /// The VPC, or a reference to the network stack's output.
    pub vpc: String,
    /// The subnet, or a reference to the network stack's output, which lists several.
    pub subnet: String,
    /// A security group that exists, in place of the bake stack's own.
    pub security_group: Option<String>,
    /// What the subnet's zone offers, in order of preference.
    pub instance_types: Vec<String>,
    /// What a person should know.
    pub warning: Option<String>,
}

/// Looks at the place. Makes no mutating call.
///
/// # Errors
/// [`crate::Kind::Precondition`] when no build could start there; what AWS answers.
pub async fn observe(
    config: &Config,
    image: &Image,
    cloud: &(impl Cloud + Account),
    progress: &dyn Progress,
) -> Result<Place> {
    match config.bake_network(image) {
        BakeNetwork::Made => {
            let name = config.network_stack();
            let stack = stacks::settled_stack(cloud, &name, progress).await?;
            let stack = stack.filter(|stack| stack.outputs.contains_key("SubnetIds"));
            made(config, image, stack.as_ref(), cloud).await
        }
        BakeNetwork::Subnet { vpc, subnet, security_group } => {
            let facts = cloud.subnets(&[subnet.to_string()]).await?.into_iter().next();
            let (zone, warning) = require_subnet(&vpc, subnet.as_str(), facts)?;
            Ok(Place {
                network: None,
                instance_types: types(config, image, Some(&zone), cloud).await?,
                vpc,
                subnet: subnet.to_string(),
                security_group,
                warning,
            })
        }
    }
}

async fn made(config: &Config, image: &Image, stack: Option<&Stack>, cloud: &(impl Cloud + Account)) -> Result<Place> {
    let subnet = first(&output(config, stack, "SubnetIds")).to_owned();
    let zone = match stack {
        Some(_) => cloud.subnets(std::slice::from_ref(&subnet)).await?.into_iter().next().map(|facts| facts.zone),
        None => None,
    };
    let missing = || StackStep { request: network_request(config), difference: Difference::Absent };
    Ok(Place {
        network: stack.is_none().then(missing),
        vpc: output(config, stack, "VpcId"),
        instance_types: types(config, image, zone.as_deref(), cloud).await?,
        subnet,
        security_group: None,
        warning: None,
    })
}

/// The first of a list of subnets, as the network stack's output has them.
pub(super) fn first(subnets: &str) -> &str {
    subnets.split(',').next().unwrap_or_default()
}

/// The subnet's zone, and what a person should know of it.
fn require_subnet(vpc: &str, subnet: &str, facts: Option<SubnetFacts>) -> Result<(String, Option<String>)> {
    let refused = |message: String, hint: String| Error::new(Code::BakeNetworkNotUsable, message).hint(hint);
    let Some(facts) = facts else {
        return Err(refused(
            format!("images can't be built in subnet {subnet}: there is none in this region"),
            "name a subnet of this account and region as `network` in [image_defaults]".to_owned(),
        ));
    };
    if facts.vpc != vpc {
        return Err(refused(
            format!("images can't be built in subnet {subnet}: it is in {}, not in {vpc}", facts.vpc),
            format!("write `vpc = \"{}\"`, or name a subnet of {vpc}", facts.vpc),
        ));
    }
    let warning = match facts.way_out {
        Egress::Through | Egress::Gateway { public: true } => None,
        Egress::None => Some("has no route to 0.0.0.0/0"),
        Egress::Gateway { public: false } => {
            Some("routes to an internet gateway, but gives its instances no public address")
        }
    };
    let warning = warning.map(|what| {
        format!(
            "subnet {subnet} {what}: unless it reaches Systems Manager, S3, the package mirrors and the runner's release \
             by other ways, the build ends after an hour without an answer of the SSM agent; `network` in [image_defaults] \
             names another one"
        )
    });
    Ok((facts.zone, warning))
}

/// Image Builder picks one of those it is given by availability; what the place does not offer at all would end the build.
async fn types(config: &Config, image: &Image, zone: Option<&str>, cloud: &impl Account) -> Result<Vec<String>> {
    let architecture = image.architecture;
    let fits = |name: &&InstanceType| name.architecture() == architecture;
    let own = Some(&image.instance_types).filter(|types| !types.is_empty());
    let given = own.unwrap_or(&config.image_defaults.instance_types);
    let mut wanted: Vec<String> = given.iter().filter(fits).map(ToString::to_string).collect();
    if wanted.is_empty() {
        let known = TYPES.iter().filter(|(of, _)| *of == architecture);
        wanted = known.flat_map(|(_, names)| names.iter()).map(|&name| name.to_owned()).collect();
    }
    let offered = cloud.offered_types(&wanted, zone).await?;
    let names = wanted.join(", ");
    wanted.retain(|name| offered.contains(name));
    if wanted.is_empty() {
        let place = zone.unwrap_or(config.region.as_str());
        let message = format!("{place} offers none of the instance types to build image {} on: {names}", image.name);
        return Err(Error::new(Code::BakeTypesNotOffered, message).hint(
            "name some that it offers as `instance_types` in [image_defaults]; `aws ec2 describe-instance-type-offerings \
             --location-type availability-zone` lists them",
        ));
    }
    Ok(wanted)
}
