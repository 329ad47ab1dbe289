//! Exchange of the pins of the cluster: a node sends all that it knows, and receives the result of the merge.

use std::{
    error::Error,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    HeaderMap, Method, Request,
    body::Body as HttpBody,
    header::{self, HeaderValue},
};
use tokio::time::timeout;

use super::{
    PeerError, Peers,
    headers::{BodyDigest, PeerHints},
};
use crate::{
    cluster::pins::{MAX_ENCODED, PinState},
    http::{full, upstream::is_lost},
};
use lota_cache::placement::NodeName;
use lota_s3::Origin;

/// Timeout for an exchange.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Encodes pins, and adds the headers of a message with them.
pub fn write_pins(pins: &PinState, headers: &mut HeaderMap) -> Bytes {
    let body = Bytes::from(pins.encode());
    BodyDigest::compute(&body).write(headers);
    // hyper would add the length after the MAC is computed over the headers.
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    body
}

/// Reads pins from the body of a verified message that states its digest.
///
/// # Errors
/// If the body is too long, does not arrive in time, has another digest, or is malformed.
pub async fn read_pins<B>(body: B, digest: BodyDigest) -> Result<PinState, String>
where
    B: HttpBody,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let body = timeout(EXCHANGE_TIMEOUT, Limited::new(body, MAX_ENCODED).collect()).await;
    let body = body.map_err(|_| "timeout".to_owned())?.map_err(|error| error.to_string())?.to_bytes();
    if BodyDigest::compute(&body) != digest {
        return Err("another digest".to_owned());
    }
    PinState::decode(&body).map_err(|error| error.to_string())
}

impl Peers {
    /// Sends pins to a peer, and returns the peer's after it has merged them.
    ///
    /// # Errors
    /// [`PeerError`]; [`PeerError::OtherVersion`] if the peer is alive, but does not know the message.
    pub async fn exchange_pins(&self, peer: &NodeName, pins: &PinState) -> Result<PinState, PeerError> {
        let origin = self.reachable(peer).await?;
        let exchanged = timeout(EXCHANGE_TIMEOUT, self.send_pins(peer, &origin, pins)).await;
        let exchanged = exchanged.unwrap_or_else(|_| Err(PeerError::NoAnswer("timeout".to_owned())));
        if let Err(error) = &exchanged {
            self.lose_after(peer, error).await;
        }
        exchanged
    }

    async fn send_pins(
        &self,
        peer: &NodeName,
        origin: &Origin,
        pins: &PinState,
    ) -> Result<PinState, PeerError> {
        let mut headers = HeaderMap::new();
        let body = write_pins(pins, &mut headers);
        if let Ok(host) = HeaderValue::from_str(origin.authority.as_str()) {
            headers.insert(header::HOST, host);
        }
        let request = |version| {
            let body = full(body.clone());
            let request = Request::builder().method(Method::POST).uri(format!("{origin}/")).body(body);
            let mut request = request.map_err(|error| PeerError::NoAnswer(error.to_string()))?;
            *request.headers_mut() = headers.clone();
            let nonce = self.wire.sign_request(peer, version, &mut request, SystemTime::now());
            let nonce = nonce.ok_or(PeerError::NoKey)?;
            Ok::<_, PeerError>((request, nonce))
        };
        let (message, mut nonce) = request(self.version_with(peer))?;
        let mut answer = self.upstream.get().send(message).await;
        if answer.as_ref().is_err_and(is_lost) {
            // As for reads: a second merge changes nothing.
            self.forget_version(peer);
            let (message, again) = request(self.wire.versions().oldest)?;
            (answer, nonce) = (self.upstream.get().send(message).await, again);
        }
        let answer = answer?;
        self.wire.verify_answer(&nonce, answer.status(), answer.headers())?;
        self.is_here(peer, origin, PeerHints::of(answer.headers()));
        let digest = BodyDigest::of(answer.headers()).ok_or(PeerError::OtherVersion)?;
        read_pins(answer.into_body(), digest).await.map_err(PeerError::NoAnswer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_body_of_the_digest_is_read() {
        let mut pins = PinState::default();
        pins.set("s3://b/k".parse().unwrap(), Some(7), SystemTime::now()).unwrap();
        let (mut headers, mut other) = (HeaderMap::new(), HeaderMap::new());
        let body = write_pins(&pins, &mut headers);
        let digest = BodyDigest::of(&headers).unwrap();
        assert_eq!(read_pins(full(body.clone()), digest).await, Ok(pins));
        let empty = write_pins(&PinState::default(), &mut other);
        assert_eq!(read_pins(full(empty), digest).await, Err("another digest".to_owned()));
        let padded = [&body[..], &[b' '; MAX_ENCODED]].concat();
        assert!(read_pins(full(padded.clone()), BodyDigest::compute(&padded)).await.is_err(), "too long");
        assert!(read_pins(full("{}"), BodyDigest::compute(b"{}")).await.is_err(), "malformed");
    }
}
