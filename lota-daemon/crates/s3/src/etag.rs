//! ETags in a form in which those of different responses can be compared.

use std::fmt;

use hyper::{HeaderMap, header};

use crate::validator::text;

/// Maximum length of an ETag, in bytes.
const MAX_LENGTH: usize = 256;

/// An ETag without quotes and in lower case. Gateways and backends state the ETag of one object in different forms: with quotes
/// or without, and in upper or lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NormalEtag(String);

impl NormalEtag {
    /// Parses the value of a header or of an XML element. Returns `None` for a weak ETag, which does not identify bytes, and for
    /// what is no ETag.
    ///
    /// ```
    /// use lota_s3::NormalEtag;
    ///
    /// assert_eq!(NormalEtag::parse("\"9B2CF5-2\""), NormalEtag::parse("9b2cf5-2"));
    /// assert_eq!(NormalEtag::parse("W/\"9b2cf5\""), None);
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_ascii();
        let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
        let is_bare = bare.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
        (is_bare && (1..=MAX_LENGTH).contains(&bare.len())).then(|| Self(bare.to_ascii_lowercase()))
    }

    /// Returns the ETag in the head of a response, if it states one.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        Self::parse(text(headers, &header::ETAG)?)
    }
}

impl fmt::Display for NormalEtag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms_of_one_etag_are_equal() {
        let normal = NormalEtag::parse("\"abc-2\"").unwrap();
        for same in ["abc-2", "\"ABC-2\"", " \"abc-2\"\n", "Abc-2"] {
            assert_eq!(NormalEtag::parse(same).as_ref(), Some(&normal), "{same}");
        }
        for other in ["\"abc-3\"", "abc2", "'abc-2'"] {
            assert_ne!(NormalEtag::parse(other), Some(normal.clone()), "{other}");
        }
        for none in ["", "\"\"", "\"", "W/\"abc-2\"", "a b", "a\"b", "é", &"a".repeat(MAX_LENGTH + 1)] {
            assert_eq!(NormalEtag::parse(none), None, "{none}");
        }
        assert_eq!(NormalEtag::of(&HeaderMap::new()), None);
    }

    proptest! {
        #[test]
        fn a_normal_form_is_parsed_as_itself(text in "[ -~]{0,40}") {
            if let Some(normal) = NormalEtag::parse(&text) {
                prop_assert_eq!(NormalEtag::parse(&normal.to_string()), Some(normal));
            }
        }
    }
}
