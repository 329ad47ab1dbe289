//! Presigned URLs to which LOTA is redirected.

use std::time::SystemTime;

use anyhow::Context as _;
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, sign};
use aws_sigv4::sign::v4::SigningParams;
use hyper::Request;

use super::Direct;
use super::names::encode_key;
use crate::lab::raw::s3_settings;

/// Returns a presigned URL of an object at the backend.
///
/// # Errors
///
/// If the backend's address does not form a valid URL.
pub(super) fn presign(direct: &Direct, bucket: &str, key: &str) -> anyhow::Result<String> {
    let backend = direct.backend.trim_end_matches('/');
    let url = format!("{backend}/{bucket}/{}", encode_key(key));
    let mut request = Request::get(&url).body(()).context("backend address")?;

    let mut settings = s3_settings();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(direct.expires);

    let identity = Credentials::new(&direct.access_key, &direct.secret_key, None, None, "direct").into();
    let params = SigningParams::builder()
        .identity(&identity)
        .region("us-east-1")
        .name("s3")
        .time(SystemTime::now())
        .settings(settings)
        .build()?
        .into();
    let headers = std::iter::empty();
    let signable = SignableRequest::new("GET", &url, headers, SignableBody::UnsignedPayload)?;
    let (instructions, _) = sign(signable, &params)?.into_parts();
    instructions.apply_to_request_http1x(&mut request);
    Ok(request.uri().to_string())
}
