//! Reads what a person names on the command line: at most so much of it, and not for ever.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use zeroize::Zeroizing;

/// A pipe that somebody writes to, such as a shell's `<(…)`, has something to say within it.
const PIPE_WAIT: Duration = Duration::from_secs(3);

/// The file's bytes, and one more than `most` where it is longer. They are wiped when dropped, and never copied.
///
/// # Errors
/// Those of the system; [`io::ErrorKind::TimedOut`] for a pipe that nobody writes to.
pub(crate) fn read(path: &Path, most: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if metadata.is_file() {
        return read_from(&mut File::open(path)?, most);
    }
    // Opening a pipe blocks as well, and neither can be called off: the thread ends with the process.
    let (sender, receiver) = mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || {
        let bytes = File::open(&path).and_then(|mut file| read_from(&mut file, most));
        // Nobody waits any more: the bytes are wiped here.
        let _ = sender.send(bytes);
    });
    receiver.recv_timeout(PIPE_WAIT).unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, "it is a pipe or device that gave nothing, or no end"))
    })
}

/// The same of what is open already.
pub(crate) fn read_from(file: &mut File, most: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    // Of full size from the start: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(most + 1));
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What a person does about a file that can't be read; `otherwise` where there is nothing better to say.
pub(crate) fn hint(error: &io::Error, otherwise: &str) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "make it readable for the user that this runs as".to_owned(),
        io::ErrorKind::IsADirectory => "that is a directory: name the file in it".to_owned(),
        io::ErrorKind::TimedOut => "name a file, or a pipe that something writes to".to_owned(),
        _ => otherwise.to_owned(),
    }
}
