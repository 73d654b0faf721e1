//! Finds a private key in what people have it in: a file with a mark or in UTF-16, one line of an environment's file, a
//! secret in JSON, YAML or base64. What holds none is refused by the name of what it is. Every copy is wiped.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

use crate::key::KeyError;

/// A key in base64 in UTF-16 takes a tenth of it.
const MOST_BYTES: usize = 64 * 1024;

/// Base64 in base64: secrets of Kubernetes are encoded once, pipelines' once more.
const MOST_LAYERS: u8 = 3;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

type Bytes = Zeroizing<Vec<u8>>;

/// The DER of the one private key in a file: PKCS#1, PKCS#8, or what its marks only say to be one.
pub(crate) fn private_key(bytes: &[u8]) -> Result<Bytes, KeyError> {
    if bytes.len() > MOST_BYTES {
        return Err(KeyError::TooLong);
    }
    in_layer(bytes, MOST_LAYERS)
}

fn in_layer(bytes: &[u8], layers: u8) -> Result<Bytes, KeyError> {
    match bytes {
        [0x1f, 0x8b, ..] => return Err(KeyError::OtherForm("a gzip archive")),
        [b'P', b'K', 3, 4, ..] => return Err(KeyError::OtherForm("a zip archive")),
        // A SEQUENCE with a long length: DER without PEM's lines.
        [0x30, 0x81 | 0x82, ..] => return Ok(Zeroizing::new(bytes.to_vec())),
        _ => {}
    }
    let text = text(bytes)?;
    let text = plain(&text);
    if text.trim().is_empty() {
        return Err(KeyError::Empty);
    }
    if let Some(found) = in_blocks(&text) {
        return found;
    }
    if let Some(other) = other_form(&text) {
        return Err(other);
    }
    let Some(layers) = layers.checked_sub(1) else { return Err(KeyError::NotPem) };
    let decoded = [whole(&text), longest(&text)].into_iter().flatten();
    // Of several tries the first one that finds a block, or anything it knows, has the word.
    let mut tries = decoded.map(|bytes| in_layer(&bytes, layers));
    tries.find(|found| !matches!(found, Err(KeyError::NotPem | KeyError::Empty))).unwrap_or(Err(KeyError::NotPem))
}

/// UTF-8 or UTF-16, with a byte order mark or without.
fn text(bytes: &[u8]) -> Result<Zeroizing<String>, KeyError> {
    let unit = |big: bool| {
        move |pair: &[u8]| {
            if big {
                u16::from(pair[0]) << 8 | u16::from(pair[1])
            } else {
                u16::from(pair[1]) << 8 | u16::from(pair[0])
            }
        }
    };
    let (rest, big) = match bytes {
        [0xef, 0xbb, 0xbf, rest @ ..] => (rest, None),
        [0xff, 0xfe, rest @ ..] => (rest, Some(false)),
        [0xfe, 0xff, rest @ ..] => (rest, Some(true)),
        // ASCII without a mark: every second byte is zero.
        [0, second, 0, ..] if *second != 0 => (bytes, Some(true)),
        [first, 0, third, 0, ..] if *first != 0 && *third != 0 => (bytes, Some(false)),
        _ => (bytes, None),
    };
    let mut text = Zeroizing::new(String::with_capacity(rest.len() * 3));
    match big {
        Some(big) => {
            let units = rest.chunks_exact(2).map(unit(big));
            char::decode_utf16(units).for_each(|c| text.push(c.unwrap_or(char::REPLACEMENT_CHARACTER)));
        }
        // A stray byte around the key does no harm; one inside of it is damage, which is found there.
        None => rest.utf8_chunks().for_each(|chunk| {
            text.push_str(chunk.valid());
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }),
    }
    Ok(text)
}

/// With the escapes undone that JSON, shells, environment files and addresses put in the place of line breaks, blanks,
/// `+`, `/` and `=`.
fn plain(text: &str) -> Zeroizing<String> {
    let percent = text.contains("BEGIN%20") || text.contains("%0A") || text.contains("%0a");
    let form = text.contains("-----BEGIN+");
    let mut plain = Zeroizing::new(String::with_capacity(text.len()));
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let escaped = rest.trim_start_matches('\\');
        if c == '\\' {
            let (letter, length) = escape(escaped);
            plain.push(letter);
            rest = &escaped[length..];
            continue;
        }
        let code =
            (percent && c == '%').then(|| rest.get(1..3)).flatten().and_then(|code| u8::from_str_radix(code, 16).ok());
        match code {
            Some(code) => {
                plain.push(char::from(code));
                rest = &rest[3..];
            }
            None => {
                plain.push(if form && c == '+' { ' ' } else { c });
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    plain
}

/// What stands behind backslashes, and how much of the text that is. Any number of backslashes: what was escaped twice.
fn escape(text: &str) -> (char, usize) {
    match text.as_bytes() {
        [b'n' | b'r', ..] => ('\n', 1),
        [b't', ..] => (' ', 1),
        [b'/', ..] => ('/', 1),
        [b'u', code @ ..] => {
            let code = code.get(..4).and_then(|code| std::str::from_utf8(code).ok());
            let c = code.and_then(|code| u32::from_str_radix(code, 16).ok()).and_then(char::from_u32);
            c.map_or((' ', 0), |c| (c, 5))
        }
        // The end of a line that a shell would join with the next, or a quote.
        _ => (' ', 0),
    }
}

/// What a file is that has no block of PEM.
fn other_form(text: &str) -> Option<KeyError> {
    let begin = text.trim_start().trim_start_matches('\u{feff}');
    let begins = |words: &[&str]| words.iter().any(|word| begin.starts_with(word));
    if text.contains("PuTTY-User-Key-File") {
        Some(KeyError::OtherForm("a PuTTY key (.ppk)"))
    } else if begins(&["ssh-rsa ", "ssh-ed25519 ", "ssh-dss ", "ecdsa-sha2-"]) {
        Some(KeyError::NotPrivate("an SSH public key"))
    } else if text.contains("\"kty\"") {
        Some(KeyError::OtherForm("a JSON web key"))
    } else if begins(&["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"]) {
        Some(KeyError::OtherForm("a GitHub token"))
    } else if begins(&["SHA256:", "MD5:"]) {
        Some(KeyError::OtherForm("a key's fingerprint"))
    } else if begins(&["<!DOCTYPE", "<!doctype", "<html", "<HTML"]) {
        Some(KeyError::OtherForm("a web page"))
    } else if text.contains("BEGIN") && text.contains("KEY") {
        Some(KeyError::Marks)
    } else {
        None
    }
}

/// A block between its two marks.
struct Block<'a> {
    label: &'a str,
    body: &'a str,
}

/// What the blocks of a text are together; `None` where there is no block.
fn in_blocks(text: &str) -> Option<Result<Bytes, KeyError>> {
    const BEGIN: &str = "-----BEGIN ";
    let mut keys: Vec<Bytes> = Vec::new();
    let mut others: Vec<KeyError> = Vec::new();
    for (at, _) in text.match_indices(BEGIN) {
        match block(&text[at + BEGIN.len()..]).and_then(|block| of_block(&block)) {
            Ok(Some(key)) => keys.push(key),
            Ok(None) => {}
            Err(error) => others.push(error),
        }
    }
    let is_public = |error: &KeyError| matches!(error, KeyError::NotPrivate(_));
    let private = others.iter().position(|error| !is_public(error));
    Some(match (keys.len(), private) {
        (0, None) => Err(others.into_iter().next()?),
        (0, Some(first)) => Err(others.swap_remove(first)),
        (_, Some(_)) => Err(KeyError::Several),
        (_, None) => {
            let first = keys.swap_remove(0);
            if keys.iter().all(|key| **key == *first) { Ok(first) } else { Err(KeyError::Several) }
        }
    })
}

/// The block that begins behind `-----BEGIN `.
fn block(text: &str) -> Result<Block<'_>, KeyError> {
    let (label, rest) = text.split_once("-----").filter(|(label, _)| label.len() < 40).ok_or(KeyError::Marks)?;
    let end = rest.find("-----END ").ok_or(KeyError::NoEnd)?;
    if rest[..end].contains("-----BEGIN ") {
        return Err(KeyError::NoEnd);
    }
    let closing = rest[end + "-----END ".len()..].split_once("-----").ok_or(KeyError::NoEnd)?.0;
    if closing.trim() != label.trim() {
        return Err(KeyError::Marks);
    }
    Ok(Block { label: label.trim(), body: &rest[..end] })
}

/// The DER of a key; `None` for a block that stands beside keys and is none.
fn of_block(block: &Block<'_>) -> Result<Option<Bytes>, KeyError> {
    match block.label {
        "RSA PRIVATE KEY" | "PRIVATE KEY" if block.body.contains("ENCRYPTED") => Err(KeyError::Encrypted),
        "RSA PRIVATE KEY" | "PRIVATE KEY" => decoded(block.body).map(Some),
        "ENCRYPTED PRIVATE KEY" => Err(KeyError::Encrypted),
        "EC PRIVATE KEY" => Err(KeyError::NotRsa("an EC key")),
        "DSA PRIVATE KEY" => Err(KeyError::NotRsa("a DSA key")),
        "OPENSSH PRIVATE KEY" => Err(KeyError::NotRsa("a key in OpenSSH's own form")),
        "PGP PRIVATE KEY BLOCK" => Err(KeyError::NotRsa("a PGP key")),
        label if label.ends_with("PRIVATE KEY") => Err(KeyError::NotRsa("a key of another algorithm")),
        "EC PARAMETERS" | "DH PARAMETERS" => Ok(None),
        "PUBLIC KEY" | "RSA PUBLIC KEY" | "SSH2 PUBLIC KEY" | "PGP PUBLIC KEY BLOCK" => {
            Err(KeyError::NotPrivate("a public key"))
        }
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => Err(KeyError::NotPrivate("a certificate request")),
        label if label.ends_with("CERTIFICATE") => Err(KeyError::NotPrivate("a certificate")),
        _ => Err(KeyError::NotPrivate("something else in PEM")),
    }
}

/// The base64 of a block, whatever its lines are wrapped in: blanks, quotes, commas, a comment's or a quotation's mark.
fn decoded(body: &str) -> Result<Bytes, KeyError> {
    let mut base64 = Zeroizing::new(Vec::with_capacity(body.len()));
    for c in body.chars() {
        match c {
            'A'..='Z' | 'a'..='z' | '0'..='9' | '+' | '/' | '=' => base64.push(c as u8),
            '-' => base64.push(b'+'),
            '_' => base64.push(b'/'),
            '"' | '\'' | '`' | ',' | ';' | '#' | '>' | '|' | '*' | '\u{feff}' | '\u{200b}' => {}
            c if c.is_whitespace() => {}
            _ => return Err(KeyError::Damaged("it holds a character that is no base64")),
        }
    }
    decode(&base64).ok_or(KeyError::Damaged("its base64 is cut off or garbled"))
}

fn decode(base64: &[u8]) -> Option<Bytes> {
    let mut bytes = Zeroizing::new(vec![0; base64.len() / 4 * 3 + 3]);
    let length = BASE64.decode_slice(base64, &mut bytes).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

fn is_base64(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '-' | '_')
}

fn standard(text: impl Iterator<Item = char>, capacity: usize) -> Bytes {
    let mut base64 = Zeroizing::new(Vec::with_capacity(capacity));
    let byte = |c| match c {
        '-' => b'+',
        '_' => b'/',
        c => c as u8,
    };
    base64.extend(text.map(byte));
    base64
}

/// A text that is base64 from its begin to its end, with or without quotes.
fn whole(text: &str) -> Option<Bytes> {
    let text = text.trim().trim_matches(['"', '\'', '`', '\u{feff}']);
    let mut letters = text.chars().filter(|c| !c.is_whitespace());
    letters.clone().all(is_base64).then(|| decode(&standard(letters.by_ref(), text.len()))).flatten()
}

/// The first long piece of base64 in a text, on one line or on several.
fn longest(text: &str) -> Option<Bytes> {
    const LONG: usize = 40;
    let is_break =
        |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ',' | '{' | '}' | '[' | ']' | '<' | '>' | '|');
    let mut pieces = text.split(is_break).filter(|piece| !piece.is_empty());
    let long = |piece: &&str| piece.len() >= LONG && piece.chars().all(is_base64);
    let first = behind_the_name(pieces.find(long)?);
    let more = pieces.take_while(|piece| piece.chars().all(is_base64) && behind_the_name(piece) == *piece);
    decode(&standard([first].into_iter().chain(more).flat_map(str::chars), text.len()))
}

/// Of `KEY=…` what is behind the sign; one at the end is padding.
fn behind_the_name(piece: &str) -> &str {
    let name = piece.trim_end_matches('=').rfind('=');
    name.map_or(piece, |at| &piece[at + 1..])
}
