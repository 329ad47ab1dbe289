use hyper::header::{HeaderName, HeaderValue};

use super::*;
use crate::Zone;

fn classify(method: &str, target: &str, headers: &[&'static str]) -> Option<WriteObject> {
    let endpoint = Endpoint::of_zone(Zone::parse("cwlota.com").unwrap(), "http://g".into());
    let headers =
        headers.iter().map(|name| (HeaderName::from_static(name), HeaderValue::from_static("a"))).collect();
    let (method, target) = (method.parse().unwrap(), target.parse().unwrap());
    WriteObject::classify(&endpoint, &method, "cwlota.com", &target, &headers)
}

#[test]
fn writes_of_whole_objects_are_recognized() {
    use WriteOperation::{CompleteMultipart, Copy, Put};
    const COPY: &str = "x-amz-copy-source";
    for (operation, method, target, headers) in [
        (Some(Put), "PUT", "/b/k", &[][..]),
        (Some(Put), "PUT", "/b/k?x-id=PutObject", &[]),
        (Some(Put), "PUT", "/b/k?X-Amz-Signature=0&X-Amz-Credential=a", &[]),
        (Some(Put), "PUT", "/b/k?AWSAccessKeyId=a&Signature=0&Expires=1", &[]),
        (Some(Put), "PUT", "/b/k?x-amz-checksum-crc32=A&x-amz-sdk-checksum-algorithm=CRC32", &[]),
        (Some(Put), "PUT", "/b/k", &["x-amz-meta-a"]),
        (Some(Copy), "PUT", "/b/k?x-id=CopyObject", &[COPY]),
        (Some(CompleteMultipart), "POST", "/b/k?uploadId=u", &[]),
        (Some(CompleteMultipart), "POST", "/b/k?uploadId=u&X-Amz-Signature=0", &[]),
        // Parts.
        (None, "PUT", "/b/k?partNumber=1&uploadId=u", &[]),
        (None, "PUT", "/b/k?uploadId=u", &[]),
        (None, "PUT", "/b/k?partNumber=1&uploadId=u", &[COPY]),
        (None, "POST", "/b/k?uploads", &[]),
        (None, "DELETE", "/b/k?uploadId=u", &[]),
        (None, "POST", "/b/k?uploadId=", &[]),
        (None, "POST", "/b/k?uploadId=u&uploadId=v", &[]),
        // Properties, and operations unknown to LOTA.
        (None, "PUT", "/b/k?acl", &[]),
        (None, "PUT", "/b/k?tagging=", &[]),
        (None, "PUT", "/b/k?append&position=0", &[]),
        (None, "PUT", "/b/k?x-amz-copy-source=%2Fb%2Fa&X-Amz-Signature=0", &[]),
        (None, "POST", "/b/k?restore", &[]),
        (None, "POST", "/b/k?select&select-type=2", &[]),
        (None, "POST", "/b/k", &[]),
        (None, "DELETE", "/b/k", &[]),
        (None, "GET", "/b/k", &[]),
        // Buckets.
        (None, "PUT", "/b", &[]),
        (None, "POST", "/b?delete", &[]),
    ] {
        let write = classify(method, target, headers);
        assert_eq!(write.as_ref().map(|write| write.operation), operation, "{method} {target}");
        assert!(write.is_none_or(|write| write.name.to_string() == "b/k" && !write.has_customer_key));
    }
    let elsewhere = Endpoint::of_zone(Zone::parse("other.test").unwrap(), "http://g".into());
    let target = "/b/k".parse().unwrap();
    let put = WriteObject::classify(&elsewhere, &Method::PUT, "cwlota.com", &target, &HeaderMap::new());
    assert_eq!(put, None);
}

#[test]
fn only_the_key_of_the_written_object_counts() {
    let has_key = |headers: &[&'static str]| classify("PUT", "/b/k", headers).unwrap().has_customer_key;
    assert!(has_key(&["x-amz-server-side-encryption-customer-algorithm"]));
    assert!(!has_key(&[
        "x-amz-copy-source",
        "x-amz-copy-source-server-side-encryption-customer-algorithm",
        "x-amz-server-side-encryption",
    ]));
}
