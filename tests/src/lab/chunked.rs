//! Uploads in `aws-chunked` encoding, as SDKs send them.

use std::{fmt::Write as _, time::SystemTime};

use anyhow::Result;
use aws_sigv4::{
    http_request::SignableBody,
    sign::v4::{calculate_signature, generate_signing_key},
};
use sha2::{Digest as _, Sha256};

use super::{
    Credential,
    raw::{Request, Signing},
};

/// Encoding of a chunked body.
#[derive(Clone, Copy, Debug)]
pub struct Chunked<'a> {
    /// Size of each chunk but the last, in bytes.
    pub size: usize,
    /// Whether each chunk is signed.
    pub signed: bool,
    /// Name and value of a trailer.
    pub trailer: Option<(&'static str, &'a str)>,
}

impl Request {
    /// Signs the request and encodes its body in chunks.
    ///
    /// # Errors
    /// If host and target do not form a valid URL.
    pub fn sign_chunked(self, credential: &Credential, how: Chunked<'_>) -> Result<Self> {
        let payload = match (how.signed, how.trailer) {
            (true, None) => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
            (true, Some(_)) => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
            (false, _) => "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        };
        let length = self.body.len().to_string();
        let mut request =
            self.header("content-encoding", "aws-chunked").header("x-amz-decoded-content-length", &length);
        if let Some((name, _)) = how.trailer {
            request = request.header("x-amz-trailer", name);
        }
        let now = SystemTime::now();
        let payload = SignableBody::Precomputed(payload.to_owned());
        let (mut request, mut last) = request.sign_v4(credential, Signing::Header, payload, now)?;

        let key = generate_signing_key(&credential.secret_key, now, "us-east-1", "s3");
        let date = request.headers.iter().find(|(name, _)| name == "x-amz-date");
        let date = date.map(|(_, date)| date.clone()).unwrap_or_default();
        let scope = format!("{date}\n{}/us-east-1/s3/aws4_request", &date[..8]);
        let mut sign = |kind: &str, what: String| {
            let text = format!("AWS4-HMAC-SHA256-{kind}\n{scope}\n{last}\n{what}");
            last = calculate_signature(&key, text.as_bytes());
            last.clone()
        };
        let mut body = Vec::new();
        for chunk in request.body.chunks(how.size).chain([&[][..]]) {
            let mut line = format!("{:x}", chunk.len());
            if how.signed {
                let signature = sign("PAYLOAD", format!("{}\n{}", sha256(b""), sha256(chunk)));
                write!(line, ";chunk-signature={signature}")?;
            }
            body.extend_from_slice(format!("{line}\r\n").as_bytes());
            body.extend_from_slice(chunk);
            if !chunk.is_empty() {
                body.extend_from_slice(b"\r\n");
            }
        }
        let mut trailers = String::new();
        if let Some((name, value)) = how.trailer {
            write!(trailers, "{name}:{value}\r\n")?;
            if how.signed {
                let signature = sign("TRAILER", sha256(format!("{name}:{value}\n").as_bytes()));
                write!(trailers, "x-amz-trailer-signature:{signature}\r\n")?;
            }
        }
        body.extend_from_slice(format!("{trailers}\r\n").as_bytes());
        request.body = body.into();
        Ok(request)
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
