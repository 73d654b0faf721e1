//! What the bootstrap binary is built from, as one digest: where nothing of it changed, nothing has to be built to know
//! that an image holds it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use kiln_config::model::{Architecture, Sha256};
use kiln_image::payload;
use serde::Deserialize;
use xshell::{Shell, cmd};

use crate::musl;

/// Beside the crates: what decides their dependencies, their profile and the compilers.
const FILES: [&str; 3] = ["Cargo.lock", "Cargo.toml", "xtask/requirements.txt"];

/// The package whose binary goes into an image.
const BINARY: &str = "kiln-bootstrap";

/// The digest of the binary's sources in a workspace, of the compiler, and of how it is called.
pub(crate) fn digest(root: &Path, architecture: Architecture) -> anyhow::Result<Sha256> {
    let shell = Shell::new()?;
    shell.change_dir(root);
    let recipe = format!("{architecture}\n{}\n{}\n", musl::compiler(&shell, architecture)?, musl::RECIPE);
    digest_of(root, &recipe, &packages(&shell)?)
}

/// The digest of a recipe and of every file that the packages in these folders are built from.
fn digest_of(root: &Path, recipe: &str, packages: &BTreeSet<PathBuf>) -> anyhow::Result<Sha256> {
    let mut text = recipe.to_owned();
    for (path, digest) in files(root, packages)? {
        text.push_str(&format!("{path} {digest}\n"));
    }
    Ok(payload::sha256(text.as_bytes()))
}

fn files(root: &Path, packages: &BTreeSet<PathBuf>) -> anyhow::Result<BTreeMap<String, Sha256>> {
    let mut paths: Vec<PathBuf> = FILES.iter().map(|file| root.join(file)).collect();
    for folder in packages {
        paths.push(folder.join("Cargo.toml"));
        visit(&folder.join("src"), &mut paths)?;
    }
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let path = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        Ok((path, payload::sha256(&bytes)))
    };
    paths.into_iter().map(read).collect()
}

/// What `cargo metadata` prints, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `dev` or `build`; none for an ordinary dependency.
    kind: Option<String>,
}

/// The folders of the binary's package and of the workspace's packages that it links.
fn packages(shell: &Shell) -> anyhow::Result<BTreeSet<PathBuf>> {
    let text = cmd!(shell, "cargo metadata --no-deps --format-version 1").quiet().ignore_stderr().read();
    let metadata: Metadata = serde_json::from_str(&text.context("ask cargo for the workspace's packages")?)
        .context("read what cargo says of the workspace's packages")?;
    let mut linked = BTreeSet::new();
    let mut rest = vec![BINARY];
    while let Some(name) = rest.pop() {
        // A dependency that is no package of the workspace is pinned by Cargo.lock.
        let Some(package) = metadata.packages.iter().find(|package| package.name == name) else { continue };
        let folder = package.manifest_path.parent().context("a manifest is in a folder")?;
        if linked.insert(folder.to_owned()) {
            let dependencies =
                package.dependencies.iter().filter(|dependency| dependency.kind.as_deref() != Some("dev"));
            rest.extend(dependencies.map(|dependency| dependency.name.as_str()));
        }
    }
    ensure!(!linked.is_empty(), "the workspace has no package {BINARY}");
    Ok(linked)
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

    fn packages_here() -> (&'static Path, BTreeSet<PathBuf>) {
        let root = workspace_root().unwrap();
        let shell = Shell::new().unwrap();
        shell.change_dir(root);
        (root, packages(&shell).unwrap())
    }

    #[test]
    fn what_is_linked_into_the_binary_is_among_its_sources_and_nothing_else() {
        let (root, packages) = packages_here();
        let files = files(root, &packages).unwrap();
        for path in
            ["Cargo.lock", "crates/bootstrap/src/main.rs", "crates/config/src/boot.rs", "crates/github/src/jwt.rs"]
        {
            assert!(files.contains_key(path), "{path}");
        }
        let others = files.keys().filter(|path| path.starts_with("crates/"));
        let linked = ["bootstrap", "config", "controller", "github", "instance"].map(|name| format!("crates/{name}/"));
        let others: Vec<_> =
            others.filter(|path| !linked.iter().any(|known| path.starts_with(known.as_str()))).collect();
        assert!(others.is_empty(), "{others:?}");
    }

    #[test]
    fn a_changed_file_makes_another_digest() {
        let (root, packages) = packages_here();
        let copy = tempfile::tempdir().unwrap();
        for path in files(root, &packages).unwrap().into_keys() {
            let to = copy.path().join(&path);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(root.join(&path), to).unwrap();
        }
        let moved = packages.iter().map(|folder| copy.path().join(folder.strip_prefix(root).unwrap())).collect();
        let digest = || digest_of(copy.path(), "recipe", &moved).unwrap();
        let first = digest();
        assert_eq!(first, digest_of(root, "recipe", &packages).unwrap(), "the folder's own name counts");
        std::fs::write(copy.path().join("crates/config/src/boot.rs"), "// changed").unwrap();
        assert_ne!(first, digest());
    }
}
