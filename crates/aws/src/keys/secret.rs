//! The App's keys in Secrets Manager, as versions of one secret. A version's id is the key's fingerprint in hexadecimal, so that Kiln
//! can identify a version without reading it. Staging labels mark the current and the previous version. Versions have no tags, so
//! their records are tags of the secret; each record begins with the fingerprint of its key.

use std::collections::BTreeMap;

use aws_sdk_secretsmanager::types::Tag;
use kiln_config::model::KeyStore;
use kiln_github::{AppKey, AppSigner, BoxFuture, Fingerprint, SignError};
use kiln_operations::keys::{KeyState, Timestamp};
use kiln_operations::ports::{HeldKey, KeyNames, KeyRecord, Result, StoreContents, StoredKey};
use secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use crate::Aws;
use crate::pages::pages;

const CURRENT: &str = "AWSCURRENT";
const PREVIOUS: &str = "AWSPREVIOUS";
const PENDING: &str = "AWSPENDING";

/// One tag for each staging label. A promotion moves the labels, so a record may be in any of the tags.
const CURRENT_RECORD: &str = "kiln:record-current";
const PREVIOUS_RECORD: &str = "kiln:record-previous";
const PENDING_RECORD: &str = "kiln:record-pending";
const MANAGED: &str = "kiln:managed";

/// The shortest recovery window that Secrets Manager allows.
///
/// Source: <https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_DeleteSecret.html>
const RECOVERY_WINDOW_DAYS: i64 = 7;

/// The value of a new secret until a key is promoted.
///
/// Source: <https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_PutSecretValue.html>, `VersionStages`.
const NO_KEY: &str = "no key of the App has been promoted yet";

/// The version id for a key: 64 characters, the maximum of Secrets Manager.
fn version_id(fingerprint: &Fingerprint) -> String {
    fingerprint.digest().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fingerprint_of(version: &str) -> Option<Fingerprint> {
    let byte = |at: usize| u8::from_str_radix(version.get(at * 2..at * 2 + 2)?, 16).ok();
    let digest: Vec<u8> = (0..32).map_while(byte).collect();
    Some(Fingerprint::of_digest(&digest.try_into().ok()?))
}

fn tag(key: &str, value: String) -> Tag {
    Tag::builder().key(key).value(value).build()
}

fn record_tag(key: &str, fingerprint: &Fingerprint, record: &KeyRecord) -> Tag {
    tag(key, format!("{fingerprint} {record}"))
}

/// The current state of the secret.
#[derive(Debug, Default)]
struct Described {
    /// The versions that have staging labels, with the labels.
    versions: BTreeMap<String, Vec<String>>,
    tags: BTreeMap<String, String>,
    /// Whether it is scheduled for deletion.
    deleted: Option<Timestamp>,
}

impl Described {
    fn holder(&self, stage: &str) -> Option<&str> {
        let holds = |stages: &[String]| stages.iter().any(|held| held == stage);
        self.versions.iter().find(|(_, stages)| holds(stages)).map(|(id, _)| id.as_str())
    }

    /// The record of a version. It is in the tag of its staging label, or still in the tag of its previous label.
    fn record(&self, fingerprint: &Fingerprint, stages: &[String]) -> KeyRecord {
        let has = |stage: &str| stages.iter().any(|held| held == stage);
        let places = match (has(CURRENT), has(PREVIOUS)) {
            (true, _) => [CURRENT_RECORD, PREVIOUS_RECORD, PENDING_RECORD],
            (false, true) => [PREVIOUS_RECORD, CURRENT_RECORD, PENDING_RECORD],
            (false, false) => [PENDING_RECORD, PREVIOUS_RECORD, CURRENT_RECORD],
        };
        let values = places.iter().filter_map(|key| self.tags.get(*key));
        let about = |value: &String| value.strip_prefix(fingerprint.as_str()).map(KeyRecord::from_tag);
        values.filter_map(about).next().unwrap_or_default()
    }
}

impl Aws {
    /// `None` if the secret does not exist.
    async fn described_secret(&self, name: &str) -> Result<Option<Described>> {
        let answer = match self.secrets.describe_secret().secret_id(name).send().await {
            Ok(answer) => answer,
            Err(error) if error.as_service_error().is_some_and(|error| error.is_resource_not_found_exception()) => {
                return Ok(None);
            }
            Err(error) => return Err(self.failed(format!("describe secret {name}"), error)),
        };
        let tags = answer.tags.unwrap_or_default().into_iter().filter_map(|tag| Some((tag.key?, tag.value?)));
        let deleted = answer.deleted_date.and_then(|at| u64::try_from(at.secs()).ok());
        Ok(Some(Described {
            versions: answer.version_ids_to_stages.unwrap_or_default().into_iter().collect(),
            tags: tags.collect(),
            deleted: deleted.map(Timestamp::from_unix_secs),
        }))
    }

    /// The key in the current version, if it can be read.
    pub(super) async fn secret_key(&self, name: &str) -> Result<Option<StoredKey>> {
        let Some(secret) = self.described_secret(name).await? else { return Ok(None) };
        match secret.holder(CURRENT) {
            Some(id) if secret.deleted.is_none() => self.version(name, id).await,
            _ => Ok(None),
        }
    }

    pub(super) async fn secret_contents(&self, name: &str) -> Result<StoreContents> {
        let Some(secret) = self.described_secret(name).await? else { return Ok(StoreContents::default()) };
        let created = self.versions_made(name).await?;
        let mut contents = StoreContents::default();
        for (id, stages) in &secret.versions {
            let known = fingerprint_of(id).is_some();
            // A version that a person added can be identified only by reading it.
            if secret.deleted.is_some() && !known {
                continue;
            }
            let Some(key) = self.version(name, id).await? else { continue };
            let held = HeldKey {
                state: secret.deleted.map_or(KeyState::Usable, |at| KeyState::Leaving(Some(at))),
                record: secret.record(&key.fingerprint, stages),
                created: created.get(id).copied(),
                managed: secret.tags.contains_key(MANAGED),
                key,
            };
            let has = |stage: &str| stages.iter().any(|held| held == stage);
            match (has(CURRENT), has(PREVIOUS)) {
                (true, _) => contents.current = Some(held),
                (false, true) => contents.previous = Some(held),
                (false, false) => contents.others.push(held),
            }
        }
        Ok(contents)
    }

    /// When each version was created.
    async fn versions_made(&self, name: &str) -> Result<BTreeMap<String, Timestamp>> {
        let list = self.secrets.list_secret_version_ids().secret_id(name);
        let pages = pages!(self, format!("list the versions of secret {name}"), list).await?;
        let made = pages.into_iter().flat_map(|page| page.versions.unwrap_or_default()).filter_map(|version| {
            let secs = u64::try_from(version.created_date?.secs()).ok()?;
            Some((version.version_id?, Timestamp::from_unix_secs(secs)))
        });
        Ok(made.collect())
    }

    async fn version(&self, name: &str, id: &str) -> Result<Option<StoredKey>> {
        let fingerprint = match fingerprint_of(id) {
            Some(fingerprint) => fingerprint,
            // Added by a person. A version without a key, for example an empty one, is ignored.
            None => match self.read_version(name, id).await? {
                Some(key) => key.fingerprint(),
                None => return Ok(None),
            },
        };
        Ok(Some(StoredKey { store: KeyStore::SecretsManager, id: id.to_owned(), fingerprint }))
    }

    /// The key in a version, if there is one.
    async fn read_version(&self, name: &str, id: &str) -> Result<Option<AppKey>> {
        match self.secrets.get_secret_value().secret_id(name).version_id(id).send().await {
            Ok(answer) => {
                let text = answer.secret_string.map(Zeroizing::new);
                Ok(text.and_then(|pem| AppKey::from_pem(pem.as_bytes()).ok()))
            }
            Err(error) if error.as_service_error().is_some_and(|error| error.is_resource_not_found_exception()) => {
                Ok(None)
            }
            Err(error) => Err(self.failed(format!("read version {id} of secret {name}"), error)),
        }
    }

    /// Stores the key in the secret. Creates the secret, or cancels its deletion, if necessary.
    pub(super) async fn put_pending(&self, names: &KeyNames, key: &AppKey, record: &KeyRecord) -> Result<String> {
        let name = &names.secret;
        let fingerprint = key.fingerprint();
        let doing = format!("store key {fingerprint} in secret {name}");
        let secret = match self.described_secret(name).await? {
            Some(secret) => secret,
            None => {
                // The first value is not a key: Secrets Manager makes the first version current whatever its label, but a key must
                // be checked before it becomes current.
                let create =
                    self.secrets.create_secret().name(name).description("GitHub App private key, kept by Kiln");
                let create = create.secret_string(NO_KEY).tags(tag(MANAGED, "true".to_owned()));
                let create =
                    names.tags.iter().fold(create, |create, (key, value)| create.tags(tag(key, value.clone())));
                create.send().await.map_err(|error| self.failed(&doing, error))?;
                Described { tags: BTreeMap::from([(MANAGED.to_owned(), String::new())]), ..Described::default() }
            }
        };
        if secret.deleted.is_some() {
            let restore = self.secrets.restore_secret().secret_id(name).send().await;
            restore.map_err(|error| self.failed(&doing, error))?;
        }
        if secret.tags.contains_key(MANAGED) {
            self.tag_secret(name, [record_tag(PENDING_RECORD, &fingerprint, record)]).await?;
        }
        let id = version_id(&fingerprint);
        if !secret.versions.contains_key(&id) {
            let put = self
                .secrets
                .put_secret_value()
                .secret_id(name)
                .client_request_token(&id)
                .secret_string(key.pkcs8_pem().expose_secret())
                .version_stages(PENDING);
            put.send().await.map_err(|error| self.failed(&doing, error))?;
        }
        // A version that already exists, with or without a label, is not written again, and gets no label from this call.
        let holder = self.described_secret(name).await?.unwrap_or_default().holder(PENDING).map(str::to_owned);
        if holder.as_ref() != Some(&id) {
            let update = self.secrets.update_secret_version_stage().secret_id(name).version_stage(PENDING);
            let update = update.move_to_version_id(&id).set_remove_from_version_id(holder);
            update.send().await.map_err(|error| self.failed(&doing, error))?;
        }
        Ok(id)
    }

    async fn tag_secret<const N: usize>(&self, name: &str, tags: [Tag; N]) -> Result<()> {
        let write = self.secrets.tag_resource().secret_id(name).set_tags(Some(tags.to_vec())).send().await;
        write.map_err(|error| self.failed(format!("tag secret {name}"), error))?;
        Ok(())
    }

    pub(super) async fn record_version(&self, name: &str, key: &StoredKey, record: &KeyRecord) -> Result<()> {
        self.tag_secret(name, [record_tag(CURRENT_RECORD, &key.fingerprint, record)]).await
    }

    /// Moves `AWSCURRENT` in one call. Secrets Manager itself moves `AWSPREVIOUS` to the former version.
    pub(super) async fn promote_version(&self, name: &str, id: &str, former: Option<&HeldKey>) -> Result<()> {
        if let Some(former) = former.filter(|former| former.managed) {
            self.tag_secret(name, [record_tag(PREVIOUS_RECORD, former.fingerprint(), &former.record)]).await?;
        }
        self.make_current(name, id).await
    }

    pub(super) async fn roll_back_version(&self, name: &str, to: &HeldKey, from: &HeldKey) -> Result<()> {
        if from.managed {
            let before = record_tag(PREVIOUS_RECORD, from.fingerprint(), &from.record);
            let now = record_tag(CURRENT_RECORD, to.fingerprint(), &to.record);
            self.tag_secret(name, [before, now]).await?;
        }
        self.make_current(name, &to.key.id).await
    }

    async fn make_current(&self, name: &str, id: &str) -> Result<()> {
        let doing = || format!("make version {id} of secret {name} the current one");
        let secret = self.described_secret(name).await?.unwrap_or_default();
        let current = secret.holder(CURRENT);
        if current != Some(id) {
            let update = self
                .secrets
                .update_secret_version_stage()
                .secret_id(name)
                .version_stage(CURRENT)
                .move_to_version_id(id)
                .set_remove_from_version_id(current.map(str::to_owned));
            update.send().await.map_err(|error| self.failed(doing(), error))?;
        }
        if secret.holder(PENDING) == Some(id) {
            let update = self.secrets.update_secret_version_stage().secret_id(name).version_stage(PENDING);
            update.remove_from_version_id(id).send().await.map_err(|error| self.failed(doing(), error))?;
        }
        Ok(())
    }

    /// Removes a version's staging labels. Secrets Manager later deletes versions without a label.
    pub(super) async fn drop_version(&self, name: &str, id: &str) -> Result<()> {
        let secret = self.described_secret(name).await?.unwrap_or_default();
        for stage in [PREVIOUS, PENDING] {
            if secret.holder(stage) == Some(id) {
                let update = self.secrets.update_secret_version_stage().secret_id(name).version_stage(stage);
                let doing = || format!("take {stage} from version {id} of secret {name}");
                update.remove_from_version_id(id).send().await.map_err(|error| self.failed(doing(), error))?;
            }
        }
        Ok(())
    }

    pub(super) async fn delete_secret(&self, name: &str) -> Result<()> {
        let delete = self.secrets.delete_secret().secret_id(name).recovery_window_in_days(RECOVERY_WINDOW_DAYS);
        delete.send().await.map_err(|error| self.failed(format!("delete secret {name}"), error))?;
        Ok(())
    }
}

/// Reads a version (the current one if `None`) and signs with its key.
#[derive(Debug)]
pub(super) struct SecretSigner {
    pub(super) client: aws_sdk_secretsmanager::Client,
    pub(super) name: String,
    pub(super) version: Option<String>,
}

impl SecretSigner {
    async fn key(&self) -> std::result::Result<AppKey, Box<dyn std::error::Error + Send + Sync>> {
        let get = self.client.get_secret_value().secret_id(&self.name).set_version_id(self.version.clone());
        let answer = get.send().await?;
        let pem = Zeroizing::new(answer.secret_string.ok_or("the secret holds no text")?);
        Ok(AppKey::from_pem(pem.as_bytes())?)
    }
}

impl AppSigner for SecretSigner {
    fn sign<'a>(&'a self, signing_input: &'a [u8]) -> BoxFuture<'a, std::result::Result<Vec<u8>, SignError>> {
        Box::pin(async move {
            let key = self.key().await.map_err(|source| SignError {
                what: format!("read the key in secret {}", self.name),
                retryable: false,
                source: Some(source),
            })?;
            key.sign(signing_input).await
        })
    }
}
