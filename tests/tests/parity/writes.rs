//! The same writes to one bucket at the gateway and to another through LOTA.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Result, ensure};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, GATEWAY, GATEWAY_PORT, Mode, NOBODY, READER, VIP,
        raw::{Reply, Request, Signing},
    },
    tour::Tour,
};

use super::{compare, fail_on_differences};

pub(crate) fn as_they_are(tour: &mut Tour) -> Result<()> {
    // Names of equal length, since some responses contain them.
    run(tour, Mode::OwnCredential, "writes-1", "writes-2")
}

pub(crate) fn signed_anew(tour: &mut Tour) -> Result<()> {
    run(tour, Mode::ReSign, "writes-3", "writes-4")
}

fn run(tour: &mut Tour, mode: Mode, one: &str, other: &str) -> Result<()> {
    tour.restart(mode)?;
    let gateway = SocketAddr::from((GATEWAY, GATEWAY_PORT));
    let (labels, at_gateway): (Vec<_>, Vec<_>) = steps(one)?.into_iter().unzip();
    let (_, through_lota): (Vec<_>, Vec<_>) = steps(other)?.into_iter().unzip();
    let renamed = |reply| renamed(reply, other, one);
    let expected = tour.lab.switch().send_all(gateway, at_gateway)?;
    let expected: Vec<Reply> = expected.into_iter().map(renamed).collect();
    let got = tour.pod(1, 1).send_all((VIP, 80).into(), through_lota)?;
    let got: Vec<Reply> = got.into_iter().map(renamed).collect();
    let statuses = expected.iter().map(|reply| reply.status.as_u16());
    let done = statuses.clone().filter(|status| (200..300).contains(status)).count();
    ensure!(done > 10, "too few writes succeed at the gateway: {:?}", statuses.collect::<Vec<_>>());
    let mut differences = BTreeMap::new();
    compare(&labels, ("the gateway", &expected), ("LOTA", &got), &mut differences)?;
    fail_on_differences(&differences)
}

/// Returns a response with the name of the other bucket, without timestamps.
fn renamed(mut reply: Reply, from: &str, to: &str) -> Reply {
    for value in reply.headers.values_mut() {
        let text = value.to_str().unwrap_or_default().replace(from, to);
        if let Ok(renamed) = text.parse() {
            *value = renamed;
        }
    }
    reply.headers.remove("last-modified");
    let mut body = String::from_utf8_lossy(&reply.body).replace(from, to);
    // A response contains at most one modification time. SeaweedFS omits trailing zeros of its fraction, so the
    // length of the response varies, too.
    if let (Some(start), Some(end)) = (body.find("<LastModified>"), body.find("</LastModified>")) {
        body.replace_range(start..end, "");
        reply.headers.remove("content-length");
    }
    reply.body = body.into();
    reply
}

fn steps(bucket: &str) -> Result<Vec<(String, Request)>> {
    let path = |key: &str| format!("/{bucket}/{key}");
    let request = |method: Method, target: String| Request::new(method, "cwlota.com", &target);
    let put = |key: &str| request(Method::PUT, path(key)).body(vec![b'x'; 5000]);
    let delete_two =
        "<Delete><Quiet>true</Quiet><Object><Key>a</Key></Object><Object><Key>none</Key></Object></Delete>";
    let steps = [
        ("make a bucket", request(Method::PUT, format!("/{bucket}"))),
        ("put", put("a")),
        (
            "put in virtual-host style",
            Request::new(Method::PUT, &format!("{bucket}.cwlota.com"), "/v").body("vv"),
        ),
        ("put nothing", request(Method::PUT, path("empty"))),
        ("put with metadata", put("m").header("x-amz-meta-a", "1").header("content-encoding", "gzip")),
        ("put with If-None-Match: *, existing", put("a").header("if-none-match", "*")),
        ("put with If-None-Match: *, missing", put("b").header("if-none-match", "*")),
        ("put with a wrong MD5", put("c").header("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==")),
        ("put with a malformed MD5", put("c").header("content-md5", "?")),
        ("put with Expect", put("e").header("expect", "100-continue")),
        ("put with a checksum", put("s").header("x-amz-checksum-crc32c", "AAAAAA==")),
        ("copy", request(Method::PUT, path("copy")).header("x-amz-copy-source", &path("a"))),
        (
            "copy a missing object",
            request(Method::PUT, path("copy")).header("x-amz-copy-source", &path("none")),
        ),
        ("get the copy", request(Method::GET, path("copy"))),
        ("head it", request(Method::HEAD, path("copy"))),
        ("list", request(Method::GET, format!("/{bucket}?list-type=2&prefix=a&max-keys=1"))),
        ("delete", request(Method::DELETE, path("b"))),
        ("get a deleted object", request(Method::GET, path("b"))),
        ("delete a missing object", request(Method::DELETE, path("none"))),
        ("an unknown method", request(Method::from_bytes(b"FETCH")?, path("a"))),
        ("delete a bucket that is not empty", request(Method::DELETE, format!("/{bucket}"))),
        (
            "delete two",
            request(Method::POST, format!("/{bucket}?delete"))
                .header("content-md5", &md5(delete_two))
                .body(delete_two),
        ),
        (
            "an unknown upload",
            request(Method::PUT, format!("/{bucket}/u?partNumber=1&uploadId=none")).body("part"),
        ),
        ("abort it", request(Method::DELETE, format!("/{bucket}/u?uploadId=none"))),
        (
            "complete it",
            request(Method::POST, format!("/{bucket}/u?uploadId=none")).body("<CompleteMultipartUpload/>"),
        ),
    ];
    let mut signed: Vec<(String, Request)> = steps
        .into_iter()
        .map(|(what, request)| Ok((what.to_owned(), request.sign(&ADMIN, Signing::Header)?)))
        .collect::<Result<_>>()?;
    for (who, credential, signing) in [
        ("anonymous", ADMIN, Signing::Anonymous),
        ("a reader", READER, Signing::Header),
        ("a user without permissions", NOBODY, Signing::Header),
        ("presigned", ADMIN, Signing::Presigned),
    ] {
        signed.push((format!("put by {who}"), put("w").sign(&credential, signing)?));
        signed.push((
            format!("delete by {who}"),
            request(Method::DELETE, path("w")).sign(&credential, signing)?,
        ));
    }
    Ok(signed)
}

fn md5(text: &str) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(md5::compute(text).0)
}
