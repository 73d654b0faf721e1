//! The text of a `kiln.toml` before it is TOML: its encoding, its line breaks, its brackets. The parser's own word on
//! these is a complaint for each line that follows.

use super::diagnostic::Diagnostic;

/// A kiln.toml of a hundred fleets takes a tenth of it.
pub const MOST_BYTES: usize = 1 << 20;

/// Why a file is no text that could be TOML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotText {
    /// Longer than [`MOST_BYTES`].
    #[error("it is longer than the {MOST_BYTES} bytes that are read")]
    TooLong,
    /// What editors on Windows call Unicode.
    #[error("it is UTF-16")]
    Utf16,
    /// Latin-1, Windows-1252 or no text at all.
    #[error("line {line} holds the byte {byte:#04x}, which is not UTF-8")]
    NotUtf8 {
        /// From one.
        line: usize,
        /// The first that does not fit.
        byte: u8,
    },
}

impl NotText {
    /// What a person does about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::TooLong => "is it the right file? A kiln.toml has a few hundred lines",
            Self::Utf16 => "save it as UTF-8; on Windows, editors call UTF-16 \"Unicode\"",
            Self::NotUtf8 { .. } => "save it as UTF-8; editors call what it probably is \"Latin-1\" or \"ANSI\"",
        }
    }
}

/// The text of a file's bytes.
///
/// # Errors
/// [`NotText`], which says what it is instead.
pub fn decode(bytes: Vec<u8>) -> Result<String, NotText> {
    if bytes.len() > MOST_BYTES {
        return Err(NotText::TooLong);
    }
    // Without a mark every second byte of ASCII is zero, which no text of ours holds.
    let unmarked = bytes.len() >= 4 && bytes[..4].iter().filter(|byte| **byte == 0).count() == 2;
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) || unmarked {
        return Err(NotText::Utf16);
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let bytes = error.as_bytes();
        NotText::NotUtf8 { line: lines_to(bytes, at), byte: bytes[at] }
    })
}

fn lines_to(bytes: &[u8], at: usize) -> usize {
    bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// A carriage return that no line feed follows, which TOML allows nowhere.
pub(super) fn bare_return(text: &str) -> Option<Diagnostic> {
    let bytes = text.as_bytes();
    let at = (0..bytes.len()).find(|at| bytes[*at] == b'\r' && bytes.get(at + 1) != Some(&b'\n'))?;
    let message = if text.contains('\n') {
        "a line ends with a carriage return alone"
    } else {
        "its lines end with carriage returns alone"
    };
    let hint = "save it with line breaks of Unix (LF) or Windows (CRLF)";
    Some(Diagnostic::new(at..at + 1, message).without_its_line().hint(hint))
}

/// An array or inline table that is not closed: the next line is a key of its own, or a table's header, or there is none.
pub(super) fn unclosed(text: &str) -> Option<Diagnostic> {
    let mut open: Vec<(char, usize)> = Vec::new();
    let mut start = 0;
    let mut quoted: Option<&str> = None;
    for line in text.split_inclusive('\n') {
        if quoted.is_none()
            && let Some((bracket, at)) = open.last()
            && is_a_statement(line, *bracket)
        {
            return Some(not_closed(*bracket, *at, Some(lines_to(text.as_bytes(), start))));
        }
        if quoted.is_some() || !(open.is_empty() && line.trim_start().starts_with('[')) {
            quoted = brackets(line, start, quoted, &mut open)?;
        }
        start += line.len();
    }
    open.last().map(|(bracket, at)| not_closed(*bracket, *at, None))
}

fn not_closed(bracket: char, at: usize, before: Option<usize>) -> Diagnostic {
    let (what, end) = if bracket == '[' { ("array", ']') } else { ("inline table", '}') };
    let place = before.map_or_else(|| "the file's end".to_owned(), |line| format!("line {line}"));
    Diagnostic::new(at..at + 1, format!("this {what} is not closed"))
        .expected(format!("expected `{end}` before {place}"))
}

/// Can the line only be one of its own, not one inside of that bracket? A key is none of an array's entries.
fn is_a_statement(line: &str, inside: char) -> bool {
    let line = line.split('#').next().unwrap_or_default().trim();
    let bare = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '"'))
    };
    let header = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let header = header.is_some_and(|name| bare(name) && name.starts_with(|c: char| c.is_ascii_alphabetic()));
    let key = line.split_once('=').is_some_and(|(key, _)| bare(key.trim()));
    header || (inside == '[' && key)
}

/// Goes through a line's brackets, and gives the quotes that a string of several lines is still in at its end. `None`
/// where something else is wrong, on which the parser has the better word.
fn brackets<'q>(
    line: &str,
    start: usize,
    mut quoted: Option<&'q str>,
    open: &mut Vec<(char, usize)>,
) -> Option<Option<&'q str>> {
    let mut at = 0;
    while at < line.len() {
        let rest = &line[at..];
        let first = rest.chars().next()?;
        if let Some(quotes) = quoted {
            if rest.starts_with(quotes) {
                quoted = None;
                at += quotes.len();
            } else {
                let escaped = first == '\\' && quotes.starts_with('"');
                at += first.len_utf8();
                at += if escaped { line[at..].chars().next().map_or(0, char::len_utf8) } else { 0 };
            }
            continue;
        }
        match first {
            '#' => break,
            '"' | '\'' => {
                quoted = ["\"\"\"", "'''", "\"", "'"].into_iter().find(|quotes| rest.starts_with(quotes));
                at += quoted.map_or(1, str::len);
                continue;
            }
            '[' | '{' => open.push((first, start + at)),
            ']' | '}' => {
                let (bracket, _) = open.pop()?;
                if (bracket == '[') != (first == ']') {
                    return None;
                }
            }
            _ => {}
        }
        at += first.len_utf8();
    }
    // A string of one line that does not end there.
    if quoted.is_some_and(|quotes| quotes.len() == 1) { None } else { Some(quoted) }
}
