//! What an object is: its version, its size, its headers.

use hyper::{
    HeaderMap, StatusCode,
    header::{self, HeaderValue},
};

use super::{address::ObjectName, headers, range::ByteRange};

/// What tells one content of an object from another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Validator {
    /// The ETag, with its quotes, as the gateway sent it.
    pub etag: String,
    /// `Last-Modified`, as the gateway sent it: it moves when the same bytes are written again with other
    /// metadata.
    pub last_modified: Option<String>,
}

/// One content of one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectVersion {
    /// Which object.
    pub name: ObjectName,
    /// Which content.
    pub validator: Validator,
}

/// What an object version is, as the gateway described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Which content of which object.
    pub version: ObjectVersion,
    /// Its length in bytes.
    pub size: u64,
    /// The headers that belong to the object and are served with it.
    pub headers: HeaderMap,
    /// Are its checksums among them, if it has any? S3 tells them only to who asks, and for the whole.
    pub checksums_known: bool,
}

impl Validator {
    /// The validator an answer carries. A weak ETag does not tell byte-for-byte contents apart (RFC 9110,
    /// section 8.8.1), so it is none.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let etag = text(headers, &header::ETAG)?;
        let strong = etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"');
        let last_modified = text(headers, &header::LAST_MODIFIED);
        strong.then(|| Self { etag: etag.to_owned(), last_modified: last_modified.map(str::to_owned) })
    }

    /// Does an answer that may leave either field out (a 304 need not repeat them) speak of this content?
    #[must_use]
    pub fn agrees_with(&self, headers: &HeaderMap) -> bool {
        let etag = text(headers, &header::ETAG);
        let last_modified = text(headers, &header::LAST_MODIFIED);
        etag.is_none_or(|etag| etag == self.etag)
            && (last_modified.is_none() || last_modified == self.last_modified.as_deref())
    }
}

impl ObjectMeta {
    /// The meta that a 200 or 206 to a GET carries; `None` if it lacks what a cache needs.
    #[must_use]
    pub fn of_answer(name: &ObjectName, status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        let size = match status {
            StatusCode::OK => text(headers, &header::CONTENT_LENGTH)?.parse().ok()?,
            StatusCode::PARTIAL_CONTENT => {
                ByteRange::parse_content_range(text(headers, &header::CONTENT_RANGE)?)?.1
            }
            _ => return None,
        };
        let mut meta = Self::new(name, size, headers)?;
        if status == StatusCode::PARTIAL_CONTENT {
            // They may be the part's.
            meta.remove_checksums();
        }
        Some(meta)
    }

    /// A meta from an answer's headers and a size that was told otherwise.
    #[must_use]
    pub fn new(name: &ObjectName, size: u64, answer: &HeaderMap) -> Option<Self> {
        let validator = Validator::of(answer)?;
        let version = ObjectVersion { name: name.clone(), validator };
        Some(Self { version, size, headers: headers::of_the_object(answer), checksums_known: false })
    }

    /// The same, with the checksums that an answer about the whole object carries.
    #[must_use]
    pub fn with_checksums(mut self, answer: &HeaderMap) -> Self {
        self.remove_checksums();
        for (name, value) in answer.iter().filter(|(name, _)| headers::is_checksum(name)) {
            self.headers.insert(name, value.clone());
        }
        self.checksums_known = true;
        self
    }

    fn remove_checksums(&mut self) {
        let told: Vec<_> = self.headers.keys().filter(|name| headers::is_checksum(name)).cloned().collect();
        for name in told {
            self.headers.remove(&name);
        }
    }

    /// The head of an answer that carries `range` of the object, or all of it.
    #[must_use]
    pub fn answer(&self, range: Option<ByteRange>, wants_checksums: bool) -> (StatusCode, HeaderMap) {
        let mut answer = self.headers.clone();
        if range.is_some() || !wants_checksums {
            // A checksum of the whole fails a client's check of a part.
            let checksums: Vec<_> =
                answer.keys().filter(|name| headers::is_checksum(name)).cloned().collect();
            for name in checksums {
                answer.remove(&name);
            }
        }
        answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        let length = range.map_or(self.size, ByteRange::length);
        answer.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        let Some(range) = range else { return (StatusCode::OK, answer) };
        if let Ok(content_range) = HeaderValue::from_str(&range.content_range(self.size)) {
            answer.insert(header::CONTENT_RANGE, content_range);
        }
        (StatusCode::PARTIAL_CONTENT, answer)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn name() -> ObjectName {
        ObjectName::from_parts("b", "k", None).unwrap()
    }

    #[test]
    fn a_206_tells_the_size_of_the_whole() {
        let answer = headers(&[("etag", "\"e\""), ("content-length", "2"), ("content-range", "bytes 1-2/9")]);
        let meta = ObjectMeta::of_answer(&name(), StatusCode::PARTIAL_CONTENT, &answer).unwrap();
        assert_eq!(meta.size, 9);
    }

    #[test]
    fn what_cannot_be_validated_cannot_be_cached() {
        for answer in [
            headers(&[("content-length", "2")]),
            headers(&[("content-length", "2"), ("etag", "W/\"e\"")]),
            headers(&[("etag", "\"e\"")]),
            headers(&[("etag", "\"e\""), ("content-length", "many")]),
        ] {
            assert_eq!(ObjectMeta::of_answer(&name(), StatusCode::OK, &answer), None);
        }
    }

    #[test]
    fn a_304_may_be_silent_but_not_disagree() {
        let held = Validator { etag: "\"e\"".into(), last_modified: Some("then".into()) };
        assert!(held.agrees_with(&headers(&[])));
        assert!(held.agrees_with(&headers(&[("etag", "\"e\""), ("last-modified", "then")])));
        assert!(!held.agrees_with(&headers(&[("etag", "\"f\"")])));
        assert!(!held.agrees_with(&headers(&[("etag", "\"e\""), ("last-modified", "now")])));
    }

    #[test]
    fn checksums_are_for_those_who_ask_and_for_the_whole() {
        let answer = headers(&[("etag", "\"e\""), ("content-length", "9"), ("x-amz-checksum-crc32", "AAAA")]);
        let meta = ObjectMeta::of_answer(&name(), StatusCode::OK, &answer).unwrap();
        let range = Some(ByteRange { start: 1, end: 3 });
        assert!(meta.answer(None, true).1.contains_key("x-amz-checksum-crc32"));
        assert!(!meta.answer(None, false).1.contains_key("x-amz-checksum-crc32"));
        let (status, part) = meta.answer(range, true);
        assert!(!part.contains_key("x-amz-checksum-crc32"));
        assert_eq!(
            (status, &part["content-range"]),
            (StatusCode::PARTIAL_CONTENT, &"bytes 1-2/9".parse().unwrap())
        );
        assert_eq!(part["content-length"], "2");
        // A range's answer may tell a part's.
        let answer =
            headers(&[("etag", "\"e\""), ("content-range", "bytes 0-4/9"), ("x-amz-checksum-crc32", "BBBB")]);
        let meta = ObjectMeta::of_answer(&name(), StatusCode::PARTIAL_CONTENT, &answer).unwrap();
        assert!(!meta.answer(None, true).1.contains_key("x-amz-checksum-crc32"));
        let meta = meta.with_checksums(&headers(&[("x-amz-checksum-sha256", "A")]));
        assert!(meta.answer(None, true).1.contains_key("x-amz-checksum-sha256"));
    }
}
