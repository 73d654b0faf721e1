//! The instance's binaries that a released `kiln` carries, so that `ami` needs no source and no compiler.

use kiln_config::model::Architecture;

/// The bootstrap binary for an architecture; none where the program was built without the feature `bundled`.
#[cfg(feature = "bundled")]
pub(crate) fn bootstrap(architecture: Architecture) -> Option<&'static [u8]> {
    Some(match architecture {
        Architecture::X86_64 => include_bytes!(concat!(env!("KILN_BUNDLE"), "/kiln-bootstrap-x86_64")),
        Architecture::Aarch64 => include_bytes!(concat!(env!("KILN_BUNDLE"), "/kiln-bootstrap-aarch64")),
    })
}

/// The bootstrap binary for an architecture; none where the program was built without the feature `bundled`.
#[cfg(not(feature = "bundled"))]
pub(crate) fn bootstrap(_: Architecture) -> Option<&'static [u8]> {
    None
}
