//! A connection's bytes: where requests begin and end, and what one means.

#![no_main]

use hyper::Request;
use libfuzzer_sys::fuzz_target;
use lota_daemon::http::{
    RequestHead,
    framing::{Framing, Rejected},
};
use lota_s3::{Endpoint, Endpoints, Operation, Zone};

const MAX_HEADERS: usize = 32;

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = (usize::from(input.0).min(input.1.len()), input.1);
    let (at_once, verdict) = follow(&[bytes]);
    let (in_two, other) = follow(&[&bytes[..cut], &bytes[cut..]]);
    assert_eq!(verdict, other, "how the bytes are cut changes the verdict");
    assert_eq!(at_once, in_two, "how the bytes are cut changes what passes");
    assert!(at_once.len() <= bytes.len(), "more passes than came");
    classify(&at_once);
});

/// Returns the bytes that pass, and the error.
fn follow(pieces: &[&[u8]]) -> (Vec<u8>, Option<Rejected>) {
    let (mut framing, mut passed) = (Framing::new(2048, MAX_HEADERS), Vec::new());
    for piece in pieces {
        if let Err(rejected) = framing.take(piece, &mut passed, |_| true) {
            return (passed, Some(rejected));
        }
    }
    (passed, None)
}

/// The first request, as the daemon reads it.
fn classify(bytes: &[u8]) {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(_)) = parsed.parse(bytes) else { return };
    let mut request =
        Request::builder().method(parsed.method.unwrap_or_default()).uri(parsed.path.unwrap_or_default());
    for header in parsed.headers.iter() {
        request = request.header(header.name, header.value);
    }
    let Ok(request) = request.body(()) else { return };
    let Ok(head) = RequestHead::of(request.into_parts().0) else { return };
    let Ok(zone) = Zone::parse("cwlota.com") else { return };
    let endpoints: Endpoints = [Endpoint::of_zone(zone, "http://gateway".into())].into_iter().collect();
    let Some(endpoint) = endpoints.find(&head.host) else { return };
    if let Operation::Get(get) = head.operation(endpoint) {
        assert!(!get.name.key.as_str().is_empty());
    }
}
