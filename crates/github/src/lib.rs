//! GitHub as Kiln needs it: the App's key and its JWTs, installation tokens, runners.
//!
//! * [`AppKey`], [`AppSigner`]: who signs as the App; KMS and Secrets Manager implement the trait elsewhere.
//! * [`AppClient`]: what the App itself asks, with a JWT.
//! * [`OrgClient`]: what its installation in an organization asks, with a token that is minted and renewed as needed.
//! * [`scale_set`]: scale sets, their queues and single-use runners.
//! * [`Error`]: typed, so that "again" or "never" is not a caller's guess.

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
