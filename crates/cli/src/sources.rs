//! What the bootstrap binary is built from, as one digest: where nothing of it changed, nothing has to be built to know
//! that an image holds it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kiln_config::model::{Architecture, Sha256};
use kiln_image::payload;
use xshell::Shell;

use crate::musl;

/// Beside the crates: what decides their dependencies, their profile and the compilers.
const FILES: [&str; 3] = ["Cargo.lock", "Cargo.toml", "xtask/requirements.txt"];

/// The digest of the binary's sources in a workspace, of the compiler, and of how it is called.
pub(crate) fn digest(root: &Path, architecture: Architecture) -> anyhow::Result<Sha256> {
    let shell = Shell::new()?;
    shell.change_dir(root);
    let mut text = format!("{architecture}\n{}\n{}\n", musl::compiler(&shell, architecture)?, musl::RECIPE);
    for (path, digest) in files(root)? {
        text.push_str(&format!("{path} {digest}\n"));
    }
    Ok(payload::sha256(text.as_bytes()))
}

fn files(root: &Path) -> anyhow::Result<BTreeMap<String, Sha256>> {
    let mut paths: Vec<PathBuf> = FILES.iter().map(|file| root.join(file)).collect();
    for name in crates(root)? {
        let directory = root.join("crates").join(name);
        paths.push(directory.join("Cargo.toml"));
        visit(&directory.join("src"), &mut paths)?;
    }
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let path = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        Ok((path, payload::sha256(&bytes)))
    };
    paths.into_iter().map(read).collect()
}

/// The binary's crate and those of the workspace that it is linked with.
fn crates(root: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut rest = vec!["bootstrap".to_owned()];
    while let Some(name) = rest.pop() {
        let manifest = root.join("crates").join(&name).join("Cargo.toml");
        let text = std::fs::read_to_string(&manifest).with_context(|| format!("read {}", manifest.display()))?;
        if !found.insert(name) {
            continue;
        }
        let linked = text.split("[dev-dependencies]").next().unwrap_or_default();
        rest.extend(linked.lines().filter_map(|line| {
            let name = line.strip_prefix("kiln-")?;
            Some(name.split(['.', ' ']).next()?.to_owned())
        }));
    }
    Ok(found)
}

fn visit(directory: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            visit(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::workspace_root;

    #[test]
    fn what_is_linked_into_the_binary_is_among_its_sources_and_nothing_else() {
        let files = files(workspace_root().unwrap()).unwrap();
        for path in
            ["Cargo.lock", "crates/bootstrap/src/main.rs", "crates/config/src/boot.rs", "crates/github/src/jwt.rs"]
        {
            assert!(files.contains_key(path), "{path}");
        }
        let others = files.keys().filter(|path| path.starts_with("crates/"));
        let linked = ["crates/bootstrap/", "crates/config/", "crates/github/"];
        let others: Vec<_> = others.filter(|path| !linked.iter().any(|known| path.starts_with(known))).collect();
        assert!(others.is_empty(), "{others:?}");
    }

    #[test]
    fn a_changed_file_makes_another_digest() {
        let root = tempfile::tempdir().unwrap();
        for path in files(workspace_root().unwrap()).unwrap().into_keys() {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "[dependencies]\nkiln-config.workspace = true\n").unwrap();
        }
        let digest = || digest(root.path(), Architecture::X86_64).unwrap();
        let first = digest();
        assert_eq!(first, digest());
        std::fs::write(root.path().join("crates/config/src/boot.rs"), "// changed").unwrap();
        assert_ne!(first, digest());
    }
}
