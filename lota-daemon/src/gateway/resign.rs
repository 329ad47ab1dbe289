//! Signing anew, for a gateway on a fixed host name.
//!
//! Clients sign for the name they use, `cwlota.com`; a public cloud accepts only signatures over its own. So the
//! client's signature is checked here, and the request signed for the gateway with the credential that stands for this
//! client's access key. Nothing is signed that was not checked: a [`Checked`] request can be made in no other way.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_sigv4::http_request::SignableBody;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Request,
    body::Frame,
    header::{self, HeaderName, HeaderValue},
};
use subtle::ConstantTimeEq as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

use crate::{
    config::{self, Client, ConfigError, Origin, Style},
    http::{Body, BodyError, Head},
    s3::{
        Bucket, S3Error, Zone,
        chunks::{Chain, Chains, Chunks},
        sign::{Signer, canonical_path},
        signature::{Payload, Signature, rest_of_query},
    },
};

/// Memory is counted in pieces of so many bytes.
const PIECE: u64 = 1 << 10;
/// Longest that a chunk's memory waits for the rest of it.
const CHUNK_PATIENCE: Duration = Duration::from_secs(60);
/// What belongs to the client's signature; what it says of the body is said again.
const OF_THE_SIGNATURE: [HeaderName; 3] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-amz-date"),
    HeaderName::from_static("x-amz-security-token"),
];

/// Checks clients' signatures, and signs for the gateway.
pub(super) struct Resign {
    zone: Zone,
    gateway: Origin,
    style: Style,
    region: String,
    clients: HashMap<String, Client>,
    /// For chunks that are held until their signature is checked.
    memory: Arc<Semaphore>,
}

/// A request whose signature is the client's, and good.
struct Checked<'a> {
    client: &'a Client,
    signature: Signature,
    chain: Chain,
}

impl Resign {
    /// For this gateway; `memory` bytes for what must be held.
    ///
    /// # Errors
    /// [`ConfigError`] if the clients' credentials cannot be read.
    pub(super) fn new(
        config: &config::Resign,
        gateway: &Origin,
        zone: &Zone,
        memory: u64,
    ) -> Result<Self, ConfigError> {
        let pieces = usize::try_from(memory / PIECE).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Ok(Self {
            zone: zone.clone(),
            gateway: gateway.clone(),
            style: config.style,
            region: config.region.clone(),
            clients: config.clients()?,
            memory: Arc::new(Semaphore::new(pieces)),
        })
    }

    /// The client's request, for the gateway: signed anew, or anonymous as it was.
    pub(super) fn request(&self, head: &Head, body: Body) -> Result<Request<Body>, S3Error> {
        let malformed =
            |error: String| S3Error::invalid_request(format!("The request cannot be forwarded: {error}"));
        let checked = self.check(head, SystemTime::now())?;
        let mut anew = self.addressed(head)?;
        let origin = self.origin_of(&anew)?;
        let Some(Checked { client, signature, chain }) = checked else {
            return anew.request(&origin, body).map_err(|error| malformed(error.to_string()));
        };
        for name in &OF_THE_SIGNATURE {
            anew.headers.remove(name);
        }
        let mut request = anew.request(&origin, body).map_err(|error| malformed(error.to_string()))?;
        let signer = Signer::new(&client.at_gateway(), &self.region);
        let payload = SignableBody::Precomputed(signature.payload.as_str().to_owned());
        let ours = signer.sign(&mut request, payload, signature.is_presigned()).map_err(malformed)?;
        if let Payload::Chunks { signed, trailers } = signature.payload {
            let chains = signed.then_some(Chains { client: chain, ours });
            let chunks = Chunks::new(&head.headers, chains, trailers)?;
            let body = std::mem::take(request.body_mut());
            *request.body_mut() = rechunked(body, chunks, self.memory.clone());
        }
        Ok(request)
    }

    /// Checks the client's signature; `None` if there is none.
    fn check(&self, head: &Head, now: SystemTime) -> Result<Option<Checked<'_>>, S3Error> {
        let Some(signature) = Signature::of(&head.target, &head.headers)? else { return Ok(None) };
        let client = self.clients.get(&signature.access_key).ok_or_else(S3Error::unknown_access_key)?;
        let mut headers = Cow::Borrowed(&head.headers);
        if head.chunked {
            // Some clients sign it, though it belongs to the connection.
            headers.to_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let chain = signature.verify(&client.secret_key, (&head.method, &head.target, &headers), now)?;
        let belongs = match (&client.session_token, &signature.session_token) {
            (Some(ours), Some(given)) => bool::from(ours.expose().as_bytes().ct_eq(given.as_bytes())),
            (None, None) => true,
            _ => false,
        };
        if !belongs {
            return Err(S3Error::invalid_token());
        }
        Ok(Some(Checked { client, signature, chain }))
    }

    /// The same request, addressed to the gateway.
    fn addressed(&self, head: &Head) -> Result<Head, S3Error> {
        let path = head.target.path();
        let unusable = || S3Error::invalid_request("The request names a bucket that cannot be one");
        // It goes into a host name, or from one into a path.
        let sound = |bucket: &str| if Bucket::is_sound(bucket) { Ok(()) } else { Err(unusable()) };
        let in_path = match self.zone.bucket_of(&head.host) {
            Some(bucket) => {
                sound(&bucket)?;
                format!("/{bucket}{path}")
            }
            // Under another name, an address perhaps, the bucket can only be in the path.
            None => path.to_owned(),
        };
        let (bucket, key) = in_path[1.min(in_path.len())..].split_once('/').unwrap_or((&in_path[1..], ""));
        let gateway = &self.gateway.authority;
        let (host, path) = if self.style == Style::VirtualHost && Bucket::is_label(bucket) {
            (format!("{bucket}.{gateway}"), format!("/{key}"))
        } else {
            (gateway.to_string(), in_path.clone())
        };
        let mut target = canonical_path(&path);
        if let Some(query) = head.target.query().map(rest_of_query).filter(|query| !query.is_empty()) {
            target = format!("{target}?{query}");
        }
        let mut anew = head.clone();
        anew.target = target.parse().map_err(|_| unusable())?;
        anew.headers.insert(header::HOST, HeaderValue::from_str(&host).map_err(|_| unusable())?);
        anew.host = host;
        Ok(anew)
    }

    fn origin_of(&self, head: &Head) -> Result<Origin, S3Error> {
        let authority = head.host.parse::<hyper::http::uri::Authority>();
        let authority = authority.map_err(|_| S3Error::invalid_request("The request names no server"))?;
        Ok(Origin { tls: self.gateway.tls, authority })
    }
}

impl fmt::Debug for Resign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resign").field("clients", &self.clients.len()).finish_non_exhaustive()
    }
}

/// A body in chunks, checked and signed anew as it goes by.
fn rechunked(body: Body, chunks: Chunks, memory: Arc<Semaphore>) -> Body {
    let state = Rechunked { body, chunks, memory, held: None, input: BytesMut::new() };
    let frames = stream::try_unfold(state, async |mut state| {
        // What was held went on with the piece before.
        if state.chunks.gathers() == 0 {
            state.held = None;
        }
        let next = state.next().await?;
        Ok(next.map(|bytes| (Frame::data(bytes), state)))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn too_slow() -> BodyError {
    let seconds = CHUNK_PATIENCE.as_secs();
    BodyError::new(S3Error::request_timeout(format!("A signed chunk took more than {seconds} s to arrive")))
}

struct Rechunked {
    body: Body,
    chunks: Chunks,
    memory: Arc<Semaphore>,
    held: Option<Held>,
    input: BytesMut,
}

/// Memory for a chunk that is gathered, and until when it has to be.
struct Held {
    _memory: OwnedSemaphorePermit,
    until: Instant,
}

impl Rechunked {
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            if let Some(output) = self.chunks.next(&mut self.input).map_err(BodyError::new)? {
                return Ok(Some(output));
            }
            self.hold().map_err(BodyError::new)?;
            let frame = match &self.held {
                Some(held) => timeout_at(held.until, self.body.frame()).await.map_err(|_| too_slow())?,
                // The connection has its own clock.
                None => self.body.frame().await,
            };
            match frame.transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => self.input.extend_from_slice(&data),
                Some(Err(_)) => {}
                None if self.chunks.is_done() => return Ok(None),
                None => {
                    return Err(BodyError::new(S3Error::incomplete_body(
                        "The body ended before its last chunk",
                    )));
                }
            }
        }
    }

    /// Takes the memory for a chunk that is to be gathered, unless it has.
    fn hold(&mut self) -> Result<(), S3Error> {
        let gathers = self.chunks.gathers();
        if self.held.is_none() && gathers > 0 {
            let pieces = u32::try_from(gathers.div_ceil(PIECE)).unwrap_or(u32::MAX);
            let memory = self.memory.clone().try_acquire_many_owned(pieces).map_err(|_| {
                S3Error::slow_down(
                    "This node holds as much of uploads as limits.body_memory allows; try again",
                )
            })?;
            self.held = Some(Held { _memory: memory, until: Instant::now() + CHUNK_PATIENCE });
            self.input.reserve(usize::try_from(gathers).unwrap_or_default().saturating_sub(self.input.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "resign_tests.rs"]
mod tests;
