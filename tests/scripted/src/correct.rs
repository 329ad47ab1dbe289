//! A gateway that behaves like S3, as far as LOTA depends on it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use crate::{
    answer::Answer,
    server::{Script, SeenRequest, lock},
};

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    /// Content.
    pub body: Vec<u8>,
    /// ETag, with quotation marks.
    pub etag: String,
    /// `Last-Modified` header.
    pub last_modified: String,
    /// Further headers of `GET` and `HEAD`.
    pub headers: Vec<(String, String)>,
    /// Whether it can be read without a signature.
    pub is_public: bool,
}

impl StoredObject {
    /// Creates an object with the ETag `"etag"` and an old modification date.
    #[must_use]
    pub fn new(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            etag: "\"etag\"".to_owned(),
            last_modified: "Fri, 01 Jan 2021 00:00:00 GMT".to_owned(),
            headers: Vec::new(),
            is_public: false,
        }
    }

    /// Sets the ETag.
    #[must_use]
    pub fn etag(mut self, etag: &str) -> Self {
        etag.clone_into(&mut self.etag);
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Makes the object readable without a signature.
    #[must_use]
    pub fn public(mut self) -> Self {
        self.is_public = true;
        self
    }
}

/// Result of an access rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The signature is valid.
    Signed,
    /// There is no signature.
    Anonymous,
    /// The signature is invalid.
    Refused,
}

type Rule = Arc<dyn Fn(&SeenRequest) -> Access + Send + Sync>;

/// Objects and an access rule. It is a script; clones share their objects.
#[derive(Clone)]
pub struct CorrectGateway {
    objects: Arc<Mutex<HashMap<String, StoredObject>>>,
    rule: Rule,
}

impl Default for CorrectGateway {
    fn default() -> Self {
        Self::new()
    }
}

impl CorrectGateway {
    /// Creates an empty gateway. By default, a signature is valid if its value begins with `0` (`Signature=0a…` in
    /// `Authorization`, `AWS key:0…`, `X-Amz-Signature=0…`, `Signature=0…`); [`CorrectGateway::rule`] sets another rule.
    #[must_use]
    pub fn new() -> Self {
        Self { objects: Arc::default(), rule: Arc::new(default_rule) }
    }

    /// Adds an object at a path, `/bucket/key`.
    #[must_use]
    pub fn object(self, path: &str, object: StoredObject) -> Self {
        self.put(path, object);
        self
    }

    /// Sets the access rule.
    #[must_use]
    pub fn rule(self, rule: impl Fn(&SeenRequest) -> Access + Send + Sync + 'static) -> Self {
        Self { rule: Arc::new(rule), ..self }
    }

    /// Stores an object without a client request.
    pub fn put(&self, path: &str, object: StoredObject) {
        lock(&self.objects).insert(path.to_owned(), object);
    }

    /// Removes an object.
    pub fn remove(&self, path: &str) {
        lock(&self.objects).remove(path);
    }

    fn read(&self, request: &SeenRequest, object: &StoredObject) -> Answer {
        let matches = |name: &str| {
            let tags = request.header(name)?;
            Some(tags.split(',').any(|tag| tag.trim() == "*" || tag.trim() == object.etag))
        };
        let same_date = |name: &str| Some(request.header(name)? == object.last_modified);
        let of_object = |mut answer: Answer| {
            answer = answer.header("etag", &object.etag).header("last-modified", &object.last_modified);
            for (name, value) in &object.headers {
                answer = answer.header(name, value);
            }
            answer
        };
        // RFC 9110, section 13.2.2.
        if matches("if-match").or_else(|| same_date("if-unmodified-since")) == Some(false) {
            return Answer::s3_error(412, "PreconditionFailed");
        }
        if matches("if-none-match").or_else(|| same_date("if-modified-since")) == Some(true) {
            return Answer::status(304)
                .header("etag", &object.etag)
                .header("last-modified", &object.last_modified);
        }
        let (size, range) = (object.body.len(), request.header("range"));
        let Some((first, last)) = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'))
        else {
            return of_object(Answer::status(200).header("accept-ranges", "bytes").body(object.body.clone()));
        };
        let (start, end) = match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(start), Ok(last)) => (start, last.saturating_add(1).min(size)),
            (Ok(start), Err(_)) => (start, size),
            (Err(_), Ok(suffix)) => (size.saturating_sub(suffix), size),
            (Err(_), Err(_)) => (size, size),
        };
        if start >= end {
            return Answer::s3_error(416, "InvalidRange").header("content-range", &format!("bytes */{size}"));
        }
        let range = format!("bytes {start}-{}/{size}", end - 1);
        of_object(Answer::status(206).header("content-range", &range).body(&object.body[start..end]))
    }
}

impl Script for CorrectGateway {
    fn answer(&self, request: &SeenRequest) -> Answer {
        let access = (self.rule)(request);
        let path = request.path().to_owned();
        let object = lock(&self.objects).get(&path).cloned();
        let is_public = object.as_ref().is_some_and(|object| object.is_public);
        match (access, request.method.as_str(), object) {
            (Access::Refused, ..) => Answer::s3_error(403, "SignatureDoesNotMatch"),
            (Access::Anonymous, ..) if !is_public => Answer::s3_error(403, "AccessDenied"),
            (_, "GET" | "HEAD", Some(object)) => self.read(request, &object),
            (_, "GET" | "HEAD", None) => Answer::s3_error(404, "NoSuchKey"),
            (_, "PUT", _) => {
                let object = StoredObject::new(request.body.clone());
                let etag = object.etag.clone();
                self.put(&path, object);
                Answer::status(200).header("etag", &etag)
            }
            (_, "DELETE", _) => {
                self.remove(&path);
                Answer::status(204)
            }
            _ => Answer::s3_error(405, "MethodNotAllowed"),
        }
    }
}

impl std::fmt::Debug for CorrectGateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CorrectGateway").field("objects", &lock(&self.objects)).finish_non_exhaustive()
    }
}

fn default_rule(request: &SeenRequest) -> Access {
    let of_header = request.header("authorization").map(|text| {
        let after = |mark: &str| text.split_once(mark).map(|(_, value)| value);
        after("Signature=").or_else(|| after(":")).unwrap_or_default()
    });
    let signature =
        of_header.or_else(|| request.query("x-amz-signature")).or_else(|| request.query("signature"));
    match signature {
        None => Access::Anonymous,
        Some(value) if value.starts_with('0') => Access::Signed,
        Some(_) => Access::Refused,
    }
}
