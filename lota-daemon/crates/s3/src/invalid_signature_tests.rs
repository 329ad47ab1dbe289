use proptest::prelude::*;

use super::*;
use crate::test_request::request;

#[test]
fn requests_without_exactly_one_known_signature_are_skipped() {
    for (target, authorizations) in [
        ("/b/k", vec![]),
        ("/b/k", vec!["Bearer abc"]),
        ("/b/k", vec!["AWS4-ECDSA-P256-SHA256 Signature=ab"]),
        ("/b/k", vec!["AWS4-HMAC-SHA256 Signature=short"]),
        ("/b/k?X-Amz-Date=1", vec![]),
        ("/b/k?X-Amz-Signature=short!", vec![]),
    ] {
        assert!(with_broken_signature(&request(target, &authorizations)).is_none(), "{target}");
    }
}

#[test]
fn without_signature_removes_the_whole_signature() {
    let mut signed = request("/b/k?versionId=1&AWSAccessKeyId=a&Signature=s&Expires=1", &["AWS a:b"]);
    signed.headers_mut().insert("x-amz-date", HeaderValue::from_static("1"));
    let unsigned = without_signature(&signed, "other=1").unwrap();
    assert_eq!(unsigned.uri(), "http://cwlota.com/b/k?versionId=1&other=1");
    assert!(unsigned.headers().is_empty());
}

/// Returns the value of a request's signature as a strict and as a lenient server decode it.
fn value(request: &Request<()>) -> Vec<u8> {
    let lenient = base64::engine::GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        base64::engine::GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    );
    let text = request.headers().get("authorization").map(|value| value.to_str().unwrap());
    let text = text.map_or_else(|| request.uri().query().unwrap_or_default().to_owned(), str::to_owned);
    let value = text.rsplit_once("ignature=").or_else(|| text.rsplit_once(':')).unwrap().1;
    let value = decoded(value.split('&').next().unwrap());
    if value.len() == 64 { hex::decode(&*value).unwrap() } else { lenient.decode(&*value).unwrap() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn a_broken_signature_has_another_value_and_the_same_form(
        v4 in prop::array::uniform32(any::<u8>()), v2 in prop::array::uniform20(any::<u8>()), last in 0..4_u8,
    ) {
        let (v4, v2) = (hex::encode(v4), BASE64_STANDARD.encode(v2));
        // The same value with other unused bits in its last digit.
        let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let at = digits.iter().position(|digit| *digit == v2.as_bytes()[26]).unwrap();
        let odd = format!("{}{}=", &v2[..26], char::from(digits[at | usize::from(last)]));
        let escaped = utf8_percent_encode(&v2, QUERY).to_string();
        for request in [
            request("/b/k", &[&format!("AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature={v4}")]),
            request("/b/k", &[&format!("AWS key:{v2}")]),
            request("/b/k", &[&format!("AWS key:{odd}")]),
            request(&format!("/k?X-Amz-Date=1&X-Amz-Signature={v4}"), &[]),
            request(&format!("/k?AWSAccessKeyId=a&Signature={escaped}&Expires=1"), &[]),
            request(&format!("/k?Signature={v2}"), &[]),
        ] {
            let broken = with_broken_signature(&request).unwrap();
            let (before, after) = (value(&request), value(&broken));
            prop_assert_ne!(&before, &after);
            prop_assert_eq!(before.len(), after.len());
            let place = |request: &Request<()>| {
                SignedBy::of(request.uri().path_and_query().unwrap(), request.headers())
            };
            prop_assert_eq!(place(&request), place(&broken));
            prop_assert_eq!(request.uri().path(), broken.uri().path());
        }
    }

    #[test]
    fn malformed_signatures_do_not_panic(authorization in "[ -~]*", query in "[a-zA-Z=&%0-9-]*") {
        for request in [request("/b/k", &[&authorization]), request(&format!("/b/k?{query}"), &[])] {
            if let Some(broken) = with_broken_signature(&request) {
                prop_assert!(broken.uri() != request.uri() || broken.headers() != request.headers());
            }
        }
    }
}
