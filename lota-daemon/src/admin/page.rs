//! The status page: one document that asks for its numbers itself, and loads nothing else.

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{
    Response, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use sha2::{Digest as _, Sha256};

use crate::{
    http::{Body, full},
    report::Report,
};

const PAGE: &str = include_str!("page.html");

/// Its own script and style, by their hashes, and what this port answers.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |tag| STANDARD.encode(Sha256::digest(inside(tag)));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style")
    )
});

/// What the page has between the tags of its one element of this name.
fn inside(tag: &str) -> &'static str {
    let inside = PAGE.split_once(&format!("<{tag}>")).map_or("", |(_, rest)| rest);
    inside.split_once(&format!("</{tag}>")).map_or("", |(inside, _)| inside)
}

/// The page.
pub(super) fn page() -> Response<Body> {
    let mut answer = with_type(PAGE.into(), "text/html; charset=utf-8");
    let policy =
        HeaderValue::from_str(&POLICY).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"));
    answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    answer
}

/// What it shows.
pub(super) fn status(report: &Report) -> Response<Body> {
    match serde_json::to_vec(report) {
        Ok(json) => with_type(json, "application/json"),
        Err(error) => {
            let mut answer = with_type(error.to_string().into_bytes(), "text/plain");
            *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            answer
        }
    }
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

    /// With such a policy, a browser would not run what is missing in it; and nothing may need more.
    #[test]
    fn the_page_keeps_to_its_policy() {
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
        for forbidden in
            ["src=", "href=", "style=", "innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("]
        {
            assert!(!PAGE.contains(forbidden), "{forbidden}");
        }
        assert_eq!(PAGE.matches("://").count(), 1, "the name of SVG is the only address");
    }
}
