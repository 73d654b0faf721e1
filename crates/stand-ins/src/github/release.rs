//! A release of actions/runner: a tarball in the real one's form, around the stand-in runner.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, ensure};
use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// A release's asset for this machine's architecture.
#[derive(Debug, Clone)]
pub struct Release {
    /// Where it is downloaded from.
    pub url: String,
    /// Of the tarball.
    pub sha256: String,
    /// The tarball.
    pub bytes: Vec<u8>,
}

/// source: Misc/layoutroot/config.sh:3-9 and 62-85
/// assumption: the libraries that it looks for (lines 11-60) are there.
const CONFIG: &str = r#"#!/bin/bash
if [[ $(id -u) -eq 0 && -z "$RUNNER_ALLOW_RUNASROOT" ]]; then
  echo "Must not run with sudo"
  exit 1
fi
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
source ./env.sh
if [[ "$1" == remove ]]; then
  exec ./bin/Runner.Listener "$@"
fi
exec ./bin/Runner.Listener configure "$@"
"#;

/// It hides the listener's exit code, but for a deprecated version's, and starts it again after a 2.
///
/// source: Misc/layoutroot/run.sh, Misc/layoutroot/run-helper.sh.template
const RUN: &str = r#"#!/bin/bash
if [[ $(id -u) -eq 0 && -z "$RUNNER_ALLOW_RUNASROOT" ]]; then
  echo "Must not run interactively with sudo"
  exit 1
fi
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
while :; do
  ./bin/Runner.Listener run "$@"
  code=$?
  case $code in
    2) sleep 5 ;;
    7) exit 7 ;;
    *) exit 0 ;;
  esac
done
"#;

/// Keeps the path in `.path`, and in `.env`, which the listener reads at each start, the language. What can't be written is
/// complained about, and that is all.
///
/// source: Misc/layoutroot/env.sh:16-40
const ENV: &str = r#"#!/bin/bash
[[ -f .env ]] || : >.env
echo "$PATH" >.path
if [[ -n "$LANG" ]] && ! grep --quiet '^LANG=' .env; then
  echo "LANG=$LANG" >>.env
fi
"#;

const DEPENDENCIES: &str = "#!/bin/bash\necho \"Can't detect current OS type\"\nexit 1\n";

pub(super) fn pack(version: &str, listener: &Path, url: String) -> anyhow::Result<Release> {
    let listener = std::fs::read(listener).with_context(|| format!("read {}", listener.display()))?;
    let gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
    let mut tar = Builder::new(gzip);
    let (node20, node24) = (node("20.0.0", ""), node("24.0.0", ""));
    let files: [(&str, u32, &[u8]); 8] = [
        ("./bin/Runner.Listener", 0o755, &listener),
        ("./bin/installdependencies.sh", 0o755, DEPENDENCIES.as_bytes()),
        ("./bin/version", 0o644, version.as_bytes()),
        ("./config.sh", 0o755, CONFIG.as_bytes()),
        ("./env.sh", 0o755, ENV.as_bytes()),
        ("./externals/node20/bin/node", 0o755, node20.as_bytes()),
        ("./externals/node24/bin/node", 0o755, node24.as_bytes()),
        ("./run.sh", 0o755, RUN.as_bytes()),
    ];
    for (path, mode, content) in files {
        let mut header = header(mode, EntryType::Regular);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content)?;
    }
    // The worker is the same program by another name.
    tar.append_link(&mut header(0o777, EntryType::Symlink), "./bin/Runner.Worker", "Runner.Listener")?;
    // The real tarball has relative links too.
    tar.append_link(&mut header(0o777, EntryType::Symlink), "./externals/node", "node20")?;
    let bytes = tar.into_inner()?.finish()?;
    let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Release { url, sha256, bytes })
}

/// A Node, as far as the bake's checks start one: it says its version, and what `checks/node.js` would say.
fn node(version: &str, comment: &str) -> String {
    format!(
        "#!/bin/sh\n{comment}case \"$1\" in\n--version) echo v{version} ;;\n*) echo 'crypto and TLS work' ;;\nesac\n"
    )
}

/// The one program of a build of Node that is used.
pub(super) fn pack_node(version: &str, name: &str, url: String) -> anyhow::Result<Release> {
    let mut tar = Builder::new(GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast()));
    let script = node(version, "# for glibc 2.17\n");
    let mut header = header(0o755, EntryType::Regular);
    header.set_size(script.len() as u64);
    tar.append_data(&mut header, format!("{name}/bin/node"), script.as_bytes())?;
    let bytes = tar.into_inner()?.finish()?;
    let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Release { url, sha256, bytes })
}

fn header(mode: u32, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(0);
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Holds the path once it is known to be up to date; a process asks Cargo once.
static LISTENER: Mutex<Option<PathBuf>> = Mutex::new(None);

/// The stand-in runner's executable, beside the one that runs. Cargo builds it where it is missing or out of date: another
/// crate's tests don't have this one's binary built. Blocks until it is.
///
/// # Errors
/// It can't be built.
pub fn listener_path() -> anyhow::Result<PathBuf> {
    let mut known = LISTENER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = known.as_ref() {
        return Ok(path.clone());
    }
    let path = build()?;
    *known = Some(path.clone());
    Ok(path)
}

fn build() -> anyhow::Result<PathBuf> {
    const NAME: &str = "stand-in-runner";
    let current = std::env::current_exe().context("find the running executable")?;
    // A test's executable is one folder below the binaries.
    let folder = current.parent().context("an executable is in a folder")?;
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    // Cargo names the folder for the profile, but `debug` for the profile `dev`.
    let profile = match folder.file_name() {
        Some(name) if name != "debug" => name.to_owned(),
        _ => OsString::from("dev"),
    };
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "kiln-stand-ins", "--bin", NAME, "--profile"]).arg(profile);
    if let Some(target) = folder.parent() {
        cargo.arg("--target-dir").arg(target);
    }
    let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().context("run cargo")?;
    let path = folder.join(NAME);
    ensure!(status.success() && path.exists(), "the stand-in runner could not be built: {} is missing", path.display());
    Ok(path)
}
