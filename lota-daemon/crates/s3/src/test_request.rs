//! Requests for tests.

use hyper::Request;

/// Returns a request with these `Authorization` headers.
pub(crate) fn request(target: &str, authorizations: &[&str]) -> Request<()> {
    let mut request = Request::builder().uri(format!("http://cwlota.com{target}"));
    for authorization in authorizations {
        request = request.header("authorization", *authorization);
    }
    request.body(()).unwrap()
}
