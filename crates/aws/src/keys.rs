//! The stores of the App's private key. The material of an imported asymmetric KMS key can't be replaced, nor a version of
//! a secret: in both, a rotation puts a new one beside the old one and moves a name on.

mod kms;
mod secret;

use kiln_config::model::KeyStore;
use kiln_github::{AppKey, AppSigner};
use kiln_operations::ports::{HeldKey, KeyNames, KeyRecord, Keys, Result, StoreContents, StoredKey};

use crate::Aws;
use kms::KmsSigner;
use secret::SecretSigner;

impl Keys for Aws {
    async fn current_key(&self, names: &KeyNames, store: KeyStore) -> Result<Option<StoredKey>> {
        match store {
            KeyStore::Kms => self.kms_key(&names.alias).await,
            KeyStore::SecretsManager => self.secret_key(&names.secret).await,
        }
    }

    async fn contents(&self, names: &KeyNames, store: KeyStore) -> Result<StoreContents> {
        match store {
            KeyStore::Kms => self.kms_contents(&names.alias).await,
            KeyStore::SecretsManager => self.secret_contents(&names.secret).await,
        }
    }

    async fn stage_key(
        &self,
        names: &KeyNames,
        store: KeyStore,
        key: &AppKey,
        record: &KeyRecord,
    ) -> Result<StoredKey> {
        let id = match store {
            KeyStore::Kms => self.import(names, key, record).await?,
            KeyStore::SecretsManager => self.put_pending(names, key, record).await?,
        };
        Ok(StoredKey { store, id, fingerprint: key.fingerprint() })
    }

    async fn promote_key(&self, names: &KeyNames, key: &StoredKey, former: Option<&HeldKey>) -> Result<()> {
        match key.store {
            KeyStore::Kms => self.promote_kms_key(&names.alias, &key.id, former).await,
            KeyStore::SecretsManager => self.promote_version(&names.secret, &key.id, former).await,
        }
    }

    async fn roll_back_key(&self, names: &KeyNames, to: &HeldKey, from: &HeldKey) -> Result<()> {
        match to.key.store {
            KeyStore::Kms => self.roll_back_kms_key(&names.alias, &to.key.id, from).await,
            KeyStore::SecretsManager => self.roll_back_version(&names.secret, to, from).await,
        }
    }

    async fn record_key(&self, names: &KeyNames, key: &StoredKey, record: &KeyRecord) -> Result<()> {
        match key.store {
            KeyStore::Kms => self.record_kms_key(&key.id, record).await,
            KeyStore::SecretsManager => self.record_version(&names.secret, key, record).await,
        }
    }

    async fn retire_key(&self, names: &KeyNames, key: &StoredKey) -> Result<()> {
        match key.store {
            KeyStore::Kms => self.delete_kms_key(&key.id).await,
            KeyStore::SecretsManager => self.drop_version(&names.secret, &key.id).await,
        }
    }

    async fn retire_store(&self, names: &KeyNames, store: KeyStore) -> Result<()> {
        match store {
            KeyStore::Kms => self.empty_kms(&names.alias).await,
            KeyStore::SecretsManager => self.delete_secret(&names.secret).await,
        }
    }

    fn key_signer(&self, names: &KeyNames, key: &StoredKey) -> Box<dyn AppSigner> {
        match key.store {
            KeyStore::Kms => Box::new(KmsSigner { aws: self.clone(), key: key.id.clone() }),
            KeyStore::SecretsManager => Box::new(SecretSigner {
                client: self.secrets.clone(),
                name: names.secret.clone(),
                version: Some(key.id.clone()),
            }),
        }
    }

    fn current_signer(&self, names: &KeyNames, store: KeyStore) -> Box<dyn AppSigner> {
        match store {
            KeyStore::Kms => Box::new(KmsSigner { aws: self.clone(), key: names.alias.clone() }),
            KeyStore::SecretsManager => {
                Box::new(SecretSigner { client: self.secrets.clone(), name: names.secret.clone(), version: None })
            }
        }
    }
}
