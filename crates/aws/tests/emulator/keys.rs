//! Both stores of the App's key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_config::config::Config;
use kiln_config::model::KeyStore;
use kiln_github::{AppKey, AppSigner as _};
use kiln_operations::Code;
use kiln_operations::keys::{KeyRecord, KeyState, StoreContents, Timestamp};
use kiln_operations::ports::{KeyNames, Keys as _, Progress, StackRequest, Stacks as _};
use kiln_operations::rotate_key::{self, StoreUse};
use kiln_operations::stacks::{self, StackStep, difference};
use kiln_operations::wait::TimeScale;
use kiln_stand_ins::github::{GitHub, GitHubOptions};

use crate::{Fixture, fixture};

fn names() -> KeyNames {
    KeyNames {
        alias: "alias/kiln-acme-app-key".to_owned(),
        secret: "kiln-acme/app-key".to_owned(),
        tags: BTreeMap::new(),
    }
}

/// PKCS#1 v1.5 is deterministic: whoever has the key makes the same signature.
const MESSAGE: &[u8] = b"header.claims";

const STORES: [KeyStore; 2] = [KeyStore::Kms, KeyStore::SecretsManager];

fn until(secs: u64) -> KeyRecord {
    KeyRecord { keep_until: Some(Timestamp::from_unix_secs(secs)), ..KeyRecord::default() }
}

fn key(github: &GitHub) -> AppKey {
    AppKey::from_pem(github.generate_key().as_bytes()).unwrap()
}

async fn contents(fixture: &Fixture, store: KeyStore) -> StoreContents {
    fixture.cloud.contents(&names(), store).await.unwrap()
}

/// A store with a current key, and one before it that is kept until then.
async fn rotated(fixture: &Fixture, store: KeyStore, former: &AppKey, current: &AppKey) {
    let (cloud, names) = (&fixture.cloud, names());
    let staged = cloud.stage_key(&names, store, former, &until(1)).await.unwrap();
    cloud.promote_key(&names, &staged, None).await.unwrap();
    let mut before = contents(fixture, store).await.current.unwrap();
    before.record = until(7);
    let staged = cloud.stage_key(&names, store, current, &until(1)).await.unwrap();
    cloud.promote_key(&names, &staged, Some(&before)).await.unwrap();
}

#[tokio::test]
async fn a_key_is_staged_proved_promoted_and_replaced() {
    let fixture = fixture().await;
    let cloud = &fixture.cloud;
    let github = GitHub::start(GitHubOptions::new("acme")).await.unwrap();
    let [first, second] = [(), ()].map(|()| key(&github));
    for store in STORES {
        let names = names();
        assert_eq!(cloud.current_key(&names, store).await.unwrap(), None);
        assert_eq!(contents(&fixture, store).await, StoreContents::default());

        let staged = cloud.stage_key(&names, store, &first, &until(5)).await.unwrap();
        let now = contents(&fixture, store).await;
        assert_eq!(now.current, None, "{store}: staged is not current");
        let found = now.usable(&first.fingerprint()).unwrap();
        assert_eq!((&found.key, found.record, found.managed), (&staged, until(5), true), "{store}");
        assert!(found.created.is_some(), "{store}");
        assert_eq!(now.usable(&second.fingerprint()), None);
        let signature = cloud.key_signer(&names, &staged).sign(MESSAGE).await.unwrap();
        assert_eq!(signature, first.sign(MESSAGE).await.unwrap(), "{store}");

        for _ in 0..2 {
            cloud.promote_key(&names, &staged, None).await.unwrap();
            let current = cloud.current_key(&names, store).await.unwrap();
            assert_eq!(current.as_ref(), Some(&staged), "{store}");
        }
        let signature = cloud.current_signer(&names, store).sign(MESSAGE).await.unwrap();
        assert_eq!(signature, first.sign(MESSAGE).await.unwrap(), "{store}");
        cloud.record_key(&names, &staged, &until(6)).await.unwrap();
        let mut former = contents(&fixture, store).await.current.unwrap();
        assert_eq!(former.record, until(6), "{store}");

        let next = cloud.stage_key(&names, store, &second, &until(5)).await.unwrap();
        let signature = cloud.current_signer(&names, store).sign(MESSAGE).await.unwrap();
        assert_eq!(signature, first.sign(MESSAGE).await.unwrap(), "{store}: the former serves until the promotion");
        former.record = until(7);
        cloud.promote_key(&names, &next, Some(&former)).await.unwrap();
        let signature = cloud.current_signer(&names, store).sign(MESSAGE).await.unwrap();
        assert_eq!(signature, second.sign(MESSAGE).await.unwrap(), "{store}");
        let now = contents(&fixture, store).await;
        assert_eq!(now.current.as_ref().map(|held| &held.key), Some(&next), "{store}");
        assert_eq!(now.previous, Some(former), "{store}");
        let signature = cloud.key_signer(&names, &staged).sign(MESSAGE).await.unwrap();
        assert_eq!(signature, first.sign(MESSAGE).await.unwrap(), "{store}: the former can still sign");
    }
    fixture.local.shutdown().await;
}

#[tokio::test]
async fn a_former_key_serves_again_or_leaves() {
    let fixture = fixture().await;
    let cloud = &fixture.cloud;
    let github = GitHub::start(GitHubOptions::new("acme")).await.unwrap();
    let [first, second, third] = [(), (), ()].map(|()| key(&github));
    for store in STORES {
        let names = names();
        rotated(&fixture, store, &first, &second).await;
        let before = contents(&fixture, store).await;
        let mut from = before.current.unwrap();
        from.record = KeyRecord { rolled_back: Some(Timestamp::from_unix_secs(9)), ..until(8) };
        cloud.roll_back_key(&names, &before.previous.unwrap(), &from).await.unwrap();
        let now = contents(&fixture, store).await;
        let current = now.current.clone().unwrap();
        assert_eq!(current.key.fingerprint, first.fingerprint(), "{store}");
        assert_eq!(current.record, until(7), "{store}: what is known of it is kept");
        let left = now.all().find(|held| held.key.fingerprint == second.fingerprint()).unwrap();
        assert_eq!(left.record, from.record, "{store}");

        // Forth again: what is there is taken, not put a second time.
        let again = cloud.stage_key(&names, store, &second, &until(5)).await;
        if store == KeyStore::SecretsManager {
            assert_eq!(again.unwrap(), from.key);
        }
        cloud.promote_key(&names, &from.key, Some(&current)).await.unwrap();
        let now = contents(&fixture, store).await;
        assert_eq!(now.current.unwrap().key, from.key, "{store}");
        let previous = now.previous.unwrap();
        assert_eq!(previous.key, current.key, "{store}");

        cloud.retire_key(&names, &previous.key).await.unwrap();
        let now = contents(&fixture, store).await;
        let retired = now.all().find(|held| held.key == previous.key);
        assert!(retired.is_none_or(|held| matches!(held.state, KeyState::Leaving(Some(_)))), "{store}: {retired:?}");
        assert_eq!(now.usable(&first.fingerprint()), None, "{store}");

        cloud.retire_store(&names, store).await.unwrap();
        let now = contents(&fixture, store).await;
        assert!(now.all().all(|held| matches!(held.state, KeyState::Leaving(Some(_)))), "{store}: {now:?}");
        assert_eq!(cloud.current_key(&names, store).await.unwrap(), None, "{store}: it can't sign");

        // Used again, before the deletion.
        for key in [&second, &third] {
            let staged = cloud.stage_key(&names, store, key, &until(5)).await.unwrap();
            cloud.promote_key(&names, &staged, None).await.unwrap();
            assert_eq!(cloud.current_key(&names, store).await.unwrap(), Some(staged), "{store}");
            let signature = cloud.current_signer(&names, store).sign(MESSAGE).await.unwrap();
            assert_eq!(signature, key.sign(MESSAGE).await.unwrap(), "{store}");
        }
    }
    fixture.local.shutdown().await;
}

/// Takes the new key away at GitHub when it has just been promoted.
struct Revoking<'a> {
    github: &'a GitHub,
    key: &'a AppKey,
}

impl Progress for Revoking<'_> {
    fn say(&self, line: &str) {
        if line.contains(&format!("{} as the current key in", self.key.fingerprint())) {
            self.github.revoke_key(self.key.fingerprint().as_str());
        }
    }
    fn state(&self, _: &str) {}
}

#[tokio::test]
async fn a_key_that_github_refuses_once_it_serves_gives_way_to_the_former_one() {
    let fixture = fixture().await;
    let cloud = &fixture.cloud;
    let github = GitHub::start(GitHubOptions::new("acme")).await.unwrap();
    let names = names();
    for store in STORES {
        let text = CONFIG
            .replace("CLIENT", &github.client_id())
            .replace("GITHUB", &github.url())
            .replace("STORE", &store.to_string());
        let config = Config::from_toml("kiln.toml", &text).unwrap();
        let [first, second] = [(), ()].map(|()| Arc::new(key(&github)));
        let observe = || rotate_key::observe(&config, cloud, Timestamp::now());
        for new in [&first, &second] {
            let observed = observe().await.unwrap();
            let plan = rotate_key::plan_rotation(&observed, &new.fingerprint(), 7);
            let revoking = Revoking { github: &github, key: &second };
            let applied = rotate_key::apply(&config, Some(new), &observed, &plan, cloud, &revoking).await;
            if Arc::ptr_eq(new, &first) {
                applied.unwrap();
                continue;
            }
            let error = applied.unwrap_err();
            assert_eq!(error.code, Code::GitHubBadKey, "{error}");
            assert!(error.message.contains(&format!("{} is current in {store}", first.fingerprint())), "{error}");
        }
        let current = cloud.current_key(&names, store).await.unwrap().unwrap();
        assert_eq!(current.fingerprint, first.fingerprint(), "{store}");
        rotate_key::prove(&config, cloud.current_signer(&names, store).into()).await.unwrap();
        // Another key, and all is well.
        let third = Arc::new(key(&github));
        let observed = observe().await.unwrap();
        let plan = rotate_key::plan_rotation(&observed, &third.fingerprint(), 7);
        let revoking = Revoking { github: &github, key: &second };
        rotate_key::apply(&config, Some(&third), &observed, &plan, cloud, &revoking).await.unwrap();
        let now = contents(&fixture, store).await;
        assert_eq!(now.current.unwrap().key.fingerprint, third.fingerprint(), "{store}");
        assert_eq!(now.previous.unwrap().key.fingerprint, first.fingerprint(), "{store}");
    }
    fixture.local.shutdown().await;
}

/// The instances of before sign with the store of before until they are replaced.
#[tokio::test]
async fn a_store_is_used_for_as_long_as_a_deployed_stack_says() {
    let fixture = fixture().await;
    let cloud = &fixture.cloud;
    let github = GitHub::start(GitHubOptions::new("acme")).await.unwrap();
    let text = CONFIG.replace("CLIENT", "Iv1").replace("GITHUB", &github.url()).replace("STORE", "secrets-manager");
    let config = Config::from_toml("kiln.toml", &text).unwrap();
    let staged = cloud.stage_key(&names(), KeyStore::Kms, &key(&github), &until(1)).await.unwrap();
    cloud.promote_key(&names(), &staged, None).await.unwrap();
    let used = async || {
        let observed = rotate_key::observe(&config, cloud, Timestamp::now()).await.unwrap();
        observed.stores.iter().map(|store| (store.store, store.used)).collect::<Vec<_>>()
    };
    let own = (KeyStore::SecretsManager, StoreUse::Configured);
    assert_eq!(used().await, [(KeyStore::Kms, StoreUse::Unused), own]);
    for (alias, kms) in [("alias/kiln-acme-app-key", StoreUse::Deployed), ("", StoreUse::Unused)] {
        let wanted = StackRequest {
            name: "kiln-acme-fleet-linux".to_owned(),
            template: TEMPLATE.to_owned(),
            parameters: BTreeMap::from([("KeyAlias".to_owned(), alias.to_owned())]),
            tags: BTreeMap::new(),
        };
        let current = cloud.stack(&wanted.name).await.unwrap();
        let step = StackStep { request: wanted.clone(), difference: difference(current.as_ref(), &wanted).unwrap() };
        stacks::apply(cloud, &step, &Revoking { github: &github, key: &key(&github) }).await.unwrap();
        assert_eq!(used().await, [(KeyStore::Kms, kms), own]);
    }
    fixture.local.shutdown().await;
}

const TEMPLATE: &str = r#"
Parameters: { KeyAlias: { Type: String } }
Resources:
  Parameter:
    Type: AWS::SSM::Parameter
    Properties: { Name: /kiln-acme/alias, Type: String, Value: !Sub "is ${KeyAlias}" }
"#;

const CONFIG: &str = r#"
organization = "acme"
region = "eu-central-1"
[app]
client_id = "CLIENT"
key_store = "STORE"
[github]
url = "GITHUB"
[runner]
version = "2.338.0"
[runner.sha256]
x86_64 = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32"
[fleet.linux]
labels = ["linux-x64"]
registration = "persistent"
instance_types = ["m6i.large"]
min = 1
max = 4
network = "create-vpc"
"#;

#[tokio::test]
async fn a_key_that_a_person_put_into_the_secret_is_known_and_replaced() {
    let fixture = fixture().await;
    let cloud = &fixture.cloud;
    let github = GitHub::start(GitHubOptions::new("acme")).await.unwrap();
    let pem = github.generate_key();
    let secrets = aws_sdk_secretsmanager::Client::new(&crate::config(&fixture.local.endpoint_url()).await);
    let names = names();
    secrets.create_secret().name(&names.secret).secret_string("not a key").send().await.unwrap();
    assert_eq!(cloud.current_key(&names, KeyStore::SecretsManager).await.unwrap(), None);
    secrets.put_secret_value().secret_id(&names.secret).secret_string(&pem).send().await.unwrap();
    let current = cloud.current_key(&names, KeyStore::SecretsManager).await.unwrap().unwrap();
    assert_eq!(current.fingerprint, AppKey::from_pem(pem.as_bytes()).unwrap().fingerprint());

    let next = AppKey::from_pem(github.generate_key().as_bytes()).unwrap();
    let former = contents(&fixture, KeyStore::SecretsManager).await.current.unwrap();
    assert!(!former.managed, "a secret of someone else's is not tagged");
    let staged = cloud.stage_key(&names, KeyStore::SecretsManager, &next, &until(1)).await.unwrap();
    cloud.promote_key(&names, &staged, Some(&former)).await.unwrap();
    assert_eq!(cloud.current_key(&names, KeyStore::SecretsManager).await.unwrap(), Some(staged));
    fixture.local.shutdown().await;
}

#[derive(Default)]
struct Quiet;

impl Progress for Quiet {
    fn say(&self, _: &str) {}
    fn state(&self, _: &str) {}
}

/// For up to five minutes KMS refuses what policies allow by an alias that was just moved.
#[tokio::test]
async fn a_rotation_waits_for_a_kms_that_is_slow_and_says_what_it_waited_for_in_vain() {
    let fixture = fixture().await;
    let cloud = &fixture.cloud;
    let github = GitHub::start(GitHubOptions::new("acme")).await.unwrap();
    let text = CONFIG.replace("CLIENT", &github.client_id()).replace("GITHUB", &github.url()).replace("STORE", "kms");
    let config = Config::from_toml("kiln.toml", &text).unwrap();
    let hurried = TimeScale { pauses: 50, bounds: 100 };
    let rotate = async |key: &Arc<AppKey>| {
        let observed = rotate_key::observe(&config, cloud, Timestamp::now()).await.unwrap();
        let plan = rotate_key::plan_rotation(&observed, &key.fingerprint(), 7);
        hurried.run(rotate_key::apply(&config, Some(key), &observed, &plan, cloud, &Quiet)).await
    };
    let [first, second, third] = [(), (), ()].map(|()| Arc::new(key(&github)));
    fixture.local.delay_aliases(Duration::from_millis(500));
    for new in [&first, &second] {
        let begun = Instant::now();
        rotate(new).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(500), "the stand-in was not slow");
        let current = cloud.current_key(&names(), KeyStore::Kms).await.unwrap().unwrap();
        assert_eq!(current.fingerprint, new.fingerprint());
    }

    // Longer than KMS ever is: a right is missing, and the former key serves again.
    fixture.local.delay_aliases(Duration::from_secs(3600));
    let error = rotate(&third).await.unwrap_err();
    assert_eq!(error.code, Code::SignFailed, "{error}");
    assert!(error.message.contains(&format!("{} is current in kms", second.fingerprint())), "{error}");
    let current = cloud.current_key(&names(), KeyStore::Kms).await.unwrap().unwrap();
    assert_eq!(current.fingerprint, second.fingerprint());
    fixture.local.shutdown().await;
}

#[tokio::test]
async fn what_holds_a_key_has_the_tags_of_kiln_toml() {
    let fixture = fixture().await;
    let github = GitHub::start(GitHubOptions::new("acme")).await.unwrap();
    let names = KeyNames { tags: BTreeMap::from([("cost-center".to_owned(), "4711".to_owned())]), ..names() };
    for store in STORES {
        fixture.cloud.stage_key(&names, store, &key(&github), &until(5)).await.unwrap();
    }
    let made = fixture.local.bodies();
    for operation in ["kms:CreateKey", "secretsmanager:CreateSecret"] {
        let bodies = made.iter().filter(|(name, _)| name == operation);
        let bodies: Vec<String> = bodies.map(|(_, body)| String::from_utf8_lossy(body).into_owned()).collect();
        assert_eq!(bodies.len(), 1, "{operation}");
        assert!(bodies[0].contains("cost-center") && bodies[0].contains("4711"), "{operation}: {}", bodies[0]);
    }
    // The first version of a secret is current whatever it is said to be: it is no key.
    assert_eq!(contents(&fixture, KeyStore::SecretsManager).await.current, None);
    fixture.local.shutdown().await;
}
