//! What goes into a machine image: Image Builder's component documents, the payload of files they lay down, what kiln.toml
//! adds, and the bill of materials of the bootstrap binary.

pub mod components;
pub mod contents;
pub mod packages;
pub mod payload;
pub mod sbom;
