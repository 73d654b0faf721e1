//! Where kiln.toml is, when no flag says it.

use std::path::{Path, PathBuf};

/// The file's name.
pub(crate) const NAME: &str = "kiln.toml";

/// The kiln.toml of a folder, or of the nearest folder above it in the same Git repository; the folder's own where there is
/// none.
///
/// The search does not leave the repository: a kiln.toml may name commands that are run, and a folder above, such as
/// /tmp, may be somebody else's.
pub(crate) fn config(folder: &Path) -> PathBuf {
    let here = folder.join(NAME);
    let own = || if folder == Path::new(".") { PathBuf::from(NAME) } else { here.clone() };
    if here.exists() {
        return own();
    }
    let Ok(folder) = std::path::absolute(folder) else { return own() };
    let Some(root) = folder.ancestors().find(|folder| folder.join(".git").exists()) else { return own() };
    let inside = folder.ancestors().take_while(|folder| folder.starts_with(root));
    inside.map(|folder| folder.join(NAME)).find(|file| file.exists()).unwrap_or_else(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_file_of_the_repository_is_taken_and_none_above_it() {
        let outside = tempfile::tempdir().unwrap();
        let repository = outside.path().join("runners");
        let deep = repository.join("image/scripts");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(outside.path().join(NAME), "").unwrap();
        assert_eq!(config(&deep), deep.join(NAME), "outside of a repository only the folder itself counts");
        // A worktree has a file of that name.
        std::fs::write(repository.join(".git"), "gitdir: elsewhere").unwrap();
        assert_eq!(config(&deep), deep.join(NAME), "the search does not leave the repository");
        for folder in [&repository, &repository.join("image"), &deep] {
            std::fs::write(folder.join(NAME), "").unwrap();
            assert_eq!(config(&deep), folder.join(NAME));
        }
    }
}
