//! The image's self-check.

use std::path::Path;
use std::process::{Command, Output};

use kiln_stand_ins::github::{GitHub, GitHubOptions};
use kiln_stand_ins::machine::MachineFolder;
use serde_json::Value;

use crate::support::VERSION;

const BINARY: &str = env!("CARGO_BIN_EXE_kiln-bootstrap");
const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ami/files");

/// What the image's components do to a machine, to a folder.
const BAKE: &str = r#"
cp -r "$FILES/." .
chmod 755 opt/kiln/hooks/*.sh
mkdir -p etc/systemd/system/multi-user.target.wants etc/pki/tls/certs etc/kiln
ln -s /usr/lib/systemd/system/kiln-{bootstrap,jobs,metadata-guard}.service etc/systemd/system/multi-user.target.wants/
printf -- '-----BEGIN CERTIFICATE-----\n' >etc/pki/tls/certs/ca-bundle.crt
echo "$VERSION" >etc/kiln/runner-version
printf 'root ALL=(ALL) ALL\n%%wheel ALL=(ALL) ALL\n' >etc/sudoers
"#;

fn bash(folder: &Path, script: &str) {
    let status = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(folder)
        .env("FILES", FILES)
        .env("VERSION", VERSION)
        .status()
        .unwrap();
    assert!(status.success(), "{script}");
}

async fn baked() -> MachineFolder {
    let github = GitHub::start(GitHubOptions::new("acme")).await.unwrap();
    let machine = MachineFolder::new(&github, VERSION).unwrap();
    bash(&machine.path(""), BAKE);
    machine
}

fn check(machine: &MachineFolder, arguments: &[&str]) -> Output {
    Command::new(BINARY).arg("--root").arg(machine.path("")).arg("check").args(arguments).output().unwrap()
}

/// Each look's state and what it found, in their order.
fn looks(output: &Output) -> Vec<[String; 3]> {
    let told: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no JSON: {}", String::from_utf8_lossy(&output.stdout)));
    assert_eq!(told["ok"], output.status.success());
    let text = |look: &Value, key: &str| look[key].as_str().unwrap().to_owned();
    let looks = told["checks"].as_array().unwrap().iter();
    looks.map(|look| [text(look, "check"), text(look, "state"), text(look, "found")]).collect()
}

fn wrong(output: &Output) -> Vec<[String; 2]> {
    let wrong = looks(output).into_iter().filter(|[_, state, _]| state == "wrong");
    wrong.map(|[look, _, found]| [look, found]).collect()
}

#[tokio::test]
async fn a_well_baked_image_passes_and_each_flaw_is_named() {
    let machine = baked().await;
    let well = check(&machine, &["--json", "--min-disk-gib", "1"]);
    assert_eq!(wrong(&well), Vec::<[String; 2]>::new());
    let skipped: Vec<String> =
        looks(&well).into_iter().filter(|[_, state, _]| state == "skipped").map(|[look, ..]| look).collect();
    assert_eq!(skipped, ["guard", "clock"], "what only a running machine shows");
    for (flaw, mended, look, found) in [
        (
            "echo 'runner ALL=(ALL) NOPASSWD: ALL' >etc/sudoers.d/90",
            "rm etc/sudoers.d/90",
            "sudo",
            "may use sudo: runner",
        ),
        ("echo 'wheel:x:10:runner' >etc/group", ": >etc/group", "sudo", "may use sudo: %wheel"),
        ("chmod 644 opt/kiln/hooks/job-started.sh", "chmod 755 opt/kiln/hooks/job-started.sh", "hooks", "has mode 644"),
        (
            "mv etc/systemd/system/multi-user.target.wants/kiln-bootstrap.service a",
            "mv a etc/systemd/system/multi-user.target.wants/kiln-bootstrap.service",
            "units",
            "kiln-bootstrap.service is not enabled",
        ),
        (
            "mv usr/lib/systemd/system/kiln-metadata-guard.service a",
            "mv a usr/lib/systemd/system/kiln-metadata-guard.service",
            "units",
            "kiln-metadata-guard.service",
        ),
        (
            ": >etc/pki/tls/certs/ca-bundle.crt",
            "printf -- '-----BEGIN CERTIFICATE-----' >etc/pki/tls/certs/ca-bundle.crt",
            "certificates",
            "there are none",
        ),
        (
            "echo 2.0.0 >etc/kiln/runner-version",
            "echo $VERSION >etc/kiln/runner-version",
            "version",
            "the image records 2.0.0",
        ),
        ("mv opt/actions-runner/config.sh a", "mv a opt/actions-runner/config.sh", "runner", "config.sh"),
    ] {
        bash(&machine.path(""), &format!("mkdir -p etc/sudoers.d; {flaw}"));
        let said = wrong(&check(&machine, &["--json"]));
        assert!(matches!(&said[..], [[name, what]] if name == look && what.contains(found)), "{flaw}: {said:?}");
        bash(&machine.path(""), mended);
    }
    let small = wrong(&check(&machine, &["--json", "--min-disk-gib", "999999"]));
    assert!(
        matches!(&small[..], [[look, found]] if look == "disk" && found.contains("999999 GiB are wanted")),
        "{small:?}"
    );
    let full = wrong(&check(&machine, &["--json", "--min-free-gib", "999999"]));
    assert!(matches!(&full[..], [[look, _]] if look == "disk"), "{full:?}");
}

/// What a job could change is what the next one would be run by.
#[tokio::test]
async fn a_program_that_a_job_could_change_is_found_wherever_it_is() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: no file can be another's");
        return;
    }
    let machine = baked().await;
    for (flaw, fixed, found) in [
        (
            "mkdir -p bin/deep; touch bin/deep/file; chown --reference _work bin/deep/file",
            "rm -r bin/deep",
            "bin/deep/file belongs to uid 65534, not to root",
        ),
        (
            "chmod g+w externals/node24/bin/node",
            "chmod g-w externals/node24/bin/node",
            "and can be written to by others",
        ),
        ("chown 65534 .", "chown 0 .", "not to root and the user's group with 1775"),
        ("chmod 775 .", "chmod 1775 .", "not to root and the user's group with 1775"),
        ("chown 0 _diag", "chown 65534 _diag", "_diag belongs to uid 0, not to runner"),
        ("rm -r _work", "mkdir _work; chown 65534 _work", "_work"),
        ("ln -s /etc/passwd extra; chown --no-dereference 65534 extra", "rm extra", "extra belongs to uid 65534"),
    ] {
        bash(&machine.path("opt/actions-runner"), flaw);
        let said = wrong(&check(&machine, &["--json"]));
        assert!(said.iter().any(|[look, what]| look == "runner" && what.contains(found)), "{flaw}: {said:?}");
        bash(&machine.path("opt/actions-runner"), fixed);
        assert_eq!(wrong(&check(&machine, &["--json"])), Vec::<[String; 2]>::new(), "{flaw}");
    }
}

/// A check that changes what it checks would bake an image on which no runner starts.
#[tokio::test]
async fn the_runners_check_leaves_its_folder_as_it_was() {
    let machine = baked().await;
    let directory = machine.path("opt/actions-runner");
    let run = || {
        let mut check = Command::new("bash");
        check.arg(format!("{FILES}/opt/kiln/checks/runner.sh")).arg(&directory).arg(VERSION).output().unwrap()
    };
    let output = run();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(std::fs::read_dir(directory.join("_diag")).unwrap().count(), 0);
    assert_eq!(wrong(&check(&machine, &["--json"])), Vec::<[String; 2]>::new());
    if nix::unistd::geteuid().is_root() {
        bash(&directory, "rm -r _diag");
        let output = run();
        assert!(!output.status.success(), "{output:?}");
    }
}

#[tokio::test]
async fn a_person_reads_a_line_for_each_check_and_how_to_fix_it() {
    let machine = baked().await;
    bash(&machine.path(""), "rm -r etc/systemd");
    let output = check(&machine, &["--skip", "disk"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let line =
        |of: &str| said.lines().find(|line| line.contains(of)).unwrap_or_else(|| panic!("{of} is not in\n{said}"));
    assert!(line(" user ").starts_with("ok    user         runner has uid "));
    assert!(line(" disk ").starts_with("skip  disk         as asked"));
    assert!(line(" units ").starts_with("WRONG units        kiln-metadata-guard.service is not enabled"));
    assert!(line("fix it").contains("systemctl enable kiln-metadata-guard.service"));
}

/// The whole machine, but for a unit and a user that are put over its own, in namespaces.
const GUARDED: &str = r#"
set -euo pipefail
ip link set lo up
mount -t tmpfs none /usr/lib/systemd/system
printf '%s\n' "$UNIT" >/usr/lib/systemd/system/kiln-metadata-guard.service
{ cat /etc/passwd; echo 'runner:x:65534:65534::/nonexistent:/bin/false'; } >/usr/lib/systemd/system/passwd
mount --bind /usr/lib/systemd/system/passwd /etc/passwd
look() { "$BINARY" check --json --skip clock --skip disk --skip sudo || true; }
look
eval "$START"
look
"#;

#[test]
fn a_rule_of_the_guard_that_is_not_in_force_is_told() {
    if !nix::unistd::geteuid().is_root() || !Path::new("/usr/lib/systemd/system").is_dir() {
        eprintln!("not root, or no systemd: nothing can be put over this machine's units");
        return;
    }
    let unit = std::fs::read_to_string(format!("{FILES}/usr/lib/systemd/system/kiln-metadata-guard.service")).unwrap();
    let start: Vec<&str> =
        unit.lines().filter_map(|line| Some(line.strip_prefix("ExecStart=")?.trim_start_matches('-'))).collect();
    let output = Command::new("unshare")
        .args(["--net", "--mount", "bash", "-c", GUARDED])
        .env("BINARY", BINARY)
        .env("UNIT", &unit)
        .env("START", start.join("\n"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    let guard = said.lines().map(|line| {
        let told: Value = serde_json::from_str(line).unwrap();
        let looks = told["checks"].as_array().unwrap();
        let guard = looks.iter().find(|look| look["check"] == "guard").unwrap();
        format!("{} {}", guard["state"], guard["found"])
    });
    let guard: Vec<String> = guard.collect();
    assert!(guard[0].contains("wrong") && guard[0].contains("a rule is not in force: /usr/sbin/iptables"), "{guard:?}");
    assert!(guard[1].contains("ok") && guard[1].contains(" rules are in force"), "{guard:?}");
}
