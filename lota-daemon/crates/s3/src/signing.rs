//! Signs LOTA's own requests with SigV4, using the crate `aws-sigv4`.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation,
        SigningSettings, UriPathNormalizationMode, sign,
    },
    sign::v4,
};
use hyper::{Method, Request, Uri};
use percent_encoding::utf8_percent_encode;

use crate::{
    Credential, ObjectName, Origin,
    canonical::{QUERY, path, timestamp, wants_signature},
    chunks::ChunkChain,
};

/// Validity of a signature in a query. S3 accepts one in the headers for 15 minutes, too.
const SIGNATURE_VALIDITY: Duration = Duration::from_secs(15 * 60);

/// Requests checksums, which are cached with the object for clients that request them.
const CHECKSUM_MODE: (&str, &str) = ("x-amz-checksum-mode", "ENABLED");

/// Signs requests with one credential.
#[derive(Debug)]
pub struct Signer {
    credentials: Credentials,
    region: String,
}

impl Signer {
    /// Creates a signer for a credential, with its session token, if any.
    #[must_use]
    pub fn new(credential: &Credential, region: &str) -> Self {
        let token = credential.session_token.as_ref().map(|token| token.expose().to_owned());
        let secret = credential.secret_key.expose();
        let credentials = Credentials::new(&credential.access_key, secret, token, None, "lota");
        Self { credentials, region: region.to_owned() }
    }

    /// Returns a signed GET or HEAD request for the whole object, in path style, with its checksums.
    ///
    /// # Errors
    /// If endpoint and name do not form a valid URL.
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

    /// Returns a signed request without a body. Path and query must be in the canonical form of SigV4.
    ///
    /// # Errors
    /// If they do not form a valid URL, or a header is invalid.
    pub fn request(
        &self,
        method: Method,
        endpoint: &Origin,
        target: &str,
        headers: &[(&'static str, &str)],
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

    /// Signs a request in its headers, or `in_query`: method, path, query, and the headers that S3 requires to be
    /// signed. Returns the start of the signature chain for an `aws-chunked` body.
    ///
    /// # Errors
    /// If one of these headers is not text.
    pub fn sign<B>(
        &self,
        request: &mut Request<B>,
        body: SignableBody<'_>,
        in_query: bool,
    ) -> Result<ChunkChain, String> {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        if in_query {
            settings.signature_location = SignatureLocation::QueryParams;
            settings.expires_in = Some(SIGNATURE_VALIDITY);
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
        Ok(ChunkChain::new(key.as_ref(), timestamp(time), &self.region, signature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_special_characters_are_encoded() {
        let credential = Credential {
            access_key: "AK".to_owned(),
            secret_key: "SK".to_owned().into(),
            session_token: None,
        };
        let signer = Signer::new(&credential, "us-east-1");
        let origin = Origin::parse("http://10.0.0.1:9001").unwrap();
        for (key, path) in [
            ("a/b", "/b/a/b"),
            ("../x", "/b/../x"),
            ("a b+c%2F", "/b/a%20b%2Bc%252F"),
            ("€", "/b/%E2%82%AC"),
            ("//x", "/b///x"),
        ] {
            let name = ObjectName::from_parts("http://gateway", "b", key, None).unwrap();
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
