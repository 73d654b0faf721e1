//! Back to the image that served before, and a lock that is held.

use std::time::Duration;

use kiln_operations::Code;
use kiln_operations::deploy::{Request, Target};
use kiln_stand_ins::aws::When;

use crate::env::{RolloutEnv, Said, kill, process};
use crate::faults::converge;

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_killed_at_every_call_ends_at_the_image_before_and_stays_there() {
    let mut world = RolloutEnv::new(2).await;
    let (_, first) = world.bake().await;
    world.deploy(&world.request()).await;
    let (bad, second) = world.bake().await;
    world.deploy(&world.request()).await;
    assert!(world.serves(&second));

    let back = Request { target: Target::Previous, ..world.request() };
    let mut kills = 0;
    for nth in 1..40 {
        let pipeline = process();
        // The lock, then one more of the rest each time: a change set that was made but not executed is made again.
        let reached = world.local.on_mutation(1 + nth % 4, When::After);
        let said = Said::default();
        let ended = tokio::select! {
            result = world.run(&back, &pipeline, &said) => {
                Some(result.unwrap_or_else(|error| panic!("{error}\n{}", said.0.lock().unwrap().join("\n"))))
            }
            () = reached => None,
        };
        world.local.disarm();
        match ended {
            Some(_) => break,
            None => kill(&pipeline),
        }
        kills += 1;
    }
    assert!((4..39).contains(&kills), "{kills} kills");
    assert!(world.serves(&first), "{:?}", world.runners());
    converge(&world, &back, &String::new).await;

    // The next pipeline does not roll out again what was rolled back from …
    let plan = world.deploy(&world.request()).await;
    assert!(plan.is_empty() && plan.settled.contains(&bad), "{plan}");
    // … until it is told to; and another image is rolled out as ever.
    world.deploy(&Request { target: Target::RetryLatest, ..world.request() }).await;
    assert!(world.serves(&second));
    let (_, third) = world.bake().await;
    world.deploy(&world.request()).await;
    assert!(world.serves(&third));
    converge(&world, &world.request(), &String::new).await;
    world.local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pipeline_names_the_first_and_waits_only_as_long_as_it_is_told_to() {
    let mut world = RolloutEnv::new(2).await;
    world.bake().await;
    world.deploy(&world.request()).await;
    world.bake().await;
    let busy = world.github.occupy(world.runners()[0].id).unwrap();

    let first = process();
    let name = first.name.clone();
    let request = world.request();
    let said = Said::default();
    let held = async {
        world
            .github
            .until(Duration::from_secs(30), "a new runner", |_| (world.runners().len() > 2).then_some(()))
            .await
            .unwrap();
        let error = world.run(&world.request(), &process(), &Said::default()).await.unwrap_err();
        assert_eq!(error.code, Code::FleetLocked);
        assert!(error.to_string().contains(&name), "{error}");
        assert!(error.hint.as_ref().is_some_and(|hint| hint.contains("--lock-wait")), "{:?}", error.hint);

        // Bounds are a hundred times shorter here.
        let patient = Request { lock_wait: Duration::from_secs(6000), ..world.request() };
        let release = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            world.github.finish(busy);
        };
        let (second, ()) = tokio::join!(world.deploy(&patient), release);
        assert!(!second.is_empty(), "it planned before the first one had ended");
    };
    let (first, ()) = tokio::join!(world.run(&request, &first, &said), held);
    first.unwrap();
    converge(&world, &world.request(), &String::new).await;
    world.local.shutdown().await;
}
