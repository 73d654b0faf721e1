//! The AWS account: rights, instance types, quotas, subnets, images.

use std::collections::{BTreeMap, BTreeSet};

use kiln_config::config::{Config, Fleet, Network};

use super::{Finding, Verdict, rights};
use crate::ami;
use crate::error::Error;
use crate::ports::{Account, Caller, Cloud, Egress, IamAction, InstanceTypeFacts, SubnetFacts};

/// EC2's quota of "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances".
///
/// Source: `aws service-quotas list-service-quotas --service-code ec2`
const STANDARD_QUOTA: &str = "L-1216C47A";

/// The families which that quota is for.
const STANDARD_FAMILIES: &str = "acdhimrtz";

pub(super) async fn examine(config: &Config, caller: &Caller, cloud: &(impl Cloud + Account)) -> Vec<Finding> {
    let mut findings = vec![permissions(config, caller, cloud).await];
    let types = types(config, cloud, &mut findings).await;
    findings.push(quota(config, &types, cloud).await);
    findings.extend(networks(config, cloud).await);
    findings.extend(config.fleets.values().filter_map(proxy));
    findings.extend(encryption(config, cloud).await);
    for wanted in config.images.values() {
        findings.push(image(config, wanted, cloud).await);
    }
    findings.extend(instances(config, cloud).await);
    findings
}

/// What instances say is wrong with them.
async fn instances(config: &Config, cloud: &impl Cloud) -> Vec<Finding> {
    let check = "instances";
    let groups: Vec<_> = config.fleets.keys().map(|name| config.group(name)).collect();
    match cloud.shown_states(&groups).await {
        Ok(shown) => {
            let finding = |trouble: String| {
                let (what, hint) = trouble.split_once("; ").unwrap_or((&trouble, ""));
                Finding::wrong(check, what, hint)
            };
            crate::status::troubles(&shown).map(finding).collect()
        }
        Err(error) => vec![Finding::failed(check, Verdict::Unknown, &error.into())],
    }
}

async fn permissions(config: &Config, caller: &Caller, cloud: &impl Account) -> Finding {
    let check = "permissions";
    let needed = rights::needed(config, caller);
    match cloud.lacking(&needed).await {
        Ok(lacking) if lacking.is_empty() => {
            Finding::good(check, format!("{} rights of the commands, by IAM's simulation", needed.len()))
        }
        Ok(lacking) => Finding::wrong(
            check,
            format!("{} may not {}", caller.arn, listed(&lacking)),
            "grant these to the user or role that the commands run as",
        ),
        Err(error) => Finding {
            hint: Some("grant iam:SimulatePrincipalPolicy and iam:GetRole to have this looked at".to_owned()),
            ..Finding::failed(check, Verdict::Unknown, &error.into())
        },
    }
}

/// Each action once, with the first resource it is missing on; a handful is read, the number tells of the others.
fn listed(lacking: &[IamAction]) -> String {
    const SHOWN: usize = 8;
    let mut actions: BTreeMap<&str, &str> = BTreeMap::new();
    for right in lacking {
        actions.entry(&right.action).or_insert(&right.resource);
    }
    let more = actions.len().saturating_sub(SHOWN);
    let shown = actions.iter().take(SHOWN).map(|(action, resource)| match *resource {
        "*" => (*action).to_owned(),
        resource => format!("{action} on {resource}"),
    });
    let rest = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{rest}", shown.collect::<Vec<_>>().join(", "))
}

async fn types(
    config: &Config,
    cloud: &impl Account,
    findings: &mut Vec<Finding>,
) -> BTreeMap<String, InstanceTypeFacts> {
    let check = "instance-types";
    let wanted: BTreeSet<String> =
        config.fleets.values().flat_map(|fleet| &fleet.instance_types).map(ToString::to_string).collect();
    let names: Vec<String> = wanted.into_iter().collect();
    let offered = match cloud.instance_types(&names).await {
        Ok(offered) => offered,
        Err(error) => {
            findings.push(Finding::failed(check, Verdict::Unknown, &error.into()));
            return BTreeMap::new();
        }
    };
    let offered: BTreeMap<String, InstanceTypeFacts> =
        offered.into_iter().map(|facts| (facts.name.clone(), facts)).collect();
    for fleet in config.fleets.values() {
        findings.push(types_of(config, fleet, &offered));
    }
    offered
}

fn types_of(config: &Config, fleet: &Fleet, offered: &BTreeMap<String, InstanceTypeFacts>) -> Finding {
    let check = "instance-types";
    let architecture = fleet.architecture.aws_name();
    for name in &fleet.instance_types {
        let Some(facts) = offered.get(name.as_str()) else {
            return Finding::wrong(
                check,
                format!("fleet `{}`: {} does not offer {name}", fleet.name, config.region),
                "choose another in `instance_types`; `aws ec2 describe-instance-type-offerings` lists them",
            );
        };
        if !facts.architectures.iter().any(|has| has == architecture) {
            return Finding::wrong(
                check,
                format!(
                    "fleet `{}`: {name} is {}, its image {architecture}",
                    fleet.name,
                    facts.architectures.join(" or ")
                ),
                "change `instance_types` or `architecture`: a fleet has one architecture",
            );
        }
    }
    let names: Vec<&str> = fleet.instance_types.iter().map(|name| name.as_str()).collect();
    Finding::good(check, format!("fleet `{}`: {}", fleet.name, names.join(", ")))
}

/// All fleets at their largest, each with its largest type, and the instance more that a rollout launches first.
async fn quota(config: &Config, types: &BTreeMap<String, InstanceTypeFacts>, cloud: &impl Account) -> Finding {
    let check = "quota";
    let is_standard =
        |name: &str| name.chars().next().is_some_and(|family| STANDARD_FAMILIES.contains(family)) && !is_special(name);
    let largest = |fleet: &Fleet| {
        let facts = fleet.instance_types.iter().filter(|name| is_standard(name.as_str()));
        facts.filter_map(|name| types.get(name.as_str())).map(|facts| facts.vcpus).max().unwrap_or_default()
    };
    // Of the numbers' whole range: what is absurd must come out as too much, not as little.
    let most = |fleet: &Fleet| u64::from(fleet.max) + u64::from(fleet.max.div_ceil(10));
    let needed = config.fleets.values().map(|fleet| most(fleet).saturating_mul(u64::from(largest(fleet))));
    let needed = needed.fold(0, u64::saturating_add);
    if needed == 0 {
        let what = "no fleet uses an instance type of the standard families, whose quota is the one looked at";
        return Finding::notice(check, what, "look at the family's own quota in Service Quotas, service ec2");
    }
    let quota = match cloud.vcpu_quota(STANDARD_QUOTA).await {
        Ok(quota) => quota,
        Err(error) => return Finding::failed(check, Verdict::Unknown, &error.into()),
    };
    if needed <= u64::from(quota) {
        return Finding::good(check, format!("{quota} vCPUs of standard instances; all fleets at `max` take {needed}"));
    }
    Finding::wrong(
        check,
        format!("{quota} vCPUs of standard instances are allowed; all fleets at `max`, while they roll, take {needed}"),
        format!("ask for more in Service Quotas (ec2, {STANDARD_QUOTA}), or lower `max`"),
    )
}

/// Families with a standard family's letter and a quota of their own: `inf`, `trn`, `dl`, `hpc`, `mac`, `u-`…
fn is_special(name: &str) -> bool {
    ["dl", "hpc", "inf", "mac", "trn"].iter().any(|family| name.starts_with(family))
}

async fn networks(config: &Config, cloud: &(impl Cloud + Account)) -> Vec<Finding> {
    let mut findings = Vec::new();
    for fleet in config.fleets.values() {
        let Network::Subnets { vpc, subnets } = &fleet.network else {
            findings.push(Finding::good("subnets", format!("fleet `{}`: Kiln makes its network", fleet.name)));
            continue;
        };
        let ids: Vec<String> = subnets.iter().map(ToString::to_string).collect();
        match cloud.subnets(&ids).await {
            Ok(found) => {
                let finding = subnets_of(fleet, vpc, &ids, &found);
                let usable = finding.verdict != Verdict::Wrong;
                findings.push(finding);
                if usable {
                    findings.extend(zones_of(fleet, &found, cloud).await);
                }
            }
            Err(error) => findings.push(Finding::failed("subnets", Verdict::Unknown, &error.into())),
        }
    }
    findings
}

/// A region that offers a type may have zones that do not. Auto Scaling goes to the others then, if there are others.
async fn zones_of(fleet: &Fleet, subnets: &[SubnetFacts], cloud: &impl Account) -> Option<Finding> {
    let check = "zones";
    let names: Vec<String> = fleet.instance_types.iter().map(ToString::to_string).collect();
    let offered = match cloud.zones_of(&names).await {
        Ok(offered) => offered,
        Err(error) => return Some(Finding::failed(check, Verdict::Unknown, &error.into())),
    };
    // What no zone offers is told of the region already.
    if offered.is_empty() {
        return None;
    }
    let zones: BTreeSet<&str> = subnets.iter().map(|subnet| subnet.zone.as_str()).collect();
    let without = |zone: &&&str| !offered.values().any(|zones| zones.contains(**zone));
    let lacking: Vec<&str> = zones.iter().filter(without).copied().collect();
    let hint = "add a type that the zone offers, or a subnet in another zone; `aws ec2 describe-instance-type-offerings \
                --location-type availability-zone` lists them";
    if lacking.is_empty() {
        None
    } else if lacking.len() == zones.len() {
        let what =
            format!("fleet `{}`: no zone of its subnets offers any of its types: {}", fleet.name, lacking.join(", "));
        Some(Finding::wrong(check, what, hint))
    } else {
        let what = format!(
            "fleet `{}`: {} offers none of its types, so all instances go elsewhere",
            fleet.name,
            lacking.join(", ")
        );
        Some(Finding::notice(check, what, hint))
    }
}

/// The proxy that a fleet's instances go by to the internet, if any.
fn proxy_of(fleet: &Fleet) -> Option<&str> {
    let value = |name: &str| {
        let mut found = fleet.environment.iter().filter(|(variable, _)| variable.eq_ignore_ascii_case(name));
        found.find_map(|(_, value)| Some(value.as_str()).filter(|value| !value.is_empty()))
    };
    value("https_proxy").or_else(|| value("all_proxy"))
}

/// Do calls to AWS go by the fleet's proxy? Either may be right, but a person should know which.
fn proxy(fleet: &Fleet) -> Option<Finding> {
    let proxy = proxy_of(fleet)?;
    let mut lists = fleet.environment.iter().filter(|(name, _)| name.eq_ignore_ascii_case("no_proxy"));
    let aws = lists.any(|(_, list)| list.split(',').any(|host| host.trim() == "*" || host.contains("amazonaws")));
    let calls = if aws { "calls to AWS go past it, as `no_proxy` says" } else { "calls to AWS go by it too" };
    Some(Finding::good("proxy", format!("fleet `{}`: {proxy}; {calls}", fleet.name)))
}

/// The customer's key of the images: there, and usable. Whether its policy lets Auto Scaling use it, only a launch shows.
async fn encryption(config: &Config, cloud: &impl Account) -> Option<Finding> {
    let check = "kms-key";
    let key = config.image_defaults.kms_key.as_ref()?;
    Some(match cloud.key_state(key.as_str()).await {
        Ok(Some(state)) if state == "Enabled" => Finding::good(check, format!("{key} is enabled")),
        Ok(Some(state)) => Finding::wrong(
            check,
            format!("{key} can't encrypt images: its state is {state}"),
            "enable it, or cancel its deletion, in KMS; or name another in `kms_key`",
        ),
        Ok(None) => Finding::wrong(check, format!("there is no key {key}"), "name a key of this region in `kms_key`"),
        Err(error) => Finding::failed(check, Verdict::Unknown, &error.into()),
    })
}

fn subnets_of(fleet: &Fleet, vpc: &str, wanted: &[String], found: &[SubnetFacts]) -> Finding {
    let check = "subnets";
    let name = &fleet.name;
    for id in wanted {
        let Some(subnet) = found.iter().find(|subnet| subnet.id == *id) else {
            return Finding::wrong(
                check,
                format!("fleet `{name}`: there is no subnet {id} in this region"),
                "name subnets of this account and region in `network`, or let Kiln make them: \"create-vpc\"",
            );
        };
        if subnet.vpc != vpc {
            return Finding::wrong(
                check,
                format!("fleet `{name}`: subnet {id} is in {}, not in {vpc}", subnet.vpc),
                format!("write `vpc = \"{}\"`, or name subnets of {vpc}", subnet.vpc),
            );
        }
        match subnet.way_out {
            // By the VPC's own routes to wherever the proxy is.
            Egress::None if proxy_of(fleet).is_some() => {}
            Egress::None => {
                return Finding::wrong(
                    check,
                    format!("fleet `{name}`: subnet {id} has no route to 0.0.0.0/0: a runner could not reach GitHub"),
                    "route it to a NAT gateway, or name other subnets",
                );
            }
            Egress::Gateway { public: false } => {
                return Finding::wrong(
                    check,
                    format!(
                        "fleet `{name}`: subnet {id} routes to an internet gateway, but its instances get no public \
                         address"
                    ),
                    "route it to a NAT gateway, or let the subnet assign public addresses",
                );
            }
            Egress::Gateway { public: true } | Egress::Through => {}
        }
    }
    let zones: BTreeSet<&str> = found.iter().map(|subnet| subnet.zone.as_str()).collect();
    if zones.len() < 2 {
        return Finding::notice(
            check,
            format!("fleet `{name}`: all of its subnets are in one availability zone"),
            "a second zone lets the fleet live through the first one's bad day",
        );
    }
    Finding::good(check, format!("fleet `{name}`: {} subnets in {} zones, with a way out", wanted.len(), zones.len()))
}

async fn image(config: &Config, image: &kiln_config::config::Image, cloud: &impl Cloud) -> Finding {
    let check = "image";
    let parameter = config.image_parameter(&image.name);
    let name = &image.name;
    let recorded = match cloud.recorded(&parameter).await {
        Ok(recorded) => recorded,
        Err(error) => return Finding::failed(check, Verdict::Unknown, &error.into()),
    };
    let Some(id) = recorded else {
        return Finding::notice(check, format!("{name}: none is recorded in {parameter} yet"), "run `cargo xtask ami`");
    };
    match cloud.ami(&id).await {
        Ok(Some(ami)) if ami.state == "available" => {
            let version = ami.tags.get("kiln:runner-version").map(|version| format!(", runner {version}"));
            match ami::notice(image) {
                Some(notice) => Finding::notice(check, format!("{name}: {id}{}", version.unwrap_or_default()), notice),
                None => Finding::good(check, format!("{name}: {id}{}", version.unwrap_or_default())),
            }
        }
        Ok(found) => {
            let state = found.map_or_else(|| "does not exist any more".to_owned(), |ami| format!("is {}", ami.state));
            Finding::wrong(check, format!("{name}: {id}, recorded in {parameter}, {state}"), "run `cargo xtask ami`")
        }
        Err(error) => Finding::failed(check, Verdict::Unknown, &Error::from(error)),
    }
}
