//! Signed S3 requests that can be sent unchanged to the gateway and through LOTA.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation,
        SigningSettings, UriPathNormalizationMode, sign,
    },
    sign::v4::SigningParams,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, Mac as _};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Method, StatusCode,
    body::Bytes,
    client::conn::http1::{self, SendRequest},
    header::HeaderName,
};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha1::Sha1;
use tokio::{net::TcpStream, time::timeout};

use super::{Credential, GATEWAY, GATEWAY_PORT, Namespace};

/// Timeout for a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// Validity of presigned URLs.
const EXPIRES: Duration = Duration::from_secs(3600);

/// Signature of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signing {
    /// `SigV4` in `Authorization`, with all headers signed.
    Header,
    /// `SigV4` in `Authorization`, with all headers but `Range` signed.
    RangeUnsigned,
    /// `SigV4` in the query, with the host signed.
    Presigned,
    /// `SigV2` in the query, the default of boto3.
    PresignedV2,
    /// None.
    Anonymous,
}

/// An HTTP request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The `Host` header.
    pub host: String,
    /// Path and query.
    pub target: String,
    /// Further headers, in order.
    pub headers: Vec<(HeaderName, String)>,
    /// The body.
    pub body: Bytes,
}

/// A response.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// All headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Request {
    /// Creates a request without a body.
    #[must_use]
    pub fn new(method: Method, host: &str, target: &str) -> Self {
        let (host, target) = (host.to_owned(), target.to_owned());
        Self { method, host, target, headers: Vec::new(), body: Bytes::new() }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((HeaderName::from_static(name), value.to_owned()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Signs the request.
    ///
    /// # Errors
    /// If host and target do not form a valid URL.
    pub fn sign(self, credential: &Credential, signing: Signing) -> Result<Self> {
        match signing {
            Signing::Anonymous => Ok(self),
            Signing::PresignedV2 => Ok(self.presign_v2(credential)),
            Signing::Header | Signing::RangeUnsigned | Signing::Presigned => {
                let body = self.body.clone();
                let payload = match signing {
                    Signing::Presigned => SignableBody::UnsignedPayload,
                    _ => SignableBody::Bytes(&body),
                };
                Ok(self.sign_v4(credential, signing, payload, SystemTime::now())?.0)
            }
        }
    }

    /// Presigns the request like [`Signing::Presigned`], so that the signature is valid only for this time from now on.
    ///
    /// # Errors
    /// If host and target do not form a valid URL.
    pub fn presign_for(self, credential: &Credential, valid: Duration) -> Result<Self> {
        let signed = SystemTime::now() + valid - EXPIRES;
        Ok(self.sign_v4(credential, Signing::Presigned, SignableBody::UnsignedPayload, signed)?.0)
    }

    /// Signs the request with `SigV4`; returns it and the signature.
    pub(super) fn sign_v4(
        mut self,
        credential: &Credential,
        signing: Signing,
        payload: SignableBody<'_>,
        time: SystemTime,
    ) -> Result<(Self, String)> {
        let mut settings = s3_settings();
        let presign = signing == Signing::Presigned;
        if presign {
            settings.signature_location = SignatureLocation::QueryParams;
            settings.expires_in = Some(EXPIRES);
        } else {
            settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        }
        let (access_key, secret_key) = (&*credential.access_key, &*credential.secret_key);
        let identity = Credentials::new(access_key, secret_key, None, None, "lab").into();
        let params = SigningParams::builder()
            .identity(&identity)
            .region("us-east-1")
            .name("s3")
            .time(time)
            .settings(settings)
            .build()?
            .into();
        let url = format!("http://{}{}", self.host, self.target);
        let is_left_out = |name: &str| presign || name == "range" && signing == Signing::RangeUnsigned;
        let headers = self.headers.iter().filter(|(name, _)| !is_left_out(name.as_str()));
        let headers = headers.map(|(name, value)| (name.as_str(), value.as_str()));
        let headers = headers.chain([("host", self.host.as_str())]);
        let signable = SignableRequest::new(self.method.as_str(), &url, headers, payload)?;
        let (instructions, signature) = sign(signable, &params)?.into_parts();
        let mut signed = hyper::Request::builder().uri(&url).body(())?;
        instructions.apply_to_request_http1x(&mut signed);
        self.target = signed.uri().path_and_query().context("no target")?.to_string();
        for (name, value) in signed.headers() {
            self.headers.push((name.clone(), value.to_str()?.to_owned()));
        }
        Ok((self, signature))
    }

    /// Presigns with `SigV2`, as boto3 does: path style, without sub-resources.
    fn presign_v2(mut self, credential: &Credential) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let expires = (now + EXPIRES).as_secs();
        let path = self.target.split('?').next().unwrap_or_default();
        let text = format!("{}\n\n\n{expires}\n{path}", self.method);
        let mut mac = Hmac::<Sha1>::new_from_slice(credential.secret_key.as_bytes())
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        mac.update(text.as_bytes());
        let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
        let signature = utf8_percent_encode(&signature, NON_ALPHANUMERIC);
        let separator = if self.target.contains('?') { '&' } else { '?' };
        let key = &credential.access_key;
        self.target =
            format!("{}{separator}AWSAccessKeyId={key}&Signature={signature}&Expires={expires}", self.target);
        self
    }
}

impl Reply {
    /// Returns the value of a header; empty if it is missing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Returns the cache status in `Lota-Cache`.
    #[must_use]
    pub fn cache(&self) -> &str {
        self.header("lota-cache").split(';').next().unwrap_or_default()
    }

    /// Returns the S3 error code.
    #[must_use]
    pub fn code(&self) -> String {
        let body = String::from_utf8_lossy(&self.body);
        let code = body.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
        code.map(|(code, _)| code.to_owned()).unwrap_or_default()
    }
}

/// Returns settings for S3, which signs the path as it is sent: a key may contain "..", "//" and percent signs.
pub(crate) fn s3_settings() -> SigningSettings {
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings
}

/// Returns the content of test objects: a repeated sequence of 251 different bytes.
#[must_use]
pub fn content(size: usize) -> Vec<u8> {
    let period: Vec<u8> = (0..=250).collect();
    let mut all = period.repeat(size.div_ceil(period.len()));
    all.truncate(size);
    all
}

/// An HTTP connection that reconnects after the server closes it.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Wire {
    /// Creates a connection to this address from the namespace of the calling thread.
    #[must_use]
    pub fn to(address: SocketAddr) -> Self {
        Self { address, sender: None }
    }

    /// Sends a request and reads the whole response.
    ///
    /// # Errors
    /// If the connection fails or the response is missing or incomplete.
    pub async fn send(&mut self, request: &Request) -> Result<Reply> {
        let about = || format!("{} {} at {}", request.method, request.target, self.address);
        let mut built = hyper::Request::builder().method(&request.method).uri(&request.target);
        built = built.header("host", &request.host);
        for (name, value) in &request.headers {
            built = built.header(name, value);
        }
        let built = built.body(Full::new(request.body.clone()))?;
        let mut kept = self.sender.take();
        if let Some(sender) = &mut kept {
            // A close by the server shows only after the connection's task has run.
            tokio::task::yield_now().await;
            if sender.is_closed() || sender.ready().await.is_err() {
                kept = None;
            }
        }
        let mut sender = match kept {
            Some(sender) => sender,
            None => connect(self.address).await.with_context(about)?,
        };
        let reply = timeout(RESPONSE_TIMEOUT, async {
            sender.ready().await?;
            let (parts, body) = sender.send_request(built).await?.into_parts();
            anyhow::Ok(Reply {
                status: parts.status,
                headers: parts.headers,
                body: body.collect().await?.to_bytes(),
            })
        });
        let reply = reply.await.with_context(about)?.with_context(about)?;
        // Ceph RGW sends a body in its response to `HEAD ?acl`, which would be parsed as the next response.
        let is_gateway = self.address == SocketAddr::from((GATEWAY, GATEWAY_PORT));
        self.sender = (!is_gateway || request.method != Method::HEAD).then_some(sender);
        Ok(reply)
    }
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Full<Bytes>>> {
    let stream = timeout(RESPONSE_TIMEOUT, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(stream)).await?;
    // The task ends with the sender.
    tokio::spawn(connection);
    Ok(sender)
}

impl Namespace {
    /// Sends requests from this namespace, sequentially over one connection; returns the responses.
    ///
    /// # Errors
    /// If a request gets no response.
    pub fn send_all(&self, address: SocketAddr, requests: Vec<Request>) -> Result<Vec<Reply>> {
        self.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut wire = Wire::to(address);
                let mut replies = Vec::with_capacity(requests.len());
                for request in &requests {
                    replies.push(wire.send(request).await?);
                }
                Ok(replies)
            })
        })?
    }
}
