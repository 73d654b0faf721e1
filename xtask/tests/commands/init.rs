//! `init` writes a kiln.toml that the other commands read, asks AWS about its subnets, and replaces nobody's work.

use kiln_config::config::Config;
use kiln_operations::init::{EXAMPLE, FILES};

use crate::support::{World, on_a_terminal, quiet, refused, world};

const SUBNETS: &str = "vpc-00000001:subnet-00000001,subnet-00000002";

fn arguments<'a>(network: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all =
        vec!["init", "--organization", "octo-org", "--region", "eu-central-1", "--client-id", "Iv23liOURS0000000000"];
    all.extend(["--network", network]);
    all.extend(more);
    all
}

fn written(world: &World) -> Config {
    let text = std::fs::read_to_string(world.config()).unwrap();
    Config::from_toml("kiln.toml", &text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kiln_toml_is_written_once_and_its_subnets_are_looked_at() {
    let world = world().await;
    let (vpc, dead_end) = world.aws.make_dead_end().await.unwrap();
    let said = refused(&world, &arguments(&format!("{vpc}:{dead_end}"), &[]), 3).await;
    assert!(said.contains("no route to the internet"), "{said}");
    let said = refused(&world, &arguments("vpc-00000001:subnet-0000dead", &[]), 3).await;
    assert!(said.contains("no subnet subnet-0000dead"), "{said}");
    assert!(!world.config().exists(), "what was refused is not written");

    let outcome = world.run(&arguments(SUBNETS, &[]), quiet).await.unwrap().success().unwrap();
    assert!(outcome.stderr.contains("AWS account 000000000000") && outcome.stderr.contains("rotate-key --pem"));
    assert_eq!(written(&world).organization.as_str(), "octo-org");
    for (name, text) in FILES {
        assert_eq!(std::fs::read_to_string(world.path(name)).unwrap(), text, "{name}");
    }

    let said = refused(&world, &arguments("create-vpc", &[]), 3).await;
    assert!(said.contains("is there already"), "{said}");
    world
        .run(&arguments("create-vpc", &["--force", "--installation-id", "7"]), quiet)
        .await
        .unwrap()
        .success()
        .unwrap();
    assert_eq!(written(&world).app.installation_id, Some(7));
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_of_anybody_is_replaced_and_none_is_written_next_to_one() {
    let world = world().await;
    let mine = ".github/workflows/kiln-release.yml";
    std::fs::create_dir_all(world.path(".github/workflows")).unwrap();
    std::fs::write(world.path(mine), "name: mine").unwrap();
    let said = refused(&world, &arguments("create-vpc", &["--offline"]), 3).await;
    assert!(said.contains(mine) && said.contains("is there already"), "{said}");
    assert!(!world.config().exists() && !world.path("kiln.schema.json").exists(), "all or nothing");
    world.run(&arguments("create-vpc", &["--offline", "--no-workflows"]), quiet).await.unwrap().success().unwrap();
    assert_eq!(std::fs::read_to_string(world.path(mine)).unwrap(), "name: mine");
    let written = std::fs::read_to_string(world.config()).unwrap();
    refused(&world, &["init", "--workflows"], 3).await;
    world.run(&["init", "--workflows", "--force"], quiet).await.unwrap().success().unwrap();
    assert_ne!(std::fs::read_to_string(world.path(mine)).unwrap(), "name: mine");
    assert_eq!(std::fs::read_to_string(world.config()).unwrap(), written, "`--workflows` leaves kiln.toml alone");
    // What is as it would be written is no obstacle.
    world.run(&["init", "--workflows"], quiet).await.unwrap().success().unwrap();
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_client_id_is_refused_by_init_and_by_every_command() {
    let world = world().await;
    let mut example = arguments("create-vpc", &["--offline"]);
    let at = example.iter().position(|argument| argument.starts_with("Iv23")).unwrap();
    example[at] = "Iv23liEXAMPLE0000000";
    let said = refused(&world, &example, 3).await;
    assert!(said.contains("error[placeholder-left]"), "{said}");
    std::fs::write(world.config(), EXAMPLE).unwrap();
    let before = world.aws.requests().len();
    let commands = [
        &["deploy"][..],
        &["ami"],
        &["status"],
        &["destroy", "--all", "--yes"],
        &["prune"],
        &["pin"],
        &["rotate-key", "--status"],
        &["up"],
        &["doctor", "--skip-machine"],
    ];
    for command in commands {
        let said = refused(&world, command, 3).await;
        assert!(said.contains("`Iv23liEXAMPLE0000000` is the example's"), "{command:?}: {said}");
    }
    assert_eq!(world.aws.requests().len(), before, "nothing was asked for an App that is nobody's");
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kiln_toml_of_another_version_says_so_whatever_else_is_in_it() {
    let world = world().await;
    std::fs::write(world.config(), "[kiln]\nversion = \"77.0\"\n[unheard_of]\nkey = 1\n").unwrap();
    for command in [&["deploy"][..], &["status"], &["doctor", "--skip-machine"]] {
        let said = refused(&world, command, 3).await;
        assert!(said.contains("is for Kiln 77.0, and this is Kiln "), "{said}");
        assert!(said.contains("install 77.0"), "{said}");
    }
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_what_is_missing_is_a_flag() {
    let world = world().await;
    let said = refused(&world, &["init", "--organization", "octo-org"], 3).await;
    assert!(said.contains("give --client-id"), "{said}");
    assert!(said.contains("/organizations/octo-org/settings/apps/new?name=kiln-octo-org"), "{said}");
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_it_asks_for_what_no_flag_gives_and_again_where_an_answer_is_wrong() {
    let world = world().await;
    tokio::task::block_in_place(|| {
        let mut terminal = on_a_terminal(&world, &["init", "--organization", "octo-org"]);
        terminal.exp_string("/organizations/octo-org/settings/apps/new?name=kiln-octo-org").unwrap();
        terminal.exp_string("Client id of the App").unwrap();
        terminal.send_line("0123456789abcdef0123456789abcdef01234567").unwrap();
        terminal.exp_string("that is a client secret").unwrap();
        terminal.send_line("Iv23liOURS0000000000").unwrap();
        terminal.exp_string("AWS region").unwrap();
        terminal.send_line("Mars").unwrap();
        terminal.exp_string("Mars").unwrap();
        terminal.exp_string("AWS region").unwrap();
        terminal.send_line("eu-central-9").unwrap();
        terminal.exp_string("is `eu-central-1` meant?").unwrap();
        terminal.send_line("eu-central-1").unwrap();
        terminal.exp_string("create-vpc").unwrap();
        terminal.send_line("vpc-00000001:subnet-0000dead").unwrap();
        terminal.exp_string("there is no subnet subnet-0000dead").unwrap();
        terminal.exp_string("create-vpc").unwrap();
        // Nothing is the answer that is offered.
        terminal.send_line("").unwrap();
        terminal.exp_string("AWS account 000000000000").unwrap();
        terminal.exp_string("wrote").unwrap();
        terminal.exp_eof().unwrap();
    });
    let config = written(&world);
    assert_eq!((config.organization.as_str(), config.region.as_str()), ("octo-org", "eu-central-1"));
    world.shutdown().await.unwrap();
}
