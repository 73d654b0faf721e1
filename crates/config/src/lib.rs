//! What Kiln knows about a fleet of runners before it talks to anyone.
//!
//! * [`config`] (feature `config`): `kiln.toml`, parsed to a raw form and validated to [`config::Config`].
//! * [`boot`]: [`boot::BootConfig`], the secret-free JSON document an instance receives as user data.
//! * [`environment`]: which variables a fleet may set for its jobs.
//! * [`model`]: the names and numbers both sides share, each a type of its own.
//!
//! Nothing here does I/O.

pub mod boot;
#[cfg(feature = "config")]
pub mod config;
pub mod environment;
pub mod model;
