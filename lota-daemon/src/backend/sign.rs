//! LOTA's own credential: SigV4 by the crate `aws-sigv4`.

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
const QUERY: &AsciiSet = &PATH.add(b'/');

/// The object's checksums belong to what is cached, for those who ask.
const CHECKSUM_MODE: (&str, &str) = ("x-amz-checksum-mode", "ENABLED");

#[derive(Debug)]
pub(super) struct Signer {
    credentials: Credentials,
    region: String,
}

impl Signer {
    pub(super) fn new(credential: &Credential, region: &str) -> Self {
        let credentials = Credentials::new(
            &credential.access_key,
            credential.secret_key.expose(),
            None,
            None,
            "lota-own-credential",
        );
        Self { credentials, region: region.to_owned() }
    }

    /// A signed GET of the whole object, in path style.
    pub(super) fn get(&self, endpoint: &Origin, name: &ObjectName) -> Result<Request<Body>, String> {
        let mut path = format!("/{}/{}", name.bucket.as_str(), utf8_percent_encode(name.key.as_str(), PATH));
        if let Some(version) = &name.version_id {
            path.push_str(&format!("?versionId={}", utf8_percent_encode(version, QUERY)));
        }
        let uri: Uri = format!("{endpoint}{path}").parse().map_err(|error| format!("{error}"))?;
        let mut request = Request::builder()
            .method(Method::GET)
            .uri(uri)
            .header("host", endpoint.authority.as_str())
            .header(CHECKSUM_MODE.0, CHECKSUM_MODE.1)
            .body(empty())
            .map_err(|error| error.to_string())?;

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
        let uri = request.uri().to_string();
        let headers = [("host", endpoint.authority.as_str()), CHECKSUM_MODE];
        let signable = SignableRequest::new("GET", &uri, headers.into_iter(), SignableBody::Bytes(b""))
            .map_err(|error| error.to_string())?;
        let (instructions, _) = sign(signable, &params).map_err(|error| error.to_string())?.into_parts();
        instructions.apply_to_request_http1x(&mut request);
        Ok(request)
    }
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
