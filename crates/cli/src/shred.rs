//! Overwrites a key's file and removes it.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use kiln_operations::{Code, Error};

use crate::ui;

/// A file of one's own, for certain: not a link, a pipe or a device.
#[derive(Debug)]
pub(crate) struct Shreddable(PathBuf);

impl Shreddable {
    /// Sees that the file can be overwritten, before anything depends on it.
    pub(crate) fn check(path: &Path) -> Result<Self, Error> {
        let refuse = |why: &str| {
            Error::new(Code::ShredImpossible, format!("can't shred `{}`: {why}", path.display()))
                .hint("leave --shred out, and see yourself that no copy of the key stays behind")
        };
        if path == Path::new("-") {
            return Err(refuse("it is standard input"));
        }
        let metadata = std::fs::symlink_metadata(path).map_err(|error| refuse(&error.to_string()))?;
        if !metadata.is_file() {
            return Err(refuse("it is no file, but a link, a pipe or a device"));
        }
        open(path).map_err(|error| refuse(&error.to_string()))?;
        Ok(Self(path.to_owned()))
    }

    /// Overwrites the file where it lies, waits until that is on the disk, and removes it.
    pub(crate) fn shred(self) -> Result<(), Error> {
        overwrite_and_remove(&self.0).map_err(|error| {
            Error::new(
                Code::ShredFailed,
                format!("the key is installed, but `{}` could not be shredded", self.0.display()),
            )
            .caused_by(error)
            .hint("remove the file yourself")
        })
    }

    /// Asks a person, if there is one.
    pub(crate) async fn is_wanted(&self) -> bool {
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return false;
        }
        ui::prompt(&format!("Overwrite and remove `{}`? It is not needed any more. [y/N]", self.0.display()));
        // Apart, so that Ctrl-C is heard meanwhile.
        let answer = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            io::stdin().read_line(&mut line).map(|_| line)
        });
        matches!(answer.await, Ok(Ok(line)) if matches!(line.trim(), "y" | "Y" | "yes"))
    }
}

/// Not truncated: what is to be overwritten is what lies there.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

fn overwrite_and_remove(path: &Path) -> io::Result<()> {
    let mut file = open(path)?;
    let mut left = file.metadata()?.len();
    let zeros = [0; 4096];
    while left > 0 {
        let chunk = left.min(zeros.len() as u64);
        file.write_all(&zeros[..usize::try_from(chunk).unwrap_or(zeros.len())])?;
        left -= chunk;
    }
    file.sync_all()?;
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another name of the file shows what lies there once the first one is gone.
    #[test]
    fn what_lay_in_the_file_is_overwritten_and_not_only_unlinked() {
        let folder = tempfile::tempdir().unwrap();
        let [path, other] = ["key.pem", "other"].map(|name| folder.path().join(name));
        let text = "secret".repeat(2000);
        std::fs::write(&path, &text).unwrap();
        std::fs::hard_link(&path, &other).unwrap();
        Shreddable::check(&path).unwrap().shred().unwrap();
        assert!(!path.exists());
        assert_eq!(std::fs::read(&other).unwrap(), vec![0; text.len()]);
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link] = ["key.pem", "link"].map(|name| folder.path().join(name));
        std::fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [&link, &folder.path().to_owned(), &PathBuf::from("-"), &folder.path().join("none")] {
            let error = Shreddable::check(path).unwrap_err();
            assert_eq!(error.code, Code::ShredImpossible, "{}", path.display());
        }
    }
}
