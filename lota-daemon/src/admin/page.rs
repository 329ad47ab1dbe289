//! The status page: a single document that requests its data itself and loads nothing else.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{
    Response,
    header::{self, HeaderName, HeaderValue},
};
use sha2::{Digest as _, Sha256};

use crate::{
    admin::{error::AdminError, node_status::NodeReport},
    http::{Body, full},
};

const PAGE: &str = include_str!("page.html");

/// Content security policy: only the page's own script and style, by their hashes, and requests to this port.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |tag| STANDARD.encode(Sha256::digest(inside(tag)));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style")
    )
});

/// Returns the content of the page's only element with this tag.
fn inside(tag: &str) -> &'static str {
    let inside = PAGE.split_once(&format!("<{tag}>")).map_or("", |(_, rest)| rest);
    inside.split_once(&format!("</{tag}>")).map_or("", |(inside, _)| inside)
}

/// Returns the page.
pub(super) fn page() -> Response<Body> {
    let mut answer = with_type(PAGE.into(), "text/html; charset=utf-8");
    let policy =
        HeaderValue::from_str(&POLICY).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"));
    answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    answer
}

/// Returns the data of the page.
pub(super) fn status(report: &NodeReport) -> Result<Response<Body>, AdminError> {
    Ok(with_type(serde_json::to_vec(report)?, "application/json"))
}

fn with_type(body: Vec<u8>, content_type: &'static str) -> Response<Body> {
    const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
    let mut answer = Response::new(full(body));
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (RESOURCE_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Verifies that the policy contains the hashes of the page's script and style. The suite `page` verifies in a browser
    /// that the page violates nothing of it.
    #[test]
    fn the_policy_allows_the_pages_script_and_style() {
        for tag in ["script", "style"] {
            assert_eq!(PAGE.matches(&format!("<{tag}")).count(), 1, "{tag}");
            assert!(inside(tag).len() > 1000, "{tag}");
        }
        assert_eq!(POLICY.matches("'sha256-").count(), 2);
        assert!(
            page().headers()[header::CONTENT_SECURITY_POLICY]
                .to_str()
                .unwrap()
                .starts_with("default-src 'none'; script-src")
        );
    }
}
