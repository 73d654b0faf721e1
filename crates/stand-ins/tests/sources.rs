//! Each rule of the stand-in runner and GitHub has its source, or says that it is assumed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

/// What carries a rule out and is none: it reads, writes or passes on.
const PLUMBING: [&str; 31] = [
    "asked",
    "bash",
    "cancel",
    "clean_temp",
    "client",
    "delete",
    "end_asked",
    "end_code",
    "flag",
    "get",
    "hold",
    "is_worker",
    "iter",
    "listen",
    "main",
    "message",
    "new",
    "post",
    "read",
    "remove",
    "renew",
    "required",
    "run",
    "save",
    "setting",
    "start",
    "terminated",
    "tracking_id",
    "version",
    "work",
    "write",
];

fn marked(text: &str) -> bool {
    ["source:", "assumption:"].iter().any(|mark| text.to_lowercase().contains(mark))
}

/// The functions and constants of a file, each with the comment before it and its own text.
fn items(text: &str) -> Vec<(String, String)> {
    let mut items = Vec::new();
    let mut comment = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let trimmed = line.trim_start();
        if trimmed.starts_with("//") || trimmed.starts_with("#[") {
            comment.push_str(trimmed);
            comment.push('\n');
            continue;
        }
        let code =
            trimmed.trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ").trim_start_matches("pub ");
        let code = code.trim_start_matches("async ");
        let named = ["fn ", "const "].iter().find_map(|kind| code.strip_prefix(kind));
        if let Some(named) = named {
            let name: String = named.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let mut body = format!("{comment}{line}\n");
            let indent = line.len() - trimmed.len();
            if !line.trim_end().ends_with([';', '}']) {
                for next in lines.by_ref() {
                    body.push_str(next);
                    body.push('\n');
                    let closes = next.trim_start().starts_with(['}', ']']) || next.trim_end().ends_with(';');
                    if closes && next.len() - next.trim_start().len() <= indent {
                        break;
                    }
                }
            }
            items.push((name, body));
        }
        comment.clear();
    }
    items
}

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn each_rule_of_the_stand_in_runner_has_a_source_or_is_marked_as_assumed() {
    let mut without = Vec::new();
    for path in files("src/bin/stand-in-runner") {
        let text = std::fs::read_to_string(&path).unwrap();
        let found = items(&text);
        assert!(!found.is_empty(), "{}", path.display());
        for (name, text) in found {
            let constant = name.chars().all(|c| !c.is_lowercase());
            if !marked(&text) && !PLUMBING.contains(&name.as_str()) && !constant {
                without.push(format!("{}: {name}", path.file_name().unwrap().display()));
            }
        }
    }
    assert_eq!(without, Vec::<String>::new(), "say `source:` or `assumption:` beside each");
}

/// Which rules they are is said file by file.
#[test]
fn each_file_of_the_stand_in_github_names_its_sources() {
    for path in
        files("src/github").into_iter().chain([PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/github.rs"))])
    {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(marked(&text), "{} names no source", path.display());
    }
}

#[test]
fn a_rule_without_a_source_is_found() {
    let text =
        "/// Does.\n///\n/// source: x\nfn with() {\n    one();\n}\n\n/// Does.\nasync fn without() {\n    one();\n}\n";
    let found: Vec<(String, bool)> = items(text).into_iter().map(|(name, text)| (name, marked(&text))).collect();
    assert_eq!(found, [("with".to_owned(), true), ("without".to_owned(), false)]);
}
