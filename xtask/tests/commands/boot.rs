//! `rehearse --boot` where it can't be; where it can, it is a check of its own.

use std::process::Command;

/// What is missing is told before anything is built or made.
#[test]
fn a_machine_without_qemu_hears_what_to_install() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["rehearse", "--boot"])
        .env("PATH", "/nowhere")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(output.stdout.is_empty() && said.starts_with("error[machine-not-ready]: "), "{said}");
    if cfg!(target_arch = "x86_64") {
        assert!(
            said.contains("not installed: debootstrap, ip, mke2fs, nsenter, qemu-system-x86_64, unshare"),
            "{said}"
        );
        assert!(said.contains("\n\nhint: on Debian, as root: apt install debootstrap"), "{said}");
    }
}
