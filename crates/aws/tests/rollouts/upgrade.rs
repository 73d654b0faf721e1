//! A fleet that the first template made, with the parameters and the BootConfig of its time, is taken over by the present
//! `deploy`: in place, with a job running, and rolled to the next image. So is the stack of the bakes.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_image::payload::sha256;
use kiln_operations::ami::BAKE_TEMPLATE;
use kiln_operations::fleet_stack::stack_request;
use kiln_operations::ports::{ObjectStore as _, StackRequest, Stacks as _};
use kiln_operations::stacks::{self, StackStep, difference, grave};
use kiln_stand_ins::github::{Conclusion, JobState};
use serde_json::json;

use crate::env::{RolloutEnv, Said, process};
use crate::faults::converge;

const TEMPLATE: &str = include_str!("upgrade/fleet.yaml");

/// What was sent to the stack then, by name: the settings of the kiln.toml of `RolloutEnv`.
fn former(world: &RolloutEnv, ami: &str, version: &str) -> StackRequest {
    let boot_config = json!({
        "version": 1,
        "organization": "rehearsal",
        "fleet": "linux",
        "github": { "api_url": world.github.api_url(), "url": world.github.url() },
        "app": { "issuer": world.github.client_id(), "installation_id": world.github.installation_id() },
        "key": { "kms": "alias/kiln-rehearsal-app-key" },
        "registration": "persistent",
        "labels": ["linux-x64"],
        "runner_group": "Default",
        "runner": { "version": version, "user": "runner", "directory": "/opt/actions-runner" },
        "job_metadata_access": "blocked",
        "lifecycle": {
            "group": world.group(), "launch_hook": "kiln-launch", "termination_hook": "kiln-terminate",
            "termination_heartbeat_timeout_secs": 300, "drain_timeout_secs": 21600, "failed_boot_grace_secs": 300,
        },
    });
    let boot_config = boot_config.to_string();
    let parameters = [
        ("AmiId", ami),
        ("BootConfig", &boot_config),
        ("InstanceType1", "m6i.large"),
        ("InstanceType2", "m5.large"),
        ("InstanceType3", ""),
        ("InstanceType4", ""),
        ("InstanceType5", ""),
        ("MinSize", "2"),
        ("MaxSize", "2"),
        ("VpcId", "vpc-00000001"),
        ("SubnetIds", "subnet-00000001,subnet-00000002"),
        ("KeyAlias", "alias/kiln-rehearsal-app-key"),
        ("SecretName", ""),
        ("LaunchTimeoutSecs", "600"),
        ("TerminationHeartbeatSecs", "300"),
        ("ServingLaunchTemplateVersion", ""),
    ];
    StackRequest {
        name: world.group(),
        template: TEMPLATE.to_owned(),
        parameters: texts(&parameters),
        tags: texts(&[("kiln:managed", "true"), ("kiln:fleet", "linux")]),
    }
}

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_of_the_first_template_is_taken_over_with_a_job_running() {
    let mut world = RolloutEnv::new(2).await;
    let (ami, first) = world.bake().await;
    let request = former(&world, &ami, &first);
    let step = StackStep { difference: difference(None, &request).unwrap(), request: request.clone() };
    stacks::apply(&world.cloud, &step, &Said::default()).await.unwrap();
    let serving = |version: String| {
        let world = &world;
        async move {
            let bound = Duration::from_secs(60);
            world.github.until(bound, "runners that serve", |_| world.serves(&version).then_some(())).await.unwrap();
        }
    };
    serving(first.clone()).await;
    let before = world.cloud.stack(&request.name).await.unwrap().unwrap();

    // Nothing that jobs are on is made anew: nobody is asked.
    let now = stack_request(world.request().config, world.fleet(), &ami.parse().unwrap(), None, "1").unwrap();
    let change_set = world.cloud.change_set(&now).await.unwrap();
    assert!(!change_set.changes.is_empty() && grave(&change_set).is_none(), "{change_set:?}");
    world.cloud.discard(&change_set).await.unwrap();

    // The same image, by the present template: a release of Kiln alone.
    let busy = world.github.occupy(world.runners()[0].id).unwrap();
    let (said, request_now, pipeline) = (Said::default(), world.request(), process());
    let job = async {
        // New instances come up first; the job goes on beside them.
        let bound = Duration::from_secs(60);
        let more = world.github.until(bound, "a new runner", |_| (world.runners().len() > 2).then_some(())).await;
        more.unwrap();
        assert!(matches!(world.github.job(busy).state, JobState::InProgress { .. }), "the job was cut off");
        world.github.finish(busy);
    };
    let (taken, ()) = tokio::join!(world.run(&request_now, &pipeline, &said), job);
    let said = said.0.into_inner().unwrap().join("\n");
    let plan = taken.unwrap_or_else(|error| panic!("{error}\n{said}"));
    assert!(!plan.is_empty(), "{said}");
    let state = world.github.job(busy).state;
    let well = matches!(state, JobState::Completed { conclusion: Conclusion::Success, .. });
    assert!(well, "the job was lost: {state:?}");
    let after = world.cloud.stack(&request.name).await.unwrap().unwrap();
    assert_eq!(after.outputs["Group"], before.outputs["Group"]);
    assert_eq!(after.outputs["LaunchTemplateId"], before.outputs["LaunchTemplateId"]);
    serving(first.clone()).await;
    converge(&world, &world.request(), &|| said.clone()).await;

    // And from there on as ever: another image, and back.
    let (_, second) = world.bake().await;
    world.deploy(&world.request()).await;
    assert!(world.serves(&second), "{:?}", world.runners());
    world.local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_bakes_bucket_is_kept_with_what_is_in_it() {
    let world = RolloutEnv::new(1).await;
    let bucket = ("BucketName", "kiln-acme-000000000000-eu-central-1");
    let request = |template: &str, parameters: &[(&str, &str)]| StackRequest {
        name: "kiln-acme-bake".to_owned(),
        template: template.to_owned(),
        parameters: texts(parameters),
        tags: texts(&[("kiln:managed", "true")]),
    };
    let first = request(include_str!("upgrade/bake.yaml"), &[bucket]);
    let step = StackStep { difference: difference(None, &first).unwrap(), request: first.clone() };
    stacks::apply(&world.cloud, &step, &Said::default()).await.unwrap();
    let bytes = b"what an image writes down of itself".to_vec();
    world.cloud.put_blob(bucket.1, "images/0123/manifest.json", bytes.clone(), &sha256(&bytes)).await.unwrap();

    let now =
        request(BAKE_TEMPLATE, &[bucket, ("ImagePrefix", "kiln-acme"), ("VpcId", ""), ("PermissionsBoundary", "")]);
    let change_set = world.cloud.change_set(&now).await.unwrap();
    assert!(!change_set.changes.is_empty() && grave(&change_set).is_none(), "{change_set:?}");
    world.cloud.discard(&change_set).await.unwrap();
    let stack = world.cloud.stack(&now.name).await.unwrap().unwrap();
    let step = StackStep { difference: difference(Some(&stack), &now).unwrap(), request: now.clone() };
    stacks::apply(&world.cloud, &step, &Said::default()).await.unwrap();
    let stack = world.cloud.stack(&now.name).await.unwrap().unwrap();
    assert_eq!(difference(Some(&stack), &now), None);
    assert_eq!(stack.outputs["Bucket"], bucket.1);
    assert!(world.cloud.has_blob(bucket.1, "images/0123/manifest.json").await.unwrap());
    world.local.shutdown().await;
}
