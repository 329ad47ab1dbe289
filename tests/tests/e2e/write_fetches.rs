//! `cache.after_write = "fetch"` with a scripted backend: which objects owners request from it, when, and what they keep.

use std::time::Duration;

use anyhow::{Result, ensure};
use hyper::{Method, StatusCode};
use lota_tests::{
    lab::{
        Mode, Namespace, VIP,
        raw::Request,
        scripted::{Access, Answer, CorrectGateway, ScriptedGateway, SeenRequest, StoredObject},
    },
    tour::{MIB, Tour, wait_until},
};
use tokio::runtime::Runtime;

use crate::{
    cold::sum,
    misbehaviour::{is_cached, start, use_scripted},
};

/// Signature that the scripted gateway accepts.
const AUTHORIZATION: &str = "AWS4-HMAC-SHA256 Credential=AK/20260101/us-east-1/s3/aws4_request, \
                             SignedHeaders=host, Signature=0000000000000000000000000000000000000000000000000000000000000000";
const FETCH: &str = "[cache]\nafter_write = \"fetch\"\n";

/// Restarts all nodes with this gateway and backend, and `config` in place of the section `[cache]`.
pub(crate) fn restart(
    tour: &mut Tour,
    gateway: &ScriptedGateway,
    backend: &ScriptedGateway,
    config: &str,
) -> Result<()> {
    tour.nodes.iter_mut().for_each(|node| node.edit("[cache]\n", config));
    use_scripted(tour, gateway, &[backend])
}

/// Writes objects, one after the other.
pub(crate) fn write(pod: &Namespace, keys: impl IntoIterator<Item = String>) -> Result<()> {
    let put = |key| {
        let put = Request::new(Method::PUT, "cwlota.com", &format!("/scripted/{key}"));
        put.header("authorization", AUTHORIZATION).body("written")
    };
    for reply in pod.send_all((VIP, 80).into(), keys.into_iter().map(put).collect())? {
        ensure!(reply.status == StatusCode::OK, "{reply:?}");
    }
    Ok(())
}

/// Returns the number of written objects with a result, on all nodes; with any result, if it is empty.
pub(crate) fn count(tour: &Tour, result: &str) -> Result<f64> {
    let label = if result.is_empty() { String::new() } else { format!("result=\"{result}\"}}") };
    let name = format!("lota_write_fetches_total{{{label}");
    sum(tour, |line| line.starts_with(&name))
}

/// Returns the keys of the objects that were requested from the backend.
fn requested(backend: &ScriptedGateway) -> Vec<String> {
    let seen = backend.seen();
    let gets = seen.iter().filter(|seen| seen.method == "GET");
    gets.map(|seen| seen.path().trim_start_matches("/scripted/").to_owned()).collect()
}

/// Returns a gateway's response to a write.
fn accepted(_: &SeenRequest) -> Answer {
    Answer::status(200).header("etag", "\"e\"")
}

/// Returns an object, whatever its name, with the ETag of [`accepted`].
fn any_object(size: u64) -> Answer {
    let body = vec![b'x'; usize::try_from(size).unwrap_or(usize::MAX)];
    Answer::status(200).header("etag", "\"e\"").header("date", "Sat, 02 Jan 2021 00:00:00 GMT").body(body)
}

pub(crate) fn etags(tour: &mut Tour) -> Result<()> {
    // ETag that the gateway states, that of the backend, seconds since the object was modified, and result.
    const OBJECTS: [(&str, Option<&str>, &str, u8, &str); 6] = [
        ("same", Some("\"abc-2\""), "\"abc-2\"", 59, "fetched"),
        ("other-form", Some("ABC-2"), "\"abc-2\"", 59, "fetched"),
        ("other-tenant", Some("\"mine\""), "\"theirs\"", 0, "other-object"),
        ("none-and-new", None, "\"abc-2\"", 1, "fetched"),
        ("none-and-old", None, "\"abc-2\"", 200, "other-object"),
        ("weak-and-old", Some("W/\"abc-2\""), "\"abc-2\"", 200, "other-object"),
    ];
    let (runtime, content) = (Runtime::new()?, "0123456789".repeat(10_000));
    let gateway = start(tour, &runtime, |request: &SeenRequest| {
        let stated = OBJECTS.iter().find(|(key, ..)| request.path() == format!("/scripted/{key}"));
        let etag = stated.and_then(|(_, stated, ..)| *stated);
        etag.map_or(Answer::status(200), |etag| Answer::status(200).header("etag", etag))
    })?;
    let objects = CorrectGateway::new().rule(|_| Access::Signed);
    for (key, _, etag, age, _) in OBJECTS {
        let date = format!("Fri, 01 Jan 2021 00:{:02}:{:02} GMT", age / 60, age % 60);
        let object = StoredObject::new(content.as_bytes()).etag(etag).header("date", &date);
        objects.put(&format!("/scripted/{key}"), object);
    }
    let backend = start(tour, &runtime, objects)?;
    restart(tour, &gateway, &backend, FETCH)?;
    for (key, _, _, _, result) in OBJECTS {
        let before = count(tour, result)?;
        write(&tour.pod(1, 1), [key.to_owned()])?;
        wait_until(&format!("{key} to be counted as {result}"), || Ok(count(tour, result)? == before + 1.0))?;
        ensure!(is_cached(tour, key)? == (result == "fetched"), "{key}: {result}, and cached or not");
    }
    ensure!(requested(&backend).len() == OBJECTS.len(), "{:?}", requested(&backend));
    tour.restart(Mode::OwnCredential)
}

pub(crate) fn turns(tour: &mut Tour) -> Result<()> {
    const MANY: usize = 90;
    let runtime = Runtime::new()?;
    let gateway = start(tour, &runtime, accepted)?;
    let backend = start(tour, &runtime, |_: &SeenRequest| any_object(1).delay(Duration::from_secs(2)))?;
    restart(tour, &gateway, &backend, FETCH)?;
    write(&tour.pod(1, 1), (0..MANY).map(|number| format!("many-{number}")))?;
    wait_until("fetches to begin", || Ok(!requested(&backend).is_empty()))?;
    write(&tour.pod(2, 1), ["single".to_owned()])?;
    let mut before = 0;
    wait_until("the other pod's object to be requested", || {
        let requested = requested(&backend);
        before = requested.iter().filter(|key| key.starts_with("many-")).count();
        Ok(requested.iter().any(|key| key == "single"))
    })?;
    ensure!(before < MANY / 2, "{before} of {MANY} objects of one pod were requested before that of another");
    tour.restart(Mode::OwnCredential)
}

pub(crate) fn quota(tour: &mut Tour) -> Result<()> {
    const WRITES: usize = 12;
    let runtime = Runtime::new()?;
    let gateway = start(tour, &runtime, accepted)?;
    let backend = start(tour, &runtime, |_: &SeenRequest| any_object(2 * MIB))?;
    restart(tour, &gateway, &backend, &format!("[limits]\nfill_overread = \"1MiB\"\n\n{FETCH}"))?;
    let counts = |tour: &Tour| anyhow::Ok((count(tour, "fetched")?, count(tour, "fill-overread")?));
    for number in 0..WRITES {
        write(&tour.pod(1, 1), [format!("quota-{number}")])?;
        wait_until("the write to be counted", || {
            let (fetched, refused) = counts(tour)?;
            Ok(fetched + refused == (number + 1) as f64)
        })?;
    }
    // Each owner has a quota of its own.
    let ((fetched, refused), requested) = (counts(tour)?, requested(&backend).len());
    ensure!((1.0..=3.0).contains(&fetched), "{fetched} were fetched, {refused} refused");
    ensure!(requested as f64 == fetched, "{requested} requests for {fetched} fetches");
    tour.restart(Mode::OwnCredential)
}
