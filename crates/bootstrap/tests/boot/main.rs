//! The shipped binary, against a stand-in GitHub and metadata service.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod between_jobs;
mod check;
mod faults;
mod isolation;
mod life;
mod on_demand;
mod proxy;
mod support;
