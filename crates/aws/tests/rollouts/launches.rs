//! Launches that fail: the wait ends with the reason, long before AWS gives up.

use std::time::Instant;

use kiln_operations::Code;
use kiln_stand_ins::aws::ImageFault;

use crate::env::{RolloutEnv, Said, process};
use crate::faults::converge;

#[tokio::test(flavor = "multi_thread")]
async fn a_first_deploy_of_instances_that_never_boot_ends_with_the_reason() {
    let mut world = RolloutEnv::new(2).await;
    let (ami, version) = world.bake().await;
    world.local.spoil_image(&ami, Some(ImageFault::NeverBoots));
    let said = Said::default();
    let error = world.run(&world.request(), &process(), &said).await.unwrap_err();
    let said = said.0.into_inner().unwrap().join("\n");
    assert_eq!(error.code, Code::LaunchesFail, "{error}\n{said}");
    assert!(error.message.contains("Lifecycle Action Completed with ABANDON Result"), "{error}");
    assert!(said.contains("a launch of kiln-rehearsal-fleet-linux failed: "), "{said}");

    // Following the hint: what was wrong is fixed, and the same command again.
    world.local.spoil_image(&ami, None);
    converge(&world, &world.request(), &|| said.clone()).await;
    assert!(world.serves(&version), "{:?}", world.runners());
    world.local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_to_an_image_that_never_boots_is_taken_back_before_auto_scaling_gives_up() {
    let mut world = RolloutEnv::new(3).await;
    let (_, first) = world.bake().await;
    world.deploy(&world.request()).await;
    let (bad, _) = world.bake().await;
    world.local.spoil_image(&bad, Some(ImageFault::NeverBoots));
    for waits in [false, true] {
        world.local.wait_for_leaving(waits);
        let begun = Instant::now();
        let said = Said::default();
        let error = world.run(&world.request(), &process(), &said).await.unwrap_err();
        let said = said.0.into_inner().unwrap().join("\n");
        assert_eq!(error.code, Code::LaunchesFail, "{error}\n{said}");
        assert!(error.message.contains("rolled back: the previous version is in service"), "{error}");
        assert!(world.serves(&first), "{:?}", world.runners());
        eprintln!("taken back after {} ms", begun.elapsed().as_millis());
    }
    world.local.shutdown().await;
}
