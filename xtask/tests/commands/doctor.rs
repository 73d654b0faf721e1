//! `doctor` finds what is wrong, says how it is mended, and finds nothing when that was done.

use std::collections::BTreeSet;

use kiln_config::config::Config;
use kiln_e2e::story::{FLEETS, VERSIONS};
use kiln_operations::doctor::rights::needed;
use kiln_operations::ports::Caller;
use serde_json::Value;

use crate::models::assert_modelled;
use crate::support::{World, quiet, world};

/// Everything but one thing that `deploy` needs.
const ALMOST: &str = r#"{"Version":"2012-10-17","Statement":[
    {"Effect":"Allow","Action":"*","Resource":"*"},
    {"Effect":"Deny","Action":"cloudformation:ExecuteChangeSet","Resource":"*"}]}"#;
const ALL: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}"#;

/// A fleet with its keys, the others as in every rehearsal.
fn fleet(name: &str, keys: &str) -> String {
    let network = if keys.contains("network") {
        ""
    } else {
        "network = { vpc = \"vpc-00000001\", subnets = [\"subnet-00000001\", \"subnet-00000002\"] }\n"
    };
    let types = if keys.contains("instance_types") { "" } else { "instance_types = [\"m6i.large\"]\n" };
    let max = if keys.contains("max") { "" } else { "max = 2\n" };
    format!("[fleet.{name}]\nmin = 1\n{max}{types}{network}{keys}\n")
}

/// The findings, and the exit code.
async fn findings(world: &World, environment: &[(&'static str, String)]) -> (Vec<Value>, Option<i32>) {
    let mut command = world.command(&["doctor", "--skip-machine", "--json"]);
    let output = command.envs(environment.iter().map(|(name, value)| (name, value))).output().await.unwrap();
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    (list["result"]["findings"].as_array().unwrap().clone(), output.status.code())
}

/// The finding of a check that names something; its hint must name the remedy.
#[track_caller]
fn found(findings: &[Value], verdict: &str, check: &str, what: &str, hint: &str) {
    let says = |finding: &&Value, key: &str, text: &str| finding[key].as_str().is_some_and(|said| said.contains(text));
    let of_check = findings.iter().filter(|finding| finding["check"] == check && finding["verdict"] == verdict);
    let named: Vec<&Value> = of_check.filter(|finding| says(finding, "what", what)).collect();
    assert_eq!(named.len(), 1, "{check}: {what}: {findings:#?}");
    assert!(hint.is_empty() || says(&named[0], "hint", hint), "the hint does not name {hint}: {:#}", named[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_planted_faults_are_found_in_one_run_and_mended_by_their_hints() {
    let world = world().await;
    // A key and an image to begin with; the image is then removed by hand.
    world.write_config(VERSIONS[0], &fleet("linux", "")).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    let pem = pem.to_str().unwrap();
    world.run(&["rotate-key", "--pem", pem], quiet).await.unwrap().success().unwrap();
    let ami = world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    world.aws.deregister_image(ami.stdout.trim_end()).await.unwrap();

    let (vpc, dead_end) = world.aws.make_dead_end().await.unwrap();
    world.aws.set_vcpu_quota(8);
    world.github.add_runner_group("closed");
    world.github.limit_runner_group("closed", Some(0), false);
    let fleets = [
        fleet("unoffered", "instance_types = [\"m99.large\"]\n"),
        fleet("nowhere", "network = { vpc = \"vpc-00000001\", subnets = [\"subnet-0000dead\"] }\n"),
        fleet("foreign", &format!("network = {{ vpc = \"vpc-00000001\", subnets = [\"{dead_end}\"] }}\n")),
        fleet("dead-end", &format!("network = {{ vpc = \"{vpc}\", subnets = [\"{dead_end}\"] }}\n")),
        fleet("secret", "key_store = \"secrets-manager\"\n"),
        fleet("groupless", "runner_group = \"absent\"\n"),
        fleet("closed", "runner_group = \"closed\"\n"),
        fleet("many", "max = 100\n"),
        // By the proxy, if not by a route.
        fleet(
            "proxied",
            &format!(
                "network = {{ vpc = \"{vpc}\", subnets = [\"{dead_end}\"] }}\n\
                 environment = {{ https_proxy = \"proxy.corp:3128\", no_proxy = \".amazonaws.com\" }}\n"
            ),
        ),
    ];
    world.write_config(VERSIONS[0], &fleets.concat()).unwrap();
    let limited = world.aws.user_with_policy("limited", ALMOST).await.unwrap();
    let (planted, code) = findings(&world, &limited).await;
    assert_eq!(code, Some(5), "{planted:#?}");
    let wrong = |check: &str, what: &str, hint: &str| found(&planted, "wrong", check, what, hint);
    wrong("permissions", "cloudformation:ExecuteChangeSet", "grant");
    wrong("quota", "8 vCPUs", "Service Quotas");
    wrong("instance-types", "m99.large", "instance_types");
    wrong("subnets", "no subnet subnet-0000dead", "create-vpc");
    wrong("subnets", &format!("is in {vpc}, not in vpc-00000001"), &format!("vpc = \"{vpc}\""));
    wrong("subnets", "no route to 0.0.0.0/0", "NAT gateway");
    wrong("app-key", "none in secrets-manager", "rotate-key --pem");
    wrong("runner-groups", "no runner group `absent`", "Default");
    wrong("runner-groups", "no repository may use runner group `closed`", "select repositories");
    wrong("image", "does not exist any more", "cargo xtask ami");
    found(&planted, "ok", "proxy", "fleet `proxied`: http://proxy.corp:3128; calls to AWS go past it", "");
    let others: Vec<_> = planted.iter().filter(|finding| finding["verdict"] == "wrong").collect();
    assert_eq!(others.len(), 10, "nothing else is wrong: {others:#?}");

    // What the hints say.
    let mended = [
        fleet("unoffered", "instance_types = [\"m6i.large\"]\n"),
        fleet("nowhere", "network = \"create-vpc\"\n"),
        fleet("secret", "key_store = \"secrets-manager\"\n"),
        fleet("groupless", "runner_group = \"Default\"\n"),
        fleet("closed", "runner_group = \"closed\"\n"),
        fleet("many", "max = 100\n"),
    ];
    world.write_config(VERSIONS[0], &mended.concat()).unwrap();
    world.aws.set_vcpu_quota(512);
    world.github.limit_runner_group("closed", Some(3), false);
    world.run(&["rotate-key", "--pem", pem], quiet).await.unwrap().success().unwrap();
    world.run(&["ami"], quiet).await.unwrap().success().unwrap();
    let granted = world.aws.user_with_policy("granted", ALL).await.unwrap();
    let (after, code) = findings(&world, &granted).await;
    assert_eq!(code, Some(0), "{after:#?}");
    assert_modelled(&world);
    // That fleets have the same labels is a notice of kiln.toml's, and meant here.
    let rest: Vec<_> = after.iter().filter(|finding| finding["check"] != "kiln.toml").collect();
    assert!(rest.iter().all(|finding| finding["verdict"] == "ok") && rest.len() > 20, "{rest:#?}");
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_github_refuses_is_told_with_what_an_owner_does_about_it() {
    let world = world().await;
    world.write_config(VERSIONS[0], &fleet("linux", "")).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    world.run(&["rotate-key", "--pem", pem.to_str().unwrap()], quiet).await.unwrap().success().unwrap();
    let look = async |verdict, check, what, hint| {
        let (planted, code) = findings(&world, &[]).await;
        found(&planted, verdict, check, what, hint);
        assert_eq!(code, Some(if verdict == "wrong" { 5 } else { 0 }), "{planted:#?}");
    };
    look("note", "image", "none is recorded", "cargo xtask ami").await;

    world.github.suspend(true);
    look("wrong", "installation", "suspended since", "Unsuspend").await;
    world.github.suspend(false);
    world.github.grant(false);
    look("wrong", "app-permissions", "no access", "read and write").await;
    world.github.grant(true);
    world.github.grant_too("contents", "write");
    look("note", "app-permissions", "contents: write", "remove permissions").await;
    world.github.limit_runner_group("Default", None, true);
    look("note", "runner-groups", "public repositories may use", "disallow").await;
    let refused = world.command(&["deploy"]).output().await.unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(5) && said.contains("error[runner-group-public]"), "{said}");
    let meant = world.command(&["deploy", "--allow-public-repositories"]).output().await.unwrap();
    let said = String::from_utf8_lossy(&meant.stderr).into_owned();
    assert!(said.contains("error[image-not-recorded]"), "the group is no obstacle any more: {said}");
    world.github.install(false);
    look("wrong", "installation", "not installed", "install").await;
    world.github.install(true);
    let key = world.github.keys().remove(0);
    world.github.revoke_key(&key);
    look("wrong", "app", "could not be decoded", "rotate-key").await;
    world.shutdown().await.unwrap();
}

/// What IAM is asked about is what the commands do: a call that is missing here is one that a pipeline is refused.
#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_the_commands_is_among_the_rights_that_are_looked_at() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    for arguments in [&["rotate-key", "--pem", pem.to_str().unwrap()][..], &["ami"], &["deploy"]] {
        world.run(arguments, quiet).await.unwrap().success().unwrap();
    }
    let text = std::fs::read_to_string(world.config()).unwrap();
    let config = Config::from_toml("kiln.toml", &text).unwrap();
    let caller = Caller {
        partition: "aws".to_owned(),
        account: "000000000000".to_owned(),
        arn: "arn:aws:iam::0:root".to_owned(),
    };
    let needed: BTreeSet<String> = needed(&config, &caller).into_iter().map(|right| right.action).collect();
    let made: BTreeSet<String> = world
        .aws
        .requests()
        .into_iter()
        .map(|request| match (request.service.as_str(), request.operation.as_str()) {
            // S3's actions have other names than its requests.
            ("s3", operation) if operation == "HeadObject" || operation.starts_with("GET ") => {
                "s3:GetObject".to_owned()
            }
            ("s3", operation) if operation.starts_with("PUT ") => "s3:PutObject".to_owned(),
            (service, operation) => format!("{service}:{operation}"),
        })
        .collect();
    let missing: Vec<_> = made.difference(&needed).collect();
    assert!(missing.is_empty() && made.len() > 20, "{missing:?} of {made:?}");
    assert_modelled(&world);
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_or_kiln_toml_the_rest_is_said_not_to_be_looked_at() {
    let world = world().await;
    world.write_config(VERSIONS[0], &fleet("linux", "")).unwrap();
    let nobody = [("AWS_ACCESS_KEY_ID", String::new()), ("AWS_SECRET_ACCESS_KEY", String::new())];
    let (planted, code) = findings(&world, &nobody).await;
    assert_eq!(code, Some(4));
    found(&planted, "wrong", "credentials", "credentials", "AWS_PROFILE");
    found(&planted, "unknown", "github", "GitHub", "fix the credentials first");

    std::fs::write(world.config(), "organization = 7\n").unwrap();
    let (planted, code) = findings(&world, &[]).await;
    assert_eq!(code, Some(3));
    found(&planted, "wrong", "kiln.toml", "organization", "");
    let said = planted.iter().find(|finding| finding["check"] == "kiln.toml").unwrap()["what"].as_str().unwrap();
    assert_eq!(said.matches("`organization` is an integer").count(), 1, "{said}");
    world.shutdown().await.unwrap();
}
