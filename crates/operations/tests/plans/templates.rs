//! The templates and what is supplied for them fit together, both ways.

use std::collections::{BTreeMap, BTreeSet};

use kiln_config::config::{Config, Spot};
use kiln_config::model::SpotStrategy;
use kiln_operations::ami::BAKE_TEMPLATE;
use kiln_operations::fleet_stack::{
    FLEET_TEMPLATE, LAUNCH_PARAMETERS, NETWORK_TEMPLATE, SHORT_NAME, network_request, stack_request,
};
use kiln_operations::on_demand::{CONTROLLER_TEMPLATE, ON_DEMAND_TEMPLATE};
use kiln_operations::ports::StackRequest;
use kiln_operations::stacks::resource_types;
use serde_yaml_ng::Value;

use crate::{KILN_TOML, config};

fn fleet_request(config: &Config, fleet: &str) -> StackRequest {
    let fleet = &config.fleets[&fleet.parse().unwrap()];
    stack_request(config, fleet, &"ami-00000001".parse().unwrap(), None, "").unwrap()
}

/// What CloudFormation would refuse of the values supplied.
pub(crate) fn problems(request: &StackRequest) -> Vec<String> {
    let template: Value = serde_yaml_ng::from_str(&request.template).unwrap();
    let declared = template.get("Parameters").and_then(Value::as_mapping).cloned().unwrap_or_default();
    let declared: BTreeMap<&str, &Value> = declared.iter().map(|(name, what)| (name.as_str().unwrap(), what)).collect();
    let supplied: BTreeSet<&str> = request.parameters.keys().map(String::as_str).collect();
    let mut problems: Vec<String> = declared
        .keys()
        .filter(|name| !supplied.contains(*name))
        .map(|name| format!("{name} is not supplied"))
        .collect();
    for (name, value) in &request.parameters {
        let Some(declared) = declared.get(name.as_str()) else {
            problems.push(format!("{name} is not declared"));
            continue;
        };
        let allowed = declared.get("AllowedValues").and_then(Value::as_sequence);
        if allowed.is_some_and(|allowed| !allowed.iter().any(|one| one.as_str() == Some(value))) {
            problems.push(format!("{name} may not be {value}"));
        }
        if declared.get("Type").and_then(Value::as_str) == Some("Number") {
            let number: u64 = value.parse().unwrap();
            let bound = |name: &str| declared.get(name).and_then(Value::as_u64);
            if number < bound("MinValue").unwrap_or(0) || number > bound("MaxValue").unwrap_or(u64::MAX) {
                problems.push(format!("{name} is out of bounds: {value}"));
            }
        }
        let most = declared.get("MaxLength").and_then(Value::as_u64).unwrap_or(4096);
        if value.len() as u64 > most {
            problems.push(format!("{name} is too long"));
        }
    }
    problems
}

#[test]
fn every_parameter_is_declared_and_supplied_within_its_bounds() {
    let config = config();
    for fleet in ["linux", "once"] {
        assert_eq!(problems(&fleet_request(&config, fleet)), [""; 0], "{fleet}");
    }
    assert_eq!(problems(&network_request(&config)), [""; 0]);
}

#[test]
fn a_parameter_too_many_or_too_few_would_be_seen() {
    let mut request = fleet_request(&config(), "linux");
    request.parameters.remove("MinSize");
    request.parameters.insert("Other".to_owned(), String::new());
    request.parameters.insert("VolumeIops".to_owned(), "1".to_owned());
    request.parameters.insert("SpotStrategy".to_owned(), "cheapest".to_owned());
    let expected = [
        "MinSize is not supplied",
        "Other is not declared",
        "SpotStrategy may not be cheapest",
        "VolumeIops is out of bounds: 1",
    ];
    assert_eq!(problems(&request), expected);
}

/// A deploy that took a change for one without a new launch template version would never roll it out.
#[test]
fn what_the_launch_template_is_made_of_is_known_to_be() {
    let template: Value = serde_yaml_ng::from_str(FLEET_TEMPLATE).unwrap();
    let mut used = BTreeSet::new();
    collect(&template["Resources"]["LaunchTemplate"], &template, &mut used);
    let declared = template["Parameters"].as_mapping().unwrap();
    let parameters: Vec<String> = used.into_iter().filter(|name| declared.contains_key(name.as_str())).collect();
    assert!(parameters.len() > 20, "{parameters:?}");
    for parameter in parameters {
        assert!(LAUNCH_PARAMETERS.contains(&parameter.as_str()), "{parameter} is used by the launch template");
    }
    for parameter in LAUNCH_PARAMETERS {
        assert!(declared.contains_key(*parameter), "{parameter} is no parameter of the template");
    }
}

/// What a part of the template refers to, its conditions followed.
pub(crate) fn collect(part: &Value, template: &Value, used: &mut BTreeSet<String>) {
    match part {
        Value::Tagged(tagged) => {
            match (tagged.tag.to_string().as_str(), &tagged.value) {
                ("!Ref", Value::String(name)) => drop(used.insert(name.clone())),
                ("!If", Value::Sequence(parts)) => collect(&template["Conditions"][&parts[0]], template, used),
                _ => {}
            }
            collect(&tagged.value, template, used);
        }
        Value::Sequence(parts) => parts.iter().for_each(|part| collect(part, template, used)),
        Value::Mapping(parts) => parts.values().for_each(|part| collect(part, template, used)),
        _ => {}
    }
}

#[test]
fn what_kiln_toml_says_of_capacity_reaches_the_stack() {
    let plain = fleet_request(&config(), "linux").parameters;
    let of = |parameters: &BTreeMap<String, String>, names: [&str; 4]| names.map(|name| parameters[name].clone());
    let capacity = ["OnDemandBase", "OnDemandPercent", "SpotStrategy", "CapacityRebalance"];
    assert_eq!(of(&plain, capacity), ["0", "100", "price-capacity-optimized", "false"]);
    assert_eq!(of(&plain, ["EgressPort1", "TagKey1", "AlarmTopic", "SessionManager"]), ["", "", "", "false"]);
    assert_eq!(of(&plain, ["VolumeGib", "VolumeIops", "VolumeThroughputMibps", "MinSize"]), ["30", "3000", "125", "1"]);

    let tables = "\n[tags]\nteam = \"ci\"\n\n[fleet.linux]\nvolume = { gib = 200, iops = 6000, throughput_mibps = 500 }\n\
                  spot = { on_demand_base = 1, on_demand_percent = 20, strategy = \"capacity-optimized\" }\n\
                  egress_ports = [22, 443]\nsession_manager = true\n\
                  environment = { HTTPS_PROXY = \"http://proxy.example:3128\" }\n";
    let config = Config::from_toml("kiln.toml", &KILN_TOML.replacen("\n[fleet.linux]\n", tables, 1)).unwrap();
    let fleet = &config.fleets[&"linux".parse().unwrap()];
    let strategy = SpotStrategy::CapacityOptimized;
    let spot = Spot { on_demand_base: 1, on_demand_percent: 20, strategy, capacity_rebalance: false };
    assert_eq!(fleet.spot, Some(spot));
    let request = fleet_request(&config, "linux");
    assert_eq!(problems(&request), [""; 0]);
    let said = request.parameters;
    assert_eq!(of(&said, capacity), ["1", "20", "capacity-optimized", "false"]);
    assert_eq!(of(&said, ["EgressPort1", "EgressPort2", "EgressPort3", "SessionManager"]), ["22", "3128", "", "true"]);
    assert_eq!(
        of(&said, ["VolumeGib", "VolumeIops", "VolumeThroughputMibps", "TagKey1"]),
        ["200", "6000", "500", "team"]
    );
    assert_eq!((said["TagValue1"].as_str(), said["TagKey2"].as_str()), ("ci", ""));
    assert_eq!(request.tags.get("team").map(String::as_str), Some("ci"));
}

/// Tags' keys may hold spaces and slashes, which EC2 refuses of an instance whose metadata service tells its tags.
///
/// Source: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/work-with-tags-in-IMDS.html>
#[test]
fn no_tag_keeps_an_instance_from_being_launched() {
    let template: Value = serde_yaml_ng::from_str(FLEET_TEMPLATE).unwrap();
    let options = &template["Resources"]["LaunchTemplate"]["Properties"]["LaunchTemplateData"]["MetadataOptions"];
    assert_eq!(options["HttpTokens"].as_str(), Some("required"), "{options:?}");
    assert!(options["InstanceMetadataTags"].as_str().is_none_or(|tags| tags == "disabled"), "{options:?}");
}

/// CloudFormation refuses what a template holds beyond the types that are named for it.
#[test]
fn the_types_of_a_template_are_found_as_a_reader_of_yaml_finds_them() {
    for template in [FLEET_TEMPLATE, NETWORK_TEMPLATE, BAKE_TEMPLATE, ON_DEMAND_TEMPLATE, CONTROLLER_TEMPLATE] {
        let value: Value = serde_yaml_ng::from_str(template).unwrap();
        let resources = value["Resources"].as_mapping().unwrap();
        let types: BTreeSet<String> =
            resources.iter().map(|(_, resource)| resource["Type"].as_str().unwrap().to_owned()).collect();
        assert!(types.len() > 3);
        assert_eq!(resource_types(template), types);
    }
}

/// Roles and rules have 64 characters, and rights go by how a name begins.
#[test]
fn the_longest_names_begin_as_rights_want_them() {
    for (organization, fleet) in [("acme", "linux"), (&*"o".repeat(39), &*"f".repeat(24)), (&*"o".repeat(34), "x")] {
        let text = KILN_TOML
            .replacen("organization = \"acme\"", &format!("organization = \"{organization}\""), 1)
            .replace("[fleet.linux", &format!("[fleet.{fleet}"));
        let config = Config::from_toml("kiln.toml", &text).unwrap_or_else(|error| panic!("{error}"));
        let name = fleet_request(&config, fleet).parameters.remove(SHORT_NAME).unwrap();
        assert!(name.len() <= 64 && name.starts_with(&config.fleet_stack_prefix()), "{name}");
    }
    let config = config();
    assert_eq!(fleet_request(&config, "linux").parameters[SHORT_NAME], "kiln-acme-fleet-linux-eu-central-1");
}
