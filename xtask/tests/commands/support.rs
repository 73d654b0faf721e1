//! A world for the tests of the commands: the shipped executable, the emulator from `cargo xtask setup`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub(crate) use kiln_rehearsal::world::World;
use kiln_rehearsal::world::{Outcome, Parts};

/// A test reads what a command says from its outcome.
pub(crate) fn quiet(_: &str) {}

/// A fresh world.
pub(crate) async fn world() -> World {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("target/tools/venv/bin/ministack");
    if !tools.exists() {
        let status = Command::new(env!("CARGO_BIN_EXE_xtask")).arg("setup").status().unwrap();
        assert!(status.success(), "`cargo xtask setup` failed");
    }
    let parts =
        Parts { xtask: env!("CARGO_BIN_EXE_xtask").into(), bootstrap: bootstrap().to_owned(), ministack: tools };
    World::start(parts).await.unwrap()
}

/// A static bootstrap binary, built once for a run of the tests. What it is linked with is another check's matter.
pub(crate) fn bootstrap() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let output = Command::new(env!("CARGO_BIN_EXE_xtask")).arg("bootstrap").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
    })
}

/// Runs a command that must fail, and gives what it says.
pub(crate) async fn refused(world: &World, arguments: &[&str], code: i32) -> String {
    let outcome = world.run(arguments, quiet).await.unwrap();
    assert_eq!(outcome.code, Some(code), "{arguments:?} said:\n{}", outcome.stderr);
    let Outcome { stderr, .. } = outcome;
    assert!(stderr.starts_with("error[") || stderr.contains("\nerror["), "no name in:\n{stderr}");
    assert!(stderr.contains("hint: "), "no hint in:\n{stderr}");
    stderr
}
