//! Signing requests: SigV4 by the crate `aws-sigv4`.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation,
        SigningSettings, UriPathNormalizationMode, sign,
    },
    sign::v4,
};
use hyper::{Method, Request, Uri, header::HeaderName};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode, utf8_percent_encode};

use super::{ObjectName, chunks::Chain};
use crate::config::{Credential, Origin};

/// What SigV4 leaves as it is in a path ("UriEncode" in AWS's description of Signature Version 4).
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
/// The same in a query.
pub const QUERY: &AsciiSet = &PATH.add(b'/');

/// How long a signature in a query is good; S3 gives one in the headers a quarter of an hour.
const EXPIRES: Duration = Duration::from_secs(15 * 60);

/// The object's checksums belong to what is cached, for those who ask.
const CHECKSUM_MODE: (&str, &str) = ("x-amz-checksum-mode", "ENABLED");

/// Signs requests with one credential.
#[derive(Debug)]
pub struct Signer {
    credentials: Credentials,
    region: String,
}

impl Signer {
    /// For this credential, and the session it belongs to, if it does.
    #[must_use]
    pub fn new(credential: &Credential, region: &str) -> Self {
        let token = credential.session_token.as_ref().map(|token| token.expose().to_owned());
        let secret = credential.secret_key.expose();
        let credentials = Credentials::new(&credential.access_key, secret, token, None, "lota");
        Self { credentials, region: region.to_owned() }
    }

    /// A signed GET or HEAD of the whole object, in path style; its checksums are asked for, too.
    ///
    /// # Errors
    /// If endpoint and name make no URL.
    pub fn object(
        &self,
        method: Method,
        endpoint: &Origin,
        name: &ObjectName,
    ) -> Result<Request<()>, String> {
        let mut target = path(name.bucket.as_str(), name.key.as_str());
        if let Some(version) = &name.version_id {
            target.push_str(&format!("?versionId={}", utf8_percent_encode(version, QUERY)));
        }
        self.request(method, endpoint, &target, &[CHECKSUM_MODE])
    }

    /// A signed request without a body; path and query are in the form that SigV4 wants.
    ///
    /// # Errors
    /// If they make no URL, or a header is none.
    pub fn request(
        &self,
        method: Method,
        endpoint: &Origin,
        target: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Result<Request<()>, String> {
        let uri: Uri = format!("{endpoint}{target}").parse().map_err(|error| format!("{error}"))?;
        let mut request =
            Request::builder().method(method).uri(uri).header("host", endpoint.authority.as_str());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(()).map_err(|error| error.to_string())?;
        self.sign(&mut request, SignableBody::Bytes(b""), false)?;
        Ok(request)
    }

    /// Signs a request, in its headers or `in_query`: its method, path, query, and those headers that S3 wants signed.
    /// The signature begins the chain of its chunks, should its body have such.
    ///
    /// # Errors
    /// If one of these headers is not text.
    pub fn sign<B>(
        &self,
        request: &mut Request<B>,
        body: SignableBody<'_>,
        in_query: bool,
    ) -> Result<Chain, String> {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        if in_query {
            settings.signature_location = SignatureLocation::QueryParams;
            settings.expires_in = Some(EXPIRES);
        } else {
            request.headers_mut().remove("x-amz-content-sha256");
            settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        }
        let (identity, time) = (self.credentials.clone().into(), SystemTime::now());
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("s3")
            .time(time)
            .settings(settings)
            .build()
            .map_err(|error| error.to_string())?
            .into();
        let mut headers = Vec::new();
        for (name, value) in request.headers().iter().filter(|(name, _)| wants_signature(name)) {
            headers.push((name.as_str(), value.to_str().map_err(|_| format!("{name} is not text"))?));
        }
        let (method, uri) = (request.method().to_string(), request.uri().to_string());
        let signable = SignableRequest::new(&method, &uri, headers.into_iter(), body)
            .map_err(|error| error.to_string())?;
        let (instructions, signature) =
            sign(signable, &params).map_err(|error| error.to_string())?.into_parts();
        instructions.apply_to_request_http1x(request);
        let key = v4::generate_signing_key(self.credentials.secret_access_key(), time, &self.region, "s3");
        Ok(Chain::new(key.as_ref(), super::signature::timestamp(time), &self.region, signature))
    }
}

/// Must S3 find this header signed? Some servers take an underscore for a hyphen.
pub(super) fn wants_signature(name: &HeaderName) -> bool {
    let name = name.as_str().replace('_', "-");
    matches!(&*name, "host" | "content-md5") || name.starts_with("x-amz-")
}

/// A path as it was sent, as SigV4 wants it.
#[must_use]
pub fn canonical_path(raw: &str) -> String {
    percent_encode(&percent_decode_str(raw).collect::<Vec<u8>>(), PATH).to_string()
}

/// The same for a name or value in a query, where a plus sign is a space.
#[must_use]
pub fn canonical_query(raw: &str) -> String {
    let raw = raw.replace('+', "%20");
    percent_encode(&percent_decode_str(&raw).collect::<Vec<u8>>(), QUERY).to_string()
}

/// An object's path, in path style, as SigV4 wants it.
#[must_use]
pub fn path(bucket: &str, key: &str) -> String {
    format!("/{bucket}/{}", utf8_percent_encode(key, PATH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_keys_stay_one_path() {
        let credential: Credential = toml::from_str("access_key = \"AK\"\nsecret_key = \"SK\"").unwrap();
        let signer = Signer::new(&credential, "us-east-1");
        let origin = Origin::parse("http://10.0.0.1:9001").unwrap();
        for (key, path) in [
            ("a/b", "/b/a/b"),
            ("../x", "/b/../x"),
            ("a b+c%2F", "/b/a%20b%2Bc%252F"),
            ("€", "/b/%E2%82%AC"),
            ("//x", "/b///x"),
        ] {
            let name = ObjectName::from_parts("b", key, None).unwrap();
            let request = signer.object(Method::GET, &origin, &name).unwrap();
            assert_eq!(request.uri().path(), path);
            let authorization = request.headers()["authorization"].to_str().unwrap();
            assert!(
                authorization
                    .contains("SignedHeaders=host;x-amz-checksum-mode;x-amz-content-sha256;x-amz-date"),
                "{authorization}"
            );
            assert!(!format!("{signer:?}").contains("SK"));
        }
    }
}
