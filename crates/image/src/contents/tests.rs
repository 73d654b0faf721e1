use super::*;
use crate::components::{Action, PhaseName};

fn script(path: &str, text: &str) -> Script {
    Script { path: path.to_owned(), bytes: text.as_bytes().to_vec() }
}

fn certificate() -> String {
    format!("# from kiln.toml\n-----BEGIN CERTIFICATE-----\n{}\nAA==\n-----END CERTIFICATE-----\n", "A".repeat(64))
}

fn all() -> Contents {
    Contents {
        packages: vec!["jq".to_owned(), "g++".to_owned()],
        certificates: vec![certificate()],
        files: vec![LaidDown { destination: "/etc/app.conf".to_owned(), mode: 0o640, bytes: b"x = 1\n".to_vec() }],
        scripts: vec![script("image/install.sh", "true"), script("image/it's {{ odd }}.sh", "true")],
        tests: vec![script("image/test.sh", "true")],
        containers: vec![format!("docker.io/library/alpine@sha256:{}", "0".repeat(64))],
        documents: Vec::new(),
    }
}

fn steps(text: &str, phase: PhaseName) -> Vec<String> {
    let document = Document::parse(text).unwrap();
    let phases = document.phases.into_iter().filter(|known| known.name == phase);
    phases.flat_map(|phase| phase.steps).map(|step| step.name).collect()
}

#[test]
fn each_script_and_test_is_a_step_with_its_name() {
    let all = all();
    let contents = all.contents_document().unwrap();
    let build = [
        "InstallPackages",
        "MakeWorkDir",
        "Download",
        "Unpack",
        "LayFilesDown",
        "PullContainers",
        "KeepTests",
        "Script01-image-install-sh",
        "Script02-image-it-s----odd----sh",
    ];
    assert_eq!(steps(&contents, PhaseName::Build), build);
    assert_eq!(steps(&contents, PhaseName::Test), ["CheckContainers", "Test01-image-test-sh"]);
    let certificates = all.certificates_document().unwrap();
    assert_eq!(steps(&certificates, PhaseName::Build), ["MakeWorkDir", "Download", "Unpack", "InstallCertificates"]);
    assert_eq!(steps(&certificates, PhaseName::Test), ["CheckCertificates"]);
}

/// None of a document's parts is there without what it is for; each of them alone makes a document without a mistake.
#[test]
fn a_document_has_no_more_than_it_needs() {
    assert_eq!(Contents::default().contents_document(), None);
    assert_eq!(Contents::default().certificates_document(), None);
    assert!(Contents::default().archive().is_none() && Contents::default().is_empty());
    let all = all();
    let none = Contents::default();
    let alone = [
        Contents { packages: all.packages.clone(), ..none.clone() },
        Contents { certificates: all.certificates.clone(), ..none.clone() },
        Contents { files: all.files.clone(), ..none.clone() },
        Contents { scripts: all.scripts.clone(), ..none.clone() },
        Contents { tests: all.tests.clone(), ..none.clone() },
        Contents { containers: all.containers.clone(), ..none },
    ];
    for contents in alone {
        assert_eq!(contents.check(), Ok(()), "{contents:?}");
        assert!(!contents.is_empty());
        let texts = [contents.contents_document(), contents.certificates_document()];
        let downloads = texts.iter().flatten().any(|text| {
            let document = Document::parse(text).unwrap();
            document.phases.iter().flat_map(|phase| &phase.steps).any(|step| step.action == Action::S3Download)
        });
        assert_eq!(downloads, contents.archive().is_some(), "{contents:?}");
    }
}

/// Whatever changes an image changes its archive or one of its documents, which are among the image's inputs.
#[test]
fn each_part_changes_a_digest() {
    type Change = fn(&mut Contents);
    let changes: [(&str, Change); 12] = [
        ("a package", |it| it.packages.push("zip".to_owned())),
        ("the packages' order", |it| it.packages.reverse()),
        ("a certificate", |it| it.certificates[0].push('\n')),
        ("a file's content", |it| it.files[0].bytes.push(b'x')),
        ("a file's mode", |it| it.files[0].mode = 0o600),
        ("a file's place", |it| it.files[0].destination.push('x')),
        ("a script's content", |it| it.scripts[0].bytes.push(b'x')),
        ("a script's name", |it| it.scripts[0].path.push('x')),
        ("the scripts' order", |it| it.scripts.reverse()),
        ("a test's content", |it| it.tests[0].bytes.push(b'x')),
        ("a test more", |it| it.tests.push(script("b.sh", "true"))),
        ("a container", |it| it.containers.clear()),
    ];
    let digest = |it: &Contents| (it.archive().unwrap().sha256, it.contents_document(), it.certificates_document());
    let before = digest(&all());
    assert_eq!(before, digest(&all()), "the same contents have the same digests");
    for (what, change) in changes {
        let mut changed = all();
        change(&mut changed);
        assert_ne!(before, digest(&changed), "{what}");
    }
}

/// Not to be changed without need: every image with contents would be baked again.
#[test]
fn the_archive_of_given_contents_never_changes() {
    let archive = all().archive().unwrap();
    assert_eq!(archive.sha256.as_str(), "3f48590b5a82769568a66b93749a7f8e9a11caf605a7400df455595a9a3ff656");
}

#[test]
fn what_is_too_much_for_a_document_is_refused() {
    let too_much = Contents { scripts: vec![script(&"x".repeat(90), "true"); 40], ..Contents::default() };
    let problems = too_much.check().unwrap_err();
    assert!(problems.iter().any(|problem| problem.message.contains("more than the 16000")), "{problems:?}");
}
