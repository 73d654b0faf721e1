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

/// The table's rows below a heading, as cells.
fn table(heading: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let start = format!("{heading}\n");
    let section = text.split("\n## ").find(|section| section.starts_with(&start)).unwrap().to_owned();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What is between backticks and has a slash: paths, some with a pattern.
fn paths(cell: &str) -> Vec<&str> {
    let quoted = cell.split('`').skip(1).step_by(2);
    quoted.filter(|text| text.contains('/') && !text.contains(' ') && !text.contains("COMMAND")).collect()
}

#[test]
fn what_entry_points_and_the_guide_to_changes_name_exists() {
    let mut found = 0;
    for cell in ["Entry points", "To change X, open Y, test Z"].iter().flat_map(|heading| table(heading)).flatten() {
        for path in paths(&cell) {
            // `a/{b,c}.rs` and `infra/*.yaml` are looked for up to the pattern.
            let known = path.split(['{', '*']).next().unwrap_or_default();
            let known = if known == path { known } else { known.rsplit_once('/').unwrap_or_default().0 };
            assert!(root().join(known).exists(), "ARCHITECTURE.md names {path}, which does not exist");
            found += 1;
        }
    }
    assert!(found > 20, "only {found} paths were found");
}

#[test]
fn the_table_of_modules_names_every_module_of_every_crate() {
    let rows = table("Modules");
    let row = |name: &str| rows.iter().find(|row| row[0] == format!("`{name}`")).map(|row| row[1].clone());
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap();
        if name == "fuzz" {
            continue;
        }
        let row = row(name).unwrap_or_else(|| panic!("the table of modules lacks {name}"));
        for file in std::fs::read_dir(folder.join("src")).unwrap() {
            let file = file.unwrap().path();
            let module = file.file_stem().unwrap().to_str().unwrap();
            let is_module = file.extension().is_some_and(|extension| extension == "rs");
            let plain =
                ["lib", "main"].contains(&module) || (name == "cli" && !["ui", "musl", "tools"].contains(&module));
            let words: Vec<&str> = row.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
            assert!(!is_module || plain || words.contains(&module), "the table of modules lacks {name}'s {module}");
        }
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
            if text.contains("aws_sdk_") && !path.to_string_lossy().contains("bootstrap/src/aws") {
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
