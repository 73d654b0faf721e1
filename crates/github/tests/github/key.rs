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
    assert_eq!(refusal(&pem("PRIVATE KEY", ec.as_ref())), KeyError::NotRsa("an EC key"));
    let ed25519 = Ed25519KeyPair::generate_pkcs8(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
    assert_eq!(refusal(&pem("PRIVATE KEY", ed25519.as_ref())), KeyError::NotRsa("an Ed25519 or X25519 key"));
    assert_eq!(refusal(&pem("EC PRIVATE KEY", b"x")), KeyError::NotRsa("an EC key"));
    assert_eq!(refusal(&pem("OPENSSH PRIVATE KEY", b"x")), KeyError::NotRsa("a key in OpenSSH's own form"));
    assert_eq!(refusal(&pem("PUBLIC KEY", b"x")), KeyError::NotPrivate("a public key"));
    assert_eq!(refusal(&pem("CERTIFICATE", b"x")), KeyError::NotPrivate("a certificate"));
    assert_eq!(refusal(&pem("ENCRYPTED PRIVATE KEY", b"x")), KeyError::Encrypted);
    let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\neA==\n\
                  -----END RSA PRIVATE KEY-----\n";
    assert_eq!(refusal(legacy), KeyError::Encrypted);
}

#[test]
fn what_is_no_pem_is_named() {
    let named = [
        ("", KeyError::Empty),
        (" \n\u{feff}", KeyError::NotPem),
        ("a password", KeyError::NotPem),
        ("-----BEGIN RSA PRIVATE KEY-----\neA==\n", KeyError::NoEnd),
        ("-----BEGIN RSA PRIVATE KEY-----", KeyError::NoEnd),
        ("-----BEGIN RSA PRIVATE KEY-----\neA==\n-----END PRIVATE KEY-----", KeyError::Marks),
        ("----BEGIN RSA PRIVATE KEY----\neA==\n----END RSA PRIVATE KEY----", KeyError::Marks),
        ("—–BEGIN RSA PRIVATE KEY—–\neA==\n—–END RSA PRIVATE KEY—–", KeyError::Marks),
        (
            "-----BEGIN RSA PRIVATE KEY-----\ne%A==\n-----END RSA PRIVATE KEY-----",
            KeyError::Damaged("it holds a character that is no base64"),
        ),
        ("PuTTY-User-Key-File-3: ssh-rsa\nEncryption: none\n", KeyError::OtherForm("a PuTTY key (.ppk)")),
        ("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQC me@here", KeyError::NotPrivate("an SSH public key")),
        ("{\"kty\": \"RSA\", \"n\": \"x\"}", KeyError::OtherForm("a JSON web key")),
        ("<!DOCTYPE html><html></html>", KeyError::OtherForm("a web page")),
        ("SHA256:4Njxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx=", KeyError::OtherForm("a key's fingerprint")),
        ("PK\u{3}\u{4}", KeyError::OtherForm("a zip archive")),
        ("0123456789abcdef0123456789abcdef01234567", KeyError::NotPem),
    ];
    for (text, wanted) in named {
        assert_eq!(refusal(text), wanted, "{text:?}");
    }
    assert!(matches!(AppKey::from_pem(&[0x30, 0x82, 0xff, 0x00]).unwrap_err(), KeyError::Damaged(_)));
    assert_eq!(AppKey::from_pem(&[0; 16]).unwrap_err(), KeyError::NotPem);
    assert_eq!(AppKey::from_pem(&vec![b'A'; 10 << 20]).unwrap_err(), KeyError::TooLong);
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

/// A key, made once: that takes a while.
fn sample() -> &'static (String, AppKey) {
    static SAMPLE: std::sync::LazyLock<(String, AppKey)> = std::sync::LazyLock::new(|| {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let key = AppKey::from_pem(pem("PRIVATE KEY", der.as_ref()).as_bytes()).unwrap();
        (key.pkcs8_pem().expose_secret().to_owned(), key)
    });
    &SAMPLE
}

/// Its PKCS#1 form, as GitHub gives it: the last element of PKCS#8, behind 26 bytes of header.
fn sample_pkcs1() -> String {
    let der = sample().1.pkcs8_der();
    let text = pem("RSA PRIVATE KEY", &der[26..]);
    AppKey::from_pem(text.as_bytes()).unwrap();
    text
}

fn utf16(text: &[u8], big: bool, mark: bool) -> Vec<u8> {
    let text = format!("{}{}", if mark { "\u{feff}" } else { "" }, String::from_utf8_lossy(text));
    text.encode_utf16().flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
}

/// One thing that happens to a key on its way from GitHub's page to the command line.
fn wrapped(by: u8, file: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(file).into_owned();
    match by {
        0 => ["\u{feff}".as_bytes(), file].concat(),
        1 => text.replace('\n', "\r\n").into_bytes(),
        2 => text.replace('\n', "\r").into_bytes(),
        3 => text.replace('\n', "\\n").into_bytes(),
        4 => text.replace('\n', " ").into_bytes(),
        5 => serde_json::json!({ "app": "acme", "private_key": text }).to_string().into_bytes(),
        6 => format!("app: acme\nprivate_key: |\n  {}\nother: 1\n", text.replace('\n', "\n  ")).into_bytes(),
        7 => format!("export KEY=\"{text}\"\n").into_bytes(),
        8 => format!("Here is the key:\n\n{text}\n\nregards\n").into_bytes(),
        9 => STANDARD.encode(file).into_bytes(),
        10 => STANDARD.encode(file).as_bytes().chunks(76).collect::<Vec<_>>().join(&b'\n'),
        11 => format!("data:\n  key.pem: {}\n", STANDARD.encode(file)).into_bytes(),
        12 => text.lines().map(|line| format!("   {line}\t \n")).collect::<String>().into_bytes(),
        13 => text.lines().map(|line| format!("# {line}\n")).collect::<String>().into_bytes(),
        14 => text.lines().map(|line| format!("\"{line}\\n\",\n")).collect::<String>().into_bytes(),
        15 => text.replace('/', "\\/").replace('+', "\\u002B").into_bytes(),
        16 => text.replace('%', "%25").replace('+', "%2B").replace('\n', "%0A").replace(' ', "%20").into_bytes(),
        17 => utf16(file, false, true),
        18 => utf16(file, true, true),
        19 => utf16(file, false, false),
        20 => format!("\n\n  \n{text}\u{a0}\n").into_bytes(),
        // As a whole twice: still one key.
        21 => format!("{text}\n{text}").into_bytes(),
        22 => STANDARD.encode(file).replace('+', "-").replace('/', "_").replace('=', "").into_bytes(),
        23 => format!("KEY={}\nOTHER=1\n", STANDARD.encode(file)).into_bytes(),
        _ => file.to_vec(),
    }
}

const WRAPPINGS: u8 = 24;

fn is_the_sample(file: &[u8]) -> bool {
    AppKey::from_pem(file).is_ok_and(|key| key.fingerprint() == sample().1.fingerprint())
}

#[test]
fn a_key_is_read_from_whatever_people_wrap_it_in() {
    for text in [sample().0.clone(), sample_pkcs1()] {
        for by in 0..WRAPPINGS {
            let file = wrapped(by, text.as_bytes());
            assert!(is_the_sample(&file), "{by}: {:?}", AppKey::from_pem(&file));
        }
        for (inner, outer) in [
            (0, 9),
            (1, 9),
            (3, 5),
            (9, 5),
            (9, 6),
            (9, 9),
            (9, 17),
            (17, 9),
            (5, 9),
            (4, 7),
            (1, 18),
            (12, 8),
            (10, 6),
        ] {
            let file = wrapped(outer, &wrapped(inner, text.as_bytes()));
            assert!(is_the_sample(&file), "{inner} in {outer}: {:?}", AppKey::from_pem(&file));
        }
    }
    let der = sample().1.pkcs8_der();
    assert!(is_the_sample(&der) && is_the_sample(&der[26..]), "DER without lines");
    assert!(is_the_sample(STANDARD.encode(&*der).as_bytes()), "base64 without lines");
    // A hand has changed the marks, not the key.
    assert!(is_the_sample(pem("RSA PRIVATE KEY", &der).as_bytes()));
    assert!(is_the_sample(pem("PRIVATE KEY", &der[26..]).as_bytes()));
    let with_more = [pem("CERTIFICATE", b"x"), sample().0.clone(), pem("PUBLIC KEY", b"x")].concat();
    assert!(is_the_sample(with_more.as_bytes()));
}

#[test]
fn two_keys_in_one_file_are_not_guessed_between() {
    let other = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = other.as_der().unwrap();
    let both = format!("{}{}", sample().0, pem("PRIVATE KEY", der.as_ref()));
    assert_eq!(refusal(&both), KeyError::Several);
    assert_eq!(refusal(&format!("{}{}", sample().0, pem("EC PRIVATE KEY", b"x"))), KeyError::Several);
}

#[test]
fn what_a_der_holds_is_named_by_its_structure() {
    let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap().to_pkcs8v1().unwrap();
    assert_eq!(refusal(&pem("RSA PRIVATE KEY", ec.as_ref())), KeyError::NotRsa("an EC key"));
    // SEQUENCE { INTEGER 3, SEQUENCE {} }, SEQUENCE { SEQUENCE {} }, and SEQUENCE { SEQUENCE { PBES2 } }.
    assert_eq!(
        refusal(&pem("PRIVATE KEY", &[0x30, 5, 2, 1, 3, 0x30, 0])),
        KeyError::OtherForm("a PKCS#12 file (.p12, .pfx)")
    );
    assert_eq!(
        refusal(&pem("PRIVATE KEY", &[0x30, 2, 0x30, 0])),
        KeyError::NotPrivate("a public key or a certificate")
    );
    let pbes2 = [0x30, 13, 0x30, 11, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5, 13];
    assert_eq!(refusal(&pem("PRIVATE KEY", &pbes2)), KeyError::Encrypted);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(96))]

    /// Whatever happened to it: it is the key, or it is refused without a piece of it.
    #[test]
    fn a_wrapped_or_damaged_key_is_read_or_refused_without_a_piece_of_it(
        wrappings in proptest::collection::vec(0..WRAPPINGS, 0..4),
        damage in proptest::option::of((0..1700_usize, proptest::prelude::any::<u8>())),
        cut in proptest::option::of(0..1700_usize),
    ) {
        let mut file = sample().0.clone().into_bytes();
        if let Some((at, byte)) = damage && let Some(there) = file.get_mut(at) {
            *there = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut);
        }
        let file = wrappings.iter().fold(file, |file, by| wrapped(*by, &file));
        if let Err(error) = AppKey::from_pem(&file) {
            let said = format!("{error} {error:?}");
            let letters: Vec<char> = said.chars().collect();
            let piece = letters.windows(10).map(|piece| piece.iter().collect::<String>()).find(|piece| {
                piece.chars().all(|c| c.is_ascii_alphanumeric() || c == '+' || c == '/') && sample().0.contains(piece.as_str())
            });
            proptest::prop_assert_eq!(piece, None, "{}", said);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(file in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = AppKey::from_pem(&file);
    }
}
