//! Requests of LOTA's own: SigV4 by the crate `aws-sigv4`.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
        UriPathNormalizationMode, sign,
    },
    sign::v4,
};
use hyper::{Method, Request, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    config::{Credential, Origin},
    http::{Body, empty},
    s3::ObjectName,
};

/// What SigV4 leaves as it is in a path ("UriEncode" in AWS's description of Signature Version 4).
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
/// The same in a query.
pub const QUERY: &AsciiSet = &PATH.add(b'/');

/// The object's checksums belong to what is cached, for those who ask.
const CHECKSUM_MODE: (&str, &str) = ("x-amz-checksum-mode", "ENABLED");

/// Signs requests without a body.
#[derive(Debug)]
pub struct Signer {
    credentials: Credentials,
    region: String,
}

impl Signer {
    /// For this credential, and the session it belongs to, if it does.
    #[must_use]
    pub fn new(credential: &Credential, session_token: Option<String>, region: &str) -> Self {
        let credentials = Credentials::new(
            &credential.access_key,
            credential.secret_key.expose(),
            session_token,
            None,
            "lota",
        );
        Self { credentials, region: region.to_owned() }
    }

    /// A signed GET of the whole object, in path style.
    pub(super) fn get(&self, endpoint: &Origin, name: &ObjectName) -> Result<Request<Body>, String> {
        let mut target = path(name.bucket.as_str(), name.key.as_str());
        if let Some(version) = &name.version_id {
            target.push_str(&format!("?versionId={}", utf8_percent_encode(version, QUERY)));
        }
        self.sign(Method::GET, endpoint, &target, &[CHECKSUM_MODE])
    }

    /// A signed request; path and query are in the form that SigV4 wants.
    ///
    /// # Errors
    /// If they make no URL, or a header is none.
    pub fn sign(
        &self,
        method: Method,
        endpoint: &Origin,
        target: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Result<Request<Body>, String> {
        let uri: Uri = format!("{endpoint}{target}").parse().map_err(|error| format!("{error}"))?;
        let headers = [&[("host", endpoint.authority.as_str())], headers].concat();
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in &headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(empty()).map_err(|error| error.to_string())?;

        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let identity = self.credentials.clone().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("s3")
            .time(SystemTime::now())
            .settings(settings)
            .build()
            .map_err(|error| error.to_string())?
            .into();
        let (method, uri) = (request.method().to_string(), request.uri().to_string());
        let signable = SignableRequest::new(&method, &uri, headers.into_iter(), SignableBody::Bytes(b""))
            .map_err(|error| error.to_string())?;
        let (instructions, _) = sign(signable, &params).map_err(|error| error.to_string())?.into_parts();
        instructions.apply_to_request_http1x(&mut request);
        Ok(request)
    }
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
        let signer = Signer::new(&credential, None, "us-east-1");
        let origin = Origin::parse("http://10.0.0.1:9001").unwrap();
        for (key, path) in [
            ("a/b", "/b/a/b"),
            ("../x", "/b/../x"),
            ("a b+c%2F", "/b/a%20b%2Bc%252F"),
            ("€", "/b/%E2%82%AC"),
            ("//x", "/b///x"),
        ] {
            let name = ObjectName::from_parts("b", key, None).unwrap();
            let request = signer.get(&origin, &name).unwrap();
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
