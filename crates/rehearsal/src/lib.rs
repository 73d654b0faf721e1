//! A local AWS and GitHub, at the wire, to run every command without an account.

pub mod github;
