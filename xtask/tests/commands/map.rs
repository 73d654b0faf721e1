//! ARCHITECTURE.md's map is true: what it names exists, and what exists at the top is named.

use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn mapped() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let section = text.split("\n## ").find(|section| section.starts_with("Map\n")).unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().trim_end_matches('/').to_owned()).collect()
}

#[test]
fn every_path_on_the_map_exists() {
    let mapped = mapped();
    assert!(mapped.len() > 10, "the map was not found");
    for path in mapped {
        assert!(root().join(&path).exists(), "ARCHITECTURE.md names {path}, which does not exist");
    }
}

#[test]
fn every_crate_is_on_the_map() {
    let mapped = mapped();
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let path = format!("crates/{}", entry.unwrap().file_name().to_str().unwrap());
        assert!(mapped.contains(&path), "{path} is missing from ARCHITECTURE.md");
    }
}

#[test]
fn the_sdk_stays_where_the_invariants_say() {
    let mut offenders = Vec::new();
    for folder in
        ["xtask/src", "crates/config/src", "crates/github/src", "crates/operations/src", "crates/bootstrap/src"]
    {
        visit(&root().join(folder), &mut |path, text| {
            if text.contains("aws_sdk_") && !path.ends_with("bootstrap/src/aws.rs") {
                offenders.push(path.to_owned());
            }
        });
    }
    assert!(offenders.is_empty(), "the AWS SDK is used in {offenders:?}");
}

fn visit(folder: &Path, each: &mut dyn FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, each);
        } else {
            each(&path, &std::fs::read_to_string(&path).unwrap());
        }
    }
}
