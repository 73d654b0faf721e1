//! What `deploy` does beside rolling out: a canary's check, the way back, the lock. The library's own tests have the rest.

use kiln_e2e::story::VERSIONS;

use crate::models::assert_modelled;
use crate::support::{World, quiet, refused, world};

const FLEET: &str = r#"
[fleet.linux]
labels = ["linux-x64"]
registration = "persistent"
instance_types = ["m6i.large", "m5.large"]
min = 1
max = 2
network = { vpc = "vpc-00000001", subnets = ["subnet-00000001", "subnet-00000002"] }
key_store = "kms"
failed_boot_grace_secs = 1
job_metadata_access = "allowed"
"#;

async fn well(world: &World, arguments: &[&str]) -> String {
    world.run(arguments, quiet).await.unwrap().success().unwrap().stderr
}

/// The version of the one runner that is online.
fn serving(world: &World) -> String {
    let online: Vec<_> = world.github.runners().into_iter().filter(|runner| runner.online).collect();
    assert_eq!(online.len(), 1, "{online:?}");
    online[0].version.clone().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_is_tried_and_a_good_image_can_be_left_again() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEET).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    well(&world, &["rotate-key", "--pem", pem.to_str().unwrap()]).await;
    well(&world, &["ami"]).await;
    well(&world, &["deploy"]).await;
    let said = refused(&world, &["deploy", "--rollback"], 5).await;
    assert!(said.contains("no image that was in service before"), "{said}");

    world.write_config(VERSIONS[1], FLEET).unwrap();
    well(&world, &["ami"]).await;
    let said = refused(&world, &["deploy", "--canary-check", "echo not today; exit 3"], 6).await;
    assert!(said.contains("not today") && said.contains("rolled back: the previous version is in service"), "{said}");
    assert!(said.contains("already done:"), "{said}");
    assert_eq!(serving(&world), VERSIONS[0]);

    let seen = world.path("seen");
    let check = format!("echo $KILN_FLEET $KILN_RUNNER $KILN_INSTANCE > {}", seen.display());
    // As kiln.toml says it, where the command line says nothing.
    world.write_config(VERSIONS[1], &format!("{FLEET}canary_check = \"{check}\"\n")).unwrap();
    well(&world, &["deploy"]).await;
    assert_eq!(serving(&world), VERSIONS[1]);
    let seen = std::fs::read_to_string(seen).unwrap();
    let [fleet, runner, instance] = seen.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{seen:?}") };
    assert_eq!((fleet, runner), ("linux", format!("linux-{instance}").as_str()));

    well(&world, &["deploy", "--rollback"]).await;
    assert_eq!(serving(&world), VERSIONS[0]);
    for again in [&["deploy", "--rollback"][..], &["deploy", "--all"]] {
        let before = world.aws.mutations();
        assert!(well(&world, again).await.contains("nothing to do"));
        assert_eq!(world.aws.mutations(), before, "{again:?} with nothing to do made a mutating call");
    }
    let said = well(&world, &["deploy", "--retry", "--dry-run"]).await;
    assert!(said.contains("forget that ami-") && said.contains("kiln:runner-version: 2.337.1 -> 2.338.0"), "{said}");
    assert_modelled(&world);
    world.shutdown().await.unwrap();
}

/// The most memory that a rollout of so many instances takes, in KiB.
async fn peak_kib(instances: u32) -> u64 {
    let world = world().await;
    let size = |name: &str, from: u32| (format!("{name} = {from}"), format!("{name} = {instances}"));
    let [(min, its_min), (max, its_max)] = [size("min", 1), size("max", 2)];
    world.write_config(VERSIONS[0], &FLEET.replace(&min, &its_min).replace(&max, &its_max)).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    well(&world, &["rotate-key", "--pem", pem.to_str().unwrap()]).await;
    world.aws.simulate_instances(&world.github);
    world.aws.make_bucket("kiln-rehearsal-000000000000-eu-central-1").await.unwrap();
    let mut peak = 0;
    for version in VERSIONS {
        let ami = world.aws.add_image("kiln-rehearsal-image-al2023-x86-64", version).await.unwrap();
        world.aws.put_parameter("/kiln-rehearsal/image/al2023-x86-64", &ami).await.unwrap();
        let mut running = world.spawn(&["deploy"], quiet).unwrap();
        let status = format!("/proc/{}/status", running.id().unwrap());
        let mut look = tokio::time::interval(std::time::Duration::from_millis(20));
        loop {
            tokio::select! {
                () = running.exited() => break,
                _ = look.tick() => {}
            }
            let status = std::fs::read_to_string(&status).unwrap_or_default();
            let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next());
            peak = peak.max(most.and_then(|kib| kib.parse().ok()).unwrap_or(0));
        }
        running.end().await.unwrap().success().unwrap();
    }
    let online = world.github.runners().iter().filter(|runner| runner.online).count();
    assert_eq!(online, usize::try_from(instances).unwrap());
    world.shutdown().await.unwrap();
    peak
}

/// What is kept of an instance is a few hundred bytes; what is read of GitHub is read by the page.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_fleet_takes_no_more_memory_than_a_small_one() {
    let (small, large) = (peak_kib(10).await, peak_kib(500).await);
    eprintln!("{small} KiB for 10 instances, {large} KiB for 500");
    assert!(small > 10_000, "{small} KiB: was it seen?");
    assert!(large < small + 16 * 1024, "{small} KiB for 10 instances, {large} KiB for 500");
}
