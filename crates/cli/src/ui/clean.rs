//! The one sanitizer of what is printed. Texts come from AWS, GitHub, buckets, logs and files: whoever can write there
//! must neither steer the terminal nor give commands to the runner of a workflow.

use std::fmt::Write as _;

/// A foreign text as it may be shown: control characters and those that change a text's direction are escaped, and what
/// begins a line anywhere begins one here. Nothing of it is a style.
pub(crate) fn clean(text: &str) -> String {
    cleaned(text, false)
}

/// The same for a text with styles of our own, which stay.
pub(super) fn clean_but_for_styles(text: &str) -> String {
    cleaned(text, true)
}

fn cleaned(text: &str, styles: bool) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let style = if styles { style(rest) } else { 0 };
        if style > 0 {
            clean.push_str(&rest[..style]);
            rest = &rest[style..];
            continue;
        }
        rest = &rest[c.len_utf8()..];
        match c {
            // A line break with its line feed, or a break of its own.
            '\r' if rest.starts_with('\n') => {}
            '\r' => clean.push('\n'),
            '\n' | '\t' => clean.push(c),
            c if is_unsafe(c) => {
                let _ = write!(clean, "{}", c.escape_unicode());
            }
            c => clean.push(c),
        }
    }
    clean
}

/// C0 and C1 control characters, and the invisible ones that reorder, break or hide a line's text.
///
/// Source: <https://www.unicode.org/reports/tr9/#Directional_Formatting_Characters>, and UTR 36 on tag characters.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || matches!(c, '\u{e0000}'..='\u{e007f}')
}

/// The length of a style's sequence (`ESC [ 1 ; 31 m`) at a text's begin, or zero.
fn style(text: &str) -> usize {
    let Some(rest) = text.strip_prefix("\u{1b}[") else { return 0 };
    let numbers = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b';').count();
    if rest[numbers..].starts_with('m') { text.len() - rest.len() + numbers + 1 } else { 0 }
}

/// A text of which no line is a command to the runner of a workflow.
///
/// Source: src/Runner.Common/ActionCommand.cs of actions/runner: a line is one that begins with `::` once it is trimmed,
/// or has `##[` anywhere; and OutputManager.cs, which gets lines that .NET ends at `\n`, `\r\n` and `\r`.
pub(crate) fn harmless(text: &str) -> String {
    text.split('\n').map(harmless_line).collect::<Vec<_>>().join("\n")
}

fn harmless_line(line: &str) -> String {
    let mut harmless = String::with_capacity(line.len());
    // Of what is printed: the `#` just before, and whether the line has begun, or begun with one colon.
    let (mut hashes, mut begun, mut colon) = (0, false, false);
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        // Styles are taken out where there is no terminal, so what they separate comes together there.
        let style = style(rest);
        if style > 0 {
            harmless.push_str(&rest[..style]);
            rest = &rest[style..];
            continue;
        }
        if (c == ':' && colon) || (c == '[' && hashes >= 2) {
            harmless.push(' ');
        }
        harmless.push(c);
        hashes = if c == '#' { hashes + 1 } else { 0 };
        colon = c == ':' && !begun;
        begun |= !c.is_whitespace();
        rest = &rest[c.len_utf8()..];
    }
    harmless
}

/// A JSON text with what a terminal or a runner would take for more escaped as JSON escapes it: such characters can only
/// be inside of its strings.
pub(super) fn clean_json(json: &str) -> String {
    let mut clean = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(clean, "\\u{unit:04x}");
            }
        } else {
            clean.push(c);
        }
    }
    clean.replace("##[", "##\\u005b")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_others_say_is_no_command() {
        assert_eq!(harmless("  ::set-output name=x::y"), "  : :set-output name=x::y");
        assert_eq!(harmless("\u{1b}[1m ::x"), "\u{1b}[1m : :x");
        assert_eq!(harmless("\u{a0}::x"), "\u{a0}: :x");
        assert_eq!(harmless("why ##[error]no"), "why ## [error]no");
        assert_eq!(harmless(":\u{1b}[1m:x"), ":\u{1b}[1m :x");
        assert_eq!(harmless("##\u{1b}[1m[error]"), "##\u{1b}[1m [error]");
        assert_eq!(harmless("arn:aws::x\n::stop-commands::y"), "arn:aws::x\n: :stop-commands::y");
    }

    #[test]
    fn a_terminal_is_not_steered() {
        let table = [
            ("a\r::b", "a\n::b"),
            ("a\r\nb\n", "a\nb\n"),
            ("\u{1b}]0;title\u{7}\u{1b}[2J", "\\u{1b}]0;title\\u{7}\\u{1b}[2J"),
            ("\u{9b}31m\u{7f}\0\u{85}", "\\u{9b}31m\\u{7f}\\u{0}\\u{85}"),
            ("a\u{202e}b\u{2028}c", "a\\u{202e}b\\u{2028}c"),
            ("tab\tä 日本 👩‍🚀", "tab\tä 日本 👩‍🚀"),
        ];
        for (text, wanted) in table {
            assert_eq!(clean(text), wanted);
        }
        assert_eq!(clean_but_for_styles("\u{1b}[1;31mx\u{1b}[0m\u{1b}[2J"), "\u{1b}[1;31mx\u{1b}[0m\\u{1b}[2J");
    }

    /// As the runner splits what a process prints.
    fn is_a_command(line: &str) -> bool {
        line.trim().starts_with("::") || line.contains("##[")
    }

    fn without_styles(text: &str) -> String {
        let mut plain = String::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let length = style(rest);
            if length == 0 {
                plain.push(c);
            }
            rest = &rest[length.max(c.len_utf8())..];
        }
        plain
    }

    const HOSTILE: &str =
        "([ :#\\[\r\n\t\u{1b}\u{7}\u{9b}\u{85}\u{a0}\u{2028}\u{202e}\0]|::|##\\[|\u{1b}\\[1m|\u{1b}\\]0;|a|ä){0,24}";

    proptest! {
        #[test]
        fn no_text_gets_through(text in HOSTILE) {
            let shown = harmless(&clean(&text));
            prop_assert!(!shown.contains(|c: char| c != '\n' && c != '\t' && is_unsafe(c)), "{:?}", shown);
            prop_assert!(!shown.split(['\n', '\r']).any(is_a_command), "{:?}", shown);
            prop_assert_eq!(harmless(&clean(&shown)), shown, "what is clean stays as it is");

            let painted = without_styles(&harmless(&clean_but_for_styles(&format!("\u{1b}[1m{text}\u{1b}[0m"))));
            prop_assert!(!painted.contains(|c: char| c != '\n' && c != '\t' && is_unsafe(c)), "{:?}", painted);
            prop_assert!(!painted.split(['\n', '\r']).any(is_a_command), "{:?}", painted);
        }

        #[test]
        fn a_document_says_the_same_and_steers_nothing(text in HOSTILE) {
            let value = serde_json::json!({ "text": text, "list": [text] });
            let shown = clean_json(&serde_json::to_string_pretty(&value).unwrap());
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
            prop_assert!(!shown.contains(|c: char| c != '\n' && is_unsafe(c)), "{:?}", shown);
            prop_assert!(!shown.split(['\n', '\r']).any(is_a_command), "{:?}", shown);
        }
    }
}
