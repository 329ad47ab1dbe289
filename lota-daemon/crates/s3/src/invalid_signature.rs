//! Creates requests with invalid signatures, by which LOTA verifies that a gateway checks signatures.

use std::borrow::Cow;

use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, Engine as _};
use hyper::{
    Request,
    header::{self, HeaderName, HeaderValue},
};
use percent_encoding::utf8_percent_encode;

use crate::{
    SignedBy,
    canonical::{QUERY, is_signature_parameter},
    signature_location::{decoded, pairs},
};

/// Returns the request with another signature of the same form; `None` unless the request has exactly one signature
/// that can be parsed.
#[must_use]
pub fn with_broken_signature(request: &Request<()>) -> Option<Request<()>> {
    let target = request.uri().path_and_query()?;
    let mut broken = request.clone();
    match SignedBy::of(target, request.headers()) {
        SignedBy::Header => {
            let text = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
            broken.headers_mut().insert(header::AUTHORIZATION, broken_authorization(text)?);
        }
        SignedBy::Query => {
            let (path, query) = (target.path(), target.query()?);
            let mut found = false;
            let pairs = query.split('&').map(|pair| match pair.split_once('=') {
                Some((name, value)) if is_signature_name(name) => {
                    found = true;
                    Some(Cow::Owned(format!("{name}={}", broken_parameter(value)?)))
                }
                _ => Some(Cow::Borrowed(pair)),
            });
            let query = pairs.collect::<Option<Vec<_>>>()?.join("&");
            if !found {
                return None;
            }
            with_target(&mut broken, &format!("{path}?{query}"))?;
        }
        SignedBy::Nothing | SignedBy::Several => return None,
    }
    Some(broken)
}

/// Returns the request without any signature, with an additional query parameter.
#[must_use]
pub fn without_signature(request: &Request<()>, parameter: &str) -> Option<Request<()>> {
    const OF_A_SIGNATURE: [HeaderName; 4] = [
        header::AUTHORIZATION,
        HeaderName::from_static("x-amz-date"),
        HeaderName::from_static("x-amz-security-token"),
        HeaderName::from_static("x-amz-content-sha256"),
    ];
    let target = request.uri().path_and_query()?;
    let mut unsigned = request.clone();
    for name in &OF_A_SIGNATURE {
        unsigned.headers_mut().remove(name);
    }
    let rest = pairs(target).filter(|pair| {
        let name = decoded(pair.split('=').next().unwrap_or_default()).to_ascii_lowercase();
        !is_signature_parameter(&name) && name != "expires" && name != "x-amz-content-sha256"
    });
    let query = rest.chain([parameter]).collect::<Vec<_>>().join("&");
    let target = format!("{}?{query}", target.path());
    with_target(&mut unsigned, &target)?;
    Some(unsigned)
}

/// Replaces path and query.
pub fn with_target(request: &mut Request<()>, target: &str) -> Option<()> {
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = Some(target.parse().ok()?);
    *request.uri_mut() = parts.try_into().ok()?;
    Some(())
}

/// Replaces the signature in a known authorization scheme. A gateway may treat other schemes as anonymous.
fn broken_authorization(text: &str) -> Option<HeaderValue> {
    let broken = if text.starts_with("AWS4-HMAC-SHA256 ") {
        let mark = "Signature=";
        let start = text.find(mark)? + mark.len();
        let end = text[start..].find([',', ' ']).map_or(text.len(), |length| start + length);
        if text[end..].contains(mark) {
            return None;
        }
        format!("{}{}{}", &text[..start], broken_hex(&text[start..end])?, &text[end..])
    } else {
        let (key, signature) = text.strip_prefix("AWS ")?.split_once(':')?;
        format!("AWS {key}:{}", broken_base64(signature)?)
    };
    broken.parse().ok()
}

fn is_signature_name(name: &str) -> bool {
    matches!(&*decoded(name).to_ascii_lowercase(), "x-amz-signature" | "signature")
}

/// Replaces the signature in a query parameter. An unescaped plus sign is literal; a space stands for one.
fn broken_parameter(value: &str) -> Option<String> {
    let signature = decoded(value).replace(' ', "+");
    match broken_hex(&signature) {
        Some(broken) => Some(broken),
        None => Some(utf8_percent_encode(&broken_base64(&signature)?, QUERY).to_string()),
    }
}

/// Replaces a SigV4 signature: a SHA-256 HMAC in hex.
fn broken_hex(signature: &str) -> Option<String> {
    const BYTES: usize = 32;
    let bytes = hex::decode(signature).ok().filter(|bytes| bytes.len() == BYTES)?;
    Some(hex::encode(flipped(bytes)?))
}

/// Replaces a SigV2 signature: a SHA-1 HMAC in base64, with or without padding.
fn broken_base64(signature: &str) -> Option<String> {
    const BYTES: usize = 20;
    let digits = signature.trim_end_matches('=');
    // Lenient servers ignore the unused bits of the last digit.
    let decoded = BASE64_STANDARD_NO_PAD.decode(digits);
    let bytes = decoded.ok().or_else(|| {
        let canonical = digits.get(..digits.len().checked_sub(1)?).map(|prefix| format!("{prefix}A"));
        BASE64_STANDARD_NO_PAD.decode(canonical?).ok()
    })?;
    let bytes = flipped(Some(bytes).filter(|bytes| bytes.len() == BYTES)?)?;
    let broken = BASE64_STANDARD.encode(bytes);
    Some(if digits.len() == signature.len() { broken.trim_end_matches('=').to_owned() } else { broken })
}

/// Flips the highest bit of the first byte, and others at random.
fn flipped(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    *bytes.first_mut()? ^= rand::random_range(0x80..=u8::MAX);
    Some(bytes)
}

#[cfg(test)]
#[path = "invalid_signature_tests.rs"]
mod tests;
