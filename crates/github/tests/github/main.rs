//! The client against the stand-in GitHub, over real sockets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod app;
mod key;
mod organization;
mod support;
mod transport;
