//! The stores of the App's private key.
//!
//! KMS: one KMS key for each key of the App, imported, tagged with its fingerprint; an alias says which is current. The
//! material of an imported asymmetric key can't be replaced, so a rotation is a new KMS key and a move of the alias.
//!
//! Secrets Manager: one secret; a version's id is the key's fingerprint in hexadecimal, so that a version is found and
//! told without reading it; stages say which is current.

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded as _};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use aws_sdk_kms::operation::get_parameters_for_import::GetParametersForImportOutput;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{
    AlgorithmSpec, ExpirationModelType, KeySpec, KeyState, KeyUsageType, MessageType, OriginType, SigningAlgorithmSpec,
    Tag, WrappingKeySpec,
};
use aws_sdk_secretsmanager::types::Tag as SecretTag;
use kiln_fleet::model::KeyStore;
use kiln_github::{AppKey, AppSigner, BoxFuture, Fingerprint, SignError};
use kiln_release::ports::{CloudErrorKind, KeyNames, Keys, Result, StoredKey};
use secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use crate::Aws;

const ALIAS_TAG: &str = "kiln:alias";
const FINGERPRINT_TAG: &str = "kiln:fingerprint";
const CURRENT: &str = "AWSCURRENT";
const PENDING: &str = "AWSPENDING";

/// KMS lists up to a thousand keys a page; ten thousand are its own default quota of keys in a region, tenfold.
const MOST_PAGES: usize = 10;

impl Keys for Aws {
    async fn current_key(&self, names: &KeyNames, store: KeyStore) -> Result<Option<StoredKey>> {
        match store {
            KeyStore::Kms => self.kms_key(&names.alias).await,
            KeyStore::SecretsManager => self.secret_version(&names.secret, CURRENT, None).await,
        }
    }

    async fn staged_key(
        &self,
        names: &KeyNames,
        store: KeyStore,
        fingerprint: &Fingerprint,
    ) -> Result<Option<StoredKey>> {
        match store {
            KeyStore::Kms => {
                let found = self.tagged_key(&names.alias, fingerprint).await?;
                let whole = found.filter(|(_, state)| *state == KeyState::Enabled);
                Ok(whole.map(|(id, _)| StoredKey { store, id, fingerprint: fingerprint.clone() }))
            }
            KeyStore::SecretsManager => self.secret_version(&names.secret, PENDING, Some(fingerprint)).await,
        }
    }

    async fn stage_key(&self, names: &KeyNames, store: KeyStore, key: &AppKey) -> Result<StoredKey> {
        let fingerprint = key.fingerprint();
        let id = match store {
            KeyStore::Kms => self.import(&names.alias, key).await?,
            KeyStore::SecretsManager => self.put_pending(&names.secret, key).await?,
        };
        Ok(StoredKey { store, id, fingerprint })
    }

    async fn promote_key(&self, names: &KeyNames, key: &StoredKey) -> Result<()> {
        match key.store {
            KeyStore::Kms => self.point_alias(&names.alias, &key.id).await,
            KeyStore::SecretsManager => self.make_current(&names.secret, &key.id).await,
        }
    }

    fn key_signer(&self, names: &KeyNames, key: &StoredKey) -> Box<dyn AppSigner> {
        match key.store {
            KeyStore::Kms => Box::new(KmsSigner { client: self.kms.clone(), key: key.id.clone() }),
            KeyStore::SecretsManager => Box::new(SecretSigner {
                client: self.secrets.clone(),
                name: names.secret.clone(),
                version: Some(key.id.clone()),
            }),
        }
    }

    fn current_signer(&self, names: &KeyNames, store: KeyStore) -> Box<dyn AppSigner> {
        match store {
            KeyStore::Kms => Box::new(KmsSigner { client: self.kms.clone(), key: names.alias.clone() }),
            KeyStore::SecretsManager => {
                Box::new(SecretSigner { client: self.secrets.clone(), name: names.secret.clone(), version: None })
            }
        }
    }
}

// --- KMS -------------------------------------------------------------------------------------------------------------

impl Aws {
    async fn kms_key(&self, alias: &str) -> Result<Option<StoredKey>> {
        let described = match self.kms.describe_key().key_id(alias).send().await {
            Ok(answer) => answer.key_metadata,
            Err(error) if error.as_service_error().is_some_and(|error| error.is_not_found_exception()) => {
                return Ok(None);
            }
            Err(error) => return Err(self.failed(format!("describe {alias}"), error)),
        };
        let doing = || format!("read the public half of {alias}");
        let Some(id) = described.map(|key| key.key_id) else { return Err(self.odd(doing(), "it has no key")) };
        let answer = self.kms.get_public_key().key_id(&id).send().await.map_err(|error| self.failed(doing(), error))?;
        let spki = answer.public_key.ok_or_else(|| self.odd(doing(), "the answer holds none"))?;
        let fingerprint = Fingerprint::of_spki_der(spki.as_ref());
        Ok(Some(StoredKey { store: KeyStore::Kms, id, fingerprint }))
    }

    /// The key of ours with this fingerprint, unless it is on its way out.
    async fn tagged_key(&self, alias: &str, fingerprint: &Fingerprint) -> Result<Option<(String, KeyState)>> {
        let mut marker = None;
        for _ in 0..MOST_PAGES {
            let list = self.kms.list_keys().limit(1000).set_marker(marker).send().await;
            let page = list.map_err(|error| self.failed("list KMS keys", error))?;
            for id in page.keys.unwrap_or_default().into_iter().filter_map(|key| key.key_id) {
                if self.has_tags(&id, alias, fingerprint).await?
                    && let Some(state) = self.usable_state(&id).await?
                {
                    return Ok(Some((id, state)));
                }
            }
            marker = page.next_marker;
            if marker.is_none() {
                break;
            }
        }
        Ok(None)
    }

    async fn has_tags(&self, id: &str, alias: &str, fingerprint: &Fingerprint) -> Result<bool> {
        let answer = match self.kms.list_resource_tags().key_id(id).send().await {
            Ok(answer) => answer,
            // Other people's keys need not let us look; ours do.
            Err(error) => {
                let failed = self.failed(format!("read the tags of KMS key {id}"), error);
                return match failed.kind {
                    CloudErrorKind::AccessDenied | CloudErrorKind::NotFound => Ok(false),
                    _ => Err(failed),
                };
            }
        };
        let tags = answer.tags.unwrap_or_default();
        let has = |key: &str, value: &str| tags.iter().any(|tag| tag.tag_key == key && tag.tag_value == value);
        Ok(has(ALIAS_TAG, alias) && has(FINGERPRINT_TAG, fingerprint.as_str()))
    }

    async fn usable_state(&self, id: &str) -> Result<Option<KeyState>> {
        let answer = self.kms.describe_key().key_id(id).send().await;
        let answer = answer.map_err(|error| self.failed(format!("describe KMS key {id}"), error))?;
        let state = answer.key_metadata.and_then(|key| key.key_state);
        Ok(state.filter(|state| matches!(state, KeyState::Enabled | KeyState::PendingImport)))
    }

    /// Imports the key, into what an interrupted run left where there is such.
    async fn import(&self, alias: &str, key: &AppKey) -> Result<String> {
        let fingerprint = key.fingerprint();
        let id = match self.tagged_key(alias, &fingerprint).await? {
            Some((id, KeyState::Enabled)) => return Ok(id),
            Some((id, _)) => id,
            None => self.create_key(alias, key).await?,
        };
        let doing = format!("import key {fingerprint} into KMS key {id}");
        let parameters = self
            .kms
            .get_parameters_for_import()
            .key_id(&id)
            .wrapping_algorithm(AlgorithmSpec::RsaAesKeyWrapSha256)
            .wrapping_key_spec(WrappingKeySpec::Rsa4096)
            .send()
            .await
            .map_err(|error| self.failed(&doing, error))?;
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

    async fn create_key(&self, alias: &str, key: &AppKey) -> Result<String> {
        let fingerprint = key.fingerprint();
        let doing = format!("create a KMS key for {fingerprint}");
        let tag = |key: &str, value: &str| {
            Tag::builder().tag_key(key).tag_value(value).build().expect("key and value are given")
        };
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
            .tags(tag("kiln:managed", "true"));
        let answer = create.send().await.map_err(|error| self.failed(&doing, error))?;
        answer.key_metadata.map(|key| key.key_id).ok_or_else(|| self.odd(doing, "the answer names no key"))
    }

    /// `RSA_AES_KEY_WRAP_SHA_256`: the key under a fresh AES key (RFC 5649), that one under KMS's RSA key (OAEP).
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
        // The wrapped form is a multiple of eight bytes and eight longer.
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

#[derive(Debug)]
struct KmsSigner {
    client: aws_sdk_kms::Client,
    key: String,
}

impl AppSigner for KmsSigner {
    fn sign<'a>(&'a self, signing_input: &'a [u8]) -> BoxFuture<'a, std::result::Result<Vec<u8>, SignError>> {
        Box::pin(async move {
            let failed = |source| SignError { what: format!("sign with {}", self.key), retryable: false, source };
            let sign = self
                .client
                .sign()
                .key_id(&self.key)
                .message(Blob::new(signing_input))
                .message_type(MessageType::Raw)
                .signing_algorithm(SigningAlgorithmSpec::RsassaPkcs1V15Sha256);
            // The SDK has tried again what is worth it.
            let answer = sign.send().await.map_err(|error| failed(Some(Box::new(error) as _)))?;
            answer.signature.map(Blob::into_inner).ok_or_else(|| failed(None))
        })
    }
}

// --- Secrets Manager -------------------------------------------------------------------------------------------------

/// A version's id for a key: 64 characters, Secrets Manager's most.
fn version_id(fingerprint: &Fingerprint) -> String {
    fingerprint.digest().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fingerprint_of(version: &str) -> Option<Fingerprint> {
    let byte = |at: usize| u8::from_str_radix(version.get(at * 2..at * 2 + 2)?, 16).ok();
    let digest: Vec<u8> = (0..32).map_while(byte).collect();
    Some(Fingerprint::of_digest(&digest.try_into().ok()?))
}

impl Aws {
    /// Versions by id, each with its stages; `None` where there is no such secret.
    async fn versions(&self, name: &str) -> Result<Option<Vec<(String, Vec<String>)>>> {
        match self.secrets.describe_secret().secret_id(name).send().await {
            Ok(answer) => Ok(Some(answer.version_ids_to_stages.unwrap_or_default().into_iter().collect())),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_resource_not_found_exception()) => {
                Ok(None)
            }
            Err(error) => Err(self.failed(format!("describe secret {name}"), error)),
        }
    }

    async fn secret_version(&self, name: &str, stage: &str, wanted: Option<&Fingerprint>) -> Result<Option<StoredKey>> {
        let Some(versions) = self.versions(name).await? else { return Ok(None) };
        let found = versions
            .into_iter()
            .find(|(id, stages)| stages.iter().any(|s| s == stage) && wanted.is_none_or(|w| *id == version_id(w)));
        let Some((id, _)) = found else { return Ok(None) };
        let fingerprint = match fingerprint_of(&id) {
            Some(fingerprint) => fingerprint,
            // Put there by hand. What holds no key, such as nothing at all, is none.
            None => match self.read_version(name, &id).await? {
                Some(key) => key.fingerprint(),
                None => return Ok(None),
            },
        };
        Ok(Some(StoredKey { store: KeyStore::SecretsManager, id, fingerprint }))
    }

    /// The key that a version holds, if it holds one.
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

    async fn put_pending(&self, name: &str, key: &AppKey) -> Result<String> {
        let doing = format!("store key {} in secret {name}", key.fingerprint());
        if self.versions(name).await?.is_none() {
            let tag = SecretTag::builder().key("kiln:managed").value("true").build();
            // Without a value: the first one put would be current at once.
            let create = self.secrets.create_secret().name(name).description("GitHub App private key, kept by Kiln");
            create.tags(tag).send().await.map_err(|error| self.failed(&doing, error))?;
        }
        let id = version_id(&key.fingerprint());
        let put = self
            .secrets
            .put_secret_value()
            .secret_id(name)
            .client_request_token(&id)
            .secret_string(key.pkcs8_pem().expose_secret())
            .version_stages(PENDING);
        put.send().await.map_err(|error| self.failed(doing, error))?;
        Ok(id)
    }

    async fn make_current(&self, name: &str, id: &str) -> Result<()> {
        let doing = || format!("make version {id} of secret {name} the current one");
        let versions = self.versions(name).await?.unwrap_or_default();
        let holder = |stage: &str| {
            versions.iter().find(|(_, stages)| stages.iter().any(|s| s == stage)).map(|(id, _)| id.clone())
        };
        let current = holder(CURRENT);
        if current.as_deref() != Some(id) {
            let update = self
                .secrets
                .update_secret_version_stage()
                .secret_id(name)
                .version_stage(CURRENT)
                .move_to_version_id(id)
                .set_remove_from_version_id(current);
            update.send().await.map_err(|error| self.failed(doing(), error))?;
        }
        if holder(PENDING).as_deref() == Some(id) {
            let update = self.secrets.update_secret_version_stage().secret_id(name).version_stage(PENDING);
            update.remove_from_version_id(id).send().await.map_err(|error| self.failed(doing(), error))?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct SecretSigner {
    client: aws_sdk_secretsmanager::Client,
    name: String,
    /// The current one, if none is named.
    version: Option<String>,
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
