//! Errors of the admin port and the admin socket, and the HTTP status of each.

use hyper::{
    Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
};
use thiserror::Error;

use super::node_status::text::bytes;
use crate::{proxy::PinError, reconciler::ControlError};

/// Reason why an operator's request fails.
#[derive(Debug, Error)]
pub(super) enum AdminError {
    /// No such path.
    #[error("not found; available: {available}")]
    UnknownPath {
        /// All paths.
        available: String,
    },
    /// The path has another method.
    #[error("method not allowed; use {allowed}")]
    MethodNotAllowed {
        /// The method of the path.
        allowed: &'static str,
    },
    /// The body is too large, or has another format than the path expects.
    #[error("invalid request body: {0}")]
    InvalidBody(String),
    /// The daemon does not serve requests yet, or no longer.
    #[error("not ready")]
    NotReady,
    /// The control thread rejects the request, or cannot execute it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Pins are not changed.
    #[error("{}", pin_error(.0))]
    Pins(#[from] PinError),
    /// The response cannot be encoded.
    #[error("cannot encode the response: {0}")]
    Encoding(String),
}

impl AdminError {
    /// Returns the status of the response.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::UnknownPath { .. }
            | Self::Control(ControlError::NotFound(_))
            | Self::Pins(PinError::NotPinned(_)) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::InvalidBody(_)
            | Self::Control(ControlError::Invalid(_))
            | Self::Pins(PinError::Invalid(_)) => StatusCode::BAD_REQUEST,
            Self::Control(ControlError::Conflict(_))
            | Self::Pins(PinError::OutOfBounds { .. } | PinError::TooMany(_)) => StatusCode::CONFLICT,
            Self::NotReady => StatusCode::SERVICE_UNAVAILABLE,
            Self::Encoding(_)
            | Self::Control(ControlError::Failed(_))
            | Self::Pins(PinError::NotSaved(_)) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the response, with the error as text.
    pub(super) fn response<B>(&self, body: impl FnOnce(Vec<u8>) -> B) -> Response<B> {
        let mut response = Response::new(body(format!("{self}\n").into_bytes()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if let Self::MethodNotAllowed { allowed } = self {
            headers.insert(ALLOW, HeaderValue::from_static(allowed));
        }
        response
    }
}

/// Describes a refusal with its numbers.
fn pin_error(error: &PinError) -> String {
    let PinError::OutOfBounds { asked, pinned, possible } = error else { return error.to_string() };
    let [left, pinned, possible] = [possible.saturating_sub(*pinned), *pinned, *possible].map(bytes);
    let asked = if *asked == 0 { String::new() } else { format!(" {}", bytes(*asked)) };
    format!(
        "cannot pin{asked}: {possible} of the cluster's cache can be pinned, {pinned} are pinned by other pins, and {left} are \
         left; pin fewer bytes, or unpin something"
    )
}

impl From<serde_json::Error> for AdminError {
    fn from(error: serde_json::Error) -> Self {
        Self::Encoding(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_status() {
        let text = String::new;
        for (error, status) in [
            (AdminError::UnknownPath { available: text() }, 404),
            (AdminError::MethodNotAllowed { allowed: "GET" }, 405),
            (AdminError::InvalidBody(text()), 400),
            (AdminError::NotReady, 503),
            (AdminError::Encoding(text()), 500),
            (PinError::OutOfBounds { asked: 1, pinned: 2, possible: 3 }.into(), 409),
            (PinError::NotPinned("s3://b/k".parse().unwrap()).into(), 404),
            (PinError::NotSaved(text()).into(), 500),
            (ControlError::Invalid(text()).into(), 400),
            (ControlError::NotFound(text()).into(), 404),
            (ControlError::Conflict(text()).into(), 409),
            (ControlError::Failed(anyhow::anyhow!("no netlink")).into(), 500),
        ] {
            assert_eq!(error.status(), status, "{error:?}");
            let response = error.response(|body| body);
            assert_eq!(response.status(), status, "{error:?}");
            assert_eq!(response.headers().contains_key(ALLOW), status == 405, "{error:?}");
        }
    }
}
