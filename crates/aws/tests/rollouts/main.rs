//! Rollouts of simulated instances: the commands' library and the ports on the real SDK, over real sockets, in one process.
//! What takes minutes in AWS takes milliseconds here, so that there is time for two hundred of them, and for five hundred
//! instances.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod env;
mod faults;
mod large;
mod launches;
mod rollback;
mod upgrade;
