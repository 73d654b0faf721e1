//! The App's keys in KMS. Each is an imported KMS key with its fingerprint and record as tags. One alias points to the current key,
//! another to the previous key.

use std::collections::BTreeMap;

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded as _};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use aws_sdk_kms::error::ProvideErrorMetadata as _;
use aws_sdk_kms::operation::get_parameters_for_import::GetParametersForImportOutput;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{
    AlgorithmSpec, ExpirationModelType, KeyMetadata, KeySpec, KeyState as State, KeyUsageType, MessageType, OriginType,
    SigningAlgorithmSpec, Tag, WrappingKeySpec,
};
use futures_util::{StreamExt as _, TryStreamExt as _};
use kiln_config::boot::previous_alias;
use kiln_config::model::KeyStore;
use kiln_github::{AppKey, AppSigner, BoxFuture, Fingerprint, SignError};
use kiln_operations::keys::{KeyState, Timestamp};
use kiln_operations::ports::{
    CloudError, CloudErrorKind, HeldKey, KeyNames, KeyRecord, Result, StoreContents, StoredKey,
};
use kiln_operations::rotate_key::SETTLE_LIMIT;
use kiln_operations::wait::PollBackoff;
use zeroize::Zeroizing;

use crate::Aws;
use crate::pages::pages;

const ALIAS_TAG: &str = "kiln:alias";
const FINGERPRINT_TAG: &str = "kiln:fingerprint";
const RECORD_TAG: &str = "kiln:record";

/// The maximum number of pages, of 1,000 keys each. KMS's quota is 100,000 keys in a region.
///
/// Source: <https://docs.aws.amazon.com/kms/latest/developerguide/resource-limits.html>
const MOST_KEY_PAGES: usize = 110;

/// The number of concurrent `ListResourceTags` calls. The account's quota in a region is ten per second; the SDK retries beyond that.
///
/// Source: <https://docs.aws.amazon.com/kms/latest/developerguide/requests-per-second.html>
const AT_ONCE: usize = 8;

/// The shortest waiting period that KMS allows. The key was already kept until its date; during this period its deletion can still be
/// cancelled.
///
/// Source: <https://docs.aws.amazon.com/kms/latest/APIReference/API_ScheduleKeyDeletion.html>
const DELETION_WINDOW_DAYS: i32 = 7;

type Tags = BTreeMap<String, String>;

fn tag(key: &str, value: &str) -> Tag {
    Tag::builder().tag_key(key).tag_value(value).build().expect("key and value are given")
}

fn state_of(key: &KeyMetadata) -> KeyState {
    match &key.key_state {
        Some(State::Enabled) => KeyState::Usable,
        Some(State::PendingImport) => KeyState::Unfinished,
        Some(State::PendingDeletion | State::PendingReplicaDeletion) => {
            let at = key.deletion_date.and_then(|at| u64::try_from(at.secs()).ok());
            KeyState::Leaving(at.map(Timestamp::from_unix_secs))
        }
        _ => KeyState::Disabled,
    }
}

impl Aws {
    /// The key behind an alias, if it can sign.
    pub(super) async fn kms_key(&self, alias: &str) -> Result<Option<StoredKey>> {
        let Some(key) = self.described_key(alias).await? else { return Ok(None) };
        if state_of(&key) != KeyState::Usable {
            return Ok(None);
        }
        let fingerprint = self.public_fingerprint(&key.key_id).await?;
        Ok(Some(StoredKey { store: KeyStore::Kms, id: key.key_id, fingerprint }))
    }

    pub(super) async fn kms_contents(&self, alias: &str) -> Result<StoreContents> {
        let mut ours = self.our_keys(alias).await?;
        let mut contents = StoreContents::default();
        if let Some(key) = self.described_key(alias).await? {
            let tags = ours.remove(&key.key_id).unwrap_or_default();
            contents.current = self.held(key, &tags, true).await?;
        }
        if let Some(key) = self.described_key(&previous_alias(alias)).await?
            && contents.current.as_ref().is_none_or(|current| current.key.id != key.key_id)
        {
            let tags = ours.remove(&key.key_id).unwrap_or_default();
            contents.previous = self.held(key, &tags, true).await?;
        }
        for (id, tags) in ours {
            // Ignore a key that was deleted meanwhile.
            let Some(key) = self.described_key(&id).await? else { continue };
            contents.others.extend(self.held(key, &tags, false).await?);
        }
        Ok(contents)
    }

    /// Reads a key with its state and record. Uses the fingerprint in the tag only if `ask` is false or the key is disabled.
    async fn held(&self, key: KeyMetadata, tags: &Tags, ask: bool) -> Result<Option<HeldKey>> {
        let state = state_of(&key);
        let fingerprint = match tags.get(FINGERPRINT_TAG).and_then(|text| text.parse().ok()) {
            Some(tagged) if !ask || state != KeyState::Usable => tagged,
            _ if state == KeyState::Usable => self.public_fingerprint(&key.key_id).await?,
            _ => return Ok(None),
        };
        let created = key.creation_date.and_then(|at| u64::try_from(at.secs()).ok());
        Ok(Some(HeldKey {
            key: StoredKey { store: KeyStore::Kms, id: key.key_id, fingerprint },
            state,
            record: tags.get(RECORD_TAG).map(|text| KeyRecord::from_tag(text)).unwrap_or_default(),
            created: created.map(Timestamp::from_unix_secs),
            managed: !tags.is_empty(),
        }))
    }

    /// `None` if no such key or alias exists.
    pub(crate) async fn described_key(&self, key: &str) -> Result<Option<KeyMetadata>> {
        match self.kms.describe_key().key_id(key).send().await {
            Ok(answer) => Ok(answer.key_metadata),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_not_found_exception()) => Ok(None),
            Err(error) => Err(self.failed(format!("describe {key}"), error)),
        }
    }

    async fn public_fingerprint(&self, id: &str) -> Result<Fingerprint> {
        let doing = || format!("read the public half of KMS key {id}");
        let answer = self.kms.get_public_key().key_id(id).send().await.map_err(|error| self.failed(doing(), error))?;
        let spki = answer.public_key.ok_or_else(|| self.odd(doing(), "the answer holds none"))?;
        Ok(Fingerprint::of_spki_der(spki.as_ref()))
    }

    /// The keys that Kiln imported for this alias, by id, with their tags.
    ///
    /// KMS lists keys without their tags, so the tags are read for a few keys at a time. One after another takes minutes in an account
    /// with thousands of keys; all at once uses up the account's quota.
    async fn our_keys(&self, alias: &str) -> Result<BTreeMap<String, Tags>> {
        let pages = pages!(self, "list KMS keys", self.kms.list_keys().limit(1000), MOST_KEY_PAGES).await?;
        let ids = pages.into_iter().flat_map(|page| page.keys.unwrap_or_default()).filter_map(|key| key.key_id);
        let tagged = futures_util::stream::iter(ids).map(|id| async move {
            let tags = self.tags(&id).await?;
            Ok::<_, CloudError>((id, tags))
        });
        let tagged: Vec<(String, Tags)> = tagged.buffer_unordered(AT_ONCE).try_collect().await?;
        let is_ours = |(_, tags): &(String, Tags)| tags.get(ALIAS_TAG).is_some_and(|value| value == alias);
        Ok(tagged.into_iter().filter(is_ours).collect())
    }

    async fn tags(&self, id: &str) -> Result<Tags> {
        match pages!(self, format!("read the tags of KMS key {id}"), self.kms.list_resource_tags().key_id(id)).await {
            Ok(pages) => {
                let tags = pages.into_iter().flat_map(|page| page.tags.unwrap_or_default());
                Ok(tags.map(|tag| (tag.tag_key, tag.tag_value)).collect())
            }
            // The caller may lack permission for other keys, but not for Kiln's.
            Err(error) if matches!(error.kind, CloudErrorKind::AccessDenied | CloudErrorKind::NotFound) => {
                Ok(Tags::new())
            }
            Err(error) => Err(error),
        }
    }

    pub(super) async fn record_kms_key(&self, id: &str, record: &KeyRecord) -> Result<()> {
        let write = self.kms.tag_resource().key_id(id).tags(tag(RECORD_TAG, &record.to_string()));
        write.send().await.map_err(|error| self.failed(format!("tag KMS key {id}"), error))?;
        Ok(())
    }

    /// Imports the key, into the KMS key that an interrupted run created, if there is one.
    pub(super) async fn import(&self, names: &KeyNames, key: &AppKey, record: &KeyRecord) -> Result<String> {
        let alias = &names.alias;
        let fingerprint = key.fingerprint();
        let id = match self.half_made(alias, &fingerprint).await? {
            Some(id) => {
                self.record_kms_key(&id, record).await?;
                id
            }
            None => self.create_key(names, key, record).await?,
        };
        let doing = format!("import key {fingerprint} into KMS key {id}");
        let parameters = self.import_parameters(&doing, &id).await?;
        let wrapped = self.wrapped(&doing, key, &parameters)?;
        let import = self
            .kms
            .import_key_material()
            .key_id(&id)
            .set_import_token(parameters.import_token)
            .encrypted_key_material(Blob::new(wrapped))
            .expiration_model(ExpirationModelType::KeyMaterialDoesNotExpire);
        import.send().await.map_err(|error| self.failed(&doing, error))?;
        Ok(id)
    }

    /// A policy may allow this call based on the tags of the new key, and KMS may take up to five minutes to apply them.
    ///
    /// Source: <https://docs.aws.amazon.com/kms/latest/developerguide/tag-authorization.html>
    async fn import_parameters(&self, doing: &str, id: &str) -> Result<GetParametersForImportOutput> {
        let mut pace = PollBackoff::new(SETTLE_LIMIT);
        loop {
            let get = self
                .kms
                .get_parameters_for_import()
                .key_id(id)
                .wrapping_algorithm(AlgorithmSpec::RsaAesKeyWrapSha256)
                .wrapping_key_spec(WrappingKeySpec::Rsa4096);
            let failed = match get.send().await {
                Ok(parameters) => return Ok(parameters),
                Err(error) => self.failed(doing, error),
            };
            if failed.kind != CloudErrorKind::AccessDenied || pace.pause().await.is_err() {
                return Err(failed);
            }
        }
    }

    /// A KMS key that was created for this key of the App, but has no key material yet.
    async fn half_made(&self, alias: &str, fingerprint: &Fingerprint) -> Result<Option<String>> {
        for (id, tags) in self.our_keys(alias).await? {
            if tags.get(FINGERPRINT_TAG).is_some_and(|value| value == fingerprint.as_str())
                && self.described_key(&id).await?.is_some_and(|key| state_of(&key) == KeyState::Unfinished)
            {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    async fn create_key(&self, names: &KeyNames, key: &AppKey, record: &KeyRecord) -> Result<String> {
        let alias = &names.alias;
        let fingerprint = key.fingerprint();
        let doing = format!("create a KMS key for {fingerprint}");
        let create = self
            .kms
            .create_key()
            .origin(OriginType::External)
            .key_usage(KeyUsageType::SignVerify)
            .key_spec(match key.bits() {
                3072 => KeySpec::Rsa3072,
                4096 => KeySpec::Rsa4096,
                _ => KeySpec::Rsa2048,
            })
            .description(format!("GitHub App private key {fingerprint}, imported by Kiln for {alias}"))
            .tags(tag(ALIAS_TAG, alias))
            .tags(tag(FINGERPRINT_TAG, fingerprint.as_str()))
            .tags(tag(RECORD_TAG, &record.to_string()))
            .tags(tag("kiln:managed", "true"));
        let create = names.tags.iter().fold(create, |create, (key, value)| create.tags(tag(key, value)));
        let answer = create.send().await.map_err(|error| self.failed(&doing, error))?;
        answer.key_metadata.map(|key| key.key_id).ok_or_else(|| self.odd(doing, "the answer names no key"))
    }

    /// `RSA_AES_KEY_WRAP_SHA_256`: wraps the key with a new AES key (RFC 5649), and the AES key with KMS's RSA key (OAEP).
    ///
    /// Source: <https://docs.aws.amazon.com/kms/latest/developerguide/importing-keys-encrypt-key-material.html>
    fn wrapped(&self, doing: &str, key: &AppKey, parameters: &GetParametersForImportOutput) -> Result<Vec<u8>> {
        let failed = |what: &str| self.odd(doing, what);
        let wrapping = parameters.public_key().ok_or_else(|| failed("KMS gave no wrapping key"))?;
        let wrapping = PublicEncryptingKey::from_der(wrapping.as_ref())
            .ok()
            .and_then(|key| OaepPublicEncryptingKey::new(key).ok())
            .ok_or_else(|| failed("KMS's wrapping key can't be read"))?;
        let material = key.pkcs8_der();
        let mut aes = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(aes.as_mut()).map_err(|_| failed("there are no random numbers"))?;
        // The wrapped key is padded to a multiple of eight bytes and is eight bytes longer.
        let mut inner = vec![0; material.len().next_multiple_of(8) + 8];
        let inner = AesKek::new(&AES_256, aes.as_ref())
            .and_then(|kek| kek.wrap_with_padding(&material, &mut inner).map(|inner| inner.to_vec()))
            .map_err(|_| failed("the key can't be wrapped"))?;
        let mut outer = vec![0; wrapping.ciphertext_size()];
        let outer = wrapping
            .encrypt(&OAEP_SHA256_MGF1SHA256, aes.as_ref(), &mut outer, None)
            .map_err(|_| failed("the wrapping key can't be encrypted"))?;
        Ok([&*outer, &inner].concat())
    }

    /// Moves the previous alias first. Wherever an interruption stops this, an instance finds the former key.
    pub(super) async fn promote_kms_key(&self, alias: &str, id: &str, former: Option<&HeldKey>) -> Result<()> {
        if let Some(former) = former {
            if former.managed {
                self.record_kms_key(&former.key.id, &former.record).await?;
            }
            self.point_alias(&previous_alias(alias), &former.key.id).await?;
        }
        self.point_alias(alias, id).await
    }

    /// Writes the record, then moves the current alias in one call. Both aliases then point to the former key, and there is no previous
    /// key.
    pub(super) async fn roll_back_kms_key(&self, alias: &str, to: &str, from: &HeldKey) -> Result<()> {
        // A key that is scheduled for deletion can't be tagged.
        if from.managed && !matches!(from.state, KeyState::Leaving(_)) {
            self.record_kms_key(&from.key.id, &from.record).await?;
        }
        self.point_alias(alias, to).await
    }

    pub(super) async fn delete_kms_key(&self, id: &str) -> Result<()> {
        let delete = self.kms.schedule_key_deletion().key_id(id).pending_window_in_days(DELETION_WINDOW_DAYS);
        delete.send().await.map_err(|error| self.failed(format!("schedule the deletion of KMS key {id}"), error))?;
        Ok(())
    }

    /// KMS deletes the aliases together with the keys.
    pub(super) async fn empty_kms(&self, alias: &str) -> Result<()> {
        let contents = self.kms_contents(alias).await?;
        for held in contents.all().filter(|held| held.managed && !matches!(held.state, KeyState::Leaving(_))) {
            self.delete_kms_key(&held.key.id).await?;
        }
        Ok(())
    }

    async fn point_alias(&self, alias: &str, id: &str) -> Result<()> {
        let doing = || format!("point {alias} at KMS key {id}");
        match self.kms.update_alias().alias_name(alias).target_key_id(id).send().await {
            Ok(_) => return Ok(()),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_not_found_exception()) => {}
            Err(error) => return Err(self.failed(doing(), error)),
        }
        let create = self.kms.create_alias().alias_name(alias).target_key_id(id).send().await;
        create.map_err(|error| self.failed(doing(), error))?;
        Ok(())
    }
}

/// Signs with a KMS key, by id or by alias.
#[derive(Debug)]
pub(super) struct KmsSigner {
    pub(super) aws: Aws,
    pub(super) key: String,
}

impl AppSigner for KmsSigner {
    fn sign<'a>(&'a self, signing_input: &'a [u8]) -> BoxFuture<'a, std::result::Result<Vec<u8>, SignError>> {
        Box::pin(async move {
            let failed = |retryable, source| SignError { what: format!("sign with {}", self.key), retryable, source };
            let sign = self
                .aws
                .kms
                .sign()
                .key_id(&self.key)
                .message(Blob::new(signing_input))
                .message_type(MessageType::Raw)
                .signing_algorithm(SigningAlgorithmSpec::RsassaPkcs1V15Sha256);
            // The SDK has retried transient errors. A key or alias that was just created may not be visible yet.
            let answer = sign.send().await.map_err(|error| {
                let unseen = matches!(error.code(), Some("NotFoundException" | "KMSInvalidStateException"));
                failed(unseen, Some(Box::new(self.aws.failed(format!("sign with {}", self.key), error)) as _))
            })?;
            answer.signature.map(Blob::into_inner).ok_or_else(|| failed(false, None))
        })
    }
}
