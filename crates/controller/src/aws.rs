//! The ports on AWS, by `kiln-instance`'s small client.

mod ec2;
mod s3;
mod signer;

pub use ec2::Ec2;
pub use s3::S3;
pub use signer::Signer;
