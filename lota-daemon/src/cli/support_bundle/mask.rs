//! Masks secrets in a support bundle by their value, by the name before them, and by their appearance. Masks the
//! names of objects in the daemon's log.

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Replacement for a secret.
pub(super) const MASK: &str = "(masked)";
/// Replacement for the name of an object.
const NAME: &str = "(name)";
/// Minimum length of text with mixed letters and digits that is masked as a key or a signature.
const SHORTEST_SECRET: usize = 20;
/// Minimum length of hexadecimal text that is masked.
const SHORTEST_HEX: usize = 32;

/// An `Authorization` header of any scheme, to the end of its value.
static AUTHORIZATION: LazyLock<Regex> =
    LazyLock::new(|| regex(r#"(?i)(authorization["']?\s*[:=>]\s*["']?)[^"'<\r\n]+"#));
/// Authentication schemes, anywhere in the text.
static SCHEME: LazyLock<Regex> = LazyLock::new(|| regex(r"(?i)\b((?:bearer|basic)\s+)[^\s\x22',]+"));
/// A signature of version 2.
static AWS: LazyLock<Regex> = LazyLock::new(|| regex(r"\b(AWS\s+)[^\s:\x22']+:[^\s\x22',]+"));
/// A secret's name, its separator in a header, a query, JSON, TOML or XML, and its value.
static NAMED: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r#"(?i)((?:signature|token|secret|password|passwd|credential|cookie|accesskeyid|(?:access|secret|api|private|customer)[-_ ]?key(?:[-_ ]?id)?)\\?["']?\s*(?:=|:|>|%3D|%3A)\s*\\?["']?)[^\s"'&,;<>\\]+"#,
    )
});
/// A run of characters that occur in base64, hexadecimal digits and access keys.
static RUN: LazyLock<Regex> = LazyLock::new(|| regex(r"[A-Za-z0-9+/_=%-]{16,}"));
/// A field of a log line, in text or JSON, that contains the name of an object or a part of it.
static OBJECT: LazyLock<Regex> = LazyLock::new(|| {
    let names = "object|bucket|key|version|version_id|source_object";
    regex(&format!(
        r#"\b(?<text>(?:{names})=)(?<value>{QUOTED}|\S+)|\b(?<json>(?:{names})"\s*:\s*)(?<string>{QUOTED}|[^\s,}}]+)"#
    ))
});
/// Any field, whose name is in the first group and whose value is in the second.
static FIELD: LazyLock<Regex> =
    LazyLock::new(|| regex(&format!(r#"([\w.]+=|"[\w.]+"\s*:\s*)({QUOTED}|[^\s,}}"\[{{][^\s,}}]*)"#)));
/// Pattern of a quoted string.
const QUOTED: &str = r#""(?:[^"\\]|\\.)*""#;

fn regex(text: &str) -> Regex {
    Regex::new(text).unwrap_or_else(|error| unreachable!("a constant: {error}"))
}

/// Returns the text without secrets.
pub(super) fn mask(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        text = text.replace(secret, MASK);
    }
    for named in [&*AUTHORIZATION, &*SCHEME, &*AWS, &*NAMED] {
        text = named.replace_all(&text, format!("${{1}}{MASK}")).into_owned();
    }
    let by_form = |run: &Captures<'_>| match looks_secret(&run[0]) {
        true => MASK.to_owned(),
        false => run[0].to_owned(),
    };
    RUN.replace_all(&text, by_form).into_owned()
}

/// Returns a log without the names of objects, in the fields for them and where these names occur in other fields of the
/// same line.
pub(super) fn mask_names(log: &str) -> String {
    log.split_inclusive('\n').map(mask_names_of_line).collect()
}

fn mask_names_of_line(line: &str) -> String {
    let names = names(line);
    let line = OBJECT.replace_all(line, |field: &Captures<'_>| match field.name("text") {
        Some(text) => format!("{}{NAME}", text.as_str()),
        None => format!("{}\"{NAME}\"", &field["json"]),
    });
    if names.is_empty() {
        return line.into_owned();
    }
    let masked = |field: &Captures<'_>| {
        let value = names.iter().fold(field[2].to_owned(), |value, name| mask_name(&value, name));
        format!("{}{value}", &field[1])
    };
    FIELD.replace_all(&line, masked).into_owned()
}

/// Returns the names of objects in a line's fields, their buckets and their keys; the longest first.
fn names(line: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for field in OBJECT.captures_iter(line) {
        let value = field.name("value").or(field.name("string")).map_or("", |value| value.as_str());
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        let object = value.rsplit_once("?versionId=").map_or(value, |(object, _)| object);
        let is_object = field[0].trim_start_matches("source_").starts_with("object");
        let parts = object.split_once('/').filter(|_| is_object);
        names.extend([value, object]);
        names.extend(parts.into_iter().flat_map(|(bucket, key)| [bucket, key]));
    }
    names.retain(|name| !name.is_empty());
    names.sort_unstable_by_key(|name| std::cmp::Reverse(name.len()));
    names.dedup();
    names
}

/// Masks a name where it is not a part of a longer word.
fn mask_name(text: &str, name: &str) -> String {
    let (mut masked, mut end) = (String::new(), 0);
    for (at, _) in text.match_indices(name) {
        let after = at + name.len();
        let is_word = |character: Option<char>| character.is_some_and(char::is_alphanumeric);
        if !is_word(text[..at].chars().next_back()) && !is_word(text[after..].chars().next()) {
            masked.push_str(&text[end..at]);
            masked.push_str(NAME);
            end = after;
        }
    }
    masked + &text[end..]
}

/// Returns whether a run of characters looks like a key, a signature or a token, not like a word, a path or a number.
fn looks_secret(run: &str) -> bool {
    let digits = run.bytes().filter(u8::is_ascii_digit).count();
    let has = |is: fn(&u8) -> bool| run.bytes().any(|byte| is(&byte));
    let (upper, lower) = (has(u8::is_ascii_uppercase), has(u8::is_ascii_lowercase));
    let is_hex = run.len() >= SHORTEST_HEX && run.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_access_key =
        digits >= 1 && run.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    let is_mixed = run.len() >= SHORTEST_SECRET && upper && lower && digits >= 2;
    is_hex || upper && is_access_key || is_mixed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_are_masked_by_value_and_by_name() {
        let secrets = ["s3cr3t value".to_owned()];
        for (text, masked) in [
            ("a s3cr3t value b", "a (masked) b"),
            ("GET /k?X-Amz-Signature=abc&x=1", "GET /k?X-Amz-Signature=(masked)&x=1"),
            (
                "Credential=AKIA/2026/x, SignedHeaders=h, Signature=abc",
                "Credential=(masked), SignedHeaders=h, Signature=(masked)",
            ),
            ("\"X-AMZ-Security-Token=tok\"", "\"X-AMZ-Security-Token=(masked)\""),
            ("Authorization: Bearer e30.e30.x\nnext", "Authorization: (masked)\nnext"),
            ("said Bearer e30.e30.x once", "said Bearer (masked) once"),
            ("signature=", "signature="),
            ("signature=signature=a b", "signature=(masked) b"),
            ("über signature=ä", "über signature=(masked)"),
            ("x-amz-security-token: T", "x-amz-security-token: (masked)"),
            ("{\"SessionToken\": \"abc\", \"n\": 1}", "{\"SessionToken\": \"(masked)\", \"n\": 1}"),
            ("said=\"{\\\"token\\\":\\\"abc\\\"}\"", "said=\"{\\\"token\\\":\\\"(masked)\\\"}\""),
            ("/k%3FSignature%3Dabc%2Bd x", "/k%3FSignature%3D(masked) x"),
            ("got AWS AK:sig/na+ture= and", "got AWS (masked) and"),
            ("<SessionToken>abc</SessionToken>", "<SessionToken>(masked)</SessionToken>"),
            ("secret_access_key = \"abc\"", "secret_access_key = \"(masked)\""),
        ] {
            assert_eq!(mask(text, &secrets), masked);
        }
    }

    #[test]
    fn secrets_are_masked_by_appearance() {
        for secret in [
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY1",
            "AKIAIOSFODNN7EXAMPLE",
            "feedfacefeedfacefeedfacefeedface",
            "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9",
            "frJIUN8DYpKDtOLCwo0yllqDzg8=",
        ] {
            assert_eq!(mask(&format!("odd: {secret}, more"), &[]), "odd: (masked), more");
        }
        for kept in [
            "lota_gateway_requests_total{status=\"200\"} 5",
            "/var/cache/lota/lota-cache/v4/new",
            "169.254.77.80 2026-11-28T16:00:00Z",
            "550e8400-e29b-41d4-a716-446655440000",
            "secret_file = \"/etc/lota/peers.secret\"",
            "cannot take over from the previous daemon: connection refused",
        ] {
            assert_eq!(mask(kept, &[]), kept);
        }
    }

    #[test]
    fn a_log_loses_the_names_of_objects() {
        for (line, masked) in [
            (
                "WARN fill failed object=b/k authority=\"own\"",
                "WARN fill failed object=(name) authority=\"own\"",
            ),
            ("x object=\"b/a \\\"q\\\" z\" error=\"y\"", "x object=(name) error=\"y\""),
            (
                "{\"bucket\":\"b\",\"key\":\"a \\\" b\",\"n\":1}",
                "{\"bucket\":\"(name)\",\"key\":\"(name)\",\"n\":1}",
            ),
            ("INFO ready node=\"n1\"", "INFO ready node=\"n1\""),
            ("x key=a,b error=\"no a,b\"", "x key=(name) error=\"no (name)\""),
            (
                "WARN x object=b/dir/k?versionId=7 authority=own error=\"b/dir/k of b: no dir/k in bk, dir/k7\" n=1\nx error=b",
                "WARN x object=(name) authority=own error=\"(name) of (name): no (name) in bk, dir/k7\" n=1\nx error=b",
            ),
            (
                "{\"level\":\"WARN\",\"fields\":{\"error\":\"cannot read \\\"a \\\\ b\\\"\",\"key\":\"a \\\\ b\",\"n\":1}}",
                "{\"level\":\"WARN\",\"fields\":{\"error\":\"cannot read \\\"(name)\\\"\",\"key\":\"(name)\",\"n\":1}}",
            ),
        ] {
            assert_eq!(mask_names(line), masked);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_handled_and_any_key_is_masked(text in ".*", key in "[A-Z]{8}[a-z+/]{16}[0-9]{8}[A-Za-z0-9]{8}") {
            mask_names(&mask(&text, &[]));
            let line = mask_names(&format!("object=bucket/{key} error=\"cannot read {key}\""));
            prop_assert_eq!(line, "object=(name) error=\"cannot read (name)\"");
            let masked = mask(&format!("{text} {key} {text}"), &[]);
            prop_assert!(!masked.contains(&key));
        }
    }
}
