//! The key's forms, and every file that is none.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::encoding::Pkcs8V1Der;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_github::{AppKey, Fingerprint, KeyError};
use kiln_stand_ins::github::{GitHub, GitHubOptions};
use secrecy::ExposeSecret as _;

fn pem(tag: &str, der: &[u8]) -> String {
    format!("-----BEGIN {tag}-----\n{}\n-----END {tag}-----\n", STANDARD.encode(der))
}

fn refusal(text: &str) -> KeyError {
    AppKey::from_pem(text.as_bytes()).unwrap_err()
}

/// An RSAPrivateKey as far as its modulus, which has this many bytes.
fn pkcs1_of_size(bytes: u16) -> Vec<u8> {
    let long = |tag: u8, length: u16| [&[tag, 0x82][..], &length.to_be_bytes()].concat();
    // A modulus begins with a set bit, so its encoding with a zero.
    let modulus = [long(0x02, bytes + 1), vec![0], vec![0xff; usize::from(bytes)]].concat();
    let content = [vec![0x02, 0x01, 0x00], modulus].concat();
    [long(0x30, u16::try_from(content.len()).unwrap()), content].concat()
}

#[tokio::test]
async fn both_forms_of_a_key_have_the_fingerprint_that_github_shows() {
    let github = GitHub::start(GitHubOptions::new("acme")).await.unwrap();
    let given = github.generate_key();
    assert!(given.starts_with("-----BEGIN RSA PRIVATE KEY-----"));
    let key = AppKey::from_pem(given.as_bytes()).unwrap();
    assert_eq!(key.bits(), 2048);
    assert_eq!(github.keys(), [key.fingerprint().to_string()]);
    let again = AppKey::from_pem(key.pkcs8_pem().expose_secret().as_bytes()).unwrap();
    assert_eq!(again.fingerprint(), key.fingerprint());
    assert_eq!(again.pkcs8_der().as_slice(), key.pkcs8_der().as_slice());
    // A text editor on another system, a stray mail header: still the key.
    let edited = format!("downloaded from GitHub\r\n{}", given.replace('\n', "\r\n"));
    assert_eq!(AppKey::from_pem(edited.as_bytes()).unwrap().fingerprint(), key.fingerprint());
}

#[test]
fn what_is_no_rsa_private_key_is_named() {
    let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap().to_pkcs8v1().unwrap();
    assert_eq!(refusal(&pem("PRIVATE KEY", ec.as_ref())), KeyError::NotRsa);
    let ed25519 = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
    assert_eq!(refusal(&pem("PRIVATE KEY", ed25519.as_ref())), KeyError::NotRsa);
    assert_eq!(refusal(&pem("EC PRIVATE KEY", b"x")), KeyError::NotRsa);
    assert_eq!(refusal(&pem("OPENSSH PRIVATE KEY", b"x")), KeyError::NotRsa);
    assert_eq!(refusal(&pem("PUBLIC KEY", b"x")), KeyError::NotPrivate("PUBLIC KEY".to_owned()));
    assert_eq!(refusal(&pem("CERTIFICATE", b"x")), KeyError::NotPrivate("CERTIFICATE".to_owned()));
    assert_eq!(refusal(&pem("ENCRYPTED PRIVATE KEY", b"x")), KeyError::Encrypted);
    let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\neA==\n\
                  -----END RSA PRIVATE KEY-----\n";
    assert_eq!(refusal(legacy), KeyError::Encrypted);
}

#[test]
fn what_is_no_pem_is_named() {
    for text in ["", "a password", "-----BEGIN RSA PRIVATE KEY-----\neA==\n", "-----BEGIN RSA PRIVATE KEY-----"] {
        assert_eq!(refusal(text), KeyError::NotPem, "{text:?}");
    }
    assert_eq!(AppKey::from_pem(&[0x30, 0x82, 0xff, 0x00]).unwrap_err(), KeyError::NotPem);
}

#[test]
fn sizes_that_the_stores_do_not_take_are_refused() {
    for (bytes, bits) in [(64, 512), (128, 1024), (255, 2040), (1024, 8192)] {
        assert_eq!(refusal(&pem("RSA PRIVATE KEY", &pkcs1_of_size(bytes))), KeyError::Size(bits));
    }
    let key = KeyPair::generate(KeySize::Rsa3072).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    assert_eq!(AppKey::from_pem(pem("PRIVATE KEY", der.as_ref()).as_bytes()).unwrap().bits(), 3072);
}

/// KMS would refuse it at the import, with less to go by.
#[test]
fn an_exponent_that_the_stores_do_not_take_is_refused() {
    let mut der = pkcs1_of_size(256);
    der.extend([0x02, 0x01, 0x03]);
    let content = u16::try_from(der.len() - 4).unwrap();
    der[2..4].copy_from_slice(&content.to_be_bytes());
    assert_eq!(refusal(&pem("RSA PRIVATE KEY", &der)), KeyError::Exponent);
}

#[test]
fn a_damaged_key_is_refused_wherever_it_is_cut_or_changed() {
    let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let der = der.as_ref();
    for end in [0, 1, 4, 10, 30, 200, 600, der.len() - 1] {
        for tag in ["PRIVATE KEY", "RSA PRIVATE KEY"] {
            let refused = refusal(&pem(tag, &der[..end]));
            assert!(matches!(refused, KeyError::Damaged(_)), "{tag} cut at {end}: {refused:?}");
        }
    }
    for place in [60, 400, 800, der.len() - 5] {
        let mut changed = der.to_vec();
        changed[place] ^= 0x55;
        let refused = refusal(&pem("PRIVATE KEY", &changed));
        assert!(matches!(refused, KeyError::Damaged(_)), "changed at {place}: {refused:?}");
    }
}

#[tokio::test]
async fn a_key_is_never_printed() {
    let github = GitHub::start(GitHubOptions::new("acme")).await.unwrap();
    let given = github.generate_key();
    let shown = format!("{:?}", AppKey::from_pem(given.as_bytes()).unwrap());
    assert!(shown.contains("SHA256:") && shown.len() < 120, "{shown}");
}

#[test]
fn a_fingerprint_is_read_as_github_shows_it() {
    let fingerprint = Fingerprint::of_spki_der(b"x");
    assert_eq!(fingerprint.to_string().parse::<Fingerprint>().unwrap(), fingerprint);
    for text in ["", "SHA256:", "SHA256:eA==", fingerprint.as_str().trim_start_matches("SHA256:"), "MD5:00"] {
        assert!(text.parse::<Fingerprint>().is_err(), "{text:?}");
    }
}
