//! A release of actions/runner: a tarball in the real one's form, around the stand-in runner.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// A release's asset for this machine's architecture.
#[derive(Debug, Clone)]
pub struct Release {
    /// Of the tarball.
    pub sha256: String,
    pub(super) bytes: Vec<u8>,
}

const CONFIG: &str = "#!/bin/bash\ncd \"$(dirname \"${BASH_SOURCE[0]}\")\"\nexec ./bin/Runner.Listener configure \"$@\"\n";
const RUN: &str = "#!/bin/bash\ncd \"$(dirname \"${BASH_SOURCE[0]}\")\"\nexec ./bin/Runner.Listener run \"$@\"\n";

pub(super) fn pack(version: &str) -> anyhow::Result<Release> {
    let listener = std::fs::read(listener_path()?).context("read the stand-in runner")?;
    let gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
    let mut tar = Builder::new(gzip);
    let files: [(&str, u32, &[u8]); 5] = [
        ("./bin/Runner.Listener", 0o755, &listener),
        ("./bin/version", 0o644, version.as_bytes()),
        ("./config.sh", 0o755, CONFIG.as_bytes()),
        ("./externals/node20/bin/node", 0o755, b"#!/bin/sh\necho v20.0.0\n"),
        ("./run.sh", 0o755, RUN.as_bytes()),
    ];
    for (path, mode, content) in files {
        let mut header = header(mode, EntryType::Regular);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content)?;
    }
    // The real tarball has relative links too.
    tar.append_link(&mut header(0o777, EntryType::Symlink), "./externals/node", "node20")?;
    let bytes = tar.into_inner()?.finish()?;
    let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Release { sha256, bytes })
}

fn header(mode: u32, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// The stand-in runner's executable: beside the one that runs, or built now.
///
/// # Errors
/// It is neither there nor can it be built.
pub fn listener_path() -> anyhow::Result<PathBuf> {
    const NAME: &str = "stand-in-runner";
    let current = std::env::current_exe().context("find the running executable")?;
    // A test's executable is one folder below the binaries.
    let folder = current.parent().context("an executable is in a folder")?;
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let path = folder.join(NAME);
    // Cargo decides whether there is anything to do; another crate's tests don't have this one's binary built.
    let status = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--package", "kiln-rehearsal", "--bin", NAME])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("run cargo to build the stand-in runner")?;
    ensure!(status.success() && path.exists(), "the stand-in runner could not be built: {} is missing", path.display());
    Ok(path)
}
