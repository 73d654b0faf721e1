//! Root file systems that were made before, each under the digest of what it was made from.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use super::sandbox::run_alone;

/// A file system of a gigabyte is copied or removed in seconds; a minute or five are for a busy disk.
const DISK_LIMIT: Duration = Duration::from_secs(300);

/// How long processes that are being killed may still write.
const REMOVE_TRIES: u32 = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(100);

/// The digest of what something is made from, short enough for a name.
pub(super) fn digest<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // With its length, so that no two lists of parts read alike.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A folder of layers; of each name the newest is kept.
#[derive(Debug)]
pub(super) struct Layers {
    folder: PathBuf,
}

impl Layers {
    /// Layers in a folder.
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn path(&self, name: &str, digest: &str) -> PathBuf {
        self.folder.join(format!("{name}-{digest}"))
    }

    /// The layer, if it was made.
    pub(super) fn find(&self, name: &str, digest: &str) -> Option<PathBuf> {
        Some(self.path(name, digest)).filter(|path| path.is_dir())
    }

    /// Takes a finished root as this layer, in place of the former one of its name.
    ///
    /// # Errors
    /// It can't be moved there.
    pub(super) async fn keep(&self, name: &str, digest: &str, root: &Path) -> anyhow::Result<PathBuf> {
        std::fs::create_dir_all(&self.folder).with_context(|| format!("make {}", self.folder.display()))?;
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let known = path.file_name().and_then(|file| file.to_str()).and_then(|file| file.rsplit_once('-'));
            if known.is_some_and(|(known, _)| known == name) {
                remove(&path).await?;
            }
        }
        let path = self.path(name, digest);
        // At once: a layer that is there is whole.
        std::fs::rename(root, &path).with_context(|| format!("keep {}", path.display()))?;
        Ok(path)
    }
}

/// Copies a root: owners, modes, links and devices as they are.
///
/// # Errors
/// It can't be copied.
pub(super) async fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let (from, to) = (text(from)?, text(to)?);
    run_alone(&["cp", "--archive", "--reflink=auto", from, to], DISK_LIMIT).await.map(drop)
}

/// Packs a root into the image of a disk, which is as large as `gib` says to the machine but holds no more than the root.
///
/// # Errors
/// `mke2fs` fails.
pub(super) async fn pack(root: &Path, disk: &Path, gib: u32) -> anyhow::Result<()> {
    let size = format!("{gib}G");
    run_alone(&["mke2fs", "-q", "-t", "ext4", "-d", text(root)?, text(disk)?, &size], DISK_LIMIT).await.map(drop)
}

/// Removes a folder and all below it, however long its last writers take to end; does nothing where there is none.
///
/// # Errors
/// It is still there in the end.
pub(super) async fn remove(folder: &Path) -> anyhow::Result<()> {
    for _ in 0..REMOVE_TRIES {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => tokio::time::sleep(REMOVE_PAUSE).await,
            _ => return Ok(()),
        }
    }
    bail!("{} could not be removed", folder.display())
}

/// A path as text.
///
/// # Errors
/// It is none.
pub(super) fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_layer_is_found_by_its_digest_alone_and_replaces_the_former_one_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let layers = Layers::new(folder.path().join("layers"));
        for digest in ["0a", "0b"] {
            assert_eq!(layers.find("base", digest), None);
            let root = folder.path().join("root");
            std::fs::create_dir(&root).unwrap();
            std::fs::write(root.join("file"), digest).unwrap();
            layers.keep("base", digest, &root).await.unwrap();
            assert!(!root.exists());
        }
        assert_eq!(layers.find("base", "0a"), None);
        let kept = layers.find("base", "0b").unwrap();
        assert_eq!(std::fs::read_to_string(kept.join("file")).unwrap(), "0b");
    }

    #[test]
    fn a_digest_tells_parts_apart() {
        assert_ne!(digest(["ab", "c"]), digest(["a", "bc"]));
        assert_eq!(digest(["ab", "c"]), digest(["ab", "c"]));
    }
}
