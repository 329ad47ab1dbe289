//! Decodes verified requests of peers.

use std::net::IpAddr;

use hyper::{Method, header, http::request::Parts};
use lota_s3::{ByteRange, Endpoints, GatewayId, GetObject, NormalEtag, Operation};

use super::{
    headers::{self, BodyDigest, GetScope, PeerMethod},
    raw,
};
use crate::http::RequestHead;

/// A client's request that a peer forwards, with all that its handler needs.
#[derive(Debug)]
pub enum PeerRequest {
    /// Asks for `range` of an object, or of a stripe of it, for the cache of the peer.
    Part {
        /// The client's request, which authorizes the bytes.
        head: RequestHead,
        /// Object of the client's request.
        object: GetObject,
        /// Bytes to send.
        range: ByteRange,
        /// Stripe that they belong to, if any.
        scope: GetScope,
    },
    /// Asks for the response to a client's GET of an object.
    Get {
        /// The client's request.
        head: RequestHead,
        /// Object and range of the client's request.
        object: GetObject,
        /// Number of bytes that the client already has.
        skip: u64,
        /// Part of the response.
        scope: GetScope,
    },
    /// Asks to fetch an object into the cache because a client has written it.
    Written {
        /// A request that names the object.
        head: RequestHead,
        /// The object.
        object: GetObject,
        /// ETag that the gateway has stated for the written object, if any.
        etag: Option<NormalEtag>,
    },
    /// Asks to keep the body of the request, a client's upload, as the object.
    Keep {
        /// A request that names the object.
        head: RequestHead,
        /// The object.
        object: GetObject,
        /// Size of the upload in bytes.
        size: u64,
    },
    /// Asks for the response to a request that this node, unlike its peer, does not take for a GET of an object. The
    /// peer has another version or other endpoints.
    Pass {
        /// The client's request.
        head: RequestHead,
        /// Number of bytes that the client already has.
        skip: u64,
    },
}

/// A verified request of a peer.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "short-lived, and almost always the large one")]
pub enum PeerCall {
    /// Asks for a sign of life.
    Ping,
    /// Sends the pins of the cluster in a body with this digest.
    Pins(BodyDigest),
    /// Forwards a client's request.
    Forward(ForwardedCall),
}

/// A client's request that a peer forwards, with the fields that every kind of request has.
#[derive(Debug)]
pub struct ForwardedCall {
    /// Address of the pod whose request it is; `None` if the peer does not state it.
    pub pod: Option<IpAddr>,
    /// Gateway that the peer has configured for the request's host; `None` if it does not state it.
    pub gateway: Option<GatewayId>,
    /// Path of the request, for error messages.
    pub path: String,
    /// Whether the peer accepts a long body over an upgraded connection.
    pub accepts_raw: bool,
    /// The request, or a message for the client that describes the error.
    pub request: Result<PeerRequest, &'static str>,
}

impl PeerRequest {
    fn part(range: ByteRange, scope: GetScope, head: RequestHead, operation: Operation) -> Self {
        match operation {
            Operation::Get(object) => Self::Part { head, object, range, scope },
            Operation::Pass(_) => Self::Pass { head, skip: 0 },
        }
    }

    fn written(etag: Option<NormalEtag>, head: RequestHead, operation: Operation) -> Self {
        match operation {
            Operation::Get(object) => Self::Written { head, object, etag },
            Operation::Pass(_) => Self::Pass { head, skip: 0 },
        }
    }

    fn keep(size: u64, head: RequestHead, operation: Operation) -> Self {
        match operation {
            Operation::Get(object) => Self::Keep { head, object, size },
            Operation::Pass(_) => Self::Pass { head, skip: 0 },
        }
    }

    fn get(skip: u64, scope: GetScope, head: RequestHead, operation: Operation) -> Self {
        match operation {
            Operation::Get(object) => Self::Get { head, object, skip, scope },
            Operation::Pass(_) => Self::Pass { head, skip },
        }
    }

    /// Returns the client's request.
    #[must_use]
    pub fn head(&self) -> &RequestHead {
        match self {
            Self::Part { head, .. }
            | Self::Get { head, .. }
            | Self::Written { head, .. }
            | Self::Keep { head, .. }
            | Self::Pass { head, .. } => head,
        }
    }

    /// Returns how many bytes the response must leave out.
    #[must_use]
    pub fn skip(&self) -> u64 {
        match self {
            Self::Part { .. } | Self::Written { .. } | Self::Keep { .. } => 0,
            Self::Get { skip, .. } | Self::Pass { skip, .. } => *skip,
        }
    }
}

impl PeerCall {
    /// Decodes the head of a verified request to a node with these endpoints. Returns `None` if the peer's own headers
    /// are malformed.
    #[must_use]
    pub fn decode(mut parts: Parts, endpoints: &Endpoints) -> Option<Self> {
        Some(match PeerMethod::of(&parts.headers)? {
            PeerMethod::Ping => Self::Ping,
            PeerMethod::Pins(digest) => Self::Pins(digest),
            PeerMethod::Part(range, scope) => {
                Self::Forward(ForwardedCall::decode(parts, endpoints, |head, operation| {
                    PeerRequest::part(range, scope, head, operation)
                }))
            }
            PeerMethod::Written(etag) => {
                Self::Forward(ForwardedCall::decode(parts, endpoints, |head, operation| {
                    PeerRequest::written(etag, head, operation)
                }))
            }
            PeerMethod::Keep { size, gateway } => {
                // The request names an object as one without a body does.
                parts.headers.remove(header::TRANSFER_ENCODING);
                let call = ForwardedCall::decode(parts, endpoints, |head, operation| {
                    PeerRequest::keep(size, head, operation)
                });
                Self::Forward(ForwardedCall { gateway: Some(gateway), ..call })
            }
            PeerMethod::Get { skip, scope } => {
                Self::Forward(ForwardedCall::decode(parts, endpoints, |head, operation| {
                    PeerRequest::get(skip, scope, head, operation)
                }))
            }
        })
    }
}

impl ForwardedCall {
    fn decode(
        parts: Parts,
        endpoints: &Endpoints,
        request: impl FnOnce(RequestHead, Operation) -> PeerRequest,
    ) -> Self {
        Self {
            pod: headers::client(&parts.headers),
            gateway: headers::gateway(&parts.headers),
            path: parts.uri.path().to_owned(),
            accepts_raw: parts.method == Method::GET && raw::is_accepted(&parts.headers),
            request: RequestHead::of(parts).map(|mut head| {
                let endpoint = endpoints.find(&head.host);
                head.gateway = endpoint.map(|endpoint| endpoint.gateway.clone());
                let operation = match endpoint {
                    Some(endpoint) => head.operation(endpoint),
                    None => Operation::Pass("unknown-host"),
                };
                request(head, operation)
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::{Request, http::request::Builder};
    use lota_s3::{Endpoint, ObjectName, Zone};

    use super::*;

    fn decode_any(request: Builder) -> Option<PeerCall> {
        let endpoint = Endpoint::of_zone(Zone::parse("cwlota.com").unwrap(), "http://gateway".into());
        PeerCall::decode(request.body(()).unwrap().into_parts().0, &[endpoint].into_iter().collect())
    }

    fn decode(request: Builder) -> Option<ForwardedCall> {
        match decode_any(request)? {
            PeerCall::Forward(call) => Some(call),
            other => panic!("{other:?}"),
        }
    }

    fn get(path: &str) -> Builder {
        Request::builder().uri(path).header("host", "b.cwlota.com").header("lota-client", "10.0.0.9")
    }

    #[test]
    fn each_kind_of_request_is_decoded() {
        let call = decode(get("/k")).unwrap();
        assert_eq!(call.pod, Some("10.0.0.9".parse().unwrap()));
        assert_eq!((call.path.as_str(), call.accepts_raw), ("/k", false));
        let name = ObjectName::from_parts("http://gateway", "b", "k", None).unwrap();
        let Ok(PeerRequest::Get { head, object, skip: 0, scope: GetScope::Whole }) = call.request else {
            panic!("{call:?}")
        };
        assert_eq!((head.host.as_str(), &object.name), ("b.cwlota.com", &name));
        assert!(!head.headers.contains_key("lota-client"));
        assert_eq!(head.gateway, Some("http://gateway".into()));
        let other = decode(get("/k").header("lota-gateway", "http://other")).unwrap();
        assert_eq!(other.gateway, Some("http://other".into()));

        let rest = decode(get("/k").header("lota-skip", "7")).unwrap().request.unwrap();
        assert!(matches!(rest, PeerRequest::Get { skip: 7, .. }), "{rest:?}");
        assert_eq!(rest.skip(), 7);

        let stripe = decode(get("/k").header("lota-stripe", "2/1048576")).unwrap().request.unwrap();
        let PeerRequest::Get { scope, .. } = stripe else { panic!("{stripe:?}") };
        assert_eq!(scope.stripe().map(|stripe| stripe.range(3 << 20).start), Some(2 << 20));

        let part = decode(get("/k").header("lota-part", "bytes=2-5")).unwrap().request.unwrap();
        let range = ByteRange { start: 2, end: 6 };
        assert!(matches!(part, PeerRequest::Part { range: of, .. } if of == range), "{part:?}");

        let written = get("/k").method("HEAD").header("range", "bytes=0-0").header("lota-written", "e-2");
        let written = decode(written).unwrap().request.unwrap();
        let etag = NormalEtag::parse("\"E-2\"");
        assert!(
            matches!(&written, PeerRequest::Written { object, etag: of, .. } if object.name == name && *of == etag),
            "{written:?}"
        );

        let keep =
            get("/k").method("HEAD").header("range", "bytes=0-0").header("transfer-encoding", "chunked");
        let keep = decode(keep.header("lota-keep", "7 http://gateway")).unwrap();
        assert_eq!(keep.gateway, Some("http://gateway".into()));
        let keep = keep.request.unwrap();
        assert!(
            matches!(&keep, PeerRequest::Keep { object, size: 7, .. } if object.name == name),
            "{keep:?}"
        );

        let ping = decode_any(Request::builder().uri("/").header("lota-ping", "1")).unwrap();
        assert!(matches!(ping, PeerCall::Ping), "a ping needs no Host");

        let digest = BodyDigest::compute(b"pins");
        let mut pins = Request::builder().method("POST").uri("/");
        digest.write(pins.headers_mut().unwrap());
        assert!(matches!(decode_any(pins), Some(PeerCall::Pins(of)) if of == digest));
    }

    #[test]
    fn requests_that_are_no_gets_of_objects_pass() {
        let bucket = decode(get("/?list-type=2").header("lota-skip", "7")).unwrap().request.unwrap();
        assert!(matches!(bucket, PeerRequest::Pass { skip: 7, .. }), "{bucket:?}");
        let part = decode(get("/?list-type=2").header("lota-part", "bytes=2-5")).unwrap().request.unwrap();
        assert!(matches!(part, PeerRequest::Pass { skip: 0, .. }), "{part:?}");
    }

    #[test]
    fn only_gets_may_come_over_an_upgraded_connection() {
        let upgrade = |method| get("/k").method(method).header("upgrade", "lota-bytes");
        assert!(decode(upgrade("GET")).unwrap().accepts_raw);
        assert!(!decode(upgrade("HEAD")).unwrap().accepts_raw);
    }

    #[test]
    fn malformed_requests_are_told_from_malformed_peers() {
        assert!(decode(Request::builder().uri("/k")).unwrap().request.is_err(), "no Host");
        assert!(decode(get("/k").header("lota-part", "bytes=-5")).is_none());
        assert!(decode(get("/k").header("lota-written", "W/\"weak\"")).is_none());
        for keep in ["", "7", "-1 http://gateway", "http://gateway 7"] {
            assert!(decode(get("/k").header("lota-keep", keep)).is_none(), "{keep}");
        }
        assert!(decode(get("/k").header("lota-pins", "00")).is_none());
    }
}
