//! The controller of fleets that follow the queue: how many jobs wait at GitHub decides how many instances there are.
//!
//! * [`ports`]: what it asks of GitHub's scale set service, of EC2 and of the store, as traits.
//! * [`decide`]: what is to be done, from what is known; pure. [`fleet`]: what is known, and the state of each instance.
//! * [`poller`]: listens to a scale set's queue. [`reconcile`]: makes the calls.
//! * [`intents`]: what was asked of EC2 and is not seen yet, on disk, so that a crash never exceeds the maximum.
//! * [`github`]: the port on GitHub, by `kiln-github`'s client. [`aws`]: the ports on EC2 and S3, and the App's signer.
//!
//! [`program`] is all of it, as it runs on the controller's instance. `tests/schedules` is a model of GitHub and EC2 in which thousands of
//! generated schedules are run.

pub mod aws;
pub mod clock;
pub mod decide;
pub mod documents;
pub mod fleet;
pub mod github;
pub mod ids;
pub mod intents;
pub mod limits;
pub mod poller;
pub mod ports;
pub mod program;
pub mod reconcile;
