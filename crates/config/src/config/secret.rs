//! Finds secrets that were pasted into a `kiln.toml`. The file is committed and printed in messages: what has the look
//! of a secret is refused by its kind, and neither it nor its line is ever shown.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Diagnostic, Findings};

/// What was found, and where in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Secret {
    pub(super) span: Range<usize>,
    what: &'static str,
    hint: &'static str,
}

const TAKE_OUT: &str =
    "take it out: kiln.toml holds no secret. If it was ever committed or shown, revoke it where it comes from";
const KEY_HINT: &str = "take it out, and install it with `cargo xtask rotate-key --pem FILE`; if it was ever committed, \
     delete it in the App's settings and generate another";

/// Tokens by what they begin with, and by how many characters of theirs must follow.
///
/// Sources: <https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/>,
/// <https://docs.gitlab.com/security/tokens/>, <https://docs.npmjs.com/about-access-tokens>,
/// <https://api.slack.com/concepts/token-types>, <https://docs.docker.com/security/for-developers/access-tokens/>.
const TOKENS: &[(&str, usize, &str)] = &[
    ("ghp_", 16, "a GitHub token"),
    ("gho_", 16, "a GitHub token"),
    ("ghu_", 16, "a GitHub token"),
    ("ghs_", 16, "a GitHub token"),
    ("ghr_", 16, "a GitHub token"),
    ("github_pat_", 16, "a GitHub token"),
    ("glpat-", 16, "a GitLab token"),
    ("npm_", 30, "an npm token"),
    ("dckr_pat_", 16, "a Docker token"),
    ("xoxb-", 16, "a Slack token"),
    ("xoxp-", 16, "a Slack token"),
];

/// What begins PEM in base64: `-----BEGIN `.
const BASE64_PEM: &str = "LS0tLS1CRUdJTi";

/// All that a text holds, in its order.
pub(super) fn all_in(text: &str) -> Vec<Secret> {
    let mut found = Vec::new();
    found.extend(pem(text));
    found.extend(tokens(text));
    found.extend(aws_keys(text));
    found.extend(passwords(text));
    found.sort_by_key(|secret| secret.span.start);
    found
}

/// Of a whole file: its text as it is, and its values, whose escapes can hide what the text does not show.
pub(super) fn look_through(document: &DeTable<'_>, found: &mut Findings) {
    table(document, false, found);
}

pub(super) fn diagnose(secret: &Secret) -> Diagnostic {
    Diagnostic::new(secret.span.clone(), format!("{} does not belong into this file", secret.what))
        .secret()
        .hint(secret.hint)
}

fn table(entries: &DeTable<'_>, of_app: bool, found: &mut Findings) {
    for (key, value) in entries {
        self::value(value, of_app || key.get_ref() == "app", found);
        at(key.span(), key.get_ref(), false, found);
    }
}

fn value(value: &Spanned<DeValue<'_>>, of_app: bool, found: &mut Findings) {
    match value.get_ref() {
        DeValue::String(text) => at(value.span(), text, of_app, found),
        DeValue::Array(entries) => entries.iter().for_each(|entry| self::value(entry, of_app, found)),
        DeValue::Table(entries) => table(entries, of_app, found),
        _ => {}
    }
}

fn at(span: Range<usize>, text: &str, of_app: bool, found: &mut Findings) {
    if let Some(secret) = all_in(text).first() {
        found.push(diagnose(&Secret { span, ..secret.clone() }));
    } else if of_app && is_client_secret(text) {
        found.push(diagnose(&Secret { span, what: "the App's client secret", hint: CLIENT_SECRET_HINT }));
    }
}

const CLIENT_SECRET_HINT: &str = "write the App's client id, which begins with Iv; Kiln needs no client secret. If it was ever committed, \
     revoke it in the App's settings";

/// A client secret of a GitHub App is 40 hexadecimal digits, which no client id is.
fn is_client_secret(text: &str) -> bool {
    let text = text.trim();
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A name that announces a secret.
pub(super) fn is_announced_by(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "KEY", "CREDENTIAL"].iter().any(|word| name.contains(word))
}

fn pem(text: &str) -> impl Iterator<Item = Secret> {
    let keys = ["PRIVATE KEY-----", "PRIVATE KEY BLOCK-----", BASE64_PEM]
        .into_iter()
        .flat_map(|mark| text.match_indices(mark));
    keys.map(|(at, mark)| Secret { span: at..at + mark.len(), what: "a private key", hint: KEY_HINT })
}

fn tokens(text: &str) -> impl Iterator<Item = Secret> {
    TOKENS.iter().flat_map(move |(begin, least, what)| {
        let matches = text.match_indices(*begin).filter(move |(at, _)| {
            let inside = text[..*at].ends_with(|c: char| c.is_ascii_alphanumeric());
            let rest = text[at + begin.len()..].bytes();
            !inside && rest.take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')).count() >= *least
        });
        matches.map(move |(at, _)| Secret { span: at..at + begin.len(), what, hint: TAKE_OUT })
    })
}

/// How near to each other an access key's two halves are pasted.
const NEIGHBOURHOOD: usize = 400;

/// An access key's id with what may be its secret half near it: the id alone is no secret.
///
/// Source: <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html#identifiers-unique-ids>
fn aws_keys(text: &str) -> Vec<Secret> {
    let of_id = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit();
    let ids = words(text, of_id)
        .filter(|word| word.len() == 20 && ["AKIA", "ASIA"].iter().any(|begin| text[word.clone()].starts_with(begin)));
    let ids: Vec<Range<usize>> = ids.collect();
    if ids.is_empty() {
        return Vec::new();
    }
    let of_secret = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'+');
    let halves: Vec<usize> = words(text, of_secret).filter(|word| word.len() == 40).map(|word| word.start).collect();
    let near = |id: &Range<usize>| {
        let first = halves.partition_point(|half| half + NEIGHBOURHOOD < id.start);
        halves.get(first).is_some_and(|half| *half <= id.end + NEIGHBOURHOOD)
    };
    ids.into_iter().filter(near).map(|span| Secret { span, what: "an AWS access key", hint: TAKE_OUT }).collect()
}

/// The longest runs of such bytes.
fn words<'a>(text: &'a str, is_of: impl Fn(u8) -> bool + 'a) -> impl Iterator<Item = Range<usize>> + 'a {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + bytes[at..].iter().position(|b| is_of(*b))?;
        at = start + bytes[start..].iter().take_while(|b| is_of(**b)).count();
        Some(start..at)
    })
}

/// An address with a user's password in it: `scheme://user:password@host`.
fn passwords(text: &str) -> impl Iterator<Item = Secret> {
    text.match_indices("://").filter_map(|(at, _)| {
        let rest = &text[at + 3..];
        let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '?' | '#'));
        let authority = &rest[..end.unwrap_or(rest.len())];
        let (user, _) = authority.rsplit_once('@')?;
        let (_, password) = user.split_once(':')?;
        let what = "an address with a password in it";
        (!password.is_empty()).then(|| Secret { span: at..at + 3, what, hint: TAKE_OUT })
    })
}
