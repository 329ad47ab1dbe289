//! Locates SigV2 and SigV4 signatures in requests, without verifying them.

use std::borrow::Cow;

use hyper::{
    HeaderMap,
    header::{self, HeaderValue},
    http::uri::PathAndQuery,
};
use percent_encoding::percent_decode_str;

use crate::canonical::is_signature_parameter;

/// Place of a request's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SignedBy {
    /// The request is anonymous.
    Nothing,
    /// The `Authorization` header.
    Header,
    /// The query of a presigned URL.
    Query,
    /// More than one place, or a form that servers may read in different ways.
    Several,
}

impl SignedBy {
    /// Returns the place of a request's signature.
    #[must_use]
    pub fn of(target: &PathAndQuery, headers: &HeaderMap) -> Self {
        let (mut v2, mut v4, mut signatures, mut credentials) = (false, false, 0, 0);
        for pair in pairs(target) {
            let name = decoded(pair.split_once('=').map_or(pair, |(name, _)| name)).to_ascii_lowercase();
            if !is_signature_parameter(&name) {
                continue;
            }
            // `x-amz-security-token` is used by both versions.
            match &*name {
                "signature" | "awsaccesskeyid" => v2 = true,
                "x-amz-security-token" => {}
                _ => v4 = true,
            }
            signatures += u32::from(matches!(&*name, "signature" | "x-amz-signature"));
            credentials += u32::from(matches!(&*name, "awsaccesskeyid" | "x-amz-credential"));
        }
        let mut in_headers = headers.get_all(header::AUTHORIZATION).iter();
        match (in_headers.next(), in_headers.next(), v2 || v4) {
            (None, _, false) => Self::Nothing,
            (Some(authorization), None, false) if is_unambiguous(authorization) => Self::Header,
            (None, _, true) if !(v2 && v4) && signatures <= 1 && credentials <= 1 => Self::Query,
            _ => Self::Several,
        }
    }
}

/// Returns whether every server finds the same access key in an `Authorization` header: SigV4 with each of its three
/// parts once and no other, SigV2 with one colon, or another scheme.
fn is_unambiguous(authorization: &HeaderValue) -> bool {
    let Ok(text) = authorization.to_str() else { return false };
    let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
    let lower = scheme.to_ascii_lowercase();
    if !lower.starts_with("aws") {
        return true;
    }
    match scheme {
        "AWS" => rest.matches(':').count() == 1 && !rest.contains(char::is_whitespace),
        _ if scheme.starts_with("AWS4-") => {
            let mut names: Vec<&str> =
                rest.split(',').map(|part| part.trim().split('=').next().unwrap_or_default()).collect();
            names.sort_unstable();
            let is_plain = rest.split(',').all(|part| !part.trim().contains(char::is_whitespace));
            is_plain
                && rest.matches("Credential=").count() == 1
                && names == ["Credential", "Signature", "SignedHeaders"]
        }
        _ => false,
    }
}

/// Returns the names, in lower case, of the headers that a SigV4 signature covers; `None` for SigV2, which covers
/// `Date`, `Content-Type`, `Content-MD5` and `x-amz-*`, and only the sub-resource parameters of the query.
#[must_use]
pub fn signed_headers(target: &PathAndQuery, headers: &HeaderMap) -> Option<Vec<String>> {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let names = match authorization {
        Some(text) => {
            text.split([',', ' ']).find_map(|part| part.trim().strip_prefix("SignedHeaders="))?.into()
        }
        None => pairs(target).find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            decoded(name).eq_ignore_ascii_case("x-amz-signedheaders").then(|| decoded(value))
        })?,
    };
    Some(names.split(';').map(str::to_ascii_lowercase).collect())
}

/// Returns the access key of a request; empty if there is none.
#[must_use]
pub fn access_key(target: &PathAndQuery, headers: &HeaderMap) -> String {
    let of_header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).map(|text| {
        let v4 = text.split_once("Credential=").and_then(|(_, rest)| rest.split('/').next());
        v4.or_else(|| text.strip_prefix("AWS ")?.split(':').next()).unwrap_or_default().to_owned()
    });
    let of_query = || {
        pairs(target).find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let (name, value) = (decoded(name).to_ascii_lowercase(), decoded(value));
            match &*name {
                "awsaccesskeyid" => Some(value.into_owned()),
                "x-amz-credential" => Some(value.split('/').next()?.to_owned()),
                _ => None,
            }
        })
    };
    of_header.or_else(of_query).unwrap_or_default()
}

/// Returns the parameters of the query.
pub(super) fn pairs(target: &PathAndQuery) -> impl Iterator<Item = &str> {
    target.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty())
}

/// Decodes percent escapes.
pub(super) fn decoded(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}

#[cfg(test)]
#[path = "signature_location_tests.rs"]
mod tests;
