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

/// A key's fingerprint as GitHub's App settings show it: `SHA256:` and the base64 of the SHA-256 of the public half's
/// SubjectPublicKeyInfo.
///
/// Source: <https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/managing-private-keys-for-github-apps#verifying-private-keys>
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(String);

/// Text that is no fingerprint.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a key's fingerprint such as SHA256:4Nj…=")]
pub struct MalformedFingerprint(String);

impl Fingerprint {
    const PREFIX: &str = "SHA256:";

    /// Of a public key's SubjectPublicKeyInfo in DER.
    pub fn of_spki_der(der: &[u8]) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
        Self(format!("{}{}", Self::PREFIX, STANDARD.encode(digest)))
    }

    /// Of the SHA-256 itself.
    pub fn of_digest(digest: &[u8; 32]) -> Self {
        Self(format!("{}{}", Self::PREFIX, STANDARD.encode(digest)))
    }

    /// The SHA-256 itself.
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

/// Why a file is no key of a GitHub App.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// No PEM block.
    #[error("it is not a PEM file: there is no `-----BEGIN …-----` block that ends")]
    NotPem,
    /// A public key, or a certificate.
    #[error("it holds a `{0}`, not a private key")]
    NotPrivate(String),
    /// A passphrase protects it; GitHub's are not.
    #[error("its private key is encrypted, GitHub's are not")]
    Encrypted,
    /// A private key of another algorithm, or in the form of another program.
    #[error("its private key is not an RSA key in PKCS#1 or PKCS#8, which GitHub's are")]
    NotRsa,
    /// RSA, of a size that the stores don't take.
    #[error("its RSA key has {0} bits; 2048, 3072 or 4096 were expected")]
    Size(usize),
    /// RSA, with an exponent that the stores don't take.
    #[error("its RSA key's public exponent is not 65537, which GitHub's is")]
    Exponent,
    /// Truncated or garbled.
    #[error("its private key is damaged: {0}")]
    Damaged(String),
}

/// The App's private key, in memory. Nothing of it is ever printed.
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
    /// Parses a PEM file with an RSA private key, PKCS#1 (as GitHub gives it) or PKCS#8.
    ///
    /// # Errors
    /// [`KeyError`], which tells what the file is instead.
    pub fn from_pem(text: &[u8]) -> Result<Self, KeyError> {
        let tag = pem_rfc7468::decode_label(text).map_err(|_| KeyError::NotPem)?;
        match tag {
            "ENCRYPTED PRIVATE KEY" => return Err(KeyError::Encrypted),
            "RSA PRIVATE KEY" if is_encrypted(text) => return Err(KeyError::Encrypted),
            "RSA PRIVATE KEY" | "PRIVATE KEY" => {}
            // EC, DSA, OPENSSH.
            tag if tag.ends_with("PRIVATE KEY") => return Err(KeyError::NotRsa),
            tag => return Err(KeyError::NotPrivate(tag.to_owned())),
        }
        let der = der(text)?;
        let pkcs1 = if tag == "PRIVATE KEY" { rsa_in_pkcs8(&der)? } else { der.as_slice() };
        let (bits, exponent) = numbers(pkcs1).ok_or_else(|| KeyError::Damaged("its end is missing".to_owned()))?;
        if !matches!(bits, 2048 | 3072 | 4096) {
            return Err(KeyError::Size(bits));
        }
        // KMS imports no other.
        if exponent != [0x01, 0x00, 0x01] {
            return Err(KeyError::Exponent);
        }
        // Checks that the key's numbers belong together.
        let pair = KeyPair::from_der(pkcs1).map_err(|error| KeyError::Damaged(error.to_string()))?;
        let spki: PublicKeyX509Der<'_> =
            pair.public_key().as_der().map_err(|_| KeyError::Damaged("no public half".to_owned()))?;
        let fingerprint = Fingerprint::of_spki_der(spki.as_ref());
        Ok(Self { pair, fingerprint })
    }

    /// Of its public half.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    /// The size of its modulus: 2048, 3072 or 4096.
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

/// How OpenSSL marked a passphrase before PKCS#8: by headers, which are no part of the key's base64.
fn is_encrypted(text: &[u8]) -> bool {
    const MARK: &[u8] = b"Proc-Type: 4,ENCRYPTED";
    text.windows(MARK.len()).any(|window| window == MARK)
}

/// The block's content, written once, into memory that is wiped.
fn der(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let damaged = |error: pem_rfc7468::Error| KeyError::Damaged(error.to_string());
    let mut decoder = pem_rfc7468::Decoder::new_detect_wrap(text).map_err(damaged)?;
    let mut der = Zeroizing::new(vec![0; decoder.remaining_len()]);
    decoder.decode(&mut der).map_err(damaged)?;
    Ok(der)
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

/// The RSAPrivateKey in a PKCS#8 PrivateKeyInfo: SEQUENCE { version, SEQUENCE { algorithm, … }, OCTET STRING, … }.
///
/// Source: RFC 5208, section 5.
fn rsa_in_pkcs8(der: &[u8]) -> Result<&[u8], KeyError> {
    /// rsaEncryption, 1.2.840.113549.1.1.1.
    const RSA: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    let parts = || {
        let (_, info, _) = element(der)?;
        let (_, _, rest) = element(info)?;
        let (_, algorithm, rest) = element(rest)?;
        let (_, oid, _) = element(algorithm)?;
        let (_, key, _) = element(rest)?;
        Some((oid, key))
    };
    match parts() {
        Some((oid, key)) if oid == RSA => Ok(key),
        Some(_) => Err(KeyError::NotRsa),
        None => Err(KeyError::Damaged("its end is missing".to_owned())),
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
