//! What a person gets wrong: each is one paragraph with a hint and its documented exit code, and nothing is half done.

use crate::support::{quiet, refused, world};
use kiln_e2e::story::{FLEETS, VERSIONS};

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_none_of_this_apps_are_refused_before_anything_changes() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let other = world.write_pem("other.pem", &world.github.other_apps_key()).unwrap();
    let ec = world.path("ec.pem");
    let made = std::process::Command::new("openssl")
        .args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"])
        .arg(&ec)
        .output()
        .unwrap();
    assert!(made.status.success());
    let text = world.write_pem("text.pem", "not a key").unwrap();
    let before = world.aws.mutations();

    let said = refused(&world, &["rotate-key", "--pem", other.to_str().unwrap()], 4).await;
    assert!(said.contains("it is another App's, or has been deleted"), "{said}");
    let said = refused(&world, &["rotate-key", "--pem", ec.to_str().unwrap()], 3).await;
    assert!(said.contains("RSA"), "{said}");
    refused(&world, &["rotate-key", "--pem", text.to_str().unwrap()], 3).await;
    refused(&world, &["rotate-key", "--pem", "/nowhere.pem"], 3).await;
    assert_eq!(world.aws.mutations(), before);
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_credentials_and_an_unreachable_region_have_their_own_hints() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let outcome =
        world.command(&["deploy"]).env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY").output();
    let outcome = outcome.await.unwrap();
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert_eq!(outcome.status.code(), Some(4), "{said}");
    assert!(said.contains("aws sts get-caller-identity"), "{said}");

    let outcome = world.command(&["deploy"]).env("AWS_ENDPOINT_URL", "http://127.0.0.1:9").output().await.unwrap();
    let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
    assert_eq!(outcome.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("check that `region` in kiln.toml (`{}`)", world.aws.region())), "{said}");
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn deploy_names_what_has_to_be_done_first() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let said = refused(&world, &["deploy"], 5).await;
    assert!(said.contains("rotate-key --pem"), "{said}");
    let pem = world.download_key("key.pem").unwrap();
    world.run(&["rotate-key", "--pem", pem.to_str().unwrap()], quiet).await.unwrap().success().unwrap();
    let said = refused(&world, &["deploy"], 5).await;
    assert!(said.contains("run `cargo xtask ami` first"), "{said}");

    world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    let images = world.aws.images();
    world.aws.deregister_image(&images[0].ami).await.unwrap();
    let said = refused(&world, &["deploy"], 5).await;
    assert!(said.contains(&images[0].ami) && said.contains("does not exist"), "{said}");

    let out = world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    assert_ne!(out.stdout.trim_end(), images[0].ami, "the AMI that was removed is not the one to bake anew");
    world.shutdown().await.unwrap();
}
