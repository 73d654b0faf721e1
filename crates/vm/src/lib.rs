//! A real machine, not a process: a Debian root file system, our own component documents run on it, a disk made of it, and
//! QEMU. What is tried nowhere else is tried here: systemd starts the binary, units and rules of the image are in force,
//! and a shutdown drains.
//!
//! * `base`, `documents`, `layers`, `sandbox`: the image, baked.
//! * `network`, `machine`: the instance, and what it sees of AWS and GitHub.
//! * `phases`, `boot_chart`: what its boot came to.
//! * `story`: what is told.

mod base;
mod boot_chart;
mod documents;
mod image;
mod layers;
mod machine;
mod network;
mod phases;
mod sandbox;
mod story;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kiln_config::model::BaseImage;
pub use story::RunReport;

/// The programs that it takes, and Debian's packages of them.
const PROGRAMS: [(&str, &str); 6] = [
    ("debootstrap", "debootstrap"),
    ("ip", "iproute2"),
    ("mke2fs", "e2fsprogs"),
    ("nsenter", "util-linux"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("unshare", "util-linux"),
];

/// Where things are.
#[derive(Debug)]
pub struct Options {
    /// The static bootstrap binary.
    pub bootstrap: PathBuf,
    /// Where layers are kept, and what is found is left.
    pub directory: PathBuf,
    /// Who is told what happens.
    pub say: fn(&str),
}

/// Something that this machine lacks and that booting another one needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Missing {
    /// What is missing, as a lower-case fragment.
    pub message: String,
    /// How to install or reach it.
    pub hint: String,
}

/// Checks that this machine can boot another one.
///
/// # Errors
/// [`Missing`] names the first thing that is missing.
pub fn check_needs() -> Result<(), Missing> {
    let need = |message: String, hint: &str| Err(Missing { message, hint: hint.to_owned() });
    if !cfg!(target_arch = "x86_64") {
        return need("the machine to boot is an x86_64 one, and this is none".to_owned(), "use an x86_64 machine");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |program: &str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let missing: Vec<(&str, &str)> = PROGRAMS.into_iter().filter(|(program, _)| !found(program)).collect();
    if !missing.is_empty() {
        let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
        let packages: BTreeSet<&str> = missing.iter().map(|(_, package)| *package).collect();
        let packages: Vec<&str> = packages.into_iter().collect();
        return need(
            format!("not installed: {}", programs.join(", ")),
            &format!("on Debian, as root: apt install {}", packages.join(" ")),
        );
    }
    if !nix::unistd::geteuid().is_root() {
        return need(
            "a root file system with its users and a network can be made by root only".to_owned(),
            "run it as root, on a machine where that is no matter",
        );
    }
    release_of_debian().map(drop)
}

/// This machine's release of Debian: the stand-in runner is built here, and needs a C library as new as here.
fn release_of_debian() -> Result<(String, BaseImage), Missing> {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.map(|value| value.trim_matches('"').to_owned())
    };
    let system = BaseImage::named(&format!("debian-{}", value("VERSION_ID").unwrap_or_default()));
    match (value("ID").as_deref(), value("VERSION_CODENAME"), system) {
        (Some("debian"), Some(release), Some(system)) => Ok((release, system)),
        (id, ..) => Err(Missing {
            message: format!(
                "the machine to boot is made from this machine's own Debian release, and this is {}",
                id.unwrap_or("?")
            ),
            hint: "run it on Debian 12 or 13".to_owned(),
        }),
    }
}

/// Bakes, boots and looks; `None` when it was interrupted. Either way nothing is left but the layers, for the next time,
/// and what was found.
///
/// # Errors
/// The first expectation that is not met.
pub async fn boot(options: &Options, interrupt: impl Future<Output = ()>) -> anyhow::Result<Option<RunReport>> {
    check_needs()?;
    std::fs::create_dir_all(&options.directory).with_context(|| format!("make {}", options.directory.display()))?;
    let _alone = alone(&options.directory)?;
    let workdir = options.directory.join("run");
    // What a run leaves behind that was killed.
    layers::remove(&workdir).await?;
    std::fs::create_dir(&workdir).with_context(|| format!("make {}", workdir.display()))?;
    let told = tokio::select! {
        told = Box::pin(story::tell(options, &workdir)) => told.map(Some),
        () = interrupt => Ok(None),
    };
    // Processes were ended with the story.
    layers::remove(&workdir).await?;
    told
}

/// Two at once would be in each other's way. The lock ends with the process, however that ends.
fn alone(directory: &Path) -> Result<std::fs::File, anyhow::Error> {
    let path = directory.join("lock");
    let file = std::fs::File::create(&path).with_context(|| format!("make {}", path.display()))?;
    file.try_lock().map_err(|_| Missing {
        message: format!("another run holds the lock {}", path.display()),
        hint: "wait until it ends".to_owned(),
    })?;
    Ok(file)
}
