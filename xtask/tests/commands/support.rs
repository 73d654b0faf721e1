//! A world for the tests of the commands: the shipped executable, the emulator from `cargo xtask setup`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

pub(crate) use kiln_e2e::world::World;
use kiln_e2e::world::{Outcome, Parts};
use rexpect::session::PtySession;

/// A test reads what a command says from its outcome.
pub(crate) fn quiet(_: &str) {}

/// A folder for `PATH`, in which `cargo xtask` and `kiln` are what they are in a world: the executable under test, with the
/// bootstrap binary that is built already.
pub(crate) fn cargo(world: &World) -> PathBuf {
    let folder = world.path("bin");
    std::fs::create_dir_all(&folder).unwrap();
    let script = |before: &str| {
        format!(
            "#!/bin/sh\nset -e\n{before}case $1 in ami) set -- \"$@\" --bootstrap '{}';; esac\nexec '{}' \"$@\"\n",
            bootstrap().display(),
            env!("CARGO_BIN_EXE_xtask"),
        )
    };
    for (program, before) in [("cargo", "shift\n"), ("kiln", "")] {
        std::fs::write(folder.join(program), script(before)).unwrap();
        std::fs::set_permissions(folder.join(program), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

/// A command on a terminal of its own, each answer of which comes within a minute.
pub(crate) fn on_a_terminal(world: &World, arguments: &[&str]) -> PtySession {
    let mut command = world.command(arguments);
    // What is inherited is the terminal.
    command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit()).env("TERM", "xterm");
    rexpect::session::spawn_command(command.into_std(), Some(60_000)).unwrap()
}

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
