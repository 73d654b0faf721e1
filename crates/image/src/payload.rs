//! What the image needs of ours, the bootstrap binary and `ami/files`, as one tar.gz that is the same byte for byte
//! wherever and whenever it is packed: its digest is one of an image's inputs.

use std::collections::BTreeMap;

use flate2::{Compression, GzBuilder};
use kiln_config::model::{Architecture, Sha256};
use object::elf;
use object::read::elf::{Dyn as _, FileHeader, ProgramHeader as _};
use sha2::Digest as _;

/// Where the bootstrap binary lies in the image.
pub const BOOTSTRAP_PATH: &str = "usr/local/bin/kiln-bootstrap";

/// Where the list of what the binary is made of lies in the image.
pub const SBOM_PATH: &str = "usr/share/kiln/bootstrap.cdx.json";

/// A file of `ami/files` by its path in the image; scripts can be executed.
macro_rules! file {
    ($path:literal, $mode:literal) => {
        ($path, $mode, include_bytes!(concat!("../../../ami/files/", $path)) as &[u8])
    };
}

/// The files of `ami/files`.
const FILES: [(&str, u32, &[u8]); 18] = [
    file!("etc/cloud/cloud.cfg.d/95-kiln.cfg", 0o644),
    file!("etc/docker/daemon.json", 0o644),
    file!("etc/systemd/journald.conf.d/kiln.conf", 0o644),
    file!("opt/kiln/checks/node.js", 0o644),
    file!("opt/kiln/checks/runner.sh", 0o755),
    file!("opt/kiln/hooks/job-completed.sh", 0o755),
    file!("opt/kiln/hooks/job-started.sh", 0o755),
    file!("usr/lib/systemd/system/docker.service.d/kiln.conf", 0o644),
    file!("usr/lib/systemd/system/kiln-bootstrap-failed.service", 0o644),
    file!("usr/lib/systemd/system/kiln-bootstrap.service", 0o644),
    file!("usr/lib/systemd/system/kiln-bootstrap.service.d/oom.conf", 0o644),
    file!("usr/lib/systemd/system/kiln-controller.service", 0o644),
    file!("usr/lib/systemd/system/kiln-jobs.service", 0o644),
    file!("usr/lib/systemd/system/kiln-jobs.service.d/limits.conf", 0o644),
    file!("usr/lib/systemd/system/kiln-jobs.slice", 0o644),
    file!("usr/lib/systemd/system/kiln-jobs.slice.d/limits.conf", 0o644),
    file!("usr/lib/systemd/system/kiln-metadata-guard.service", 0o644),
    file!("usr/lib/systemd/system/kiln-metadata-guard.service.d/jobs.conf", 0o644),
];

/// 1980-01-01, the oldest time that every archiver takes for a real one; GNU tar warns of 1970.
const MTIME: u64 = 315_532_800;

/// The packed payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// The tar.gz.
    pub bytes: Vec<u8>,
    /// Its digest.
    pub sha256: Sha256,
}

/// A regular file to be packed. It belongs to root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its permissions, such as `0o644`.
    pub mode: u32,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl Payload {
    /// The payload of an image: the binary, what it is made of, and `ami/files`.
    pub fn of_bootstrap(binary: &[u8]) -> Self {
        let mut entries: BTreeMap<String, Entry> = FILES
            .iter()
            .map(|(path, mode, bytes)| ((*path).to_owned(), Entry { mode: *mode, bytes: bytes.to_vec() }))
            .collect();
        entries.insert(BOOTSTRAP_PATH.to_owned(), Entry { mode: 0o755, bytes: binary.to_vec() });
        let sbom = format!("{:#}\n", crate::sbom::of_bootstrap(binary)).into_bytes();
        entries.insert(SBOM_PATH.to_owned(), Entry { mode: 0o644, bytes: sbom });
        let bytes = pack(&entries);
        let sha256 = sha256(&bytes);
        Self { bytes, sha256 }
    }
}

/// Stands for the payload's digest where the binary has not been built: one of its sources and of `ami/files`. The build
/// is reproducible, so that equal sources make an equal payload.
pub fn digest_of_sources(sources: &Sha256) -> Sha256 {
    let mut text = format!("sources {sources}\n");
    for (path, mode, bytes) in FILES {
        text.push_str(&format!("{path} {mode:o} {}\n", sha256(bytes)));
    }
    sha256(text.as_bytes())
}

/// Packs files by their path (relative, without `..`) into a tar.gz. Everything in it is a function of the arguments:
/// order, owner, times and the headers' optional fields are fixed. There are no entries for directories, so that
/// unpacking changes none that exist.
///
/// # Panics
/// A path that a tar header can't hold: it is longer than 100 bytes, absolute or goes up.
pub fn pack(entries: &BTreeMap<String, Entry>) -> Vec<u8> {
    const INFALLIBLE: &str = "writing to memory does not fail";
    // The ninth level takes more than twice as long, for half a percent.
    let gzip = GzBuilder::new().mtime(0).operating_system(UNKNOWN_OS).write(Vec::new(), Compression::new(6));
    let mut archive = tar::Builder::new(gzip);
    for (path, entry) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_path(path).expect("the payload's paths are short and relative");
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(entry.bytes.len() as u64);
        header.set_mode(entry.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(MTIME);
        header.set_cksum();
        archive.append(&header, entry.bytes.as_slice()).expect(INFALLIBLE);
    }
    archive.into_inner().expect(INFALLIBLE).finish().expect(INFALLIBLE)
}

/// gzip's number for an operating system it does not name (RFC 1952, 2.3.1).
const UNKNOWN_OS: u8 = 255;

/// The SHA-256 of bytes.
pub fn sha256(bytes: &[u8]) -> Sha256 {
    let digest = sha2::Sha256::digest(bytes);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.parse().expect("32 bytes are 64 hexadecimal digits")
}

/// Why an executable can't go into an image: it would depend on what is installed there, or not run at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotStatic {
    /// Not an ELF file of 64 bits, or a damaged one.
    #[error("not a 64-bit ELF executable: {0}")]
    Unreadable(String),
    /// Big endian, which neither architecture is.
    #[error("a big-endian executable")]
    BigEndian,
    /// For another processor.
    #[error("an executable for another processor: ELF machine {found}, {expected} is {wanted}")]
    Machine {
        /// `e_machine` as found.
        found: u16,
        /// The architecture wanted.
        expected: Architecture,
        /// Its `e_machine`.
        wanted: u16,
    },
    /// An object file, a library, a core dump.
    #[error("not an executable: ELF type {0}, or nothing in it to run")]
    Kind(u16),
    /// The kernel would hand it to a dynamic loader.
    #[error("a dynamic executable: it asks for the loader {0}")]
    Interpreter(String),
    /// A loader would have to find libraries.
    #[error("a dynamic executable: it needs {0} shared libraries")]
    Needed(usize),
}

/// Proves that an executable is static (or static-pie) and of that architecture: it starts on any Linux of that
/// processor, whatever the C library.
///
/// # Errors
/// What speaks against it.
pub fn prove_static(binary: &[u8], architecture: Architecture) -> Result<(), NotStatic> {
    let unreadable = |error: object::Error| NotStatic::Unreadable(error.to_string());
    let header = elf::FileHeader64::<object::Endianness>::parse(binary).map_err(unreadable)?;
    let endian = header.endian().map_err(unreadable)?;
    if endian != object::Endianness::Little {
        return Err(NotStatic::BigEndian);
    }
    let wanted = match architecture {
        Architecture::X86_64 => elf::EM_X86_64,
        Architecture::Aarch64 => elf::EM_AARCH64,
    };
    let found = header.e_machine(endian);
    if found != wanted {
        return Err(NotStatic::Machine { found: found.0, expected: architecture, wanted: wanted.0 });
    }
    let kind = header.e_type(endian);
    // Without a dynamic loader an executable has to say itself where it begins; a library has no such place.
    if !matches!(kind, elf::ET_EXEC | elf::ET_DYN) || header.e_entry(endian) == 0 {
        return Err(NotStatic::Kind(kind.0));
    }
    let mut needed = 0;
    for segment in header.program_headers(endian, binary).map_err(unreadable)? {
        if let Some(loader) = segment.interpreter(endian, binary).map_err(unreadable)? {
            return Err(NotStatic::Interpreter(String::from_utf8_lossy(loader).into_owned()));
        }
        if let Some(entries) = segment.dynamic(endian, binary).map_err(unreadable)? {
            needed += entries.iter().filter(|entry| entry.tag(endian) == elf::DT_NEEDED).count();
        }
    }
    if needed > 0 { Err(NotStatic::Needed(needed)) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
