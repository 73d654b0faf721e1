//! A local AWS and GitHub, at the wire, to run every command without an account.
//!
//! * [`aws`], [`github`]: the stand-ins, stateful, able to fail on demand.
//! * [`world`]: both, with a kiln.toml and the commands run in it as a pipeline runs them.
//! * [`story`], [`report`]: what `cargo xtask rehearse` tells, and shows as a page.
//! * [`template`], [`iam`]: what our CloudFormation templates ask for, and what their policies allow.
//! * [`vm`]: a real machine in QEMU, made by the component documents: `cargo xtask rehearse --boot`.
//! * [`machine`], [`distance`], [`mod@bench`]: an instance alone, and what its boot costs when GitHub is far away.

pub mod aws;
pub mod bench;
pub mod distance;
pub mod github;
pub mod iam;
pub mod machine;
pub mod report;
pub mod story;
pub mod template;
pub mod vm;
pub mod world;
