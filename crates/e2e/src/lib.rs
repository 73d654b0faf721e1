//! Every command, run end to end against the stand-ins.
//!
//! * [`world`]: AWS and GitHub together, with a kiln.toml, and the commands run in it as a pipeline runs them.
//! * [`story`], [`report`]: what `cargo xtask rehearse` runs, and its page.
//! * [`mod@bench`]: the boot of a single instance, measured while GitHub is far away.

pub mod bench;
pub mod report;
pub mod story;
pub mod world;
