//! Five hundred instances.

use crate::env::RolloutEnv;

const INSTANCES: u32 = 500;

/// Five pages of the fleet's runners, and as many again while old and new ones are online.
const MOST_PAGES: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_of_five_hundred_asks_by_the_page_and_not_by_the_instance() {
    let mut world = RolloutEnv::new(INSTANCES).await;
    world.bake().await;
    world.deploy(&world.request()).await;
    let (_, version) = world.bake().await;

    let calls = |world: &RolloutEnv| world.local.requests().len();
    let asked = |world: &RolloutEnv| world.github.count("GET", "actions/runners?");
    let (calls_before, asked_before) = (calls(&world), asked(&world));
    let looks_before = world.github.count("GET", "per_page=100&page=1");
    world.deploy(&world.request()).await;
    assert!(world.serves(&version));
    let looks = world.github.count("GET", "per_page=100&page=1") - looks_before;
    let (calls, asked) = (calls(&world) - calls_before, asked(&world) - asked_before);
    eprintln!("{calls} calls to AWS; {asked} to GitHub in {looks} looks");
    assert!(asked <= looks * MOST_PAGES, "{asked} requests to GitHub in {looks} looks");
    let details = world.local.requests().iter().filter(|call| call.operation.contains("AutoScalingInstances")).count();
    assert_eq!(details, 0, "instances are described with their group");
    assert!(calls < INSTANCES as usize, "{calls} calls to AWS for {INSTANCES} instances");

    let mutations = world.local.mutations();
    assert!(world.deploy(&world.request()).await.is_empty());
    assert_eq!(world.local.mutations(), mutations);
    world.local.shutdown().await;
}
