//! Clients for the parts of GitHub's API that Kiln uses: the App's key and JWTs, installation tokens, runners.
//!
//! * [`AppKey`], [`AppSigner`]: sign as the App; other crates implement the trait for KMS and Secrets Manager.
//! * [`AppClient`]: calls of the App itself, with a JWT.
//! * [`OrgClient`]: calls of its installation in an organization, with a token that it mints and renews.
//! * [`scale_set`]: scale sets, their queues and single-use runners.
//! * [`Error`]: typed, so that a caller knows whether a retry is useful.

mod app;
mod connections;
mod error;
mod http;
mod jwt;
mod key;
mod key_file;
mod org;
pub mod scale_set;

pub use app::{App, AppClient, Installation, InstallationToken, Owner, PERMISSION};
pub use connections::Usage;
pub use error::{Error, ErrorKind, Result};
pub use http::{Bounds, CALLS, refusal};
pub use jwt::{AppSigner, BoxFuture, SignError, jwt};
pub use key::{AppKey, Fingerprint, KeyError, MalformedFingerprint};
pub use org::{
    Deleted, JitConfig, JitRequest, OrgClient, RegistrationToken, Runner, RunnerDeprecation, RunnerDownload,
    RunnerGroup, RunnerLabel, RunnerRelease,
};
