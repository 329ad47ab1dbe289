//! Signing anew, for a gateway on a fixed host name.
//!
//! Clients sign for the name they use, `cwlota.com`; a public cloud accepts only signatures over its own. So the
//! client's signature is checked here, and the request signed for the gateway with the credential that stands for this
//! client's access key. Nothing is signed that was not checked: a [`Checked`] request can be made in no other way.

use std::{borrow::Cow, collections::HashMap, fmt, time::SystemTime};

use aws_sigv4::http_request::SignableBody;
use hyper::{
    Request,
    header::{self, HeaderName, HeaderValue},
};
use subtle::ConstantTimeEq as _;

use super::rechunked::{Memory, rechunked};
use crate::{
    config::{self, Client, ConfigError, Origin, Style},
    http::{Body, Head},
    s3::{
        Bucket, S3Error, Zone,
        chunks::{Chain, Chains, Chunks},
        sign::{Signer, canonical_path},
        signature::{Payload, Signature, rest_of_query},
    },
};

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
    memory: Memory,
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
        Ok(Self {
            zone: zone.clone(),
            gateway: gateway.clone(),
            style: config.style,
            region: config.region.clone(),
            clients: config.clients()?,
            memory: Memory::new(memory),
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
        let path = match self.zone.bucket_of(&head.host) {
            Some(bucket) if Bucket::is_sound(&bucket) => format!("/{bucket}{path}"),
            Some(_) => return Err(unusable()),
            // Under another name, an address perhaps, the bucket can only be in the path.
            None => path.to_owned(),
        };
        let names = path.strip_prefix('/').unwrap_or_default();
        let (bucket, key) = names.split_once('/').unwrap_or((names, ""));
        let gateway = &self.gateway.authority;
        let (host, mut target) = if self.style == Style::VirtualHost && Bucket::is_label(bucket) {
            (format!("{bucket}.{gateway}"), canonical_path(&format!("/{key}")))
        } else {
            (gateway.to_string(), canonical_path(&path))
        };
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

#[cfg(test)]
#[path = "resign_tests.rs"]
mod tests;
