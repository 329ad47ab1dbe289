//! Files with secrets that are replaced while the daemons run.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, Credential, Mode, Namespace, READER, VIP,
        raw::{Reply, Request, Signing, content},
    },
    tour::{Tour, wait_settled, wait_until, wait_within},
};

const OLD: &str = "the lab's cluster key, nothing to protect";
const NEW: &str = "the next cluster key of the lab, made of words";
/// Objects that all nodes read during a rotation, so that each node owns some.
pub(crate) const OBJECTS: usize = 9;
pub(crate) const SIZE: usize = 100_000;
/// Reads from the cache of another node, on each node, after which the next step of a rotation begins.
const REMOTE_HITS: u64 = 30;
/// Time within which a daemon reads a changed file without a signal.
pub(crate) const UNASKED: Duration = Duration::from_secs(13);

const LATER: Credential = Credential::fixed("LOTALABLATER00000001", "secret-of-a-client-that-comes-later");
const NEXT_READER: Credential = Credential::fixed("LOTALABREADER0000002", "next-secret-of-lotas-own-user");

fn object(tour: &Tour, key: &str, method: Method) -> Request {
    Request::new(method, "cwlota.com", &format!("/{}", tour.client.name(key)))
}

fn send(from: &Namespace, request: Request) -> Result<Reply> {
    from.send_all((VIP, 80).into(), vec![request])?.pop().context("no answer")
}

pub(crate) fn put(tour: &Tour, key: &str) -> Result<()> {
    let put = object(tour, key, Method::PUT).body(content(SIZE)).sign(&ADMIN, Signing::Header)?;
    let reply = send(&tour.pod(1, 1), put)?;
    ensure!(reply.status == 200, "the upload was answered {} {}", reply.status, reply.code());
    Ok(())
}

pub(crate) fn get(tour: &Tour, from: &Namespace, key: &str, who: &Credential) -> Result<Reply> {
    send(from, object(tour, key, Method::GET).sign(who, Signing::Header)?)
}

/// Verifies that no log has one of these texts.
pub(crate) fn expect_no_secret(tour: &Tour, secrets: &[&str]) -> Result<()> {
    for node in &tour.nodes {
        let log = fs::read_to_string(node.log())?;
        for secret in secrets {
            ensure!(!log.contains(secret), "{} has logged a secret: {secret}", node.name());
        }
    }
    Ok(())
}

pub(crate) fn cluster_key(tour: &mut Tour) -> Result<()> {
    let rotated = rotate(tour);
    // This writes the old key again.
    tour.restart(Mode::OwnCredential).context("afterwards")?;
    rotated
}

/// Puts the objects of a folder, and waits until each is a hit. Returns their keys.
pub(crate) fn cached_objects(tour: &Tour, folder: &str) -> Result<Vec<String>> {
    let keys: Vec<String> = (0..OBJECTS).map(|number| format!("{folder}/{number}")).collect();
    for key in &keys {
        put(tour, key)?;
    }
    wait_settled();
    for key in &keys {
        let pod = tour.pod(1, 1);
        wait_until("a hit", || Ok(get(tour, &pod, key, &ADMIN)?.cache() == "hit"))?;
    }
    Ok(keys)
}

/// Counts the reads of one node's pod.
#[derive(Default)]
pub(crate) struct ReadCounts {
    pub(crate) all: AtomicU64,
    remote_hits: AtomicU64,
}

/// Returns the number of reads of all nodes' pods.
pub(crate) fn count_all(reads: &[ReadCounts; 3]) -> u64 {
    reads.iter().map(|reads| reads.all.load(Ordering::Relaxed)).sum()
}

fn rotate(tour: &mut Tour) -> Result<()> {
    let keys = cached_objects(tour, "secrets")?;
    let before = RefusalCounts::count(tour)?;
    let reads = [(); 3].map(|()| ReadCounts::default());
    let tour = &*tour;
    let is_hit = |reply: &Reply| reply.cache() == "hit";
    while_reading(&readers(tour, &keys)?, &reads, is_hit, || steps(tour, &reads))?;
    let all = count_all(&reads);
    let remote: u64 = reads.iter().map(|reads| reads.remote_hits.load(Ordering::Relaxed)).sum();
    RefusalCounts::count(tour)?.expect(&before).with_context(|| format!("after {all} reads"))?;
    println!("  {all} reads during the rotation, {remote} of them hits of another node; none failed");
    only_the_new_key_counts(tour)?;
    expect_no_secret(tour, &[OLD, NEW])
}

/// Replaces the key in two steps, node by node, in another order each time.
fn steps(tour: &Tour, reads: &[ReadCounts; 3]) -> Result<()> {
    let both = [format!("{OLD}\n{NEW}\n"), format!("{NEW}\n{OLD}\n"), format!("\n{OLD}\n\n{NEW}")];
    next_hits(reads, REMOTE_HITS).context("before the rotation")?;
    for (node, text) in [(0, &both[0]), (2, &both[1]), (1, &both[2])] {
        replace_key(tour, node, text, 2, node == 0)?;
        next_hits(reads, REMOTE_HITS).with_context(|| format!("n{} has both keys", node + 1))?;
    }
    for node in [1, 0, 2] {
        replace_key(tour, node, NEW, 1, node == 2)?;
        next_hits(reads, REMOTE_HITS).with_context(|| format!("n{} has the new key only", node + 1))?;
    }
    Ok(())
}

/// Writes the key file of a node, and waits until the node has read it: `unasked`, or after `lota reload`.
fn replace_key(tour: &Tour, node: usize, text: &str, keys: u32, unasked: bool) -> Result<()> {
    let node = &tour.nodes[node];
    node.replace("cluster-secret", text)?;
    let is_read = || Ok(node.metric("lota_cluster_keys")? == f64::from(keys));
    if unasked {
        return wait_within(UNASKED, &format!("{} to read the key file", node.name()), is_read);
    }
    node.reload()?;
    ensure!(is_read()?, "{} has not read the key file", node.name());
    Ok(())
}

/// Waits until each node's pod has read so many more objects from the cache of another node.
pub(crate) fn next_hits(reads: &[ReadCounts; 3], hits: u64) -> Result<()> {
    let seen = |reads: &ReadCounts| reads.remote_hits.load(Ordering::Relaxed);
    let before: Vec<u64> = reads.iter().map(seen).collect();
    wait_until("hits of other nodes", || {
        Ok(reads.iter().zip(&before).all(|(reads, before)| seen(reads) >= before + hits))
    })
}

/// A pod, the number of its node, and what it reads.
pub(crate) type Reader = (Namespace, u8, Vec<Request>);

/// Returns a pod of each node that reads these objects.
pub(crate) fn readers(tour: &Tour, keys: &[String]) -> Result<Vec<Reader>> {
    let gets = keys.iter().map(|key| object(tour, key, Method::GET).sign(&ADMIN, Signing::Presigned));
    let gets: Vec<Request> = gets.collect::<Result<_>>()?;
    Ok(tour.one_pod_per_node().map(|(node, pod)| (pod, node, gets.clone())).collect())
}

/// Runs `steps` while pods read. Each read must have the right bytes, and be right.
pub(crate) fn while_reading(
    readers: &[Reader],
    reads: &[ReadCounts; 3],
    is_right: impl Fn(&Reply) -> bool + Copy + Send,
    steps: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers = readers.iter().zip(reads).map(|(reader, reads)| {
            let is_over = &is_over;
            scope.spawn(move || read_on(reader, reads, is_right, is_over))
        });
        let readers: Vec<_> = readers.collect();
        let done = steps();
        is_over.store(true, Ordering::Relaxed);
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))?)?;
        done
    })
}

/// Reads all objects from a node's pod again and again.
fn read_on(
    (pod, node, gets): &Reader,
    reads: &ReadCounts,
    is_right: impl Fn(&Reply) -> bool,
    is_over: &AtomicBool,
) -> Result<()> {
    let here = format!("node=n{node}");
    while !is_over.load(Ordering::Relaxed) {
        for reply in pod.send_all((VIP, 80).into(), gets.clone())? {
            let is_right = reply.status == 200 && is_right(&reply);
            ensure!(is_right, "n{node}: {} {} `{}`", reply.status, reply.code(), reply.header("lota-cache"));
            ensure!(reply.body == content(SIZE), "n{node}: other bytes");
            reads.all.fetch_add(1, Ordering::Relaxed);
            if reply.cache() == "hit" && !reply.header("lota-cache").contains(&here) {
                reads.remote_hits.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// Events that a rotation must not cause, on all nodes.
#[derive(Debug, PartialEq)]
struct RefusalCounts(Vec<f64>);

impl RefusalCounts {
    const METRICS: [&str; 4] = [
        "lota_peer_requests_total{role=\"refused\"}",
        "lota_peer_requests_total{role=\"unavailable\"}",
        "lota_peer_requests_total{role=\"resumed\"}",
        "lota_errors_total{kind=\"owner-unavailable\"}",
    ];

    fn count(tour: &Tour) -> Result<Self> {
        Self::METRICS.iter().map(|name| tour.metric(name)).collect::<Result<_>>().map(Self)
    }

    fn expect(&self, before: &Self) -> Result<()> {
        ensure!(self == before, "{:?} went from {before:?} to {self:?}", Self::METRICS);
        Ok(())
    }
}

/// Verifies that nodes answer a message under the new key, and refuse one under the old one.
fn only_the_new_key_counts(tour: &Tour) -> Result<()> {
    let node = &tour.nodes[0];
    let checked = |key: &str| -> Result<String> {
        fs::write(node.folder().join("other-secret"), key)?;
        let file = node.folder().join("checked.toml");
        fs::write(&file, fs::read_to_string(node.config())?.replace("/cluster-secret", "/other-secret"))?;
        let output = node.command().arg("check").arg(&file).output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let refused = "lota_peer_requests_total{role=\"refused\"}";
    let before = tour.metric(refused)?;
    let answer = checked(NEW)?;
    ensure!(answer.contains("2 of 2 other nodes answer"), "the new key is refused: {answer}");
    ensure!(tour.metric(refused)? == before, "a message under the new key is refused");
    let answer = checked(OLD)?;
    ensure!(answer.matches("does not answer as a peer").count() == 2, "the old key is accepted: {answer}");
    ensure!(tour.metric(refused)? >= before + 2.0, "no message under the old key was refused");
    Ok(())
}

pub(crate) fn clients(tour: &mut Tour) -> Result<()> {
    tour.restart(Mode::ReSign)?;
    let tested = change_clients(tour);
    tour.restart(Mode::OwnCredential).context("afterwards")?;
    tested
}

fn change_clients(tour: &Tour) -> Result<()> {
    let (key, pod) = ("secrets/client", tour.pod(2, 1));
    put(tour, key)?;
    wait_settled();
    wait_until("a hit", || Ok(get(tour, &pod, key, &ADMIN)?.cache() == "hit"))?;
    let expect = |who: &Credential, status: u16, code: &str| -> Result<()> {
        for (node, pod) in tour.one_pod_per_node() {
            let reply = get(tour, &pod, key, who)?;
            let is_right = reply.status == status && reply.code() == code;
            let what = format!("n{node}: {} {} instead of {status} {code}", reply.status, reply.code());
            ensure!(is_right, "{}: {what}", who.access_key);
            ensure!(status != 200 || reply.cache() == "hit" && reply.body == content(SIZE), "{what}");
        }
        Ok(())
    };
    expect(&LATER, 403, "InvalidAccessKeyId")?;

    // Added, without a signal.
    let without = fs::read_to_string(tour.nodes[0].folder().join("clients.toml"))?;
    let table = |name, Credential { access_key, secret_key }: &Credential| {
        format!("{name}\naccess_key = \"{access_key}\"\nsecret_key = \"{secret_key}\"\n")
    };
    let with = format!("{without}\n{}{}", table("[[client]]", &LATER), table("[client.gateway]", &ADMIN));
    tour.nodes.iter().try_for_each(|node| node.replace("clients.toml", &with))?;
    let applied = "lota_secret_reloads_total{file=\"clients\",result=\"applied\"}";
    wait_within(UNASKED, "the clients to be read", || Ok(tour.metric(applied)? == 3.0))?;
    expect(&LATER, 200, "")?;
    expect(&ADMIN, 200, "")?;

    // An invalid file changes nothing.
    let (first, invalid) = (&tour.nodes[0], format!("{with}secret_key = {}", LATER.secret_key));
    first.replace("clients.toml", &invalid)?;
    let error = format!("{:#}", first.reload().err().context("an invalid file is accepted")?);
    ensure!(error.contains("clients.toml: line ") && !error.contains(&*LATER.secret_key), "{error}");
    let failed = "lota_secret_reloads_total{file=\"clients\",result=\"failed\"}";
    ensure!(first.metric(failed)? == 1.0, "the failure is not counted");
    expect(&LATER, 200, "")?;

    // Removed: refused from the next request on, although the object is a hit for the others.
    for node in &tour.nodes {
        node.replace("clients.toml", &without)?;
        node.reload()?;
    }
    expect(&LATER, 403, "InvalidAccessKeyId")?;
    expect(&ADMIN, 200, "")?;
    expect_no_secret(tour, &[&LATER.secret_key, &ADMIN.secret_key])
}

pub(crate) fn backend(tour: &mut Tour) -> Result<()> {
    let tested = replace_credential(tour);
    tour.origin.replace_reader(&READER)?;
    tour.restart(Mode::OwnCredential).context("afterwards")?;
    tested
}

fn replace_credential(tour: &Tour) -> Result<()> {
    let pod = tour.pod(3, 1);
    // Of a signed range, LOTA can fetch the whole object only with its own credential.
    let read = |key: &str| -> Result<()> {
        put(tour, key)?;
        let get = object(tour, key, Method::GET).header("range", "bytes=7-99");
        let reply = send(&pod, get.sign(&ADMIN, Signing::Header)?)?;
        let is_right = reply.status == 206 && reply.body == content(SIZE)[7..100];
        ensure!(is_right, "{key}: {} {}", reply.status, reply.code());
        Ok(())
    };
    read("secrets/before")?;
    tour.wait_cached("secrets/before")?;

    tour.origin.replace_reader(&NEXT_READER)?;
    let refused = "lota_uncached_total{reason=\"fill-refused\"}";
    let before = tour.metric(refused)?;
    read("secrets/revoked")?;
    wait_until("a refused fill", || Ok(tour.metric(refused)? > before))?;
    ensure!(tour.holders("secrets/revoked")?.is_empty(), "it was filled with a revoked credential");

    let Credential { access_key, secret_key } = NEXT_READER;
    let next = format!("access_key = \"{access_key}\"\nsecret_key = \"{secret_key}\"\n");
    for node in &tour.nodes {
        node.replace("credential.toml", &next)?;
        node.reload()?;
    }
    let before = tour.metric(refused)?;
    for number in 0..6 {
        let key = format!("secrets/after-{number}");
        read(&key)?;
        tour.wait_cached(&key)?;
    }
    read("secrets/revoked")?;
    tour.wait_cached("secrets/revoked")?;
    ensure!(tour.metric(refused)? == before, "a fill was refused");
    expect_no_secret(tour, &[&NEXT_READER.secret_key, &READER.secret_key])
}
