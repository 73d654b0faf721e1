//! The checks themselves. What only a running machine shows is skipped where the root is a folder.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use nix::sys::statvfs::statvfs;
use nix::unistd::geteuid;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::{Args, Check, CheckResult};
use crate::directory::USERS;
use crate::guard;
use crate::machine::{Machine, User};
use crate::register::HOOKS;

const DIRECTORY: &str = "/opt/actions-runner";
const USER: &str = "runner";

/// What starts at boot.
const UNITS: [&str; 3] = [guard::UNIT, "kiln-jobs.service", "kiln-bootstrap.service"];

/// Where distributions keep their certificates; the same places that the binary's TLS looks at.
const CERTIFICATES: [&str; 3] =
    ["/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem"];

/// chrony steps a clock that is off within seconds of its start; half a minute is for a machine that has only just booted.
const CLOCK_LIMIT: Duration = Duration::from_secs(30);

/// What a partition table and a file system take of a volume, in percent: ext4 takes the most, less than two.
const OVERHEAD_PERCENT: u64 = 3;

const GIB: u64 = 1 << 30;

/// What only a running machine shows.
const NOT_RUNNING: CheckResult = CheckResult::Skipped("the root is a folder, not a running machine");

pub(super) async fn run(check: Check, machine: &Machine, args: &Args) -> CheckResult {
    let user = || machine.user(USER);
    let (found, fix) = match check {
        Check::User => (
            user().map(|user| format!("{USER} has uid {}", user.uid())),
            "make the user: `useradd --create-home --user-group runner`",
        ),
        Check::Sudo => {
            let found = match user() {
                Ok(user) => sudo(machine, &user).await,
                Err(error) => Err(error),
            };
            (found, "take the user out of sudoers and its groups: a job that becomes root becomes the App")
        }
        Check::Runner => (
            user().and_then(|user| runner(machine, &user)),
            "lay the runner's folder out again, as the component document runner.yml does",
        ),
        Check::Version => {
            let found = match user() {
                Ok(user) => version(machine, &user).await,
                Err(error) => Err(error),
            };
            (found, "bake the image anew with `cargo xtask ami`")
        }
        Check::Hooks => (hooks(machine), "lay the payload down again; its scripts have mode 755"),
        Check::Units => {
            (units(machine), "`systemctl enable kiln-metadata-guard.service kiln-jobs.service kiln-bootstrap.service`")
        }
        Check::Guard if !machine.is_whole() => return NOT_RUNNING,
        Check::Guard => (guarded(machine).await, "`systemctl restart kiln-metadata-guard.service`, and see its log"),
        Check::Certificates => (certificates(machine), "install the package ca-certificates"),
        Check::Clock if !machine.is_whole() => return NOT_RUNNING,
        Check::Clock => (clock().await, "enable chronyd.service; is UDP port 123 open to its servers?"),
        Check::Disk => (disk(machine, args), "give the image's recipe a larger volume"),
    };
    match found {
        Ok(what) => CheckResult::Ok(what),
        Err(error) => CheckResult::Wrong { what: format!("{error:#}"), fix },
    }
}

/// By sudo's own account on a running machine, by the text of its files in a folder.
async fn sudo(machine: &Machine, user: &User) -> anyhow::Result<String> {
    let none = format!("{USER} may not use it");
    if !machine.is_whole() {
        return match granted(machine, user)? {
            Some(line) => bail!("{USER} may use sudo: {line}"),
            None => Ok(none),
        };
    }
    let output = match Command::new("/usr/bin/sudo")
        .args(["--list", "--non-interactive", "--other-user", USER])
        .output()
        .await
    {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok("there is no sudo".to_owned()),
        output => output.context("run sudo")?,
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let said = said.trim();
    ensure!(!said.contains("may run"), "{said}");
    // Its answer is a verdict only where it could tell.
    ensure!(
        said.contains("not allowed"),
        "sudo gave no verdict: {said} {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(none)
}

/// The line of sudoers that grants the user something. Aliases are not followed.
fn granted(machine: &Machine, user: &User) -> anyhow::Result<Option<String>> {
    let mut files = vec![machine.path("/etc/sudoers")];
    if let Ok(entries) = std::fs::read_dir(machine.path("/etc/sudoers.d")) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    let groups = machine.group_names(user);
    for file in files {
        let text = match std::fs::read_to_string(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            text => text.with_context(|| format!("read {}", file.display()))?,
        };
        let whom = |line: &&str| match line.split_whitespace().next() {
            Some(who) => {
                who == "ALL"
                    || who == USER
                    || who.strip_prefix('%').is_some_and(|of| groups.iter().any(|name| name == of))
            }
            None => false,
        };
        if let Some(line) = text.lines().map(str::trim).find(whom) {
            return Ok(Some(line.to_owned()));
        }
    }
    Ok(None)
}

fn runner(machine: &Machine, user: &User) -> anyhow::Result<String> {
    let directory = machine.path(DIRECTORY);
    for program in ["config.sh", "bin/Runner.Listener"] {
        executable(&directory.join(program))?;
    }
    let files = guarded_files(&directory, user)?;
    Ok(format!("{files} files in {}, all of them root's, and the user's own two folders", directory.display()))
}

fn executable(path: &Path) -> anyhow::Result<()> {
    let mode = std::fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.permissions().mode();
    ensure!(mode & 0o111 == 0o111, "{} has mode {:o}, and can't be run by all", path.display(), mode & 0o7777);
    Ok(())
}

/// How many files there are; an error names the first that a job could change, or where the runner could not write. Who runs
/// this without being root can give nothing away, and sees only that the folders are there.
fn guarded_files(directory: &Path, user: &User) -> anyhow::Result<u64> {
    let mode = |found: &std::fs::Metadata| found.permissions().mode() & 0o7777;
    let look = |path: &Path| std::fs::symlink_metadata(path).with_context(|| format!("look at {}", path.display()));
    let root = geteuid().is_root();
    let top = look(directory)?;
    ensure!(
        !root || top.uid() == 0 && top.gid() == user.gid() && mode(&top) == 0o1775,
        "{} belongs to uid {}, gid {} and has mode {:o}, not to root and the user's group with 1775",
        directory.display(),
        top.uid(),
        top.gid(),
        mode(&top)
    );
    for name in USERS {
        let path = directory.join(name);
        let found = look(&path)?;
        ensure!(
            found.is_dir() && found.uid() == user.uid(),
            "{} belongs to uid {}, not to {USER}",
            path.display(),
            found.uid()
        );
    }
    let (mut files, mut rest) = (0, vec![directory.to_owned()]);
    while let Some(path) = rest.pop() {
        let found = look(&path)?;
        files += 1;
        if path != directory && root {
            ensure!(found.uid() == 0, "{} belongs to uid {}, not to root", path.display(), found.uid());
            let open = mode(&found) & 0o022 != 0 && !found.is_symlink();
            ensure!(!open, "{} has mode {:o}, and can be written to by others", path.display(), mode(&found));
        }
        if found.is_dir() {
            for entry in std::fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
                let entry = entry?;
                if path != directory || !USERS.iter().any(|name| entry.file_name() == *name) {
                    rest.push(entry.path());
                }
            }
        }
    }
    Ok(files)
}

/// The runner is the one that the image records.
async fn version(machine: &Machine, user: &User) -> anyhow::Result<String> {
    let record = machine.path("/etc/kiln/runner-version");
    let recorded = std::fs::read_to_string(&record).with_context(|| format!("read {}", record.display()))?;
    let directory = machine.path(DIRECTORY);
    let program = directory.join("bin/Runner.Listener");
    let command = machine.command_as(user, &program, &directory)?.arg("--version");
    let output = command.output().await.with_context(|| format!("run {}", program.display()))?;
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(output.status.success(), "{} ended with {}", program.display(), output.status);
    ensure!(found == recorded.trim(), "it is {found}, the image records {}", recorded.trim());
    Ok(found)
}

fn hooks(machine: &Machine) -> anyhow::Result<String> {
    for (_, hook) in HOOKS {
        executable(&machine.path(hook))?;
    }
    Ok("before and after a job".to_owned())
}

/// What `systemctl enable` makes are links, which tell as much of a folder as of a running machine.
fn units(machine: &Machine) -> anyhow::Result<String> {
    for unit in UNITS {
        let file = machine.path("/usr/lib/systemd/system").join(unit);
        std::fs::metadata(&file).with_context(|| format!("look at {}", file.display()))?;
        let link = machine.path("/etc/systemd/system/multi-user.target.wants").join(unit);
        ensure!(std::fs::symlink_metadata(&link).is_ok(), "{unit} is not enabled: there is no {}", link.display());
    }
    Ok(format!("{} start at boot", UNITS.join(", ")))
}

/// The rules that the unit lays down are there, and they hold for the user.
async fn guarded(machine: &Machine) -> anyhow::Result<String> {
    let file = machine.path("/usr/lib/systemd/system").join(guard::UNIT);
    let mut unit = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    // What newer systemds know, where the image has it.
    for entry in std::fs::read_dir(file.with_extension("service.d")).into_iter().flatten().flatten() {
        unit += &std::fs::read_to_string(entry.path()).with_context(|| format!("read {}", entry.path().display()))?;
    }
    let rules = guard::rules(&unit, Path::new("/proc/net/if_inet6").exists());
    ensure!(!rules.is_empty(), "{} lays down no rule", file.display());
    for rule in &rules {
        let output =
            Command::new(&rule[0]).args(&rule[1..]).output().await.with_context(|| format!("run {}", rule[0]))?;
        ensure!(output.status.success(), "a rule is not in force: {}", rule.join(" "));
    }
    guard::check(machine, &machine.user(USER)?).await?;
    Ok(format!("{} rules are in force, and {USER} does not reach the metadata service", rules.len()))
}

fn certificates(machine: &Machine) -> anyhow::Result<String> {
    let places = CERTIFICATES.map(|place| machine.path(place));
    let found = |place: &PathBuf| {
        let text = std::fs::read(place).ok()?;
        let marks = text.windows(CERTIFICATE.len()).filter(|window| window == &CERTIFICATE).count();
        (marks > 0).then(|| format!("{marks} in {}", place.display()))
    };
    places.iter().find_map(found).with_context(|| format!("there are none in {}", CERTIFICATES.join(", ")))
}

const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// systemd asks the kernel, whoever keeps the clock. Its words differ between versions in what comes before these.
async fn clock() -> anyhow::Result<String> {
    let deadline = Instant::now() + CLOCK_LIMIT;
    loop {
        let output = Command::new("/usr/bin/timedatectl").output().await.context("run timedatectl")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "timedatectl ended with {}: {}", output.status, complaint.trim());
        let said = String::from_utf8_lossy(&output.stdout);
        if said.contains("synchronized: yes") {
            return Ok("synchronised".to_owned());
        }
        ensure!(
            Instant::now() < deadline,
            "not within {} s: {}",
            CLOCK_LIMIT.as_secs(),
            said.lines()
                .map(str::trim)
                .find(|line| line.contains("synchronized"))
                .unwrap_or("timedatectl does not say")
        );
        sleep(Duration::from_secs(1)).await;
    }
}

fn disk(machine: &Machine, args: &Args) -> anyhow::Result<String> {
    let directory = machine.path(DIRECTORY);
    let path = if directory.exists() { directory } else { machine.path("/") };
    let disk = statvfs(&path).with_context(|| format!("look at the disk of {}", path.display()))?;
    let block = disk.fragment_size();
    let (size, free) = (disk.blocks().saturating_mul(block), disk.blocks_available().saturating_mul(block));
    let told = format!("{:.1} GiB, {:.1} free", in_gib(size), in_gib(free));
    let wanted = args.min_disk_gib.saturating_mul(GIB);
    ensure!(size >= wanted / 100 * (100 - OVERHEAD_PERCENT), "{told}; {} GiB are wanted", args.min_disk_gib);
    ensure!(free >= args.min_free_gib.saturating_mul(GIB), "{told}; {} GiB are wanted free", args.min_free_gib);
    Ok(told)
}

#[expect(clippy::cast_precision_loss, reason = "told to a tenth of a GiB")]
fn in_gib(bytes: u64) -> f64 {
    bytes as f64 / GIB as f64
}
