//! Both stores of the App's key.

use kiln_fleet::model::KeyStore;
use kiln_github::{AppKey, AppSigner as _};
use kiln_rehearsal::github::{GitHub, GitHubOptions};
use kiln_release::ports::{KeyNames, Keys as _};

use crate::there;

fn names() -> KeyNames {
    KeyNames { alias: "alias/kiln-acme-app-key".to_owned(), secret: "kiln-acme/app-key".to_owned() }
}

/// PKCS#1 v1.5 is deterministic: whoever has the key makes the same signature.
const MESSAGE: &[u8] = b"header.claims";

#[tokio::test]
async fn a_key_is_staged_proved_promoted_and_replaced() {
    let there = there().await;
    let cloud = &there.cloud;
    let github = GitHub::start(GitHubOptions::new("acme")).await.unwrap();
    let [first, second] = [(), ()].map(|()| AppKey::from_pem(github.generate_key().as_bytes()).unwrap());
    for store in [KeyStore::Kms, KeyStore::SecretsManager] {
        let names = names();
        assert_eq!(cloud.current_key(&names, store).await.unwrap(), None);
        assert_eq!(cloud.staged_key(&names, store, &first.fingerprint()).await.unwrap(), None);

        let staged = cloud.stage_key(&names, store, &first).await.unwrap();
        assert_eq!(cloud.current_key(&names, store).await.unwrap(), None, "{store}: staged is not current");
        let found = cloud.staged_key(&names, store, &first.fingerprint()).await.unwrap();
        assert_eq!(found.as_ref(), Some(&staged), "{store}: another run finds what was staged");
        assert_eq!(cloud.staged_key(&names, store, &second.fingerprint()).await.unwrap(), None);
        assert_eq!(cloud.stage_key(&names, store, &first).await.unwrap(), staged, "{store}: staged again is the same");
        let signature = cloud.key_signer(&names, &staged).sign(MESSAGE).await.unwrap();
        assert_eq!(signature, first.sign(MESSAGE).await.unwrap(), "{store}");

        cloud.promote_key(&names, &staged).await.unwrap();
        cloud.promote_key(&names, &staged).await.unwrap();
        let current = cloud.current_key(&names, store).await.unwrap().unwrap();
        assert_eq!(current.fingerprint, first.fingerprint(), "{store}");
        let signature = cloud.current_signer(&names, store).sign(MESSAGE).await.unwrap();
        assert_eq!(signature, first.sign(MESSAGE).await.unwrap(), "{store}");

        let next = cloud.stage_key(&names, store, &second).await.unwrap();
        let signature = cloud.current_signer(&names, store).sign(MESSAGE).await.unwrap();
        assert_eq!(signature, first.sign(MESSAGE).await.unwrap(), "{store}: the former serves until the promotion");
        cloud.promote_key(&names, &next).await.unwrap();
        let signature = cloud.current_signer(&names, store).sign(MESSAGE).await.unwrap();
        assert_eq!(signature, second.sign(MESSAGE).await.unwrap(), "{store}");
        let signature = cloud.key_signer(&names, &staged).sign(MESSAGE).await.unwrap();
        assert_eq!(signature, first.sign(MESSAGE).await.unwrap(), "{store}: the former stays in the store");
    }
    there.local.shutdown().await;
}

#[tokio::test]
async fn a_key_that_a_person_put_into_the_secret_is_known_and_replaced() {
    let there = there().await;
    let cloud = &there.cloud;
    let github = GitHub::start(GitHubOptions::new("acme")).await.unwrap();
    let pem = github.generate_key();
    let secrets = aws_sdk_secretsmanager::Client::new(&crate::config(&there.local.endpoint_url()).await);
    let names = names();
    secrets.create_secret().name(&names.secret).secret_string("not a key").send().await.unwrap();
    assert_eq!(cloud.current_key(&names, KeyStore::SecretsManager).await.unwrap(), None);
    secrets.put_secret_value().secret_id(&names.secret).secret_string(&pem).send().await.unwrap();
    let current = cloud.current_key(&names, KeyStore::SecretsManager).await.unwrap().unwrap();
    assert_eq!(current.fingerprint, AppKey::from_pem(pem.as_bytes()).unwrap().fingerprint());

    let next = AppKey::from_pem(github.generate_key().as_bytes()).unwrap();
    let staged = cloud.stage_key(&names, KeyStore::SecretsManager, &next).await.unwrap();
    cloud.promote_key(&names, &staged).await.unwrap();
    assert_eq!(cloud.current_key(&names, KeyStore::SecretsManager).await.unwrap(), Some(staged));
    there.local.shutdown().await;
}
