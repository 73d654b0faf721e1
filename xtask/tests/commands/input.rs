//! Files that are none, and texts that would steer whatever shows them: each ends soon, by its own name.

use std::path::Path;
use std::process::{Command, Output};

fn deploy(config: &Path, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["deploy", "--dry-run", "--config"]).arg(config).env("NO_COLOR", "1").env_remove("GITHUB_ACTIONS");
    command.envs(environment.iter().copied()).output().unwrap()
}

#[track_caller]
fn refused(config: &Path, said: &str) -> String {
    let output = deploy(config, &[]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains(said), "expected `{said}`:\n{text}");
    text
}

#[test]
fn a_kiln_toml_that_is_no_text_file_is_refused_by_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let utf16: Vec<u8> = "\u{feff}organization = \"acme\"\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    refused(&folder.path().join("absent.toml"), "cargo xtask init");
    refused(folder.path(), "that is a directory");
    refused(Path::new("/dev/null"), "are missing");
    refused(Path::new("/dev/zero"), "longer than");
    refused(&file("utf16.toml", &utf16), "it is UTF-16");
    refused(&file("latin1.toml", b"# J\xfcrgen\n"), "line 1 holds the byte 0xfc");
    refused(&file("large.toml", &vec![b'#'; 10 << 20]), "longer than");
    refused(&file("macintosh.toml", b"organization = \"acme\"\rregion = 1\r"), "carriage returns alone");
    refused(&file("many.toml", "x = \n".repeat(20_000).as_bytes()), "problems");
    refused(&file("open.toml", b"[fleet.a]\nlabels = [\"a\"\nmin = 1\nmax = 2\n"), "this array is not closed");
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused(&fifo, "gave nothing");
}

#[test]
fn a_pipe_that_somebody_writes_to_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let there = fifo.clone();
    let writer = std::thread::spawn(move || std::fs::write(there, "organization = 7\n"));
    refused(&fifo, "`organization` is an integer");
    writer.join().unwrap().unwrap();
}

/// As the runner of a workflow reads what a step prints.
fn commands(output: &[u8]) -> Vec<String> {
    let text = String::from_utf8(output.to_vec()).unwrap();
    let lines = text.split(['\n', '\r']).map(str::trim).filter(|line| line.starts_with("::") || line.contains("##["));
    lines.filter(|line| !line.starts_with("::error title=kiln ")).map(str::to_owned).collect()
}

#[test]
fn neither_a_file_nor_an_argument_gives_commands_to_the_runner_or_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kiln.toml");
    let hostile = "organization = \"a\"\n  ::set-output name=x::y\nx = '''\n::stop-commands::z\n##[error]no\n'''\nz = = \"\u{9b}2J\u{202e}\"\n";
    std::fs::write(&path, hostile).unwrap();
    for environment in [&[("GITHUB_ACTIONS", "true")][..], &[]] {
        let output = deploy(&path, environment);
        let found = [commands(&output.stdout), commands(&output.stderr)].concat();
        assert!(environment.is_empty() || found.is_empty(), "{found:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!said.contains(['\u{1b}', '\u{9b}', '\u{202e}', '\r']), "{said:?}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let argument = "x\r::set-output name=a::b\n::add-mask::c\u{1b}[2J##[error]d";
    let output = command.args(["deploy", "--fleet", argument]).env("GITHUB_ACTIONS", "true").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(commands(&output.stderr), Vec::<String>::new());
    assert!(!output.stderr.contains(&0x1b), "{:?}", String::from_utf8_lossy(&output.stderr));
}
