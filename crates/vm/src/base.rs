//! The base image: this machine's own release of Debian, with a kernel.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::layers::{digest, text};
use super::sandbox::{Sandbox, run_alone};

/// What Debian's image for EC2 has of what the component documents and the instance use.
const PACKAGES: &str = "systemd,systemd-sysv,systemd-timesyncd,dbus,udev,kmod,iproute2,procps,sudo,curl,ca-certificates,e2fsprogs,lz4,busybox,initramfs-tools";

/// What is laid down below /opt/rehearsal.
const FILES: [(&str, &str, u32); 4] = [
    ("agent.sh", include_str!("guest/agent.sh"), 0o755),
    ("rehearsal-agent.service", include_str!("guest/rehearsal-agent.service"), 0o644),
    ("dhcp.network", include_str!("guest/dhcp.network"), 0o644),
    ("timesyncd.conf", include_str!("guest/timesyncd.conf"), 0o644),
];

/// Makes the base image of it.
const SETUP: &str = include_str!("guest/setup.sh");

/// About a minute; ten times that are for a mirror far away.
const DEBOOTSTRAP_LIMIT: Duration = Duration::from_secs(900);

/// A kernel's download and its start-up archive, half a minute.
const SETUP_LIMIT: Duration = Duration::from_secs(600);

/// What the base of a release of Debian is made from.
pub(super) fn base_digest(release: &str) -> String {
    digest([release, PACKAGES, SETUP].into_iter().chain(FILES.iter().flat_map(|(name, content, _)| [*name, *content])))
}

/// Makes the base in a folder that is not there yet.
///
/// # Errors
/// The mirror can't be reached, or a package can't be installed.
pub(super) async fn make(release: &str, root: &Path) -> anyhow::Result<()> {
    let include = format!("--include={PACKAGES}");
    let debootstrap = ["debootstrap", "--variant=minbase", &include, release, text(root)?];
    run_alone(&debootstrap, DEBOOTSTRAP_LIMIT).await?;
    let sandbox = Sandbox::new(root);
    for (name, content, mode) in FILES {
        let path = format!("/opt/rehearsal/{name}");
        sandbox.write(&path, content.as_bytes()).await?;
        let chmod = format!("chmod {mode:o} '{path}'");
        sandbox.bash(&chmod, Duration::from_secs(10)).await?.success()?;
    }
    let done = sandbox.bash(SETUP, SETUP_LIMIT).await.and_then(super::sandbox::Ended::success);
    done.map(drop).context("set the base image up")
}
