//! S3: the bucket of the documents and of the hand-over objects.

use kiln_config::boot::{CONTROL_KEY, STATUS_KEY, hand_over_key};
use kiln_instance::aws::{Aws, Error};
use secrecy::{ExposeSecret as _, SecretString};

use crate::ids::InstanceId;
use crate::ports::{Document, Etag, Read, Store, StoreError};

/// The bucket.
#[derive(Debug, Clone)]
pub struct S3 {
    /// AWS.
    pub aws: Aws,
    /// Its name.
    pub bucket: String,
}

fn failed(error: Error) -> StoreError {
    // source: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html>: 412 where the condition does
    // not hold, 409 where another write or a deletion is under way, 404 where `If-Match` names an object that is gone.
    match error.http_status() {
        Some(404 | 409 | 412) => StoreError::Conflict,
        _ => StoreError::Failed(error.message),
    }
}

fn key(document: Document) -> &'static str {
    match document {
        Document::Control => CONTROL_KEY,
        Document::Status => STATUS_KEY,
    }
}

fn own_key(role: &str, instance: &InstanceId) -> String {
    hand_over_key(&format!("{role}:{instance}"))
}

impl Store for S3 {
    async fn hand_over(&self, role: &str, instance: &InstanceId, config: &SecretString) -> Result<(), StoreError> {
        let bytes = config.expose_secret().as_bytes().to_vec();
        let put = self.aws.put_object(&self.bucket, &own_key(role, instance), bytes, None).await;
        put.map(drop).map_err(|error| StoreError::Failed(error.message))
    }

    async fn take_back(&self, role: &str, instance: &InstanceId) -> Result<(), StoreError> {
        let deleted = self.aws.delete_object(&self.bucket, &own_key(role, instance)).await;
        deleted.map_err(|error| StoreError::Failed(error.message))
    }

    async fn read(&self, document: Document, known: Option<&Etag>) -> Result<Read, StoreError> {
        let known = known.map(|etag| etag.0.as_str());
        match self.aws.get_object(&self.bucket, key(document), known).await {
            Ok(Some(object)) => Ok(Read::Found(Etag(object.etag), object.bytes)),
            Ok(None) => Ok(Read::Unchanged),
            // Only who may list the bucket is answered so; who may not gets a 403 for what is not there.
            Err(error) if error.code() == "NoSuchKey" => Ok(Read::Missing),
            Err(error) => Err(StoreError::Failed(error.message)),
        }
    }

    async fn write(&self, document: Document, replaces: Option<&Etag>, bytes: Vec<u8>) -> Result<Etag, StoreError> {
        let condition = match replaces {
            Some(Etag(etag)) => ("if-match", etag.clone()),
            None => ("if-none-match", "*".to_owned()),
        };
        let written = self.aws.put_object(&self.bucket, key(document), bytes, Some(condition)).await;
        written.map(|object| Etag(object.etag)).map_err(failed)
    }
}
