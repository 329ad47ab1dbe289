//! Escapes text from outside, so that it cannot forge a log line or send control sequences to a terminal.
//!
//! Keys, errors and names of clients and servers are shown to operators in logs, tables and on screen. They are
//! escaped once, where text leaves the process.

use std::fmt::Write as _;

/// Returns whether a character controls output instead of being shown. This includes characters that change the text
/// direction or have no width, since they can make text look like another.
fn is_control(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Returns text for one line, with control characters escaped as in Rust.
#[must_use]
pub fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match is_control(character) {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}

/// Returns text of several lines, with control characters escaped in each.
#[must_use]
pub fn plain_lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// Returns equivalent JSON on one line. Control characters can occur only in strings, where they become `\u` escapes.
#[must_use]
pub fn plain_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for character in json.chars() {
        match is_control(character) {
            true => {
                let mut units = [0; 2];
                for unit in character.encode_utf16(&mut units) {
                    // Writing to a String cannot fail.
                    let _ = write!(shown, "\\u{unit:04x}");
                }
            }
            false => shown.push(character),
        }
    }
    shown
}

/// Returns a value of a log line, quoted as a Rust string if it could be read as more than one value.
#[must_use]
pub(crate) fn value(text: &str) -> String {
    let is_separate = |character: char| {
        character.is_whitespace() || matches!(character, '"' | '=') || is_control(character)
    };
    match text.is_empty() || !is_quoted(text) && text.contains(is_separate) {
        true => format!("{text:?}"),
        false => text.to_owned(),
    }
}

/// Returns whether the text is already a quoted Rust string without control characters.
fn is_quoted(text: &str) -> bool {
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else { return false };
    let mut is_escaped = false;
    for character in inner.chars() {
        if character == '"' && !is_escaped || is_control(character) {
            return false;
        }
        is_escaped = character == '\\' && !is_escaped;
    }
    !is_escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn foreign_text_cannot_control_a_terminal() {
        assert_eq!(plain("a\x1b[2Jb\u{9b}c\nd é"), "a\\u{1b}[2Jb\\u{9b}c\\nd é");
        assert_eq!(plain("a\u{202e}b\u{200b}"), "a\\u{202e}b\\u{200b}");
        assert_eq!(plain("a\u{ad}b\u{e0041}\u{e007f}"), "a\\u{ad}b\\u{e0041}\\u{e007f}");
        assert_eq!(plain_json("\"\u{ad}\u{e0041}\""), "\"\\u00ad\\udb40\\udc41\"");
        assert_eq!(value("a\u{e0041}"), "\"a\\u{e0041}\"");
        assert_eq!(plain_lines("a\rb\nc\x07"), "a\\rb\nc\\u{7}");
        assert_eq!(plain_json("{\"k\":\"a\u{9b}b\"}"), "{\"k\":\"a\\u009bb\"}");
    }

    #[test]
    fn a_value_is_one_value() {
        for (text, shown) in [
            ("plain/key", "plain/key"),
            ("\"quoted\"", "\"quoted\""),
            ("", "\"\""),
            ("a b", "\"a b\""),
            ("a level=ERROR", "\"a level=ERROR\""),
            ("\"a\" b=\"c\"", "\"\\\"a\\\" b=\\\"c\\\"\""),
            ("a\nb", "\"a\\nb\""),
            ("\"\x7f\"", "\"\\\"\\u{7f}\\\"\""),
        ] {
            assert_eq!(value(text), shown, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_control_character_is_left(text in ".*|[\\x00-\\x7f\\u{80}-\\u{a0}\\u{2000}-\\u{2070}\\u{a0}-\\u{b0}\\u{dfff0}-\\u{e0080}]*") {
            prop_assert!(!plain(&text).contains(is_control));
            prop_assert!(!value(&text).contains(is_control));
            let json = serde_json::to_string(&text).unwrap();
            let shown = plain_json(&json);
            prop_assert!(!shown.contains(is_control));
            prop_assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        }
    }
}
