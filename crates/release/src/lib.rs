//! `ami`, `deploy` and `rotate-key`. Each observes the world, makes a plan (pure data), and applies it.
//!
//! The outside world is reached through [`ports`], which the `kiln-aws` crate implements on the AWS SDK, and through
//! `kiln-github`. No type of an SDK appears here.

pub mod components;
pub mod payload;
pub mod ports;
