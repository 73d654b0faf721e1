//! `ami`, `deploy` and `rotate-key`. Each observes the world, makes a plan (pure data), and applies it.
//!
//! The outside world is reached through [`ports`], which the `kiln-aws` crate implements on the AWS SDK, and through
//! `kiln-github`. No type of an SDK appears here.

pub mod ami;
pub mod code;
pub mod deploy;
pub mod destroy;
pub mod doctor;
pub mod error;
pub mod fleet_stack;
pub mod freshness;
pub mod init;
mod json_diff;
pub mod keys;
mod launches;
pub mod on_demand;
pub mod orphans;
pub mod pin;
pub mod plan;
pub mod ports;
pub mod prune;
pub mod published;
pub mod rotate_key;
pub mod stacks;
pub mod status;
pub mod wait;
pub mod when;

pub use code::Code;
pub use error::{Error, Kind, Result};
