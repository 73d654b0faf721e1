//! `--verbose`: a line on stderr for each call to AWS and GitHub, through a redactor.

use std::io;
use std::sync::LazyLock;

use kiln_github::CALLS;
use regex_lite::Regex;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What has the look of a secret. Calls are told without headers and bodies, so none should come this far: this is the
/// second wall, for addresses and messages that others make.
static SECRETS: LazyLock<[Regex; 5]> = LazyLock::new(|| {
    [
        // GitHub's tokens.
        r"\b(gh[a-z]_|github_pat_)[A-Za-z0-9_]+",
        // JSON web tokens.
        r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*",
        // Signed addresses and headers.
        r"(?i)(authorization: *).*",
        r"(?i)(bearer +|(?:x-amz-security-token|x-amz-signature|x-amz-credential|token|signature)=)[^&\s]+",
        // Private keys, with or without line breaks.
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*",
    ]
    .map(|pattern| Regex::new(pattern).expect("the patterns are constants"))
});

/// Puts a mark in the place of what has the look of a secret.
pub(crate) fn redact(text: &str) -> String {
    let [tokens, jwts, headers, signed, keys] = &*SECRETS;
    let text = tokens.replace_all(text, "$1[redacted]");
    let text = jwts.replace_all(&text, "[redacted]");
    let text = headers.replace_all(&text, "$1[redacted]");
    let text = signed.replace_all(&text, "$1[redacted]");
    keys.replace_all(&text, "[redacted]").into_owned()
}

/// Begins to tell of calls.
pub(crate) fn follow() {
    let lines = tracing_subscriber::fmt::layer().without_time().with_level(false).with_target(false).with_ansi(false);
    // Nothing but our own lines: the SDK's own events hold headers.
    let ours = Targets::new().with_target(CALLS, LevelFilter::DEBUG);
    let _ = tracing_subscriber::registry().with(ours).with(lines.with_writer(Lines)).try_init();
}

struct Lines;

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Vec::new())
    }
}

/// One event, said whole when it is dropped.
struct Line(Vec<u8>);

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let text = redact(&String::from_utf8_lossy(&self.0));
        super::aside(&super::clean(text.trim_end()));
    }
}

#[cfg(test)]
mod tests {
    use super::redact;

    #[test]
    fn secrets_are_taken_out_and_the_rest_stays() {
        let table = [
            ("github GET /app: 200", "github GET /app: 200"),
            ("token ghs_16C7e42F292c6912E7710c838347Ae178B4a.", "token ghs_[redacted]."),
            ("by eyJhbGciOiJSUzI1NiJ9.eyJpYXQiOjF9.c2ln now", "by [redacted] now"),
            ("GET /x?X-Amz-Signature=abc&a=b", "GET /x?X-Amz-Signature=[redacted]&a=b"),
            ("Authorization: Bearer abc def", "Authorization: [redacted]"),
            ("with bearer abc, then", "with bearer [redacted] then"),
            ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END", "[redacted]"),
        ];
        for (text, wanted) in table {
            assert_eq!(redact(text), wanted);
        }
    }
}
