//! The files of a runner's registration.

use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

use crate::start::root;

/// What `configure` leaves: settings, who the runner is, and its secret. Only the last is closed to others.
///
/// source: Runner.Common/HostContext.cs:450-478, Runner.Listener/Configuration/RSAFileKeyManager.cs:25-45
pub(crate) const FILES: [&str; 3] = [".runner", ".credentials", ".credentials_rsaparams"];

/// What GitHub has sent later in place of the first two.
///
/// source: Runner.Common/HostContext.cs:456-472
const MIGRATED: [&str; 2] = [".runner_migrated", ".credentials_migrated"];

/// .NET writes its files with a byte order mark.
///
/// source: Runner.Sdk/Util/IOUtil.cs `SaveObject` (`Encoding.UTF8`)
const MARK: &str = "\u{feff}";

pub(crate) fn version() -> anyhow::Result<String> {
    // assumption: in reality the version is compiled in.
    let text = std::fs::read_to_string(root()?.join("bin/version")).context("read bin/version")?;
    Ok(text.trim().to_owned())
}

/// source: Runner.Common/ConfigurationStore.cs:236-242: a migrated file counts as well.
pub(crate) fn is_configured(root: &Path) -> bool {
    root.join(FILES[0]).exists() || root.join(MIGRATED[0]).exists()
}

/// source: Runner.Common/ConfigurationStore.cs:319-331 and 348-360: what is there is deleted first.
pub(crate) fn save(root: &Path, name: &str, content: &Value) -> anyhow::Result<()> {
    delete(root, name)?;
    write(root, name, format!("{MARK}{content}").as_bytes())
}

/// Over what is there, as a just-in-time configuration is written.
///
/// source: Runner.Listener/Runner.cs:239-256
pub(crate) fn write(root: &Path, name: &str, content: &[u8]) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    // The umask takes its part.
    let mode = if name == FILES[2] { 0o600 } else { 0o666 };
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(mode).open(root.join(name));
    file.and_then(|mut file| file.write_all(content))
        .with_context(|| format!("Access to the path '{}' is denied.", root.join(name).display()))
}

pub(crate) fn read(root: &Path, name: &str) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(root.join(name)).with_context(|| format!("read {name}"))?;
    serde_json::from_str(text.trim_start_matches(MARK)).with_context(|| format!("parse {name}"))
}

/// A value of the settings. Newtonsoft's reader does not mind the case of a key, nor a number in quotes.
pub(crate) fn setting<'a>(settings: &'a Value, name: &str) -> Option<&'a Value> {
    settings.as_object()?.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn delete(root: &Path, name: &str) -> anyhow::Result<()> {
    match std::fs::remove_file(root.join(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("Access to the path '{}' is denied.", root.join(name).display()))
        }
        _ => Ok(()),
    }
}

/// source: Runner.Listener/Configuration/ConfigurationManager.cs:496-520
pub(crate) fn delete_local_config(root: &Path) -> anyhow::Result<()> {
    for name in FILES.iter().chain(&MIGRATED) {
        delete(root, name)?;
    }
    Ok(())
}
