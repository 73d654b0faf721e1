//! The bake: a failure in any step of any document, what an image holds and where it goes.

use kiln_e2e::story::{FLEETS, VERSIONS};
use kiln_e2e::world::NODES;
use kiln_image::components::{COMPONENTS, Document, OnFailure};
use kiln_image::sbom;

use crate::models::assert_modelled;
use crate::support::{World, bootstrap, quiet, refused, world};

/// Every step of every document, in the order in which a bake runs them, as `PHASE/DOCUMENT/STEP`.
fn steps() -> Vec<(String, OnFailure)> {
    let documents: Vec<Document> = COMPONENTS.iter().map(|(_, text)| Document::parse(text).unwrap()).collect();
    let mut steps = Vec::new();
    for phase in ["build", "validate", "test"] {
        for document in &documents {
            let own = document.phases.iter().filter(|known| known.name.as_str() == phase);
            for step in own.flat_map(|phase| &phase.steps) {
                steps.push((format!("{phase}/{}/{}", document.name, step.name), step.on_failure));
            }
        }
    }
    steps
}

/// Any fleet of a world that only bakes.
fn fleets(base: &str) -> String {
    if base == "amazon-linux-2023" {
        return FLEETS.to_owned();
    }
    let named = FLEETS.replace("registration =", "image = \"it\"\nregistration =");
    format!("[image.it]\nbase = \"{base}\"\n{named}")
}

async fn baking(base: &str) -> World {
    let world = world().await;
    world.write_config(VERSIONS[0], &fleets(base)).unwrap();
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bake_that_fails_in_any_step_records_nothing_and_the_next_run_works() {
    let world = baking("amazon-linux-2023").await;
    let steps = steps();
    assert!(steps.len() > 20, "{steps:?}");
    for (path, _) in steps.iter().filter(|(_, on_failure)| *on_failure == OnFailure::Abort) {
        world.aws.fail_build_step(path);
        let said = refused(&world, &["ami"], 6).await;
        let [phase, document, step] = path.split('/').collect::<Vec<_>>()[..] else { panic!("{path}") };
        for part in [format!("phase {phase}, step {step}: told to fail"), format!("{document}/{step}")] {
            assert!(said.contains(&part), "{path}: no `{part}` in:\n{said}");
        }
        assert!(said.contains("  | ERROR told to fail"), "{path}: no end of the log in:\n{said}");
        assert!(world.aws.images().is_empty(), "{path}: an image was recorded");
    }
    let refused = refused(&world, &["deploy"], 5).await;
    assert!(!refused.is_empty());

    // A step that may fail costs no image.
    let may_fail = steps.iter().find(|(_, on_failure)| *on_failure == OnFailure::Ignore).unwrap();
    world.aws.fail_build_step(&may_fail.0);
    let outcome = world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    assert_modelled(&world);
    assert_eq!(outcome.stdout.trim_end(), world.aws.images()[0].ami);
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_amazon_linux_2_has_the_pinned_builds_of_node_and_says_what_is_in_it() {
    let world = baking("amazon-linux-2").await;
    let outcome = world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    let said = "Amazon Linux 2 is out of support";
    assert_eq!(outcome.stderr.matches(said).count(), 1, "{}", outcome.stderr);
    let ami = outcome.stdout.trim_end();
    let root = world.aws.image_root(ami).unwrap();
    for version in NODES {
        let major = version.split('.').next().unwrap();
        let node = root.join(format!("opt/actions-runner/externals/node{major}/bin/node"));
        let text = std::fs::read_to_string(&node).unwrap();
        assert!(text.contains("for glibc 2.17") && text.contains(version), "{}: {text}", node.display());
    }
    let manifest = std::fs::read(root.join("usr/share/kiln/manifest.json")).unwrap();
    let tags = world.aws.image_tags(ami).await.unwrap();
    assert_eq!(tags["kiln:node-24"], NODES[1]);
    assert_eq!(tags["kiln:runner-version"], VERSIONS[0]);
    let digest = kiln_image::payload::sha256(&std::fs::read(bootstrap()).unwrap());
    assert_eq!(tags["kiln:bootstrap-sha256"], digest.as_str());
    for name in ["manifest.json", "bootstrap.cdx.json", "packages.cdx.json"] {
        let kept = world.aws.object(&format!("{}/{name}", tags["kiln:sbom"])).await.unwrap();
        let kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
        if name == "manifest.json" {
            assert_eq!(kept, serde_json::from_slice::<serde_json::Value>(&manifest).unwrap());
            assert_eq!(kept["inputs"], tags["kiln:inputs"]);
        } else {
            assert_eq!(kept["bomFormat"], "CycloneDX", "{name}");
        }
    }
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn amazon_linux_2_without_a_pinned_node_is_refused_before_anything_is_made() {
    let world = baking("amazon-linux-2").await;
    let text = std::fs::read_to_string(world.config()).unwrap();
    let (before, after) = (text.find("[runner.node.20]").unwrap(), text.find("[image.it]").unwrap());
    std::fs::write(world.config(), format!("{}{}", &text[..before], &text[after..])).unwrap();
    let said = refused(&world, &["ami"], 3).await;
    assert!(said.contains("cargo xtask pin") && said.contains("glibc 2.28"), "{said}");
    assert_eq!(world.aws.mutations(), 0);

    // A Node that is not what its pin says.
    std::fs::write(world.config(), text.replace(&world.github.node_build(NODES[1]).unwrap().sha256, &"0".repeat(64)))
        .unwrap();
    let said = refused(&world, &["ami"], 6).await;
    assert!(said.contains("step ReplaceNode") && said.contains("checksum did NOT match"), "{said}");
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_copied_and_shared() {
    let world = baking("amazon-linux-2023").await;
    let text = std::fs::read_to_string(world.config()).unwrap();
    let image = "[image_defaults]\ncopy_to = [\"eu-west-1\"]\nshare_with = [\"123456789012\"]\n\
                 kms_key = \"arn:aws:kms:eu-central-1:000000000000:key/mrk-12\"\n\n[fleet.linux]";
    std::fs::write(world.config(), text.replace("[fleet.linux]", image)).unwrap();
    world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    let baked = world.aws.images().remove(0);
    assert_eq!(baked.shared_with, ["123456789012"]);
    let parameter = "/kiln-rehearsal/image/al2023-x86-64";
    let recorded = world.aws.parameter("eu-west-1", parameter).await.unwrap();
    assert_eq!(recorded.as_deref(), Some(baked.copies["eu-west-1"].as_str()));
    assert_ne!(recorded.as_deref(), Some(baked.ami.as_str()));
    let again = world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    assert!(again.stderr.contains("nothing to do"), "{}", again.stderr);
    assert_modelled(&world);
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_github_does_not_publish_is_refused_before_a_build_where_github_can_be_asked() {
    let world = baking("amazon-linux-2023").await;
    let planned = world.run(&["ami", "--dry-run"], quiet).await.unwrap().success().unwrap();
    assert!(planned.stderr.contains("no key of the App is installed yet"), "{}", planned.stderr);

    let pem = world.download_key("key.pem").unwrap();
    world.run(&["rotate-key", "--pem", pem.to_str().unwrap()], quiet).await.unwrap().success().unwrap();
    let planned = world.run(&["ami", "--dry-run"], quiet).await.unwrap().success().unwrap();
    assert!(planned.stderr.contains("is what GitHub publishes"), "{}", planned.stderr);

    let text = std::fs::read_to_string(world.config()).unwrap();
    let pinned = world.github.runner_release(VERSIONS[0]).unwrap().sha256;
    std::fs::write(world.config(), text.replace(&pinned, &"0".repeat(64))).unwrap();
    let before = world.aws.mutations();
    let said = refused(&world, &["ami"], 3).await;
    assert!(said.contains(&pinned) && said.contains("cargo xtask pin"), "{said}");
    assert_eq!(world.aws.mutations(), before);
    world.shutdown().await.unwrap();
}

/// An image whose sources did not change is known without a build of the binary, from any machine.
#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_checkout_is_known_without_a_build() {
    let world = baking("amazon-linux-2023").await;
    bootstrap();
    let own = async || {
        let mut command = world.command_as_given(&["ami"]);
        let output = command.output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        (String::from_utf8(output.stdout).unwrap(), said)
    };
    let (ami, said) = own().await;
    assert!(said.contains("building the bootstrap binary"), "{said}");
    let before = world.aws.mutations();
    let (again, said) = own().await;
    assert_eq!(again, ami);
    assert!(said.contains("nothing to do") && !said.contains("building the bootstrap binary"), "{said}");
    assert_eq!(world.aws.mutations(), before);
    world.shutdown().await.unwrap();
}

#[test]
fn the_binary_says_what_it_is_made_of() {
    let crates = sbom::crates(&std::fs::read(bootstrap()).unwrap()).expect("it was built by cargo-auditable");
    let names: Vec<&str> = crates.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["kiln-bootstrap", "kiln-github", "tokio", "rustls", "aws-lc-rs"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(!names.contains(&"aws-sdk-ec2"), "what only the operator's side uses is not in it");
}

/// Whoever made it first decides what runs as root.
#[tokio::test(flavor = "multi_thread")]
async fn a_component_with_another_content_is_not_used() {
    let world = baking("amazon-linux-2023").await;
    world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    world.aws.replace_component("kiln-proof", "name: kiln-proof\nschemaVersion: 1.0\nphases: []\n");
    let text = std::fs::read_to_string(world.config()).unwrap();
    // Another image, of the same components.
    let other = "[image_defaults]\ncopy_to = [\"eu-west-1\"]\n\n[fleet.linux]";
    std::fs::write(world.config(), text.replace("[fleet.linux]", other)).unwrap();
    let before = world.aws.mutations();
    let said = refused(&world, &["ami"], 5).await;
    assert!(said.contains("component kiln-proof/") && said.contains("its document is another one"), "{said}");
    assert_eq!(world.aws.mutations(), before);
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_images_are_built_is_looked_at_before_anything_is_made() {
    let world = baking("amazon-linux-2023").await;
    let text = std::fs::read_to_string(world.config()).unwrap();
    let with = |more: &str| text.replace("[fleet.linux]", &format!("[image_defaults]\n{more}\n\n[fleet.linux]"));
    for (more, why) in [
        ("network = { vpc = \"vpc-00000001\", subnet = \"subnet-0000dead\" }", "subnet-0000dead: there is none"),
        (
            "network = { vpc = \"vpc-0000dead\", subnet = \"subnet-00000001\" }",
            "it is in vpc-00000001, not in vpc-0000dead",
        ),
        ("instance_types = [\"m7i-flex.large\"]", "offers none of the instance types to build image al2023-x86-64 on"),
    ] {
        std::fs::write(world.config(), with(more)).unwrap();
        let said = refused(&world, &["ami"], 5).await;
        assert!(said.contains(why), "{more}: {said}");
    }
    assert_eq!(world.aws.mutations(), 0);

    // A group of one's own, and of two types the one that is offered.
    let own = "network = { vpc = \"vpc-00000001\", subnet = \"subnet-00000001\", security_group = \"sg-00000001\" }\n\
               instance_types = [\"m7i-flex.large\", \"m6i.large\"]";
    std::fs::write(world.config(), with(own)).unwrap();
    world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    let bodies = world.aws.bodies();
    let sent = bodies.iter().find(|(call, _)| call == "imagebuilder:CreateInfrastructureConfiguration").unwrap();
    let sent: serde_json::Value = serde_json::from_slice(&sent.1).unwrap();
    assert_eq!(sent["securityGroupIds"], serde_json::json!(["sg-00000001"]));
    assert_eq!(sent["instanceTypes"], serde_json::json!(["m6i.large"]));
    assert_eq!(sent["resourceTags"]["kiln:managed"], "true");
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_on_which_a_build_failed_is_kept_where_it_is_asked_for() {
    let world = baking("amazon-linux-2023").await;
    world.aws.fail_build_step("build/kiln-runner/Unpack");
    let said = refused(&world, &["ami", "--keep-on-failure"], 6).await;
    for part in ["aws ssm start-session --target i-", "aws ec2 terminate-instances --instance-ids i-", "phase build"] {
        assert!(said.contains(part), "no `{part}` in {said}");
    }
    // Without it the next one is not.
    let said = world.run(&["ami"], quiet).await.unwrap().success().unwrap().stderr;
    assert!(said.contains("put infrastructure configuration"), "{said}");
    world.shutdown().await.unwrap();
}

/// Who may write a parameter can't have just any image launched with the right to sign as the App.
#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_image_that_was_not_baked_here_is_not_deployed() {
    let world = baking("amazon-linux-2023").await;
    let pem = world.download_key("key.pem").unwrap();
    world.run(&["rotate-key", "--pem", pem.to_str().unwrap()], quiet).await.unwrap().success().unwrap();
    let age = std::time::Duration::from_secs(60);
    let parameter = "/kiln-rehearsal/image/al2023-x86-64";
    for (kind, why) in [
        ("somebody-s", "its tag kiln:image is somebody-s"),
        ("kiln-rehearsal-image-al2-x86-64", "its tag kiln:image is kiln-rehearsal-image-al2-x86-64"),
        ("kiln-rehearsal-image-al2023-x86-64", "it has no tag kiln:inputs"),
    ] {
        let ami = world.aws.plant_image(world.aws.region(), kind, age).await.unwrap();
        world.aws.put_parameter(parameter, &ami).await.unwrap();
        let said = refused(&world, &["deploy", "--fleet", "linux"], 5).await;
        assert!(said.contains(&ami) && said.contains(why), "{kind}: {said}");
    }
    world.shutdown().await.unwrap();
}
