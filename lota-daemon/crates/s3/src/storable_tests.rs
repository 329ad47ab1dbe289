use hyper::header::HeaderValue;
use proptest::prelude::*;

use super::*;

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers
            .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    headers
}

const ETAG: (&str, &str) = ("etag", "\"e\"");
const LENGTH: (&str, &str) = ("content-length", "9");
const RANGE: (&str, &str) = ("range", "bytes=1-2");
const PART: (&str, &str) = ("content-range", "bytes 1-2/9");
const GZIP: (&str, &str) = ("content-encoding", "gzip");

fn of(request: &[(&str, &str)], status: u16, answer: &[(&str, &str)]) -> Result<u64, NotStorable> {
    let status = StatusCode::from_u16(status).unwrap();
    check_storable(&headers(request), status, &headers(answer)).map(|(_, size)| size)
}

#[test]
fn responses_equal_for_all_clients_are_storable() {
    for (request, status, answer) in [
        (vec![], 200, vec![ETAG, LENGTH]),
        (vec![RANGE], 200, vec![ETAG, LENGTH]),
        (vec![RANGE], 206, vec![ETAG, PART]),
        (vec![RANGE], 206, vec![ETAG, PART, ("content-length", "2")]),
        // The request has no Accept-Encoding, so the encoding is the object's own.
        (vec![], 200, vec![ETAG, LENGTH, GZIP]),
        (vec![("accept-encoding", "identity")], 200, vec![ETAG, LENGTH, GZIP]),
        (vec![("accept-encoding", "gzip;q=0, identity; q=1, *;q=0.0")], 200, vec![ETAG, LENGTH, GZIP]),
        (vec![("accept-encoding", "")], 200, vec![ETAG, LENGTH, GZIP]),
        (vec![("accept-encoding", "gzip")], 200, vec![ETAG, LENGTH]),
        (vec![("accept-encoding", "gzip")], 200, vec![ETAG, LENGTH, ("content-encoding", "identity")]),
        // `Vary` names only headers that the request does not have.
        (vec![], 200, vec![ETAG, LENGTH, ("vary", "Origin, Accept-Encoding")]),
        (vec![("accept-encoding", "identity")], 200, vec![ETAG, LENGTH, ("vary", "accept-encoding")]),
    ] {
        assert_eq!(of(&request, status, &answer), Ok(9), "{request:?} {status} {answer:?}");
    }
}

#[test]
fn other_responses_are_not_storable() {
    use NotStorable::{BesideTheAnswer, Encoding, Length, Range, Status, Validator, Vary};
    for (why, request, status, answer) in [
        (Status, vec![], 201, vec![ETAG, LENGTH]),
        (Status, vec![], 304, vec![ETAG, LENGTH]),
        (Status, vec![], 500, vec![ETAG, LENGTH]),
        (Validator, vec![], 200, vec![LENGTH]),
        (Validator, vec![], 200, vec![LENGTH, ("etag", "W/\"e\"")]),
        (Validator, vec![], 200, vec![LENGTH, ETAG, ("etag", "\"f\"")]),
        (Length, vec![], 200, vec![ETAG]),
        (Length, vec![], 200, vec![ETAG, ("content-length", "many")]),
        (Length, vec![], 200, vec![ETAG, ("content-length", "+9")]),
        (Length, vec![], 200, vec![ETAG, ("content-length", "9223372036854775808")]),
        (Length, vec![RANGE], 206, vec![ETAG, ("content-range", "bytes 1-2/9223372036854775808")]),
        (Length, vec![], 200, vec![ETAG, LENGTH, ("content-length", "8")]),
        (Length, vec![RANGE], 206, vec![ETAG, PART, LENGTH]),
        (Length, vec![RANGE], 206, vec![ETAG, ("content-range", "bytes 1-2/*")]),
        (Range, vec![RANGE], 200, vec![ETAG, LENGTH, PART]),
        (Range, vec![], 206, vec![ETAG, PART]),
        (Range, vec![RANGE], 206, vec![ETAG, LENGTH]),
        (Range, vec![RANGE], 206, vec![ETAG, PART, PART]),
        (Range, vec![RANGE], 206, vec![ETAG, PART, ("content-type", "multipart/byteranges; boundary=x")]),
        (Vary, vec![], 200, vec![ETAG, LENGTH, ("vary", "*")]),
        (Vary, vec![("accept", "a")], 200, vec![ETAG, LENGTH, ("vary", "origin"), ("vary", "Accept")]),
        (Vary, vec![("authorization", "a")], 200, vec![ETAG, LENGTH, ("vary", "Authorization")]),
        (Vary, vec![("accept-encoding", "gzip")], 200, vec![ETAG, LENGTH, ("vary", "accept-encoding")]),
        (Vary, vec![], 200, vec![ETAG, LENGTH, ("vary", "not a name")]),
        (Encoding, vec![("accept-encoding", "gzip, deflate, br")], 200, vec![ETAG, LENGTH, GZIP]),
        (Encoding, vec![("accept-encoding", "*")], 200, vec![ETAG, LENGTH, GZIP]),
        (Encoding, vec![("accept-encoding", "gzip;q=0.1")], 200, vec![ETAG, LENGTH, GZIP]),
        (Encoding, vec![RANGE, ("accept-encoding", "gzip")], 206, vec![ETAG, PART, GZIP]),
        (BesideTheAnswer, vec![], 200, vec![ETAG, ("content-length", "0"), ("x-amz-rdma-reply", "200")]),
    ] {
        assert_eq!(of(&request, status, &answer), Err(why), "{request:?} {status} {answer:?}");
    }
}

#[test]
fn documentation_names_every_reason() {
    for (file, text) in [
        ("docs/s3.md", include_str!("../../../../docs/s3.md")),
        ("docs/metrics.md", include_str!("../../../../docs/metrics.md")),
    ] {
        for reason in NotStorable::ALL {
            assert!(text.contains(&format!("`{reason}`")), "{file} lacks {reason}");
        }
    }
}

proptest! {
    #[test]
    fn a_storable_response_has_a_size_and_suits_every_client(
        vary in "|Accept|range, accept|accept-encoding|\\*|[ -~]*",
        accepted in "identity|gzip|gzip;q=0|br, gzip|[ -~]*",
        length in "[0-9]{1,3}|[ -~]*",
        range in "bytes [0-3]-[3-5]/([5-9]|1[0-9])|[ -~]*",
    ) {
        let request = headers(&[("accept-encoding", &accepted), RANGE]);
        let whole = [ETAG, GZIP, ("vary", &vary), ("content-length", &length)];
        let part = [ETAG, GZIP, ("vary", &vary), ("content-range", &range)];
        let whole = check_storable(&request, StatusCode::OK, &headers(&whole)).ok().map(|(_, size)| size);
        let part = check_storable(&request, StatusCode::PARTIAL_CONTENT, &headers(&part)).ok().map(|(_, size)| size);
        if whole.or(part).is_some() {
            let varies = |name: &str| name == "*" || name.eq_ignore_ascii_case("range");
            prop_assert!(!vary.split(',').any(|name| varies(name.trim())), "Vary: {}", vary);
            prop_assert!(!["gzip", "br, gzip"].contains(&&*accepted), "accepts {}", accepted);
        }
        prop_assert!(whole.is_none_or(|size| length.parse() == Ok(size)), "{:?} of {}", whole, length);
        let stated = ByteRange::parse_content_range(&range).map(|(_, size)| size);
        prop_assert!(part.is_none() || part == stated, "{:?} of {}", part, range);
    }
}
