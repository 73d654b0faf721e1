//! What `ami` would do.

use std::collections::BTreeMap;

use kiln_config::config::{BakeNetwork, Config, Image};
use kiln_config::model::{AmiId, Architecture, Sha256};
use kiln_image::contents::Contents;
use kiln_operations::ami::{self, BaseAmi, INPUTS_TAG, Observed, Place, Prepared, Request, Step, Wanted};
use kiln_operations::plan::Plan;
use kiln_operations::ports::{Ami, Build, BuildStatus, Caller};
use kiln_operations::stacks::{Difference, StackStep};

use crate::{KILN_TOML, assert_nothing_to_do, steps};

const BASE: &str = "ami-00000000000000001";
const BUILD: &str = "arn:aws:imagebuilder:eu-central-1:000000000000:image/kiln-acme-image-al2023-x86-64/1.2.3/1";

/// Nothing of the user's.
static NOTHING: Contents = Contents {
    packages: Vec::new(),
    certificates: Vec::new(),
    files: Vec::new(),
    scripts: Vec::new(),
    tests: Vec::new(),
    containers: Vec::new(),
    documents: Vec::new(),
};

fn image(config: &Config) -> &Image {
    config.images.values().next().unwrap()
}

fn base(id: &str) -> BaseAmi {
    BaseAmi { id: id.parse().unwrap(), root_device: "/dev/xvda".to_owned() }
}

fn wanted(toml: &str, payload: char, base: &str) -> Wanted {
    let config = Config::from_toml("kiln.toml", toml).unwrap();
    let payload_sha256: Sha256 = String::from(payload).repeat(64).parse().unwrap();
    let request = request(&config, payload_sha256);
    ami::wanted(&request, &caller(), &self::base(base), &place()).unwrap()
}

fn request(config: &Config, payload_sha256: Sha256) -> Request<'_> {
    Request {
        config,
        image: image(config),
        contents: &NOTHING,
        payload: b"payload",
        payload_sha256,
        sources: None,
        keep_on_failure: false,
    }
}

fn caller() -> Caller {
    Caller { partition: "aws".into(), account: "000000000000".into(), arn: String::new() }
}

fn place() -> Place {
    Place {
        network: None,
        vpc: "vpc-0123456789abcdef0".to_owned(),
        subnet: "subnet-0123456789abcdef0".to_owned(),
        security_group: None,
        instance_types: vec!["m6i.large".to_owned()],
        warning: None,
    }
}

/// An account that has never seen Kiln.
fn nothing(wanted: &Wanted) -> Observed {
    Observed {
        network: None,
        stack: Some(Difference::Absent),
        payload: false,
        contents: true,
        components: vec![false; wanted.components.len()],
        recipe: false,
        infrastructure: None,
        distribution: None,
        build: None,
        built: None,
        recorded: None,
    }
}

/// Everything is there but a build.
fn ready(wanted: &Wanted) -> Observed {
    Observed {
        stack: None,
        payload: true,
        components: vec![true; wanted.components.len()],
        recipe: true,
        infrastructure: Some(wanted.infrastructure.clone()),
        distribution: Some(wanted.distribution.clone()),
        ..nothing(wanted)
    }
}

fn build(status: BuildStatus) -> Option<Build> {
    Some(Build { arn: BUILD.to_owned(), status, steps: Vec::new(), copies: BTreeMap::new() })
}

fn ami_of(wanted: &Wanted) -> Ami {
    let tags = BTreeMap::from([(INPUTS_TAG.to_owned(), wanted.inputs.to_string())]);
    Ami {
        architecture: "x86_64".to_owned(),
        root_device: "/dev/xvda".to_owned(),
        root_gib: 30,
        id: "ami-000000000000000aa".parse::<AmiId>().unwrap(),
        name: "kiln-acme-image-al2023-x86-64 1".to_owned(),
        owner: "000000000000".to_owned(),
        tags,
        state: "available".to_owned(),
    }
}

fn plan(wanted: &Wanted, observed: Observed) -> Plan<Step> {
    let config = crate::config();
    ami::plan(image(&config), 7, &Prepared { wanted: wanted.clone(), observed })
}

fn token(plan: &Plan<Step>) -> &str {
    let token = plan.steps.iter().find_map(|step| if let Step::Start { token } = step { Some(token) } else { None });
    token.unwrap()
}

#[test]
fn nothing_changed() {
    let wanted = wanted(KILN_TOML, 'a', BASE);
    let recorded = Some(ami_of(&wanted));
    let plan = plan(&wanted, Observed { recorded, ..ready(&wanted) });
    assert_nothing_to_do(&plan);
    assert!(plan.settled.contains("ami-000000000000000aa"), "{}", plan.settled);
}

#[test]
fn an_account_that_has_never_seen_kiln() {
    let wanted = wanted(KILN_TOML, 'a', BASE);
    let steps = steps(&plan(&wanted, nothing(&wanted)));
    assert_eq!(steps[0], "create stack kiln-acme-bake");
    assert!(steps[1].starts_with("upload the payload, 7 bytes, to s3://kiln-acme-000000000000-eu-central-1/"));
    let components = &steps[2..2 + wanted.components.len()];
    assert!(components.iter().all(|step| step.starts_with("create component kiln-")), "{components:?}");
    let rest: Vec<&str> = steps[2 + wanted.components.len()..].iter().map(String::as_str).collect();
    let recipe = format!("create recipe {} on {BASE}", wanted.recipe.id);
    let expected = [
        recipe.as_str(),
        "put infrastructure configuration kiln-acme-image-al2023-x86-64",
        "put distribution configuration kiln-acme-image-al2023-x86-64",
        "start the build",
        "wait until the AMI is built and tested",
        "tag the AMI and record it in /kiln-acme/image/al2023-x86-64",
    ];
    assert_eq!(rest, expected);
}

#[test]
fn each_input_makes_another_image() {
    let mut versions = vec![wanted(KILN_TOML, 'a', BASE).recipe.id.version];
    versions.push(wanted(KILN_TOML, 'b', BASE).recipe.id.version);
    versions.push(wanted(KILN_TOML, 'a', "ami-00000000000000002").recipe.id.version);
    versions.push(wanted(&KILN_TOML.replace("2.338.0", "2.339.0"), 'a', BASE).recipe.id.version);
    versions.push(wanted(&KILN_TOML.replace("af4b794c", "bf4b794c"), 'a', BASE).recipe.id.version);
    let distinct: std::collections::BTreeSet<&String> = versions.iter().collect();
    assert_eq!(distinct.len(), versions.len(), "{versions:?}");
    for version in &versions {
        let nodes: Vec<u32> = version.split('.').map(|node| node.parse().unwrap()).collect();
        assert!(nodes.len() == 3 && nodes.iter().all(|node| *node < 1 << 30), "{version}");
    }
    // What an image does not depend on makes no other.
    assert_eq!(wanted(&KILN_TOML.replace("max = 4", "max = 5"), 'a', BASE).recipe.id.version, versions[0]);
}

#[test]
fn what_an_image_writes_down_is_named_by_its_inputs() {
    let wanted = wanted(KILN_TOML, 'a', BASE);
    let manifest = wanted.recipe.components.iter().find(|used| used.id.name == "kiln-manifest").unwrap();
    assert_eq!(manifest.parameters["Inputs"], wanted.inputs.as_str());
    assert_eq!(manifest.parameters["RecordUri"], format!("s3://{}/{}", wanted.bucket, wanted.record));
    assert!(wanted.record.ends_with(wanted.inputs.as_str()), "{}", wanted.record);
}

#[test]
fn amazon_linux_2_gets_the_pinned_builds_of_node_and_the_other_keeps_the_runners() {
    let builds = |toml: &str| {
        let config = Config::from_toml("kiln.toml", toml).unwrap();
        let payload_sha256 = "a".repeat(64).parse().unwrap();
        let wanted = ami::wanted(&request(&config, payload_sha256), &caller(), &base(BASE), &place())?;
        let runner = wanted.recipe.components.into_iter().find(|used| used.id.name == "kiln-runner").unwrap();
        Ok::<_, kiln_operations::Error>(runner.parameters["NodeBuilds"].clone())
    };
    assert_eq!(builds(KILN_TOML).unwrap(), "none");
    let old = crate::on_amazon_linux_2();
    let refused = builds(&old).unwrap_err();
    assert_eq!(refused.code, kiln_operations::Code::NodePinMissing);
    assert!(refused.message.contains("[runner.node.20] and [runner.node.24]"), "{refused}");
    assert!(refused.message.contains("glibc 2.28") && refused.hint.unwrap().contains("cargo xtask pin"));
    let digest = "b".repeat(64);
    let node =
        |major: u32, version: &str| format!("[runner.node.{major}]\nversion = \"{version}\"\nsha256 = \"{digest}\"\n");
    let pinned = format!("{old}{}{}", node(24, "24.19.0"), node(20, "20.20.0"));
    let one = builds(&format!("{old}{}", node(24, "24.19.0"))).unwrap_err();
    assert!(one.message.contains("[runner.node.20],"), "both ship: {one}");
    let base = "https://unofficial-builds.nodejs.org/download/release";
    assert_eq!(
        builds(&pinned).unwrap(),
        format!(
            "20={digest}={base}/v20.20.0/node-v20.20.0-linux-x64-glibc-217.tar.gz,\
             24={digest}={base}/v24.19.0/node-v24.19.0-linux-x64-glibc-217.tar.gz"
        )
    );
}

#[test]
fn copies_are_recorded_before_the_image_itself() {
    let toml = KILN_TOML.replace("[runner]", "[image_defaults]\ncopy_to = [\"eu-west-1\"]\n[runner]");
    let wanted = wanted(&toml, 'a', BASE);
    let ami = ami_of(&wanted);
    let observed =
        Observed { build: build(BuildStatus::Available(ami.id.clone())), built: Some(ami), ..ready(&wanted) };
    let steps = steps(&plan(&wanted, observed));
    assert_eq!(steps[0], "tag the copies in eu-west-1 and record them there in /kiln-acme/image/al2023-x86-64");
    assert!(steps[1].starts_with("tag ami-000000000000000aa and record it"), "{steps:?}");
}

#[test]
fn a_running_build_is_waited_for() {
    let wanted = wanted(KILN_TOML, 'a', BASE);
    let build = build(BuildStatus::Running("TESTING".to_owned()));
    let steps = steps(&plan(&wanted, Observed { build, ..ready(&wanted) }));
    assert_eq!(steps.len(), 2, "{steps:?}");
    assert_eq!(steps[0], format!("wait until the running build {BUILD} is built and tested"));
    assert!(steps[1].starts_with("tag the AMI and record it in "));
}

#[test]
fn a_finished_build_is_only_recorded() {
    let wanted = wanted(KILN_TOML, 'a', BASE);
    let ami = ami_of(&wanted);
    let observed = Observed {
        build: build(BuildStatus::Available(ami.id.clone())),
        built: Some(Ami { tags: BTreeMap::new(), ..ami }),
        ..ready(&wanted)
    };
    let steps = steps(&plan(&wanted, observed));
    assert_eq!(steps, ["tag ami-000000000000000aa and record it in /kiln-acme/image/al2023-x86-64"]);
}

#[test]
fn a_failed_build_is_started_anew_and_a_lost_answer_is_not() {
    let wanted = wanted(KILN_TOML, 'a', BASE);
    let first = plan(&wanted, ready(&wanted));
    assert_eq!(steps(&first)[0], "start the build");
    let again = plan(&wanted, ready(&wanted));
    assert_eq!(token(&first), token(&again), "a start whose answer was lost is the same build");
    let failed = BuildStatus::Failed { state: "FAILED".to_owned(), reason: "disk full".to_owned() };
    let after = plan(&wanted, Observed { build: build(failed), ..ready(&wanted) });
    assert_ne!(token(&first), token(&after));
}

#[test]
fn an_ami_that_was_removed_is_baked_anew() {
    let wanted = wanted(KILN_TOML, 'a', BASE);
    let gone = build(BuildStatus::Available(ami_of(&wanted).id));
    let plan = plan(&wanted, Observed { build: gone, ..ready(&wanted) });
    assert_eq!(steps(&plan)[0], "start the build");
}

#[test]
fn what_someone_changed_by_hand_is_put_back_before_a_build() {
    let wanted = wanted(KILN_TOML, 'a', BASE);
    let mut infrastructure = wanted.infrastructure.clone();
    infrastructure.instance_types = vec!["t2.nano".to_owned()];
    let plan = plan(&wanted, Observed { infrastructure: Some(infrastructure), ..ready(&wanted) });
    assert_eq!(
        steps(&plan)[..2],
        ["put infrastructure configuration kiln-acme-image-al2023-x86-64", "start the build"]
    );
}

/// Kiln sends it, and none of the service's rules for it: see `arn_segment` in `kiln-aws`.
#[test]
fn an_image_s_name_is_what_it_is_in_an_arn() {
    for toml in [KILN_TOML.to_owned(), KILN_TOML.replace("\"acme\"", "\"ACME-Corp\"")] {
        let config = Config::from_toml("kiln.toml", &toml).unwrap();
        for architecture in Architecture::ALL {
            let name = config.image_name(&Image::implied(architecture).name);
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{name}");
        }
    }
}

#[test]
fn a_token_fits_every_version_of_the_service_s_model() {
    let wanted = wanted(KILN_TOML, 'a', BASE);
    assert_eq!(token(&plan(&wanted, ready(&wanted))).len(), ami::MOST_TOKEN);
}

#[test]
fn two_long_logins_that_begin_alike_have_a_bucket_each() {
    let bucket = |login: &str| {
        let config = Config::from_toml("kiln.toml", &KILN_TOML.replace("\"acme\"", &format!("\"{login}\""))).unwrap();
        let request = request(&config, "a".repeat(64).parse().unwrap());
        ami::wanted(&request, &caller(), &base(BASE), &place()).unwrap().bucket
    };
    let alike = "the-first-thirty-characters-are";
    let [one, other] = ["-theirs", "-ours"].map(|end| bucket(&format!("{alike}{end}")));
    assert_ne!(one, other);
    for name in [&one, &other, &bucket(&"a".repeat(39)), &bucket("acme")] {
        assert!(name.len() <= 63 && name.starts_with("kiln-"), "{name}");
        assert!(name.ends_with("-000000000000-eu-central-1"), "the roles' pattern is by account and region: {name}");
    }
    assert_eq!(bucket("acme"), "kiln-acme-000000000000-eu-central-1");
}

#[test]
fn the_tags_of_kiln_toml_are_on_all_that_a_bake_makes() {
    let toml = format!("{KILN_TOML}\n[tags]\ncost-center = \"ci\"\n");
    let wanted = wanted(&toml, 'a', BASE);
    for tags in [&wanted.tags, &wanted.infrastructure.tags, &wanted.distribution.ami_tags, &wanted.stack.tags] {
        assert_eq!(tags.get("cost-center").map(String::as_str), Some("ci"), "{tags:?}");
        assert_eq!(tags.get("kiln:managed").map(String::as_str), Some("true"), "{tags:?}");
    }
}

#[test]
fn images_are_built_where_the_fleets_live_unless_told_otherwise() {
    let network = |toml: &str| {
        let config = Config::from_toml("kiln.toml", toml).unwrap();
        config.bake_network(image(&config))
    };
    let BakeNetwork::Subnet { subnet, security_group: None, .. } = network(KILN_TOML) else { panic!() };
    assert_eq!(subnet.as_str(), "subnet-00000001");
    let given = KILN_TOML.lines().find(|line| line.starts_with("network")).unwrap();
    assert_eq!(network(&KILN_TOML.replace(given, "network = \"create-vpc\"")), BakeNetwork::Made);
    let subnet = "network = { vpc = \"vpc-0123456789abcdef0\", subnet = \"subnet-0123456789abcdef1\", security_group = \"sg-0123456789abcdef0\" }";
    let own = KILN_TOML.replace("[runner]", &format!("[image_defaults]\n{subnet}\n[runner]"));
    let BakeNetwork::Subnet { vpc, subnet, security_group } = network(&own) else { panic!() };
    assert_eq!((vpc.as_str(), subnet.as_str()), ("vpc-0123456789abcdef0", "subnet-0123456789abcdef1"));
    assert_eq!(security_group.as_deref(), Some("sg-0123456789abcdef0"));
}

#[test]
fn a_missing_network_is_made_before_the_bake_stack() {
    let wanted = wanted(KILN_TOML, 'a', BASE);
    let config = crate::config();
    let request = kiln_operations::fleet_stack::network_request(&config);
    let network = Some(StackStep { request, difference: Difference::Absent });
    let steps = steps(&plan(&wanted, Observed { network, ..nothing(&wanted) }));
    assert_eq!(steps[..2], ["create stack kiln-acme-network", "create stack kiln-acme-bake"]);
}

type Change = fn(&mut Ami);

fn ours(config: &Config, ami: &Ami) -> Result<(), String> {
    ami::require_ours(config, &image(config).name, ami, &caller()).map_err(|error| error.message)
}

#[test]
fn only_an_image_that_was_baked_here_for_the_fleet_is_rolled_out() {
    let (wanted, config) = (wanted(KILN_TOML, 'a', BASE), crate::config());
    let mut ami = ami_of(&wanted);
    ami.tags.insert("kiln:image".to_owned(), config.image_name(&image(&config).name));
    assert_eq!(ours(&config, &ami), Ok(()));
    let foreign: [(Change, &str); 4] = [
        (|ami| ami.owner = "111111111111".to_owned(), "it belongs to account 111111111111, not to 000000000000"),
        (|ami| drop(ami.tags.remove("kiln:image")), "its tag kiln:image is missing"),
        (
            |ami| drop(ami.tags.insert("kiln:image".into(), "kiln-acme-image-al2-x86-64".into())),
            "is kiln-acme-image-al2-x86-64, not",
        ),
        (|ami| drop(ami.tags.remove(INPUTS_TAG)), "it has no tag kiln:inputs"),
    ];
    for (change, why) in foreign {
        let mut ami = ami.clone();
        change(&mut ami);
        let refused = ours(&config, &ami).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn a_shared_image_is_known_by_its_owner_and_its_name() {
    let toml = KILN_TOML.replace("[runner]", "[image_defaults]\nowner = \"111111111111\"\n[runner]");
    let (wanted, config) = (wanted(KILN_TOML, 'a', BASE), Config::from_toml("kiln.toml", &toml).unwrap());
    let shared = Ami { owner: "111111111111".to_owned(), tags: BTreeMap::new(), ..ami_of(&wanted) };
    assert_eq!(ours(&config, &shared), Ok(()));
    for wrong in [
        Ami { owner: "222222222222".to_owned(), ..shared.clone() },
        Ami { owner: "000000000000".to_owned(), ..shared.clone() },
        Ami { name: "kiln-acme-image-al2023-x86-64-of-mine".to_owned(), ..shared },
    ] {
        ours(&config, &wrong).unwrap_err();
    }
}
