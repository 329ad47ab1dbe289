use hyper::header::{HeaderName, HeaderValue};
use proptest::prelude::*;

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

const COMPLETE: &str = "CompleteMultipartUploadResult";

#[test]
fn only_a_complete_result_reports_success() {
    let padding = " ".repeat(1 << 16);
    let result = format!(
        "<{COMPLETE} xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>b</Bucket><ETag>&quot;e-2&quot;</ETag></{COMPLETE}>"
    );
    let declared = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{result}\n");
    for (is_success, body) in [
        (true, result.clone()),
        (true, declared.clone()),
        (true, format!("{padding}\n{declared}")),
        (true, format!("<s:{COMPLETE} xmlns:s=\"a\"><s:ETag>e</s:ETag></s:{COMPLETE}>")),
        (false, String::new()),
        (false, padding.clone()),
        (false, result[..result.len() - 1].to_owned()),
        (false, format!("{padding}<Error><Code>InternalError</Code></Error>")),
        (false, "<?xml version=\"1.0\"?><Error><Code>InternalError</Code><ETag>e</ETag></Error>".to_owned()),
        (false, format!("<Error><{COMPLETE}><ETag>e</ETag></{COMPLETE}></Error>")),
        (false, format!("<!-- <{COMPLETE}> --><Error/>")),
        (false, format!("<{COMPLETE}/>")),
        (false, format!("<{COMPLETE}><a><ETag>e</ETag></a></{COMPLETE}>")),
        (false, "not XML".to_owned()),
        // Of another operation.
        (false, "<CopyObjectResult><ETag>e</ETag></CopyObjectResult>".to_owned()),
    ] {
        assert_eq!(is_result(body.as_bytes(), COMPLETE), is_success, "{}", body.trim());
    }
    // Ceph RGW reports the progress of a copy in the result.
    let copying = "<CopyObjectResult><Progress>1</Progress><Progress>2</Progress>";
    for (is_success, end) in [
        (true, "<LastModified>a</LastModified><ETag>e</ETag></CopyObjectResult>"),
        (false, "</CopyObjectResult>"),
        (false, "<Error><Code>InternalError</Code></Error>"),
        (false, ""),
    ] {
        assert_eq!(is_result(format!("{copying}{end}").as_bytes(), "CopyObjectResult"), is_success, "{end}");
    }
}

proptest! {
    #[test]
    fn other_bodies_are_no_results(body in "[ -~]{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(!is_result(body.as_bytes(), COMPLETE));
        prop_assert!(!is_result(&bytes, COMPLETE));
    }
}
