//! The head of a client's request: what travels to the gateway, or to a peer.

use hyper::{
    HeaderMap, Method, Request, Uri,
    body::Body as _,
    header::{self, HeaderValue},
    http::{Extensions, request::Parts, uri::PathAndQuery},
};

use super::Body;
use crate::{config::Origin, s3::headers};

/// A request's head, free of what belonged to the client's connection and of what only LOTA may say.
#[derive(Clone, Debug)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// Path and query, byte for byte as the client sent (and signed) them.
    pub target: PathAndQuery,
    /// The host the client addressed, as sent and signed, port included.
    pub host: String,
    /// All end-to-end headers, `Host` included.
    pub headers: HeaderMap,
    /// Does a body of unknown length follow?
    pub chunked: bool,
    /// The case the client spelt header names in.
    extensions: Extensions,
}

impl Head {
    /// The head of a request as it came in.
    ///
    /// # Errors
    /// Says what is wrong with it, for the client.
    pub fn of(parts: Parts) -> Result<Self, &'static str> {
        let Parts { method, uri, mut headers, extensions, .. } = parts;
        let absolute = uri.authority().map(|authority| authority.as_str().to_owned());
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (Some(_), Some(_)) => return Err("The request has more than one Host header"),
            (Some(host), None) => Some(host.to_str().map_err(|_| "The Host header is not ASCII")?.to_owned()),
            (None, _) => None,
        };
        let host = match (host, absolute) {
            (Some(host), Some(target)) if !host.eq_ignore_ascii_case(&target) => {
                return Err("The request target and the Host header name different hosts");
            }
            (Some(host), _) => host,
            (None, Some(target)) => target,
            (None, None) => return Err("The request has no Host header"),
        };
        let target = uri.into_parts().path_and_query.ok_or("The request has no target")?;
        let chunked = headers.contains_key(header::TRANSFER_ENCODING);
        headers::keep_end_to_end(&mut headers);
        headers
            .insert(header::HOST, HeaderValue::from_str(&host).map_err(|_| "The Host header is malformed")?);
        Ok(Self { method, target, host, headers, chunked, extensions })
    }

    /// This request, for the server at `origin`; its `Host` stays the client's.
    ///
    /// # Errors
    /// If origin and target do not make a URL, which parsed ones always do.
    pub fn request(&self, origin: &Origin, body: Body) -> Result<Request<Body>, hyper::http::Error> {
        let uri = Uri::builder()
            .scheme(origin.scheme())
            .authority(origin.authority.clone())
            .path_and_query(self.target.clone())
            .build()?;
        let body_is_empty = body.is_end_stream();
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        if self.chunked && !body_is_empty {
            // hyper would leave out a GET's body of unknown length.
            request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        *request.extensions_mut() = self.extensions.clone();
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::empty;

    fn head(target: &str, headers: &[(&str, &str)]) -> Result<Head, &'static str> {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Head::of(request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn raw_path_and_host_survive() {
        let head =
            head("/b/..//%2F+%20?x=%2f", &[("host", "B.cwlota.com:80"), ("lota-node", "evil")]).unwrap();
        let origin = Origin::parse("http://10.0.0.1:9000").unwrap();
        let request = head.request(&origin, empty()).unwrap();
        assert_eq!(request.uri(), "http://10.0.0.1:9000/b/..//%2F+%20?x=%2f");
        assert_eq!(request.headers()["host"], "B.cwlota.com:80");
        assert!(!request.headers().contains_key("lota-node"));
    }

    #[test]
    fn absolute_targets_must_agree_with_the_host() {
        let absolute = "http://b.cwlota.com/k";
        assert_eq!(head(absolute, &[("host", "b.cwlota.com")]).unwrap().target, "/k");
        assert_eq!(head(absolute, &[]).unwrap().host, "b.cwlota.com");
        assert!(head(absolute, &[("host", "c.cwlota.com")]).is_err());
        assert!(head("/k", &[]).is_err());
        assert!(head("/k", &[("host", "a"), ("host", "a")]).is_err());
    }
}
