//! Objects in S3.

use aws_sdk_s3::primitives::ByteStream;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_fleet::model::Sha256;
use kiln_release::ports::{Blobs, Result};

use crate::Aws;

impl Blobs for Aws {
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
}
