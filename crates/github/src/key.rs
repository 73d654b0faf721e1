//! The App's private key.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use zeroize::{Zeroize as _, Zeroizing};

use crate::jwt::{AppSigner, BoxFuture, SignError};
use crate::key_file;

/// A key's fingerprint as GitHub's App settings show it: `SHA256:` and the base64 of the SHA-256 of the public half's
/// SubjectPublicKeyInfo.
///
/// Source: <https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/managing-private-keys-for-github-apps#verifying-private-keys>
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(String);

/// The text is not a fingerprint.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a key's fingerprint such as SHA256:4Nj…=")]
pub struct MalformedFingerprint(String);

impl Fingerprint {
    const PREFIX: &str = "SHA256:";

    /// The fingerprint of a public key's SubjectPublicKeyInfo in DER.
    pub fn of_spki_der(der: &[u8]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
        Self(format!("{}{}", Self::PREFIX, STANDARD.encode(digest)))
    }

    /// The fingerprint from the SHA-256 digest.
    pub fn of_digest(digest: &[u8; 32]) -> Self {
        Self(format!("{}{}", Self::PREFIX, STANDARD.encode(digest)))
    }

    /// The SHA-256 digest.
    pub fn digest(&self) -> [u8; 32] {
        let decoded = STANDARD.decode(&self.0[Self::PREFIX.len()..]).ok();
        decoded.and_then(|bytes| bytes.try_into().ok()).expect("a fingerprint is checked when it is made")
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Fingerprint {
    type Err = MalformedFingerprint;
    fn from_str(text: &str) -> Result<Self, MalformedFingerprint> {
        let digest = text.strip_prefix(Self::PREFIX).and_then(|rest| STANDARD.decode(rest).ok());
        match digest {
            Some(digest) if digest.len() == 32 => Ok(Self(text.to_owned())),
            _ => Err(MalformedFingerprint(text.to_owned())),
        }
    }
}

/// Why a file is not a key of a GitHub App. No error contains any content of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file is empty, or has only white space.
    #[error("it is empty")]
    Empty,
    /// The file is far longer than any key.
    #[error("it is too long for a key: one takes about 1,700 bytes")]
    TooLong,
    /// The file has no PEM block.
    #[error("it is not a PEM file: there is no `-----BEGIN …-----` block in it")]
    NotPem,
    /// A PEM block has no end line.
    #[error("its end is missing: there is no `-----END …-----` line")]
    NoEnd,
    /// Marks that no program reads.
    #[error("its `-----BEGIN …-----` and `-----END …-----` lines are damaged, or do not belong together")]
    Marks,
    /// More than one key.
    #[error("it holds more than one private key")]
    Several,
    /// A public key, or a certificate.
    #[error("it holds {0}, not a private key")]
    NotPrivate(&'static str),
    /// The key has another program's format.
    #[error("it is {0}, not a private key in PEM")]
    OtherForm(&'static str),
    /// A passphrase protects the key; keys from GitHub have none.
    #[error("its private key is encrypted, GitHub's are not")]
    Encrypted,
    /// A private key with another algorithm, or in another program's format.
    #[error("it holds {0}, not an RSA key in PKCS#1 or PKCS#8, which GitHub's are")]
    NotRsa(&'static str),
    /// An RSA key with a size that the key stores don't accept.
    #[error("its RSA key has {0} bits; 2048, 3072 or 4096 were expected")]
    Size(usize),
    /// An RSA key with an exponent that the key stores don't accept.
    #[error("its RSA key's public exponent is not 65537, which GitHub's is")]
    Exponent,
    /// The key is truncated or damaged.
    #[error("its private key is damaged: {0}")]
    Damaged(&'static str),
}

/// The App's private key, in memory. It is never printed.
pub struct AppKey {
    pair: KeyPair,
    fingerprint: Fingerprint,
}

impl fmt::Debug for AppKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppKey").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl AppKey {
    /// Reads a file with an RSA private key, in PKCS#1 (GitHub's format) or PKCS#8, as PEM or in one of the forms in which people store it.
    ///
    /// # Errors
    /// [`KeyError`], which says what the file is instead.
    pub fn from_pem(file: &[u8]) -> Result<Self, KeyError> {
        let der = key_file::private_key(file)?;
        let pkcs1 = rsa_in(&der)?;
        let (bits, exponent) = numbers(pkcs1).ok_or(KeyError::Damaged("its end is missing"))?;
        if !matches!(bits, 2048 | 3072 | 4096) {
            return Err(KeyError::Size(bits));
        }
        // KMS imports only these sizes.
        if exponent != [0x01, 0x00, 0x01] {
            return Err(KeyError::Exponent);
        }
        // Checks that the key's numbers belong together.
        let pair = KeyPair::from_der(pkcs1).map_err(|_| KeyError::Damaged("its numbers do not belong together"))?;
        let spki: PublicKeyX509Der<'_> =
            pair.public_key().as_der().map_err(|_| KeyError::Damaged("it has no public half"))?;
        let fingerprint = Fingerprint::of_spki_der(spki.as_ref());
        Ok(Self { pair, fingerprint })
    }

    /// The fingerprint of the public key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    /// The size of the modulus in bits: 2048, 3072 or 4096.
    pub fn bits(&self) -> usize {
        self.pair.public_modulus_len() * 8
    }

    /// PKCS#8 in DER, for KMS. Wiped when dropped.
    pub fn pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        let der: Pkcs8V1Der<'_> = self.pair.as_der().expect("a key that was parsed can be written");
        Zeroizing::new(der.as_ref().to_vec())
    }

    /// PKCS#8 in PEM, for Secrets Manager. Wiped when dropped.
    pub fn pkcs8_pem(&self) -> SecretString {
        let mut base64 = STANDARD.encode(self.pkcs8_der());
        let mut text = String::with_capacity(base64.len() + base64.len() / 64 + 64);
        text.push_str("-----BEGIN PRIVATE KEY-----\n");
        for line in base64.as_bytes().chunks(64) {
            text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
            text.push('\n');
        }
        text.push_str("-----END PRIVATE KEY-----\n");
        base64.zeroize();
        SecretString::from(text)
    }
}

/// One element of DER with a one-byte tag: its tag, its content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // Four bytes of length are more than any key's.
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// The RSAPrivateKey of a DER, by its structure: marks are changed by hand.
///
/// Sources: RFC 8017, appendix A.1.2 (PKCS#1), RFC 5208, sections 5 and 6 (PKCS#8), RFC 5915 (EC), RFC 7292 (PKCS#12),
/// RFC 5280 (SubjectPublicKeyInfo, certificates).
fn rsa_in(der: &[u8]) -> Result<&[u8], KeyError> {
    const MISSING: KeyError = KeyError::Damaged("its end is missing");
    let (tag, info, rest) = element(der).ok_or(MISSING)?;
    let whole = &der[..der.len() - rest.len()];
    let (first, version, info) = element(info).ok_or(MISSING)?;
    if tag != SEQUENCE {
        return Err(KeyError::Damaged("it is no DER"));
    }
    if first == SEQUENCE {
        // PBES1 and PBES2 are 1.2.840.113549.1.5.…
        let encrypted =
            element(version).is_some_and(|(_, oid, _)| oid.starts_with(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5]));
        return Err(if encrypted {
            KeyError::Encrypted
        } else {
            KeyError::NotPrivate("a public key or a certificate")
        });
    }
    match element(info) {
        Some((INTEGER, ..)) => Ok(whole),
        Some((OCTETS, ..)) => Err(KeyError::NotRsa("an EC key")),
        Some((SEQUENCE, ..)) if version == [3] => Err(KeyError::OtherForm("a PKCS#12 file (.p12, .pfx)")),
        Some((SEQUENCE, algorithm, info)) => {
            let (_, oid, _) = element(algorithm).ok_or(MISSING)?;
            is_rsa(oid)?;
            let (_, key, _) = element(info).ok_or(MISSING)?;
            Ok(key)
        }
        _ => Err(MISSING),
    }
}

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// Sources: RFC 8017 (rsaEncryption, id-RSASSA-PSS), RFC 5480 (id-ecPublicKey), RFC 8410 (id-Ed25519, id-X25519).
fn is_rsa(oid: &[u8]) -> Result<(), KeyError> {
    match oid {
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1] => Ok(()),
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10] => Err(KeyError::NotRsa("a key for RSA-PSS only")),
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1] => Err(KeyError::NotRsa("an EC key")),
        [0x2a, 0x86, 0x48, 0xce, 0x38, 4, 1] => Err(KeyError::NotRsa("a DSA key")),
        [0x2b, 0x65, 0x6e..=0x71] => Err(KeyError::NotRsa("an Ed25519 or X25519 key")),
        _ => Err(KeyError::NotRsa("a key of another algorithm")),
    }
}

/// The modulus' size and the public exponent in an RSAPrivateKey: SEQUENCE { version, modulus, publicExponent, … }.
///
/// Source: RFC 8017, appendix A.1.2.
fn numbers(pkcs1: &[u8]) -> Option<(usize, &[u8])> {
    let (_, key, _) = element(pkcs1)?;
    let (_, _, rest) = element(key)?;
    let (_, modulus, rest) = element(rest)?;
    let leading = modulus.iter().take_while(|byte| **byte == 0).count();
    let first = modulus.get(leading)?;
    let bits = (modulus.len() - leading) * 8 - first.leading_zeros() as usize;
    // Cut off behind the modulus, its size is known all the same.
    let exponent = element(rest).map_or(&[][..], |(_, exponent, _)| exponent);
    Some((bits, exponent))
}

impl AppSigner for AppKey {
    fn sign<'a>(&'a self, signing_input: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, SignError>> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        let signed = self
            .pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signing_input, &mut signature)
            .map(|()| signature)
            .map_err(|_| SignError { what: "sign with the private key".to_owned(), retryable: false, source: None });
        Box::pin(std::future::ready(signed))
    }
}
