//! What the programs on an instance share, small enough for a static binary: no SDK.
//!
//! * [`aws`]: calls to AWS, signed here. Each is one request; nothing is tried again.
//! * [`metadata`]: the instance's metadata service, and the role's credentials from it.
//! * [`journal`]: lines of JSON for the journal.

pub mod aws;
pub mod journal;
pub mod metadata;
mod sign;
