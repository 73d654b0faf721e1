//! `cargo xtask book`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use aasvg::RenderOptions;
use anyhow::{Context as _, bail, ensure};
use regex_lite::Regex;
use xshell::{Shell, cmd};

use kiln_cli::tools;
use kiln_cli::ui::Ui;

/// Make the handbook: draw its pictures, build its pages into target/book, and follow its links.
///
/// The pictures of docs/src/pictures are drawn from the texts beside them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask book
  cargo xtask book --check

Results: book (the folder of pages)")]
pub(crate) struct Args {
    /// Change nothing in the checkout, and fail where a picture is not what its text draws.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> anyhow::Result<()> {
    let root = tools::workspace_root()?;
    for (path, drawn) in pictures(&root.join("docs/src/pictures"))? {
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        if committed == drawn {
            continue;
        }
        ensure!(!args.check, "{} is not what the text beside it draws: run `cargo xtask book`", path.display());
        std::fs::write(&path, drawn).with_context(|| format!("write {}", path.display()))?;
    }
    let mdbook = tools::setup()?.mdbook()?;
    let shell = Shell::new()?;
    let (source, pages) = (root.join("docs"), root.join("target/book"));
    // Pages of an earlier build would hide that a link leads nowhere.
    shell.remove_path(&pages)?;
    let built = cmd!(shell, "{mdbook} build {source}").quiet().ignore_stdout().output().context("build the book")?;
    let said = String::from_utf8_lossy(&built.stderr);
    // It goes on where an included file is missing.
    ensure!(!said.contains("ERROR") && !said.contains("WARN"), "mdbook says:\n{}", said.trim_end());
    let broken = broken_links(&read_files(&pages, "html")?, &pages);
    if !broken.is_empty() {
        bail!("links of the book lead nowhere:\n  {}", broken.join("\n  "));
    }
    ui.talk(&format!("the book: {}", pages.join("index.html").display()));
    ui.record("book", pages.display().to_string());
    Ok(())
}

/// Every picture's path and what is to be in it, in the order of their names.
fn pictures(folder: &Path) -> anyhow::Result<BTreeMap<PathBuf, String>> {
    let texts = read_files(folder, "txt")?;
    ensure!(!texts.is_empty(), "there are no pictures in {}", folder.display());
    Ok(texts.into_iter().map(|(path, text)| (path.with_extension("svg"), draw(&text))).collect())
}

/// On a ground of its own, since a page's colours need not be those that the system asks for.
fn draw(text: &str) -> String {
    let options = RenderOptions::new().with_backdrop(true).with_stretch(true);
    format!("{}\n", aasvg::render_with_options(text, &options))
}

/// A folder's texts of one kind, by their paths.
fn read_files(folder: &Path, kind: &str) -> anyhow::Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == kind) {
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            files.insert(path, text);
        }
    }
    Ok(files)
}

/// Links within the book to pages, files and headings that are not there, with the pages that they are on.
fn broken_links(pages: &BTreeMap<PathBuf, String>, folder: &Path) -> Vec<String> {
    let link = Regex::new(r#"(?:href|src)="([^"]*)""#).expect("the expression is a constant");
    let anchor = Regex::new(r#"id="([^"]*)""#).expect("the expression is a constant");
    let ids = |text: &str| anchor.captures_iter(text).map(|found| found[1].to_owned()).collect::<BTreeSet<_>>();
    let anchors: BTreeMap<&PathBuf, BTreeSet<String>> = pages.iter().map(|(path, text)| (path, ids(text))).collect();
    let mut broken = BTreeSet::new();
    for (page, text) in pages.iter().filter(|(page, _)| !page.ends_with("404.html")) {
        for target in link.captures_iter(text).map(|found| found[1].to_owned()) {
            if target.contains("://") || target.starts_with("data:") || target.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((&target, ""));
            let path = if file.is_empty() { page.clone() } else { plain(&page.with_file_name(file)) };
            let there = path.starts_with(folder)
                && path.exists()
                && (heading.is_empty() || anchors.get(&path).is_none_or(|anchors| anchors.contains(heading)));
            if !there {
                broken.insert(format!("{target} (on {})", page.strip_prefix(folder).unwrap_or(page).display()));
            }
        }
    }
    broken.into_iter().collect()
}

/// A path without `..`, by its words alone.
fn plain(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut plain, part| {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            part => plain.push(part),
        }
        plain
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_nowhere_are_found_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let [index, other] = ["index.html", "other.html"].map(|name| folder.path().join(name));
        let text = r##"<h2 id="here"></h2><a href="#here"></a><a href="other.html#there"></a><a href="https://example.com/x">
            </a><img src="pictures/none.svg"><a href="#nowhere"></a><a href="other.html#none"></a><a href="../out.md"></a>"##;
        std::fs::write(&index, text).unwrap();
        std::fs::write(&other, r#"<h2 id="there"></h2>"#).unwrap();
        let broken = broken_links(&read_files(folder.path(), "html").unwrap(), folder.path());
        let expected = ["#nowhere", "../out.md", "other.html#none", "pictures/none.svg"];
        assert_eq!(broken, expected.map(|target| format!("{target} (on index.html)")));
    }

    #[test]
    fn a_picture_is_drawn_the_same_each_time() {
        let text = "+---+     +---+\n| a +---->| b |\n+---+     +---+\n";
        let drawn = draw(text);
        assert!(drawn.starts_with("<svg") && drawn.contains(">a<") && drawn.contains("polygon"), "{drawn}");
        assert_eq!(drawn, draw(text));
    }
}
