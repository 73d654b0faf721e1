//! What `pin` would change in kiln.toml.

use std::collections::{BTreeMap, BTreeSet};

use kiln_config::config::Config;
use kiln_config::model::Architecture;
use kiln_github::RunnerDownload;
use kiln_operations::pin::{self, HttpText, Offer};
use kiln_operations::{Code, Error, Result};

use crate::{KILN_TOML, assert_nothing_to_do, config, steps};

const PINNED: &str = "af4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32";
const OTHER: &str = "bb4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32";
const ARM: &str = "cc4b794c1bc41d73d40535e3fe092a39f9679cd8d965954c2aca25a05ca41d32";

fn offer(version: &str, digests: &[(Architecture, &str)]) -> Offer {
    let sha256 = digests.iter().map(|(architecture, digest)| (*architecture, digest.parse().unwrap())).collect();
    Offer { version: version.parse().unwrap(), sha256, node: BTreeMap::new() }
}

fn download(os: &str, architecture: &str, version: &str, digest: Option<&str>) -> RunnerDownload {
    RunnerDownload {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
        download_url: String::new(),
        filename: format!("actions-runner-{os}-{architecture}-{version}.tar.gz"),
        sha256_checksum: digest.map(str::to_owned),
    }
}

#[test]
fn nothing_changed() {
    assert_nothing_to_do(&pin::plan(&config(), &offer("2.338.0", &[(Architecture::X86_64, PINNED)])));
}

#[test]
fn an_older_offer_does_not_move_the_pin_back() {
    let plan = pin::plan(&config(), &offer("2.337.1", &[(Architecture::X86_64, OTHER)]));
    assert_nothing_to_do(&plan);
    assert!(plan.settled.contains("newer than 2.337.1"), "{}", plan.settled);
}

#[test]
fn a_newer_release_moves_version_and_digest_and_a_wrong_digest_is_mended() {
    let newer = pin::plan(&config(), &offer("2.339.0", &[(Architecture::X86_64, OTHER)]));
    assert_eq!(
        steps(&newer),
        [
            "~ runner.version = \"2.338.0\" -> \"2.339.0\"".to_owned(),
            format!("~ runner.sha256.x86_64 = \"{PINNED}\" -> \"{OTHER}\""),
        ]
    );
    let wrong = pin::plan(&config(), &offer("2.338.0", &[(Architecture::X86_64, OTHER)]));
    assert_eq!(steps(&wrong), [format!("~ runner.sha256.x86_64 = \"{PINNED}\" -> \"{OTHER}\"")]);
}

#[test]
fn comments_and_layout_of_the_file_stay() {
    let text = KILN_TOML
        .replace("version = \"2.338.0\"", "# The pin.\nversion   =  \"2.338.0\" # renewed monthly")
        .replace("[fleet.linux]", "# Kept.\n\n[fleet.linux]");
    let plan = pin::plan(
        &Config::from_toml("kiln.toml", &text).unwrap(),
        &offer("2.339.0", &[(Architecture::X86_64, OTHER), (Architecture::Aarch64, ARM)]),
    );
    let expected = text
        .replace("\"2.338.0\"", "\"2.339.0\"")
        .replace(&format!("x86_64 = \"{PINNED}\"\n"), &format!("x86_64 = \"{OTHER}\"\naarch64 = \"{ARM}\"\n"));
    assert_eq!(pin::rewritten(&text, &plan).unwrap(), expected);
}

#[test]
fn the_committed_example_can_be_rewritten() {
    let text = include_str!("../../../../docs/kiln.toml");
    let example = Config::from_toml("kiln.toml", text).unwrap();
    let plan = pin::plan(&example, &offer("2.999.0", &[(Architecture::X86_64, OTHER)]));
    let rewritten = pin::rewritten(text, &plan).unwrap();
    let changed = text.lines().zip(rewritten.lines()).filter(|(before, after)| before != after).count();
    assert_eq!((changed, text.lines().count()), (2, rewritten.lines().count()));
    let again = Config::from_toml("kiln.toml", &rewritten).unwrap();
    assert_nothing_to_do(&pin::plan(&again, &offer("2.999.0", &[(Architecture::X86_64, OTHER)])));
}

#[test]
fn an_offer_is_the_newest_for_linux_and_never_without_its_digest() {
    let wanted = BTreeSet::from([Architecture::X86_64, Architecture::Aarch64]);
    let mut downloads = vec![
        download("osx", "x64", "2.999.0", Some(OTHER)),
        download("linux", "x64", "2.99.0", Some(PINNED)),
        download("linux", "x64", "2.339.0", Some(OTHER)),
        download("linux", "arm64", "2.339.0", None),
    ];
    let error = pin::newest_offer(&wanted, &downloads).unwrap_err();
    assert_eq!(error.code, Code::DigestNotPublished);
    assert!(error.message.contains("no digest of runner 2.339.0 for aarch64"), "{error}");
    downloads[3].sha256_checksum = Some(ARM.to_owned());
    let found = pin::newest_offer(&wanted, &downloads).unwrap();
    assert_eq!(found, offer("2.339.0", &[(Architecture::X86_64, OTHER), (Architecture::Aarch64, ARM)]));
    assert_eq!(pin::newest_offer(&wanted, &downloads[..1]).unwrap_err().code, Code::RunnerReleaseMissing);
}

/// The Node project's builds, as a mirror has them.
struct Mirror(BTreeMap<&'static str, String>);

impl HttpText for Mirror {
    async fn text(&self, url: &str) -> Result<String> {
        let path = url.strip_prefix("https://unofficial-builds.nodejs.org/download/release/").unwrap();
        self.0.get(path).cloned().ok_or_else(|| Error::new(Code::DownloadFailed, format!("{url}: 404")))
    }
}

fn mirror() -> Mirror {
    let index = r#"[
        {"version": "v24.20.0", "files": ["linux-x64-musl"]},
        {"version": "v24.9.0", "files": ["linux-x64-glibc-217", "linux-x64-musl"]},
        {"version": "v24.19.0", "files": ["linux-x64-glibc-217"]},
        {"version": "v20.20.1", "files": ["linux-x64-glibc-217"]}
    ]"#;
    let sums = |version: &str, digest: &str| {
        format!("{ARM}  node-v{version}-linux-x64-musl.tar.gz\n{digest}  node-v{version}-linux-x64-glibc-217.tar.gz\n")
    };
    Mirror(BTreeMap::from([
        ("index.json", index.to_owned()),
        ("v24.19.0/SHASUMS256.txt", sums("24.19.0", OTHER)),
        ("v20.20.1/SHASUMS256.txt", sums("20.20.1", PINNED)),
    ]))
}

#[tokio::test]
async fn amazon_linux_2_gets_builds_of_node_with_their_published_digests() {
    assert!(pin::newest_nodes(&config(), &Mirror(BTreeMap::new())).await.unwrap().is_empty(), "nothing asks for one");
    let text = crate::on_amazon_linux_2();
    let config = Config::from_toml("kiln.toml", &text).unwrap();
    let node = pin::newest_nodes(&config, &mirror()).await.unwrap();
    let plan = pin::plan(&config, &Offer { node, ..offer("2.338.0", &[(Architecture::X86_64, PINNED)]) });
    let rewritten = pin::rewritten(&text, &plan).unwrap();
    for (major, version, digest) in [("20", "20.20.1", PINNED), ("24", "24.19.0", OTHER)] {
        let table = format!("[runner.node.{major}]\nversion = \"{version}\"\nsha256 = \"{digest}\"\n");
        assert!(rewritten.contains(&table), "{rewritten}");
    }
    let pinned = Config::from_toml("kiln.toml", &rewritten).unwrap();
    let node = pin::newest_nodes(&pinned, &mirror()).await.unwrap();
    assert_nothing_to_do(&pin::plan(&pinned, &Offer { node, ..offer("2.338.0", &[(Architecture::X86_64, PINNED)]) }));
}

#[tokio::test]
async fn a_build_that_is_missing_is_named() {
    let text = crate::on_amazon_linux_2();
    let config = Config::from_toml("kiln.toml", &text).unwrap();
    let mut mirror = mirror();
    mirror.0.insert("v24.19.0/SHASUMS256.txt", String::new());
    let error = pin::newest_nodes(&config, &mirror).await.unwrap_err();
    assert_eq!(error.code, Code::DigestNotPublished);
    assert!(error.message.contains("v24.19.0/SHASUMS256.txt has no digest"), "{error}");
    mirror.0.insert("index.json", "[]".to_owned());
    let error = pin::newest_nodes(&config, &mirror).await.unwrap_err();
    assert_eq!(error.code, Code::NodeBuildMissing);
    assert!(error.message.contains("names no build linux-x64-glibc-217 of Node 20"), "{error}");
}
