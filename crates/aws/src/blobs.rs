//! Objects in S3.

use std::time::SystemTime;

use aws_sdk_s3::error::ProvideErrorMetadata as _;
use aws_sdk_s3::primitives::ByteStream;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_config::model::Sha256;
use kiln_operations::ports::{CloudErrorKind, Document, ObjectStore, Result};

use crate::Aws;
use crate::pages::pages;

/// A document of Kiln's, such as a lock, takes some hundred bytes. Whoever can write to the bucket may put more there.
const MOST_DOCUMENT_BYTES: usize = 1 << 20;

impl ObjectStore for Aws {
    async fn has_blob(&self, bucket: &str, key: &str) -> Result<bool> {
        match self.s3.head_object().bucket(bucket).key(key).send().await {
            Ok(_) => Ok(true),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_not_found()) => Ok(false),
            Err(error) => Err(self.failed(format!("look for s3://{bucket}/{key}"), error)),
        }
    }

    async fn put_blob(&self, bucket: &str, key: &str, bytes: Vec<u8>, sha256: &Sha256) -> Result<()> {
        let digest: Vec<u8> = (0..64)
            .step_by(2)
            .map(|at| u8::from_str_radix(&sha256.as_str()[at..at + 2], 16).expect("a digest is hexadecimal"))
            .collect();
        let put = self.s3.put_object().bucket(bucket).key(key).content_type("application/gzip");
        let put = put.checksum_sha256(STANDARD.encode(digest)).body(ByteStream::from(bytes));
        Box::pin(put.send()).await.map_err(|error| self.failed(format!("upload s3://{bucket}/{key}"), error))?;
        Ok(())
    }

    async fn document(&self, bucket: &str, key: &str) -> Result<Option<Document>> {
        let doing = || format!("read s3://{bucket}/{key}");
        let answer = match self.s3.get_object().bucket(bucket).key(key).send().await {
            Ok(answer) => answer,
            Err(error) if error.as_service_error().is_some_and(|error| error.is_no_such_key()) => return Ok(None),
            Err(error) => return Err(self.failed(doing(), error)),
        };
        let version = answer.e_tag.ok_or_else(|| self.odd(doing(), "the answer has no ETag"))?;
        let written = answer.last_modified.and_then(|at| SystemTime::try_from(at).ok());
        let mut body = answer.body;
        let mut bytes = Vec::new();
        while let Some(chunk) = body.try_next().await.map_err(|error| self.odd(doing(), error.to_string()))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MOST_DOCUMENT_BYTES {
                return Err(
                    self.odd(doing(), format!("it is longer than the {MOST_DOCUMENT_BYTES} bytes that are read"))
                );
            }
        }
        let text = String::from_utf8(bytes).map_err(|_| self.odd(doing(), "it is no text"))?;
        Ok(Some(Document { text, version, written }))
    }

    async fn put_document(&self, bucket: &str, key: &str, text: &str, version: Option<&str>) -> Result<Option<String>> {
        let doing = || format!("write s3://{bucket}/{key}");
        let put = self.s3.put_object().bucket(bucket).key(key).content_type("application/json");
        let put = match version {
            Some(version) => put.if_match(version),
            None => put.if_none_match("*"),
        };
        match Box::pin(put.body(ByteStream::from(text.as_bytes().to_vec())).send()).await {
            Ok(answer) => answer.e_tag.map(Some).ok_or_else(|| self.odd(doing(), "the answer has no ETag")),
            // 412 when it was changed before, 409 when it is being changed, 404 when it was deleted.
            Err(error)
                if matches!(error.code(), Some("PreconditionFailed" | "ConditionalRequestConflict" | "NoSuchKey")) =>
            {
                Ok(None)
            }
            Err(error) => Err(self.failed(doing(), error)),
        }
    }

    async fn empty_bucket(&self, bucket: &str) -> Result<()> {
        let doing = || format!("empty s3://{bucket}");
        let list = self.s3.list_objects_v2().bucket(bucket);
        let pages = match pages!(self, doing(), list).await {
            Ok(pages) => pages,
            Err(error) if error.kind == CloudErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        // One by one: what is left in such a bucket is two documents, and what instances were handed within a day.
        for key in pages.iter().flat_map(|page| page.contents()).filter_map(|object| object.key()) {
            let delete = self.s3.delete_object().bucket(bucket).key(key).send().await;
            delete.map_err(|error| self.failed(doing(), error))?;
        }
        Ok(())
    }
}
