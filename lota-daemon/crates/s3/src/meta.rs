//! Metadata of objects: version, size, headers.

use std::time::Duration;

use hyper::{
    HeaderMap, StatusCode,
    header::{self, HeaderName, HeaderValue},
};

use crate::{
    ObjectName, Validator, headers,
    range::ByteRange,
    storable::{self, NotStorable},
    validator::{seconds, text},
};

/// One version of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectVersion {
    /// Name of the object.
    pub name: ObjectName,
    /// Validator of the version.
    pub validator: Validator,
}

/// Metadata of an object version as the gateway described it. Created only from a storable response ([`storable`]) or
/// from a cache record of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Version of the object.
    pub version: ObjectVersion,
    /// Size in bytes.
    pub size: u64,
    /// Headers that belong to the object and are served with it.
    pub headers: HeaderMap,
    /// Whether the headers include the checksums of the object, if it has any. S3 returns them only on request and for
    /// the whole object.
    pub checksums_known: bool,
    learned: Learned,
}

/// Time and origin of an object's headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// `Date` of the response that described the object, in seconds since 1970.
    pub at: Option<u64>,
    /// Hash of access key and bucket of the request.
    pub by: u64,
}

impl ObjectMeta {
    /// Returns the metadata in the response `answer` to a GET or HEAD with the headers `request`.
    ///
    /// # Errors
    /// [`NotStorable`] if the response depends on the client, or lacks data that a cache needs.
    pub fn of_answer(
        name: &ObjectName,
        request: &HeaderMap,
        status: StatusCode,
        answer: &HeaderMap,
    ) -> Result<Self, NotStorable> {
        let (validator, size) = storable::check_storable(request, status, answer)?;
        let mut meta = Self::new(name, validator, size, answer);
        if status == StatusCode::PARTIAL_CONTENT {
            // They may be those of the part.
            meta.remove_checksums();
        }
        Ok(meta)
    }

    /// Returns the metadata in a response without any bytes of the object, whose size is known from elsewhere.
    ///
    /// # Errors
    /// [`NotStorable`] if the response depends on the client, or has no strong `ETag`.
    pub fn of_description(
        name: &ObjectName,
        request: &HeaderMap,
        size: u64,
        answer: &HeaderMap,
    ) -> Result<Self, NotStorable> {
        let validator = storable::check_description(request, answer)?;
        Ok(Self::new(name, validator, size, answer))
    }

    /// Restores metadata from stored parts.
    #[must_use]
    pub fn restored(
        version: ObjectVersion,
        size: u64,
        headers: HeaderMap,
        checksums_known: bool,
        learned: Learned,
    ) -> Self {
        Self { version, size, headers, checksums_known, learned }
    }

    fn new(name: &ObjectName, validator: Validator, size: u64, answer: &HeaderMap) -> Self {
        let version = ObjectVersion { name: name.clone(), validator };
        let learned = Learned { at: text(answer, &header::DATE).and_then(seconds), by: 0 };
        Self { version, size, headers: headers::of_the_object(answer), checksums_known: false, learned }
    }

    /// Returns the metadata with another time and origin.
    #[must_use]
    pub fn learned_when(self, learned: Learned) -> Self {
        Self { learned, ..self }
    }

    /// Returns the metadata with another origin.
    #[must_use]
    pub fn learned_by(mut self, asker: u64) -> Self {
        self.learned.by = asker;
        self
    }

    /// Returns whether the headers were received at least two seconds after the object was last written, so that any
    /// later write has a later date: dates have a resolution of one second, and the clocks of a gateway's servers may
    /// differ by one.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let settled = self.version.validator.modified().map(|modified| modified.saturating_add(2));
        settled.zip(self.learned.at).is_some_and(|(settled, learned)| learned >= settled)
    }

    /// Returns the time from the last write of the object to the response that described it, by the clock of its sender; `None` if
    /// that response did not state both.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        let (described, modified) = (self.learned.at?, self.version.validator.modified()?);
        Some(Duration::from_secs(described.saturating_sub(modified)))
    }

    /// Returns whether both state the same `ETag` and size.
    #[must_use]
    pub fn has_content_of(&self, other: &Self) -> bool {
        self.size == other.size && self.version.validator.etag == other.version.validator.etag
    }

    /// Returns whether both describe the same version with the same headers, without regard to checksums, which not
    /// every response includes.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        let without_checksums = |meta: &Self| {
            let mut meta = meta.clone();
            meta.remove_checksums();
            meta.headers
        };
        self.version == other.version
            && self.size == other.size
            && without_checksums(self) == without_checksums(other)
    }

    /// Returns the metadata to keep after another response about the same version; `None` if nothing changes.
    #[must_use]
    pub fn updated_by(&self, later: &Self) -> Option<Self> {
        if std::ptr::eq(self, later)
            || later.version != self.version
            || later.size != self.size
            || later.learned.at < self.learned.at
        {
            return None;
        }
        if !self.is_settled() || !self.agrees_with(later) {
            return Some(later.clone());
        }
        let has_more = later.checksums_known && !self.checksums_known;
        has_more.then(|| self.clone().with_checksums(&later.headers))
    }

    /// Returns the metadata with the checksums of a later response; `None` if the object may have been written since.
    #[must_use]
    pub fn with_later_checksums(&self, answer: &HeaderMap) -> Option<Self> {
        let validator = Validator::of(answer)?;
        let later = Self::new(&self.version.name, validator, self.size, answer);
        let is_same = self.is_settled() && later.is_settled() && later.version == self.version;
        is_same.then(|| self.clone().with_checksums(answer))
    }

    /// Returns the time and origin of the headers.
    #[must_use]
    pub fn learned(&self) -> Learned {
        self.learned
    }

    /// Returns the metadata with the checksums of a response about the whole object.
    #[must_use]
    pub fn with_checksums(mut self, answer: &HeaderMap) -> Self {
        self.remove_checksums();
        for (name, value) in answer.iter().filter(|(name, _)| headers::is_checksum(name)) {
            self.headers.insert(name, value.clone());
        }
        self.checksums_known = true;
        self
    }

    /// Returns the known checksums of the whole object.
    pub fn checksums(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.headers.iter().filter(|(name, _)| headers::is_checksum(name))
    }

    fn remove_checksums(&mut self) {
        let names: Vec<_> = self.checksums().map(|(name, _)| name.clone()).collect();
        for name in names {
            self.headers.remove(&name);
        }
    }

    /// Returns status and headers of a response with `range` of the object, or all of it.
    #[must_use]
    pub fn answer(&self, range: Option<ByteRange>, wants_checksums: bool) -> (StatusCode, HeaderMap) {
        let mut answer = self.headers.clone();
        if range.is_some() || !wants_checksums {
            // Clients would compare a checksum of the whole object with the part.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn of(status: StatusCode, answer: &HeaderMap) -> Result<ObjectMeta, NotStorable> {
        let name = ObjectName::from_parts("http://gateway", "b", "k", None).unwrap();
        ObjectMeta::of_answer(&name, &headers(&[("range", "bytes=1-2")]), status, answer)
    }

    #[test]
    fn a_206_has_the_size_of_the_object() {
        let answer = headers(&[
            ("etag", "\"e\""),
            ("date", "Thu, 01 Jan 1970 00:00:07 GMT"),
            ("content-range", "bytes 1-2/9"),
        ]);
        let meta = of(StatusCode::PARTIAL_CONTENT, &answer).unwrap();
        assert_eq!((meta.size, meta.learned().at), (9, Some(7)));
    }

    #[test]
    fn checksums_are_sent_on_request_and_for_the_whole_object() {
        let answer = headers(&[("etag", "\"e\""), ("content-length", "9"), ("x-amz-checksum-crc32", "AAAA")]);
        let meta = of(StatusCode::OK, &answer).unwrap();
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
        // The response to a range request may carry the checksum of a part.
        let answer =
            headers(&[("etag", "\"e\""), ("content-range", "bytes 0-4/9"), ("x-amz-checksum-crc32", "BBBB")]);
        let meta = of(StatusCode::PARTIAL_CONTENT, &answer).unwrap();
        assert!(!meta.answer(None, true).1.contains_key("x-amz-checksum-crc32"));
        let meta = meta.with_checksums(&headers(&[("x-amz-checksum-sha256", "A")]));
        assert!(meta.answer(None, true).1.contains_key("x-amz-checksum-sha256"));
    }
}
