//! `cargo xtask dist`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use flate2::{Compression, GzBuilder};
use kiln_config::model::Architecture;
use kiln_image::payload::{self, Entry};
use kiln_image::sbom;
use kiln_operations::{Code, Error};
use xshell::{Shell, cmd};

use kiln_cli::musl::{self, Fallback};
use kiln_cli::tools;
use kiln_cli::ui::Ui;

/// Make what is published for a version of Kiln, under target/dist.
///
/// The operator's `kiln`, static for each architecture, with the instance's binaries built in; those binaries alone; for each
/// the list of what it is made of. The source and the templates as archives, the construct for CDK, install.sh, the notes
/// out of CHANGELOG.md, and SHA256SUMS. The same commit gives the same bytes. Refuses while something is not committed, or
/// where the version is not in CHANGELOG.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask dist
  cargo xtask dist --kiln target/kiln --architecture x86_64     # kiln alone, of what is checked out

Results: commit, version, folder, files (each with its SHA-256)")]
pub(crate) struct Args {
    /// Make only the operator's `kiln`, of whatever is checked out, in this folder.
    #[arg(long, value_name = "FOLDER")]
    kiln: Option<PathBuf>,

    /// For this architecture; may be repeated. All, unless given.
    #[arg(long, value_name = "ARCHITECTURE", requires = "kiln", value_parser = architecture)]
    architecture: Vec<Architecture>,
}

fn architecture(text: &str) -> Result<Architecture, String> {
    let known = Architecture::ALL.into_iter().find(|known| known.to_string() == text);
    known.ok_or_else(|| "expected x86_64 or aarch64".to_owned())
}

/// A gzip's header names the system that made it; 255 is none.
const UNKNOWN_OS: u8 = 255;

const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(crate) fn run(args: &Args, ui: &Ui) -> anyhow::Result<()> {
    let shell = Shell::new()?;
    shell.change_dir(tools::workspace_root()?);
    let version = VERSION;
    if let Some(folder) = &args.kiln {
        let folder = std::path::absolute(folder)?;
        shell.create_dir(&folder)?;
        let all = args.architecture.is_empty();
        let architectures = Architecture::ALL.into_iter().filter(|known| all || args.architecture.contains(known));
        kiln(&shell, &folder, &architectures.collect::<Vec<_>>(), ui)?;
        return report(&shell, &folder, ui);
    }
    let Release { commit, notes } = check(&shell, version)?;
    let folder = tools::workspace_root()?.join("target/dist").join(format!("kiln-{version}"));
    // What an earlier run left would be in the sums.
    shell.remove_path(&folder)?;
    shell.create_dir(&folder)?;

    ui.talk(&format!("kiln {version} of commit {commit}"));
    shell.write_file(folder.join(format!("kiln-{version}-notes.md")), notes)?;
    for (name, paths) in [("kiln", &["."][..]), ("kiln-templates", &[":(glob)infra/*.yaml"])] {
        let bytes = archive(&shell, &format!("{name}-{version}"), paths)?;
        shell.write_file(folder.join(format!("{name}-{version}.tar.gz")), bytes)?;
    }
    kiln(&shell, &folder, &Architecture::ALL, ui)?;
    shell.copy_file("install.sh", folder.join("install.sh"))?;
    construct(&shell, &folder)?;
    ui.record("commit", commit);
    report(&shell, &folder, ui)
}

/// Writes the sums, and says what was made.
fn report(shell: &Shell, folder: &Path, ui: &Ui) -> anyhow::Result<()> {
    // What an earlier run left would be summed up too.
    shell.remove_path(folder.join(SUMS))?;
    let sums = sums(folder)?;
    let lines = lines(&sums);
    shell.write_file(folder.join(SUMS), &lines)?;
    ui.talk(&format!("in {}:", folder.display()));
    ui.data(lines.trim_end());
    ui.record("version", VERSION);
    ui.record("folder", folder.display().to_string());
    ui.record("files", serde_json::json!(sums.into_iter().collect::<BTreeMap<_, _>>()));
    Ok(())
}

/// The file of the digests.
const SUMS: &str = "SHA256SUMS";

/// The instance's binaries, and `kiln` with all of them in it.
fn kiln(shell: &Shell, folder: &Path, architectures: &[Architecture], ui: &Ui) -> anyhow::Result<()> {
    // Not in the folder, whose files are published under other names.
    let bundle = tools::workspace_root()?.join("target/bundle");
    shell.create_dir(&bundle)?;
    for architecture in Architecture::ALL {
        ui.talk(&format!("building kiln-bootstrap for {}", architecture.musl_target()));
        let built = musl::build_bootstrap(shell, architecture, Fallback::Refuse)?;
        shell.copy_file(&built.path, bundle.join(format!("kiln-bootstrap-{architecture}")))?;
        let name = folder.join(format!("kiln-bootstrap-{VERSION}-{}", architecture.musl_target()));
        shell.copy_file(&built.path, &name)?;
        list(shell, &name, "kiln-bootstrap", &shell.read_binary_file(&built.path)?)?;
    }
    for architecture in architectures {
        ui.talk(&format!("building kiln for {}", architecture.musl_target()));
        let binary = shell.read_binary_file(musl::build_kiln(shell, *architecture, &bundle)?.path)?;
        let name = format!("kiln-{VERSION}-{}", architecture.musl_target());
        list(shell, &folder.join(&name), "kiln", &binary)?;
        let mut entries = BTreeMap::from([(format!("{name}/kiln"), Entry { mode: 0o755, bytes: binary })]);
        for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
            entries.insert(format!("{name}/{licence}"), Entry { mode: 0o644, bytes: shell.read_binary_file(licence)? });
        }
        shell.write_file(folder.join(format!("{name}.tar.gz")), payload::pack(&entries))?;
    }
    Ok(())
}

/// Writes what a binary is made of next to it.
fn list(shell: &Shell, path: &Path, name: &str, binary: &[u8]) -> anyhow::Result<()> {
    let list = serde_json::to_string_pretty(&sbom::of(name, binary)).context("write the list of crates")?;
    // Not `with_extension`: a version has dots.
    Ok(shell.write_file(format!("{}.cdx.json", path.display()), format!("{list}\n"))?)
}

/// What is published.
#[derive(Debug)]
struct Release {
    commit: String,
    notes: String,
}

/// Sees that the checkout is one that a version can be made of.
fn check(shell: &Shell, version: &str) -> anyhow::Result<Release> {
    let refuse = |message: String, hint: &str| Error::new(Code::CheckoutNotReady, message).hint(hint);
    let git = cmd!(shell, "git status --porcelain").quiet().read();
    let changed = git.context("ask git what is changed; a version is made in a checkout, not in an archive")?;
    if !changed.is_empty() {
        let message = format!("not everything is committed:\n{changed}");
        return Err(refuse(message, "commit it, or stash it: what is published is a commit").into());
    }
    let commit = cmd!(shell, "git rev-parse HEAD").quiet().read()?;
    let tag = format!("v{version}");
    // A tag with a message is an object of its own.
    let commit_of = format!("{tag}^{{commit}}");
    let tagged = cmd!(shell, "git rev-parse --quiet --verify {commit_of}").quiet().ignore_status().read()?;
    if !tagged.is_empty() && tagged != commit {
        let message = format!("the tag {tag} is on {tagged}, not on this commit");
        return Err(
            refuse(message, "check the tag out; or raise `version` in Cargo.toml for what came after it").into()
        );
    }
    let package: serde_json::Value = serde_json::from_str(&shell.read_file("infra/cdk/package.json")?)?;
    if package["version"] != version {
        let message = format!("infra/cdk/package.json says version {}, Cargo.toml says {version}", package["version"]);
        return Err(refuse(message, "give both the same").into());
    }
    let changelog = shell.read_file("CHANGELOG.md")?;
    let notes = notes(&changelog, version).ok_or_else(|| {
        let hint =
            format!("rename its section `## [Unreleased]` to `## [{version}] - YYYY-MM-DD` and begin a new one above");
        refuse(format!("CHANGELOG.md has no section of {version} with a date"), &hint)
    })?;
    Ok(Release { commit, notes })
}

/// The version's section of the changelog, its heading included.
fn notes(changelog: &str, version: &str) -> Option<String> {
    let heading = format!("[{version}] - ");
    let section = changelog.split("\n## ").skip(1).find(|section| section.starts_with(&heading))?;
    let (first, body) = section.split_once('\n')?;
    let date = first.strip_prefix(&heading)?.trim_end();
    let digits = |text: &str| text.chars().all(|digit| digit.is_ascii_digit());
    let is_date = date.len() == 10 && date.split('-').all(digits) && date.split('-').map(str::len).eq([4, 2, 2]);
    (is_date && !body.trim().is_empty()).then(|| format!("# Kiln {version}, {date}\n\n{}\n", body.trim()))
}

/// Files of the commit, with its time, in a folder of that name.
fn archive(shell: &Shell, folder: &str, paths: &[&str]) -> anyhow::Result<Vec<u8>> {
    // Settings of a person's own, such as tar.umask, would make other bytes.
    let tar =
        cmd!(shell, "git -c tar.umask=0022 -c core.autocrlf=false archive --format=tar --prefix={folder}/ HEAD --")
            .args(paths)
            .quiet()
            .output()
            .context("have git make an archive")?;
    let mut gzip = GzBuilder::new().mtime(0).operating_system(UNKNOWN_OS).write(Vec::new(), Compression::best());
    gzip.write_all(&tar.stdout)?;
    gzip.finish().context("compress the archive")
}

/// The construct for CDK as a package of npm's, which gives every file in it one time.
fn construct(shell: &Shell, folder: &Path) -> anyhow::Result<()> {
    let path = tools::with_node(&tools::setup()?.infra_bin()?)?;
    let _there = shell.push_dir("infra/cdk");
    cmd!(shell, "npm ci --ignore-scripts --no-audit --no-fund --loglevel=error")
        .env("PATH", &path)
        .quiet()
        .ignore_stdout()
        .run()?;
    // What an earlier build left would be packed.
    shell.remove_path("dist")?;
    cmd!(shell, "npm run --silent build").env("PATH", &path).quiet().run()?;
    cmd!(shell, "npm pack --ignore-scripts --silent --pack-destination {folder}")
        .env("PATH", &path)
        .quiet()
        .ignore_stdout()
        .run()?;
    Ok(())
}

/// The digests of what is in the folder, in the order of the names.
fn sums(folder: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let entries = std::fs::read_dir(folder).context("list what is made")?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    paths.sort();
    let sums = paths.iter().map(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        ensure!(!bytes.is_empty(), "{} is empty", path.display());
        Ok((name, payload::sha256(&bytes).to_string()))
    });
    sums.collect()
}

/// As `sha256sum --check` reads them.
fn lines(sums: &[(String, String)]) -> String {
    sums.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGELOG: &str = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n\n### Added\n\n- More.\n\n\
        ## [0.1.0] - soon\n\n- First.\n\n## [0.0.9] - 2026-11-01\n";

    #[test]
    fn notes_are_the_dated_section_of_the_version() {
        let notes = notes(CHANGELOG, "0.2.0").unwrap();
        assert_eq!(notes, "# Kiln 0.2.0, 2026-12-01\n\n### Added\n\n- More.\n");
        for version in ["Unreleased", "0.1.0", "0.0.9", "0.2", "1.0.0"] {
            assert_eq!(super::notes(CHANGELOG, version), None, "{version}");
        }
    }

    #[test]
    fn the_sums_are_what_the_usual_tool_checks() {
        let folder = tempfile::tempdir().unwrap();
        let shell = Shell::new().unwrap();
        shell.change_dir(folder.path());
        for name in ["kiln-0.2.0.tar.gz", "kiln-0.2.0-notes.md"] {
            shell.write_file(name, name).unwrap();
        }
        let lines = lines(&sums(folder.path()).unwrap());
        cmd!(shell, "sha256sum --check --strict").stdin(&lines).quiet().ignore_stdout().run().unwrap();
        assert_eq!(lines.lines().count(), 2);
    }

    /// A repository with one commit, of which a version can be made.
    fn repository(folder: &Path) -> Shell {
        let shell = Shell::new().unwrap();
        shell.change_dir(folder);
        shell.write_file("CHANGELOG.md", CHANGELOG).unwrap();
        shell.write_file("infra/cdk/package.json", r#"{ "version": "0.2.0" }"#).unwrap();
        shell.write_file("infra/fleet.yaml", "Resources: {}\n").unwrap();
        cmd!(shell, "git init --quiet --initial-branch main").quiet().run().unwrap();
        cmd!(shell, "git add --all").quiet().run().unwrap();
        commit(&shell);
        shell
    }

    fn commit(shell: &Shell) {
        let settings = ["user.name=t", "user.email=t@example.com", "commit.gpgsign=false"];
        let who = settings.into_iter().flat_map(|setting| ["-c", setting]);
        cmd!(shell, "git {who...} commit --quiet --all --message x")
            .envs([("GIT_AUTHOR_DATE", "@1700000000 +0000"), ("GIT_COMMITTER_DATE", "@1700000000 +0000")])
            .quiet()
            .run()
            .unwrap();
    }

    #[test]
    fn a_version_is_refused_that_the_checkout_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let shell = repository(folder.path());
        let refused = |version: &str| format!("{:#}", check(&shell, version).unwrap_err());
        let made = check(&shell, "0.2.0").unwrap();
        assert_eq!(made.commit.len(), 40);
        assert!(refused("0.3.0").contains("package.json says version \"0.2.0\""));
        shell.write_file("infra/cdk/package.json", r#"{ "version": "0.1.0" }"#).unwrap();
        assert!(refused("0.1.0").contains("not everything is committed"));
        cmd!(shell, "git tag v0.1.0").quiet().run().unwrap();
        commit(&shell);
        assert!(refused("0.1.0").contains("the tag v0.1.0 is on"));
        cmd!(shell, "git tag --delete v0.1.0").quiet().ignore_stdout().run().unwrap();
        assert!(refused("0.1.0").contains("no section of 0.1.0 with a date"));
    }

    #[test]
    fn an_archive_is_the_commits_bytes_and_not_the_folders() {
        let [one, other] = [(), ()].map(|()| tempfile::tempdir().unwrap());
        let first = repository(one.path());
        let second = repository(other.path());
        // Neither times nor what is not committed are in it.
        second.write_file("stray", "x").unwrap();
        second.write_file("infra/fleet.yaml", "Resources: { A: 1 }\n").unwrap();
        for paths in [&["."][..], &[":(glob)infra/*.yaml"]] {
            let [a, b] = [&first, &second].map(|shell| archive(shell, "kiln-0.2.0", paths).unwrap());
            assert!(a.len() > 100 && a == b, "{paths:?}");
        }
    }
}
