//! The threat model names the test that tries each wall, and PROMISES.md the test that holds each promise: every one exists.

use std::collections::BTreeSet;
use std::path::Path;

/// The names of all test functions below a folder.
fn tests(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                tests(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let (mut is_test, mut is_left_out) = (false, false);
            for line in text.lines().map(str::trim) {
                let name = line.trim_start_matches("pub ").trim_start_matches("async ").strip_prefix("fn ");
                if let Some(name) = name.and_then(|rest| rest.split('(').next()) {
                    if std::mem::take(&mut is_test) & !std::mem::take(&mut is_left_out) {
                        found.insert(name.to_owned());
                    }
                } else if line.starts_with("#[") {
                    is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                    is_left_out |= line.starts_with("#[ignore");
                }
            }
        }
    }
}

/// Checks that each row of a page's tables ends with names of tests, and that these run. Gives how many rows there are.
fn rows_with_tests(page: &str) -> usize {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut known = BTreeSet::new();
    for folder in ["crates", "xtask"] {
        tests(&root.join(folder), &mut known);
    }
    assert!(known.len() > 300, "{}", known.len());
    let is_heading = |line: &&str| ["| from |", "| Promise |"].iter().any(|heading| line.starts_with(heading));
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ") && !is_heading(line)).collect();
    for row in &rows {
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let named: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test is named: {row}");
        for name in named {
            assert!(known.contains(name) || name.starts_with("cargo xtask "), "there is no test `{name}`: {row}");
        }
    }
    rows.len()
}

fn read(page: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page)).unwrap()
}

#[test]
fn each_wall_of_the_threat_model_has_a_test() {
    let page = read("docs/src/threat-model.md");
    let walls = page.split("## Walls").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    assert!(rows_with_tests(walls) > 15);
}

#[test]
fn each_promise_has_a_test() {
    assert!(rows_with_tests(&read("PROMISES.md")) > 25);
}
