//! A local AWS, GitHub and runner, at the wire. They hold state and can fail on demand.
//!
//! * [`aws`], [`github`]: the services.
//! * [`machine`]: a folder that the bootstrap binary takes for its machine.
//! * [`latency_proxy`]: puts a service at a distance.
//! * [`template`], [`iam`]: what our CloudFormation templates ask for, and what their policies allow.

pub mod aws;
pub mod github;
pub mod iam;
pub mod latency_proxy;
pub mod machine;
pub mod template;
