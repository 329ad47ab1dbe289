//! Direct paths: URLs of object data, from gateways that speak the LOTA protocol.

use std::fmt;

use hyper::{HeaderMap, Response, StatusCode, Uri, header};
use lota_s3::{MAX_SIZE, ObjectMeta, ObjectName, Origin};

use crate::process::log_limit::LogLimit;

/// A URL that carries its own authority (a presigned one, say): a secret, so it never shows in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct DirectPath(Uri);

impl DirectPath {
    /// Returns the URL, for the code that follows it.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.0
    }
}

impl fmt::Debug for DirectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirectPath({}/…)", self.0.host().unwrap_or_default())
    }
}

/// Parses a direct path from a response. Returns `None` for any other response, and for a target that the
/// configuration does not allow.
pub(super) fn parse<B>(
    name: &ObjectName,
    request: &HeaderMap,
    answer: &Response<B>,
    allowed: &[Origin],
) -> Option<(ObjectMeta, DirectPath)> {
    if answer.status() != StatusCode::TEMPORARY_REDIRECT {
        return None;
    }
    let headers = answer.headers();
    let size =
        headers.get("lota-object-size")?.to_str().ok()?.parse().ok().filter(|size| *size <= MAX_SIZE)?;
    let location: Uri = headers.get(header::LOCATION)?.to_str().ok()?.parse().ok()?;
    let origin = Origin::of(&location)?;
    if !allowed.contains(&origin) {
        static LINES: LogLimit = LogLimit::every_ten_seconds();
        if let Some(left_out) = LINES.admit() {
            tracing::warn!(%origin, left_out, "ignored a direct path outside gateway.direct_allow");
        }
        return None;
    }
    let meta = ObjectMeta::of_description(name, request, size, headers);
    let meta = meta.inspect_err(|reason| {
        static LINES: LogLimit = LogLimit::every_ten_seconds();
        if let Some(left_out) = LINES.admit() {
            tracing::warn!(%origin, %reason, left_out, "direct path ignored: its object cannot be stored");
        }
    });
    Some((meta.ok()?, DirectPath(location)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&str, &str)]) -> Option<(ObjectMeta, DirectPath)> {
        let mut answer = Response::builder().status(status);
        for (name, value) in headers {
            answer = answer.header(*name, *value);
        }
        let name = ObjectName::from_parts("http://gateway", "b", "k", None).unwrap();
        let allowed = [Origin::parse("http://10.0.0.1:9001").unwrap()];
        parse(&name, &HeaderMap::new(), &answer.body(()).unwrap(), &allowed)
    }

    const WHOLE: [(&str, &str); 4] = [
        ("location", "http://10.0.0.1:9001/b/k?X-Amz-Signature=secret"),
        ("etag", "\"e\""),
        ("lota-object-size", "9"),
        ("content-type", "text/plain"),
    ];

    #[test]
    fn a_direct_path_describes_the_object() {
        let (meta, path) = answer(307, &WHOLE).unwrap();
        assert_eq!((meta.size, &meta.headers["content-type"]), (9, &"text/plain".parse().unwrap()));
        assert!(!meta.headers.contains_key("location"));
        assert!(!format!("{path:?}").contains("secret"));
    }

    #[test]
    fn other_redirects_grant_nothing() {
        assert!(answer(302, &WHOLE).is_none());
        for (missing, _) in &WHOLE[..3] {
            let rest: Vec<_> = WHOLE.iter().filter(|(name, _)| name != missing).copied().collect();
            assert!(answer(307, &rest).is_none(), "without {missing}");
        }
        for elsewhere in
            ["http://10.0.0.2:9001/b/k", "https://10.0.0.1:9001/b/k", "http://10.0.0.1/b/k", "/b/k"]
        {
            let mut headers = WHOLE;
            headers[0].1 = elsewhere;
            assert!(answer(307, &headers).is_none(), "{elsewhere}");
        }
    }
}
