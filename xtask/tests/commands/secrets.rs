//! The App's key is where it belongs and nowhere else.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_e2e::story::{FLEETS, VERSIONS};

use crate::models::assert_modelled;
use crate::support::{quiet, world};

/// A stretch of the key's secret part in base64 at any alignment.
fn needles_of(pem: &Path) -> Vec<Vec<u8>> {
    let pem = std::fs::read_to_string(pem).unwrap();
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(base64).unwrap();
    // Past the modulus and the exponent, which are public.
    let secret = &der[der.len() / 2..][..48];
    (0..3).map(|shift| STANDARD.encode(&secret[shift..shift + 42]).into_bytes()).collect()
}

/// Line breaks of a PEM, in JSON too, are looked past.
fn contains(text: &[u8], needles: &[Vec<u8>]) -> bool {
    let text = String::from_utf8_lossy(text).replace("\\n", "").replace(['\n', '\r'], "").into_bytes();
    needles.iter().any(|needle| text.windows(needle.len()).any(|window| window == needle.as_slice()))
}

/// The files below a folder that hold one of the needles.
fn found_below(folder: &Path, needles: &[Vec<u8>], found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            found_below(&path, needles, found);
        } else if kind.is_file() && std::fs::read(&path).is_ok_and(|text| contains(&text, needles)) {
            found.push(path.display().to_string());
        }
    }
}

/// The processes whose arguments or environment hold one of the needles.
fn found_in_processes(needles: &[Vec<u8>]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "environ"] {
            let path = entry.path().join(file);
            if std::fs::read(&path).is_ok_and(|text| contains(&text, needles)) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_in_no_output_no_process_and_no_other_file() {
    let world = world().await;
    world.write_config(VERSIONS[0], FLEETS).unwrap();
    let pem = world.download_key("key.pem").unwrap();
    let needles = needles_of(&pem);
    assert!(contains(&std::fs::read(&pem).unwrap(), &needles), "the key's own file holds what is looked for");
    let pem = pem.as_path();
    let install = ["rotate-key", "--pem", pem.to_str().unwrap()];
    let next = world.download_key("next.pem").unwrap();
    let next_needles = needles_of(&next);
    let dry = ["rotate-key", "--pem", next.to_str().unwrap(), "--dry-run"];
    let status = ["rotate-key", "--status", "--json"];
    for arguments in [&install[..], &["ami"], &["deploy"], &dry, &status] {
        let outcome = world.run(arguments, quiet).await.unwrap().success().unwrap();
        assert!(!contains(outcome.stdout.as_bytes(), &needles), "{arguments:?} prints the key");
        assert!(!contains(outcome.stderr.as_bytes(), &needles), "{arguments:?} says the key");
    }
    // Of all that was sent to AWS, one call holds the key: into the store that keeps it as it is. KMS gets it wrapped.
    let sent: Vec<String> = world
        .aws
        .bodies()
        .into_iter()
        .filter(|(_, body)| contains(body, &needles))
        .map(|(operation, _)| operation)
        .collect();
    assert_eq!(sent, ["secretsmanager:PutSecretValue"]);
    // Both fleets' runners are up: their instances' logs, files and processes are looked through.
    assert_eq!(world.github.runners().iter().filter(|runner| runner.online).count(), 2);
    assert_eq!(found_in_processes(&needles), [""; 0]);
    let mut found = Vec::new();
    found_below(pem.parent().unwrap(), &needles, &mut found);
    assert_eq!(found, [pem.display().to_string()]);

    // A rotation, back, and forth again: of either key nothing is said, whatever fails.
    let both = [needles, next_needles].concat();
    let forth = ["rotate-key", "--pem", next.to_str().unwrap(), "--verbose"];
    let again = ["rotate-key", "--pem", next.to_str().unwrap(), "--json"];
    for arguments in
        [&forth[..], &["rotate-key", "--rollback", "--verbose"], &again, &["rotate-key", "--retire"], &status]
    {
        let outcome = world.run(arguments, quiet).await.unwrap().success().unwrap();
        assert!(!contains(outcome.stdout.as_bytes(), &both), "{arguments:?} prints a key");
        assert!(!contains(outcome.stderr.as_bytes(), &both), "{arguments:?} says a key");
    }
    world.github.revoke_key(&world.github.keys()[1]);
    let outcome = world.run(&forth, quiet).await.unwrap();
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
    assert!(!contains(outcome.stderr.as_bytes(), &both), "the refusal says the key");
    assert_modelled(&world);
    world.shutdown().await.unwrap();
}
