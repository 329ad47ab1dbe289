//! Request line and headers of a client's request, as forwarded to the gateway or a peer.

use std::net::{IpAddr, Ipv6Addr};

use hyper::{
    HeaderMap, Method, Request, Uri,
    body::Body as _,
    header::{self, HeaderValue},
    http::{Extensions, request::Parts, uri::PathAndQuery},
};
use lota_s3::{Endpoint, GatewayId, Operation, Origin, WriteObject, headers};

use super::Body;

const UNKNOWN_POD: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Request line and headers, without hop-by-hop headers and without headers that only LOTA may set.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// Path and query, byte for byte as the client sent (and signed) them.
    pub target: PathAndQuery,
    /// The host, including the port, byte for byte as the client sent (and signed) it.
    pub host: String,
    /// All end-to-end headers, `Host` included.
    pub headers: HeaderMap,
    /// Whether a body of unknown length follows.
    pub chunked: bool,
    /// Address of the pod that sent the request; unspecified if unknown.
    pub pod: IpAddr,
    /// Gateway of the host, which other nodes must agree with; `None` until the host is looked up.
    pub gateway: Option<GatewayId>,
    /// hyper's record of the case of header names.
    extensions: Extensions,
}

impl RequestHead {
    /// Validates the target and `Host` of a received request, and removes hop-by-hop headers.
    ///
    /// # Errors
    /// A message for the client.
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
        headers::keep_of_request(&mut headers);
        headers
            .insert(header::HOST, HeaderValue::from_str(&host).map_err(|_| "The Host header is malformed")?);
        Ok(Self { method, target, host, headers, chunked, pod: UNKNOWN_POD, gateway: None, extensions })
    }

    /// Classifies the request as an operation of S3 on the endpoint of its host.
    #[must_use]
    pub fn operation(&self, endpoint: &Endpoint) -> Operation {
        Operation::classify(endpoint, &self.method, &self.host, &self.target, &self.headers, self.chunked)
    }

    /// Classifies the request as a write of a whole object on the endpoint of its host; `None` if it is none.
    #[must_use]
    pub fn write(&self, endpoint: &Endpoint) -> Option<WriteObject> {
        WriteObject::classify(endpoint, &self.method, &self.host, &self.target, &self.headers)
    }

    /// Returns this request for the server at `origin`, with the client's `Host`.
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
            // Without this header, hyper would omit the body of a `GET`.
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

    fn head(target: &str, headers: &[(&str, &str)]) -> Result<RequestHead, &'static str> {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        RequestHead::of(request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn raw_path_and_host_survive() {
        let spoofed = [
            ("lota-node", "evil"),
            ("x-forwarded-for", "10.0.0.1"),
            ("forwarded", "for=10.0.0.1"),
            ("x_forwarded_for", "10.0.0.1"),
        ];
        let headers: Vec<_> = [("host", "B.cwlota.com:80")].into_iter().chain(spoofed).collect();
        let head = head("/b/..//%2F+%20?x=%2f", &headers).unwrap();
        let origin = Origin::parse("http://10.0.0.1:9000").unwrap();
        let request = head.request(&origin, empty()).unwrap();
        assert_eq!(request.uri(), "http://10.0.0.1:9000/b/..//%2F+%20?x=%2f");
        assert_eq!(request.headers()["host"], "B.cwlota.com:80");
        assert_eq!(request.headers().len(), 1, "{:?}", request.headers());
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
