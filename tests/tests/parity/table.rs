//! The table of reads: operations × headers × signatures × sizes.

use anyhow::Result;
use hyper::Method;
use lota_tests::lab::{
    ADMIN, Credential, NOBODY,
    raw::{Request, Signing},
};

/// Sizes of the objects, in bytes.
pub(crate) const SIZES: [usize; 8] = [0, 1, 4095, 4096, 4097, (8 << 20) - 1, 8 << 20, (8 << 20) + 1];
/// Size for requests that are not sent for every size.
const USUAL: usize = 4096;

/// Headers of reads; `{etag}` and `{modified}` are replaced by those of the object.
const HEADERS: [&[(&str, &str)]; 22] = [
    &[],
    &[("range", "bytes=0-0")],
    &[("range", "bytes=1-99")],
    &[("range", "bytes=100-")],
    &[("range", "bytes=-10")],
    &[("range", "bytes=-0")],
    &[("range", "bytes=4095-4096")],
    &[("range", "bytes=99999999-")],
    &[("range", "bytes=5-2")],
    &[("range", "lines=1-2")],
    &[("range", "bytes=0-0,2-3")],
    &[("if-none-match", "{etag}")],
    &[("if-none-match", "\"other\"")],
    &[("if-none-match", "W/{etag}")],
    &[("if-match", "{etag}")],
    &[("if-match", "\"other\"")],
    &[("if-modified-since", "{modified}")],
    &[("if-unmodified-since", "Thu, 01 Jan 2026 00:00:00 GMT")],
    &[("if-match", "{etag}"), ("range", "bytes=0-9")],
    &[("if-range", "{etag}"), ("range", "bytes=0-9")],
    &[("if-range", "\"other\""), ("range", "bytes=0-9")],
    &[("x-amz-checksum-mode", "ENABLED")],
];

/// Number of entries of [`HEADERS`] that are sent for every size; the others are sent for [`USUAL`].
const ON_EVERY_SIZE: usize = 12;

/// Queries that change the response or select another operation.
const QUERIES: [&str; 15] = [
    "x-id=GetObject",
    "versionId=null",
    "versionId=3sL4kqtJlcpXroDTDmJ.rmSpXd3dIbrHY",
    "partNumber=1",
    "partNumber=2",
    "response-content-type=text%2Fcss",
    "response-cache-control=no-store&response-content-disposition=attachment%3B%20filename%3Dx",
    "response-content-type=a+b",
    "response-expires=Thu%2C%2001%20Jan%202026%2000%3A00%3A00%20GMT",
    "acl",
    "tagging",
    "attributes",
    "uploads",
    "unheard-of=1",
    "x-amz-meta-a=b",
];

/// A request for an object of its own.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) method: Method,
    pub(crate) size: usize,
    headers: &'static [(&'static str, &'static str)],
    query: &'static str,
    virtual_host: bool,
    signing: Signing,
    credential: Credential,
    /// Whether the object exists.
    pub(crate) exists: bool,
}

impl Row {
    fn new(size: usize) -> Self {
        Self {
            method: Method::GET,
            size,
            headers: &[],
            query: "",
            virtual_host: false,
            signing: Signing::Header,
            credential: ADMIN,
            exists: true,
        }
    }

    /// Returns a description.
    pub(crate) fn name(&self) -> String {
        let who = if self.credential == ADMIN { "" } else { " by another" };
        let host = if self.virtual_host { " at the bucket's host" } else { "" };
        format!(
            "{} {} bytes {:?} ?{} {:?}{who}{host}{}",
            self.method,
            self.size,
            self.headers,
            self.query,
            self.signing,
            if self.exists { "" } else { " (missing)" }
        )
    }

    /// Returns the request to a gateway for an object with this key, `ETag` and date.
    pub(crate) fn request(
        &self,
        name: &str,
        bucket: &str,
        key: &str,
        (etag, modified): (&str, &str),
    ) -> Result<Request> {
        let (host, mut target) = match self.virtual_host {
            true => (format!("{bucket}.{name}"), format!("/{key}")),
            false => (name.to_owned(), format!("/{bucket}/{key}")),
        };
        if !self.query.is_empty() {
            target = format!("{target}?{}", self.query);
        }
        let mut request = Request::new(self.method.clone(), &host, &target);
        for (name, value) in self.headers {
            request = request.header(name, &value.replace("{etag}", etag).replace("{modified}", modified));
        }
        request.sign(&self.credential, self.signing)
    }

    /// Returns whether LOTA can verify the signature itself.
    pub(crate) fn can_be_signed_anew(&self) -> bool {
        self.signing != Signing::PresignedV2
    }

    /// Returns whether a second read must be a hit.
    pub(crate) fn is_cacheable(&self) -> bool {
        let conditional =
            |(name, _): &(&str, &str)| matches!(*name, "if-none-match" | "if-modified-since" | "if-range");
        // Only the gateway answers ranges in other units, multiple ranges, empty and reversed ones: RGW returns the whole
        // object for `bytes=-0`, others 416.
        let is_foreign = |(name, value): &(&str, &str)| {
            let is_odd = value.contains(',') || matches!(*value, "bytes=5-2" | "bytes=-0");
            *name == "range" && (!value.starts_with("bytes=") || is_odd)
        };
        self.method == Method::GET
            && self.exists
            && self.size > 0
            && self.query.is_empty()
            && matches!(self.signing, Signing::Header | Signing::RangeUnsigned)
            && !self.headers.iter().any(|header| conditional(header) || is_foreign(header))
    }
}

/// Returns every row.
pub(crate) fn rows() -> Vec<Row> {
    let wrong = Credential { secret_key: "wrong".into(), ..ADMIN };
    let unknown = Credential { access_key: "NOSUCHKEY00000000000".into(), ..ADMIN };
    let mut rows = Vec::new();
    for size in SIZES {
        let headers = if size == USUAL { &HEADERS[..] } else { &HEADERS[..ON_EVERY_SIZE] };
        rows.extend(headers.iter().map(|headers| Row { headers, ..Row::new(size) }));
    }
    for headers in HEADERS {
        let usual = Row { headers, ..Row::new(USUAL) };
        rows.push(Row { method: Method::HEAD, ..usual.clone() });
        rows.push(Row { virtual_host: true, ..usual.clone() });
        rows.push(Row { signing: Signing::RangeUnsigned, ..usual.clone() });
        rows.push(Row { signing: Signing::Anonymous, ..usual.clone() });
        rows.push(Row { credential: NOBODY, ..usual.clone() });
        // A presigned request with unsigned `x-amz-*` headers is refused.
        if headers.iter().all(|(name, _)| !name.starts_with("x-amz-")) {
            rows.push(Row { signing: Signing::Presigned, ..usual.clone() });
            rows.push(Row { signing: Signing::PresignedV2, ..usual });
        }
    }
    for query in QUERIES {
        rows.push(Row { query, ..Row::new(USUAL) });
        rows.push(Row { query, signing: Signing::Presigned, ..Row::new(USUAL) });
        rows.push(Row { query, signing: Signing::Anonymous, ..Row::new(USUAL) });
        rows.push(Row { query, method: Method::HEAD, ..Row::new(USUAL) });
    }
    for credential in [wrong, unknown] {
        for signing in [Signing::Header, Signing::Presigned, Signing::PresignedV2] {
            rows.push(Row { credential: credential.clone(), signing, ..Row::new(USUAL) });
        }
    }
    for signing in [Signing::Header, Signing::Presigned, Signing::PresignedV2, Signing::Anonymous] {
        rows.push(Row { exists: false, signing, ..Row::new(USUAL) });
        rows.push(Row { exists: false, signing, method: Method::HEAD, ..Row::new(USUAL) });
    }
    rows
}
