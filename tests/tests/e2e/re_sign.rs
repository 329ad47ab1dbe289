//! Re-signing for a gateway that knows neither the client's key nor the host name it uses.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, Credential, GATEWAY, GATEWAY_PORT, Mode, Origin, POD_ONLY, VIP,
        chunked::Chunked,
        raw::{Reply, Request, Signing, content},
    },
    tour::{Tour, wait_until},
};

const SIZE: usize = 200_000;
const CHECKSUM: &str = "x-amz-checksum-crc32c";

fn ask(tour: &Tour, request: Request) -> Result<Reply> {
    tour.pod(1, 1).send_all((VIP, 80).into(), vec![request])?.pop().context("no answer")
}

/// Returns what the gateway has stored at this path.
fn stored(tour: &Tour, path: &str) -> Result<Reply> {
    let request = Request::new(Method::GET, "cwlota.com", path)
        .header("x-amz-checksum-mode", "ENABLED")
        .sign(&ADMIN, Signing::Header)?;
    let gateway = SocketAddr::from((GATEWAY, GATEWAY_PORT));
    tour.lab.switch().send_all(gateway, vec![request])?.pop().context("no answer")
}

pub(crate) fn requests_are_re_signed(tour: &mut Tour) -> Result<()> {
    re_signing(tour, requests)
}

/// Runs a test with nodes that re-sign, and restores the mode that other tests expect, however it ends.
fn re_signing(tour: &mut Tour, test: fn(&Tour) -> Result<()>) -> Result<()> {
    tour.restart(Mode::ReSign)?;
    let tested = test(tour);
    tour.restart(Mode::OwnCredential)?;
    tested
}

fn requests(tour: &Tour) -> Result<()> {
    let path = format!("/{}", tour.client.name("re-signed"));
    let request = |method| Request::new(method, "cwlota.com", &path);
    let put = request(Method::PUT).body(content(SIZE)).sign(&POD_ONLY, Signing::Header)?;
    let reply = ask(tour, put)?;
    ensure!(reply.status == 200, "the upload was answered {} {}", reply.status, reply.code());
    ensure!(stored(tour, &path)?.body == content(SIZE), "other bytes at the gateway");

    // The range is signed, but LOTA may request the whole object, since it re-signs.
    let ranged = || request(Method::GET).header("range", "bytes=9-99").sign(&POD_ONLY, Signing::Header);
    let reply = ask(tour, ranged()?)?;
    ensure!(reply.status == 206 && reply.body == content(SIZE)[9..100], "{} {}", reply.status, reply.code());
    wait_until("a hit", || Ok(ask(tour, ranged()?)?.cache() == "hit"))?;
    for signing in [Signing::Presigned, Signing::Header] {
        let reply = ask(tour, request(Method::GET).sign(&POD_ONLY, signing)?)?;
        ensure!(reply.cache() == "hit" && reply.body == content(SIZE), "{signing:?}: {}", reply.status);
    }

    // Without a valid signature there is no hit.
    let wrong = Credential { secret_key: "wrong".into(), ..POD_ONLY };
    let unknown = Credential { access_key: "NOSUCHKEY00000000000".into(), ..POD_ONLY };
    for (who, signing, code) in [
        (&wrong, Signing::Header, "SignatureDoesNotMatch"),
        (&wrong, Signing::Presigned, "SignatureDoesNotMatch"),
        (&unknown, Signing::Header, "InvalidAccessKeyId"),
        (&unknown, Signing::Presigned, "InvalidAccessKeyId"),
        (&POD_ONLY, Signing::PresignedV2, "InvalidRequest"),
        (&POD_ONLY, Signing::Anonymous, "AccessDenied"),
    ] {
        let reply = ask(tour, request(Method::GET).sign(who, signing)?)?;
        ensure!(reply.code() == code, "{signing:?}: expected {code}, got {} {}", reply.status, reply.code());
        ensure!(!reply.header("x-amz-request-id").is_empty(), "{code} has no request id");
    }
    Ok(())
}

pub(crate) fn chunks(tour: &mut Tour) -> Result<()> {
    re_signing(tour, uploads)
}

fn uploads(tour: &Tour) -> Result<()> {
    // Ceph RGW 16 supports only chunks with signatures.
    let takes_trailers = !matches!(tour.origin, Origin::Rgw(_));
    let data = content(SIZE);
    let right = BASE64_STANDARD.encode(crc32c::crc32c(&data).to_be_bytes());
    let path = |key: &str| format!("/{}", tour.client.name(key));
    let upload = |key: &str, chunked| {
        Request::new(Method::PUT, "cwlota.com", &path(key))
            .body(data.clone())
            .sign_chunked(&POD_ONLY, chunked)
    };
    let signed = Chunked { size: 65_536, signed: true, trailer: None };
    let with_trailer = Chunked { trailer: Some((CHECKSUM, &right)), ..signed };
    let unsigned = Chunked { signed: false, size: 100_000, ..with_trailer };
    for (key, chunked) in [("signed", signed), ("trailer", with_trailer), ("unsigned", unsigned)] {
        if chunked.trailer.is_some() && !takes_trailers {
            continue;
        }
        let reply = ask(tour, upload(key, chunked)?)?;
        ensure!(reply.status == 200, "{key}: answered {} {}", reply.status, reply.code());
        let stored = stored(tour, &path(key))?;
        ensure!(stored.body == data, "{key}: other bytes at the gateway ({})", stored.status);
    }
    let mut changed = upload("changed", signed)?;
    let mut body = changed.body.to_vec();
    body[150_000] ^= 1;
    changed.body = body.into();
    let mut short = upload("short", with_trailer)?;
    short.body = short.body.slice(..150_000);
    let wrong = Chunked { trailer: Some((CHECKSUM, "AAAAAA==")), ..unsigned };
    for (key, request, code) in [
        ("changed", changed, "SignatureDoesNotMatch"),
        ("short", short, "IncompleteBody"),
        ("wrong", upload("wrong", wrong)?, "BadDigest"),
        ("wrong", upload("wrong", Chunked { signed: true, ..wrong })?, "BadDigest"),
    ] {
        if key != "changed" && !takes_trailers {
            continue;
        }
        let reply = ask(tour, request)?;
        ensure!(reply.code() == code, "{key}: expected {code}, got {} {}", reply.status, reply.code());
        let stored = stored(tour, &path(key))?;
        ensure!(stored.status == 404, "{key}: is stored nevertheless ({})", stored.status);
    }
    Ok(())
}
