//! Re-signing of requests for a gateway on a fixed host name.
//!
//! Clients sign for the host name that they use, `cwlota.com`; a public cloud accepts only signatures for its own.
//! LOTA therefore verifies the client's signature and signs the request for the gateway, with the credential that is
//! configured for the client's access key. Only verified requests are signed: [`Checked`] cannot be created in
//! another way.

use std::{borrow::Cow, collections::HashMap, fmt, sync::Arc, time::SystemTime};

use aws_sigv4::http_request::SignableBody;
use hyper::{
    Request,
    header::{self, HeaderName, HeaderValue},
};
use lota_cache::shares::Shares;
use lota_s3::{
    Bucket, Endpoints, Origin, S3Error,
    canonical::{canonical_path, rest_of_query},
    chunks::{Chains, ChunkChain, Chunks},
    signing::Signer,
    verification::{RequestSignature, SignedPayload},
};
use subtle::ConstantTimeEq as _;

use super::{AddressingStyle, ClientCredential, ReSignConfig, rechunked::rechunked};
use crate::{
    http::{Body, RequestHead},
    settings::Reloadable,
};

/// Headers of the client's signature, which are removed. The header with the hash of the body is written again.
const OF_THE_SIGNATURE: [HeaderName; 3] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-amz-date"),
    HeaderName::from_static("x-amz-security-token"),
];

/// Verifies clients' signatures, and signs for the gateway.
pub(super) struct ReSign {
    endpoints: Endpoints,
    gateway: Origin,
    style: AddressingStyle,
    region: String,
    clients: Reloadable<HashMap<String, ClientCredential>>,
    /// Memory for chunks that are buffered until their signature is verified.
    memory: Arc<Shares>,
}

/// A request with a valid signature of the client.
struct Checked<'a> {
    client: &'a ClientCredential,
    signature: RequestSignature,
    chain: ChunkChain,
}

impl ReSign {
    /// Returns the re-signing of requests of `clients` for this gateway; `memory` is the number of bytes for buffered chunks.
    pub(super) fn new(
        config: &ReSignConfig,
        clients: Reloadable<HashMap<String, ClientCredential>>,
        gateway: &Origin,
        endpoints: &Endpoints,
        memory: u64,
    ) -> Self {
        Self {
            endpoints: endpoints.clone(),
            gateway: gateway.clone(),
            style: config.style,
            region: config.region.clone(),
            clients,
            memory: Shares::new(memory),
        }
    }

    /// Returns the access key that requests of a client have at the gateway, if the client is known.
    pub(super) fn access_key_at_gateway(&self, client: &str) -> Option<String> {
        self.clients.get().get(client).map(|client| client.access_key_at_gateway().to_owned())
    }

    /// Returns the client's request for the gateway: re-signed, or anonymous if it was.
    pub(super) fn request(&self, head: &RequestHead, body: Body) -> Result<Request<Body>, S3Error> {
        let malformed =
            |error: String| S3Error::invalid_request(format!("The request cannot be forwarded: {error}"));
        let clients = self.clients.get();
        let checked = Self::check(&clients, head, SystemTime::now())?;
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
        if let SignedPayload::Chunks { signed, trailers } = signature.payload {
            let chains = signed.then_some(Chains { client: chain, ours });
            let chunks = Chunks::new(&head.headers, chains, trailers)?;
            let body = std::mem::take(request.body_mut());
            *request.body_mut() = rechunked(body, chunks, self.memory.clone(), head.pod);
        }
        Ok(request)
    }

    /// Verifies the client's signature. Returns `None` if there is none.
    fn check<'a>(
        clients: &'a HashMap<String, ClientCredential>,
        head: &RequestHead,
        now: SystemTime,
    ) -> Result<Option<Checked<'a>>, S3Error> {
        let Some(signature) = RequestSignature::of(&head.target, &head.headers)? else { return Ok(None) };
        let client = clients.get(&signature.access_key).ok_or_else(S3Error::unknown_access_key)?;
        let mut headers = Cow::Borrowed(&head.headers);
        if head.chunked {
            // Some clients sign this header, though it belongs to the connection.
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

    /// Returns the same request, addressed to the gateway.
    pub(super) fn addressed(&self, head: &RequestHead) -> Result<RequestHead, S3Error> {
        let path = head.target.path();
        let unusable = || S3Error::invalid_request("The bucket name is invalid");
        let endpoint = self.endpoints.find(&head.host).ok_or_else(|| S3Error::unknown_host(&head.host))?;
        let path = match endpoint.bucket_of(&head.host) {
            Some(bucket) => format!("/{bucket}{path}"),
            None => path.to_owned(),
        };
        let names = path.strip_prefix('/').unwrap_or_default();
        let (bucket, key) = names.split_once('/').unwrap_or((names, ""));
        let gateway = &self.gateway.authority;
        let (host, mut target) = if self.style == AddressingStyle::VirtualHost && Bucket::is_label(bucket) {
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

    pub(super) fn origin_of(&self, head: &RequestHead) -> Result<Origin, S3Error> {
        let authority = head.host.parse::<hyper::http::uri::Authority>();
        let authority = authority.map_err(|_| S3Error::invalid_request("The request has no host name"))?;
        Ok(Origin { tls: self.gateway.tls, authority })
    }
}

impl fmt::Debug for ReSign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReSign").field("clients", &self.clients.get().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "re_sign_tests.rs"]
mod tests;
