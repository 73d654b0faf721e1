//! What every start of one of the runner's programs does, before it looks at its arguments.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The runner's root: the folder with `config.sh`.
///
/// source: Runner.Common/HostContext.cs:393-395
pub(crate) fn root() -> anyhow::Result<PathBuf> {
    let executable = std::env::current_exe().context("find the executable")?;
    Ok(executable.parent().and_then(Path::parent).context("the executable is in bin/")?.to_owned())
}

/// The worker is another program in reality; here it is the same one by another name.
pub(crate) fn is_worker() -> bool {
    let name = std::env::args_os().next();
    name.as_deref().map(Path::new).and_then(Path::file_name) == Some(OsStr::new("Runner.Worker"))
}

/// The environment of the process, over which `.env` wins.
#[derive(Debug)]
pub(crate) struct Environment(BTreeMap<String, String>);

impl Environment {
    /// source: Runner.Listener/Program.cs:172-199
    pub(crate) fn load() -> Self {
        let mut variables: BTreeMap<String, String> = std::env::vars().collect();
        let text = root().ok().and_then(|root| std::fs::read_to_string(root.join(".env")).ok()).unwrap_or_default();
        for (name, value) in text.lines().filter_map(|line| line.split_once('=')).filter(|(name, _)| !name.is_empty()) {
            // What has no value is taken out of the environment.
            if value.is_empty() {
                variables.remove(name);
            } else {
                variables.insert(name.to_owned(), value.to_owned());
            }
        }
        Self(variables)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// Makes `_diag` and a log in it. Nothing catches a failure: the program dies of it, as .NET does, by SIGABRT.
///
/// source: Runner.Common/HostContext.cs:139-141, Runner.Common/HostTraceListener.cs:24-44 and 186-195
pub(crate) fn open_log(host: &str) {
    let opened = root().and_then(|root| {
        let folder = root.join("_diag");
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("Access to the path '{}' is denied.", folder.display()))?;
        let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        let log = folder.join(format!("{host}_{}-utc.log", now.replace(['-', ':', 'Z'], "").replace('T', "-")));
        std::fs::File::create(&log).with_context(|| format!("Access to the path '{}' is denied.", log.display()))
    });
    if let Err(error) = opened {
        eprintln!("Unhandled exception. System.UnauthorizedAccessException: {error}");
        std::process::abort();
    }
}
