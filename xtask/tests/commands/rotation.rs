//! The App's key over the years: rotated while instances boot, gone back from, kept, retired, moved to another store.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_e2e::story::{FLEETS, VERSIONS};
use kiln_stand_ins::aws::{Imds, ImdsOptions};
use kiln_stand_ins::machine::MachineFolder;
use serde_json::{Value, json};

use crate::models::assert_modelled;
use crate::support::{World, bootstrap, on_a_terminal, quiet, refused, world};

const STORES: [&str; 2] = ["kms", "secrets-manager"];

async fn run(world: &World, arguments: &[&str]) -> String {
    let arguments = [&["rotate-key"], arguments].concat();
    world.run(&arguments, quiet).await.unwrap().success().unwrap().stderr
}

async fn rotate(world: &World, pem: &Path, more: &[&str]) -> String {
    run(world, &[&["--pem", pem.to_str().unwrap()], more].concat()).await
}

/// The keys that `--status` tells of, in the form "store role fingerprint state accepted".
async fn keys(world: &World) -> Vec<String> {
    let outcome = world.run(&["rotate-key", "--status", "--json"], quiet).await.unwrap().success().unwrap();
    let document: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let status = &document["result"]["status"];
    assert!(
        status["settings_url"].as_str().unwrap().ends_with("/organizations/rehearsal/settings/apps/kiln-stand-ins"),
        "{status}"
    );
    let mut keys: Vec<String> = status["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| {
            ["store", "role", "fingerprint", "state", "accepted"]
                .map(|name| key[name].to_string())
                .join(" ")
                .replace('"', "")
        })
        .collect();
    keys.sort();
    keys
}

/// The same of both stores.
fn in_both(expected: &[String]) -> Vec<String> {
    let mut all: Vec<String> =
        STORES.iter().flat_map(|store| expected.iter().map(move |key| format!("{store} {key}"))).collect();
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_key_is_kept_gone_back_to_and_retired() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let said = refused(&world, &["rotate-key", "--status"], 5).await;
    assert!(said.contains("--pem FILE"), "{said}");
    let said = refused(&world, &["rotate-key", "--rollback"], 5).await;
    assert!(said.contains("has a former key"), "{said}");

    let first = world.download_key("first.pem").unwrap();
    rotate(&world, &first, &[]).await;
    let second = world.download_key("second.pem").unwrap();
    let said = rotate(&world, &second, &["--shred"]).await;
    assert!(!second.exists() && said.contains("overwritten and removed"), "{said}");
    let [old, new]: [String; 2] = world.github.keys().try_into().unwrap();
    let advice = format!("key {old} serves no more. Delete it at GitHub");
    assert!(said.contains(&advice) && said.contains("/organizations/rehearsal/settings/apps/"), "{said}");
    let rotated = [format!("current {new} usable true"), format!("previous {old} usable true")];
    assert_eq!(keys(&world).await, in_both(&rotated));

    let before = world.aws.mutations();
    let said = run(&world, &["--rollback", "--dry-run"]).await;
    assert!(said.contains(&format!("make {old} the current key in kms again, in place of {new}")), "{said}");
    assert_eq!(world.aws.mutations(), before);
    run(&world, &["--rollback"]).await;
    let back = keys(&world).await;
    assert!(back.contains(&format!("kms current {old} usable true")), "{back:#?}");
    assert!(back.contains(&format!("secrets-manager current {old} usable true")), "{back:#?}");
    let before = world.aws.mutations();
    let said = run(&world, &["--rollback"]).await;
    assert!(said.contains("nothing to do") && world.aws.mutations() == before, "again is not forth: {said}");

    // GitHub has forgotten the key that was rolled back from: it is not gone forth to, and what serves still does.
    let third = world.download_key("third.pem").unwrap();
    rotate(&world, &third, &["--keep-days", "0"]).await;
    world.github.revoke_key(&old);
    let said = refused(&world, &["rotate-key", "--rollback"], 4).await;
    assert!(said.contains("is current in kms") && said.contains("is current in secrets-manager"), "{said}");

    run(&world, &["--retire"]).await;
    let left = keys(&world).await;
    assert!(
        left.contains(&format!("kms other {old} pending-deletion null"))
            || left.contains(&format!("kms previous {old} pending-deletion null")),
        "{left:#?}"
    );
    assert!(!left.iter().any(|key| key.starts_with("secrets-manager previous")), "{left:#?}");
    let before = world.aws.mutations();
    assert!(run(&world, &["--retire"]).await.contains("nothing to do"));
    assert!(rotate(&world, &third, &[]).await.contains("nothing to do"));
    assert_eq!(world.aws.mutations(), before);

    let outcome =
        world.run(&["rotate-key", "--status", "--max-age-days", "1"], quiet).await.unwrap().success().unwrap();
    assert!(outcome.stdout.contains("in use for 0 day(s)"), "{}", outcome.stdout);
    let serving = world.github.keys().pop().unwrap();
    world.github.revoke_key(&serving);
    let said = refused(&world, &["rotate-key", "--status"], 4).await;
    assert!(said.contains(&serving) && said.contains("--rollback"), "{said}");
    assert_modelled(&world);
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_moves_to_another_store() {
    let world = world().await;
    let fleets = FLEETS.replace(r#"key_store = "secrets-manager""#, r#"key_store = "kms""#);
    world.write_config(VERSIONS[0], &fleets).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    rotate(&world, &pem, &[]).await;
    let fingerprint = world.github.keys().pop().unwrap();
    assert_eq!(keys(&world).await, [format!("kms current {fingerprint} usable true")]);

    world.write_config(VERSIONS[0], &fleets.replace(r#""kms""#, r#""secrets-manager""#)).unwrap();
    refused(&world, &["rotate-key", "--status"], 5).await;
    let said = rotate(&world, &pem, &[]).await;
    assert!(said.contains("no fleet uses kms any more"), "{said}");
    assert!(said.contains(&format!("keep {fingerprint} in kms until ")), "{said}");
    assert!(!said.contains("serves no more"), "it serves in the other store: {said}");
    let both = STORES.map(|store| format!("{store} current {fingerprint} usable true"));
    assert_eq!(keys(&world).await, both);
    assert!(rotate(&world, &pem, &[]).await.contains("nothing to do"));
    world.shutdown().await.unwrap();
}

/// What a pipeline hears that asks each week: how old the key is is read off what was written beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_too_old_is_told_by_its_own_exit_code() {
    let world = world().await;
    world
        .write_config(VERSIONS[0], &FLEETS.replace(r#"key_store = "secrets-manager""#, r#"key_store = "kms""#))
        .unwrap();
    let pem = world.download_key("key.pem").unwrap();
    rotate(&world, &pem, &[]).await;
    let status = ["rotate-key", "--status", "--max-age-days", "90", "--json"];
    let fresh = world.run(&status, quiet).await.unwrap().success().unwrap();
    let fresh: Value = serde_json::from_str(&fresh.stdout).unwrap();
    let key = &fresh["result"]["status"]["keys"][0];

    let record = "since=2026-01-01T00:00:00Z proved=2026-01-01T00:00:00Z";
    world.aws.tag_key(key["id"].as_str().unwrap(), "kiln:record", record).await.unwrap();
    let outcome = world.run(&status, quiet).await.unwrap();
    assert_eq!(outcome.code, Some(8), "{}", outcome.stderr);
    let due: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let message = due["error"]["message"].as_str().unwrap();
    let fingerprint = key["fingerprint"].as_str().unwrap();
    assert!(message.contains(fingerprint) && message.contains("more than 90"), "{due:#}");
    assert!(due["error"]["hint"].as_str().unwrap().contains("--pem FILE"), "{due:#}");
    // Its rotation ends that.
    rotate(&world, &world.download_key("next.pem").unwrap(), &[]).await;
    world.run(&status, quiet).await.unwrap().success().unwrap();
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_github_lacks_is_refused_before_anything_changes() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    let fingerprint = world.github.keys().pop().unwrap();
    let text = std::fs::read_to_string(&pem).unwrap();
    let cut = world.write_pem("cut.pem", &text[..text.len() / 2]).unwrap();
    let try_it = async |pem: &Path, code: i32, needle: &str| {
        let said = refused(&world, &["rotate-key", "--pem", pem.to_str().unwrap()], code).await;
        assert!(said.contains(needle), "{needle:?} is not in:\n{said}");
    };
    try_it(&cut, 3, "there is no `-----END").await;
    world.github.suspend(true);
    try_it(&pem, 4, "/organizations/rehearsal/settings/installations/").await;
    world.github.suspend(false);
    world.github.grant(false);
    try_it(&pem, 4, "lacks `organization_self_hosted_runners: write`").await;
    world.github.grant(true);
    world.github.install(false);
    try_it(&pem, 4, "install the App in the organization").await;
    world.github.install(true);
    world.github.revoke_key(&fingerprint);
    try_it(&pem, 4, &format!("or has been deleted: look for {fingerprint}")).await;
    let said = refused(&world, &["rotate-key", "--pem", "-", "--shred"], 3).await;
    assert!(said.contains("it is standard input"), "{said}");
    assert_eq!(world.aws.mutations(), 0);
    world.shutdown().await.unwrap();
}

/// A listener whose one job is done at once, in the words of the runner: the boot then ends by itself.
const ONE_JOB: &str = "#!/bin/sh
at=$(date -u '+%Y-%m-%d %H:%M:%SZ')
echo \"$at: Listening for Jobs\"
echo \"$at: Running job: build\"
echo \"$at: Job build completed with result: Succeeded\"
";

/// A machine on which a boot ends once it is registered.
struct Machine<'a> {
    world: &'a World,
    folder: MachineFolder,
}

impl<'a> Machine<'a> {
    fn new(world: &'a World) -> Self {
        let folder = MachineFolder::new(&world.github, VERSIONS[0]).unwrap();
        folder.write("opt/actions-runner/bin/Runner.Listener", ONE_JOB, 0o755).unwrap();
        Self { world, folder }
    }

    /// Boots with the key in this store. Gives the log of a boot that registered a runner.
    async fn boot(&self, store: &str, index: usize) -> Result<String, String> {
        let mut config = self.folder.boot_config(&self.world.github);
        config["registration"] = json!("ephemeral");
        config["key"] = match store {
            "kms" => json!({ "kms": "alias/kiln-rehearsal-app-key" }),
            _ => json!({ "secrets-manager": "kiln-rehearsal/app-key" }),
        };
        let instance = format!("i-{}{index:016x}", if store == "kms" { "0" } else { "1" });
        let user_data = Some(config.to_string());
        let options = ImdsOptions { instance, ami: "ami-1".to_owned(), user_data, target: Box::new(|| None) };
        let imds = Imds::start(options).await.unwrap();
        let mut command = self.folder.boot(bootstrap(), &imds);
        command.env("AWS_ENDPOINT_URL", self.world.aws.endpoint_url());
        let output = command.output().await.unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        if log.contains(r#""message":"registered""#) { Ok(log) } else { Err(log) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_boot_fails_during_twenty_rotations_nor_while_github_refuses_the_current_key() {
    const ROTATIONS: usize = 20;
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    // Each store's instances boot on a machine of their own. Each machine makes a key, too: those are the oldest.
    let machines = STORES.map(|store| (store, Machine::new(&world)));
    let pem = world.download_key("key.pem").unwrap();
    rotate(&world, &pem, &[]).await;
    let done = AtomicBool::new(false);
    let boots = async |(store, machine): &(&'static str, Machine<'_>)| {
        let mut logs = Vec::new();
        while !done.load(Ordering::Relaxed) {
            logs.push(machine.boot(store, logs.len()).await);
        }
        logs
    };
    let rotations = async {
        for index in 0..ROTATIONS {
            // As told: what serves no more is deleted at GitHub, the last one but one once no instance signs with it.
            let obsolete: Vec<String> = world.github.keys().into_iter().rev().skip(3).collect();
            obsolete.iter().for_each(|fingerprint| world.github.revoke_key(fingerprint));
            let pem = world.download_key(&format!("{index}.pem")).unwrap();
            rotate(&world, &pem, &[]).await;
        }
        done.store(true, Ordering::Relaxed);
    };
    let (kms, secret, ()) = tokio::join!(boots(&machines[0]), boots(&machines[1]), rotations);
    for (store, logs) in [("kms", kms), ("secrets-manager", secret)] {
        let failed: Vec<&String> = logs.iter().filter_map(|log| log.as_ref().err()).collect();
        assert!(failed.is_empty(), "{} of {} boots with {store} failed: {}", failed.len(), logs.len(), failed[0]);
        assert!(logs.len() > ROTATIONS / 2, "only {} boots with {store}", logs.len());
        println!("{} boots with {store}, none failed", logs.len());
    }

    // Somebody deletes the wrong key at GitHub.
    let serving = world.github.keys().pop().unwrap();
    world.github.revoke_key(&serving);
    for (store, machine) in &machines {
        let before = world.github.count("POST", "/access_tokens");
        let log = machine.boot(store, 9999).await.unwrap_or_else(|log| panic!("{store}: {log}"));
        assert!(log.contains("GitHub refuses the App's current key"), "{log}");
        assert_eq!(world.github.count("POST", "/access_tokens"), before + 2, "one request more");
    }
    world.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_the_file_is_shredded_only_by_a_yes() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    let asked = |answer: &str| {
        tokio::task::block_in_place(|| {
            let mut terminal = on_a_terminal(&world, &["rotate-key", "--pem", pem.to_str().unwrap()]);
            terminal.exp_string("[y/N]").unwrap();
            terminal.send_line(answer).unwrap();
            terminal.exp_eof().unwrap()
        })
    };
    for no in ["", "n", "yess"] {
        asked(no);
        assert!(pem.exists(), "{no:?} is no yes");
    }
    assert!(asked("y").contains("is overwritten and removed") && !pem.exists());
    world.shutdown().await.unwrap();
}
