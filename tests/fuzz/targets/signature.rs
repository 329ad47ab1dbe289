//! `SigV4` in the header and in the query.

#![no_main]

use std::time::{Duration, SystemTime};

use hyper::{HeaderMap, Method, http::uri::PathAndQuery};
use libfuzzer_sys::fuzz_target;
use lota_s3::{Secret, canonical::rest_of_query, verification::RequestSignature};

fuzz_target!(|input: (&str, &str, &str, &str)| {
    let (target, authorization, date, payload) = input;
    let Ok(target) = target.parse::<PathAndQuery>() else { return };
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("host", "cwlota.com"),
        ("authorization", authorization),
        ("x-amz-date", date),
        ("x-amz-content-sha256", payload),
    ] {
        if let Some(value) = value.parse().ok().filter(|_| !value.is_empty()) {
            headers.insert(name, value);
        }
    }
    let rest = rest_of_query(target.query().unwrap_or_default());
    assert_eq!(rest_of_query(&rest), rest, "what is in its final form changes again");
    if let Ok(Some(signature)) = RequestSignature::of(&target, &headers) {
        let secret = Secret::from("a secret that the fuzzer has no way to know".to_owned());
        // 2013-05-24, the day of the seeds.
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        assert!(signature.verify(&secret, (&Method::GET, &target, &headers), now).is_err());
    }
});
