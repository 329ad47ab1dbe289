//! Owners per zone: two nodes in one zone and one in another. Hits do not cross zones, and the storage is read once.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use hyper::{Method, StatusCode};
use lota_tests::{
    lab::{
        ADMIN, Mode, Namespace, VIP, node_address,
        raw::{Reply, Request, Signing, content},
        run,
    },
    tour::{MIB, Tour, wait_settled, wait_until},
};
use nix::sys::signal::Signal;

/// Zone of each node.
const ZONES: [&str; 3] = ["a", "a", "b"];
/// The node that is alone in its zone.
const REMOTE: u8 = 3;
/// Size of objects that are cached as a whole.
const WHOLE: usize = (7 << 20) + 4321;
/// Size of objects in stripes: 40 whole stripes and a part of one.
const STRIPED: usize = (40 << 20) + 12_345;
const STRIPES: f64 = 41.0;
/// Number of objects that are cached as a whole, so that each zone is the first of some.
const OBJECTS: usize = 6;
/// A range that is longer than those that the gateway's own response is relayed for.
const RANGE: (usize, usize) = (3 << 20, (5 << 20) + 77);
/// Bytes that may cross zones while hits are served: signs of life between nodes.
const SIGNS_OF_LIFE: u64 = 4 << 10;
const PLACEMENT: &str = "[placement]\nper_zone = true\nstripe_above = \"8MiB\"\nstripe = \"1MiB\"\n[cache]\n";

pub(crate) fn zones(tour: &mut Tour) -> Result<()> {
    start(tour)?;
    tour.client.put_and_hit(&tour.pod(1, 1), "zones/trial", 80)?;
    let counter = Crossing::count(tour)?;
    let seen = look(tour, &counter);
    counter.remove()?;
    seen?;
    tour.restart(Mode::OwnCredential).context("afterwards")
}

fn look(tour: &mut Tour, counter: &Crossing) -> Result<()> {
    whole(tour, counter)?;
    ranges(tour, counter)?;
    checksums(tour)?;
    striped(tour, counter)?;
    source_killed(tour)?;
    zone_killed(tour)
}

/// Starts the nodes in their zones.
fn start(tour: &mut Tour) -> Result<()> {
    for node in &mut tour.nodes {
        for (number, zone) in (1..).zip(ZONES) {
            let (name, own) = (format!("{{ name = \"n{number}\","), format!("zone = \"rack-{number}\""));
            node.edit(&name, &format!("{name} zone = \"{zone}\","));
            if node.name() == format!("n{number}") {
                node.edit(&own, &format!("zone = \"{zone}\""));
            }
        }
    }
    tour.restart_with(Mode::OwnCredential, "[cache]\n", PLACEMENT)
}

/// Counts the bytes between zones, in the kernel of the node that is alone in its zone.
struct Crossing(Namespace);

impl Crossing {
    fn count(tour: &Tour) -> Result<Self> {
        let (node, others) =
            (tour.lab.node(REMOTE), format!("{{ {}, {} }}", node_address(1), node_address(2)));
        for line in [
            "add table ip zones".to_owned(),
            "add counter ip zones crossed".to_owned(),
            "add chain ip zones in { type filter hook input priority 0; }".to_owned(),
            "add chain ip zones out { type filter hook output priority 0; }".to_owned(),
            format!("add rule ip zones in ip saddr {others} counter name crossed"),
            format!("add rule ip zones out ip daddr {others} counter name crossed"),
        ] {
            run(node.command("nft").arg(line))?;
        }
        Ok(Self(node))
    }

    fn bytes(&self) -> Result<u64> {
        let text = run(self.0.command("nft").args(["list", "counter", "ip", "zones", "crossed"]))?;
        let bytes = text.split_once("bytes ").and_then(|(_, rest)| rest.split_whitespace().next());
        bytes.context("no counter")?.parse().with_context(|| text.clone())
    }

    fn remove(&self) -> Result<()> {
        run(self.0.command("nft").args(["delete", "table", "ip", "zones"])).map(drop)
    }
}

fn request(tour: &Tour, method: Method, key: &str) -> Request {
    Request::new(method, "cwlota.com", &format!("/{}", tour.client.name(key)))
}

fn send(from: &Namespace, request: Request) -> Result<Reply> {
    let request = request.sign(&ADMIN, Signing::Header)?;
    from.send_all((VIP, 80).into(), vec![request])?.pop().context("no response")
}

fn put(tour: &Tour, key: &str, size: usize) -> Result<Vec<u8>> {
    let body = content(size);
    let reply = send(&tour.pod(1, 1), request(tour, Method::PUT, key).body(body.clone()))?;
    ensure!(reply.status == StatusCode::OK, "{}", reply.status);
    Ok(body)
}

/// Reads an object, or a range of it, on a node. The bytes must be right.
fn read(tour: &Tour, node: u8, key: &str, body: &[u8], range: Option<(usize, usize)>) -> Result<Reply> {
    let (start, end) = range.unwrap_or((0, body.len()));
    let get = request(tour, Method::GET, key);
    let get = match range {
        Some(_) => get.header("range", &format!("bytes={start}-{}", end - 1)),
        None => get,
    };
    let reply = send(&tour.pod(node, 1), get)?;
    let is_right = reply.status.is_success() && reply.body == body[start..end];
    ensure!(is_right, "{key} at n{node}: {}, {} bytes", reply.status, reply.body.len());
    Ok(reply)
}

/// Every node's reads are hits in its own zone, and cost nothing.
fn hits(tour: &Tour, counter: &Crossing, key: &str, body: &[u8]) -> Result<()> {
    let (crossed, fetched) = (counter.bytes()?, tour.fetched());
    let mut read_bytes = 0;
    for (node, zone) in (1..).zip(ZONES) {
        for range in [None, Some(RANGE), Some((body.len() - 10, body.len()))] {
            let hit = read(tour, node, key, body, range)?;
            let served = hit.header("lota-cache");
            let own = (1..).zip(ZONES).filter(|(_, of)| *of == zone);
            let is_own = own.map(|(near, _)| format!("hit; node=n{near}")).any(|hit| hit == served);
            // The first header of a response in stripes is that of the entry node.
            ensure!(is_own, "{key} in {range:?} at n{node}: {served}");
            read_bytes += hit.body.len();
        }
    }
    let (crossed, fetched) = (counter.bytes()? - crossed, tour.fetched() - fetched);
    println!("  {key}: of {read_bytes} bytes of hits, {crossed} crossed zones");
    ensure!(crossed <= SIGNS_OF_LIFE, "{key}: {crossed} bytes of hits crossed zones");
    // Responses of the gateway to one request for each stripe.
    ensure!(fetched < MIB, "{key}: hits fetched {fetched} bytes");
    Ok(())
}

/// Waits until both zones have all these objects.
fn wait_in_both_zones(tour: &Tour, keys: &[String]) -> Result<()> {
    wait_until("both zones to have the objects", || {
        let held: Vec<_> = tour.nodes.iter().map(lota_tests::lab::Node::cached).collect::<Result<_>>()?;
        Ok(keys.iter().all(|key| {
            let name = tour.client.name(key);
            let has = |node: usize| held[node].contains_key(&name);
            (has(0) || has(1)) && has(2)
        }))
    })
}

/// Reads objects in both zones: some first in one, some first in the other, and some at the same time.
fn read_cold(tour: &Tour, keys: &[String], body: &[u8], range: Option<(usize, usize)>) -> Result<()> {
    for (number, key) in keys.iter().enumerate() {
        match number % 3 {
            0 => [1, REMOTE].map(|node| read(tour, node, key, body, range)).into_iter().collect(),
            1 => [REMOTE, 2].map(|node| read(tour, node, key, body, range)).into_iter().collect(),
            _ => thread::scope(|scope| {
                let both = [2, REMOTE].map(|node| scope.spawn(move || read(tour, node, key, body, range)));
                both.into_iter()
                    .map(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))?)
                    .collect::<Result<Vec<_>>>()
            }),
        }?;
    }
    wait_in_both_zones(tour, keys)
}

fn whole(tour: &Tour, counter: &Crossing) -> Result<()> {
    let keys: Vec<String> = (0..OBJECTS).map(|number| format!("zones/whole-{number}")).collect();
    let body = keys.iter().map(|key| put(tour, key, WHOLE)).last().context("no objects")??;
    wait_settled();
    let before = tour.fetched();
    read_cold(tour, &keys, &body, None)?;
    let fetched = (tour.fetched() - before) as f64 / (OBJECTS * WHOLE) as f64;
    println!("  whole objects: {fetched:.3} times their bytes from gateway and backend");
    ensure!((1.0..1.05).contains(&fetched), "gateway and backend sent {fetched} times the objects");
    keys.iter().try_for_each(|key| hits(tour, counter, key, &body))
}

fn ranges(tour: &Tour, counter: &Crossing) -> Result<()> {
    let keys: Vec<String> = (0..OBJECTS).map(|number| format!("zones/range-{number}")).collect();
    let body = keys.iter().map(|key| put(tour, key, WHOLE)).last().context("no objects")??;
    wait_settled();
    let before = tour.backend.received();
    read_cold(tour, &keys, &body, Some(RANGE))?;
    let fetched = (tour.backend.received() - before) as f64 / (OBJECTS * WHOLE) as f64;
    println!("  ranges: {fetched:.3} times the objects' bytes from the backend");
    ensure!((1.0..1.05).contains(&fetched), "the backend sent {fetched} times the objects");
    keys.iter().try_for_each(|key| hits(tour, counter, key, &body))
}

/// Clients that ask for checksums of whole objects, as boto3 does, get what the gateway states, in both zones.
fn checksums(tour: &Tour) -> Result<()> {
    let keys: Vec<String> = (0..3).map(|number| format!("zones/checksum-{number}")).collect();
    for key in &keys {
        put(tour, key, WHOLE)?;
    }
    wait_settled();
    let get = |node: u8, key: &str, cache: &str| {
        let get = request(tour, Method::GET, key).header("x-amz-checksum-mode", "ENABLED");
        let get = if cache.is_empty() { get } else { get.header("cache-control", cache) };
        send(&tour.pod(node, 1), get)
    };
    let stated = get(1, &keys[0], "no-store")?;
    let before = tour.fetched();
    for key in &keys {
        for node in [REMOTE, 1] {
            let reply = get(node, key, "")?;
            ensure!(reply.body == content(WHOLE), "{key} at n{node}: {}", reply.status);
            let is_same = reply.header("x-amz-checksum-crc32") == stated.header("x-amz-checksum-crc32");
            ensure!(is_same, "{key} at n{node}: {:?}", reply.headers);
        }
    }
    let fetched = (tour.fetched() - before) as f64 / (keys.len() * WHOLE) as f64;
    println!("  with checksums: {fetched:.3} times the objects' bytes from gateway and backend");
    ensure!((1.0..1.05).contains(&fetched), "gateway and backend sent {fetched} times the objects");
    Ok(())
}

fn stripes(tour: &Tour) -> Result<Vec<f64>> {
    tour.nodes.iter().map(|node| node.metric("lota_cache_stripes")).collect()
}

fn striped(tour: &Tour, counter: &Crossing) -> Result<()> {
    let (key, keys) = ("zones/striped-whole", "zones/striped-range");
    let body = put(tour, key, STRIPED)?;
    put(tour, keys, STRIPED)?;
    wait_settled();
    let (before, held) = (tour.backend.received(), stripes(tour)?);
    let gained = || -> Result<Vec<f64>> {
        Ok(stripes(tour)?.iter().zip(&held).map(|(now, before)| now - before).collect())
    };
    // One object is read by both zones at the same time; of the other, short ranges and long ones, one after the other.
    thread::scope(|scope| {
        let both = [1, REMOTE].map(|node| {
            let body = &body;
            scope.spawn(move || read(tour, node, key, body, None))
        });
        both.into_iter()
            .try_for_each(|reader| reader.join().map_err(|_| anyhow!("a reader panicked"))?.map(drop))
    })?;
    wait_until("both zones to have all stripes", || Ok(gained()?.iter().sum::<f64>() >= 2.0 * STRIPES))?;
    let counts = gained()?;
    ensure!(counts[2] == STRIPES && counts[0] + counts[1] == STRIPES, "stripes per node: {counts:?}");
    ensure!(counts[0].max(counts[1]) <= 1.1 * STRIPES / 2.0 + 1.0, "stripes per node: {counts:?}");
    for (start, length) in (0..STRIPED).step_by(2 << 20).zip([999, 3 << 20].into_iter().cycle()) {
        for node in [REMOTE, 2] {
            read(tour, node, keys, &body, Some((start, (start + length).min(STRIPED))))?;
        }
    }
    for node in [REMOTE, 2] {
        read(tour, node, keys, &body, None)?;
    }
    wait_until("both zones to have the stripes of both objects", || {
        Ok(gained()?.iter().sum::<f64>() >= 4.0 * STRIPES)
    })?;
    let fetched = (tour.backend.received() - before) as f64 / (2 * STRIPED) as f64;
    println!("  in stripes: {fetched:.3} times the objects' bytes from the backend; per node {counts:?}");
    ensure!((1.0..1.05).contains(&fetched), "the backend sent {fetched} times the objects");
    [key, keys].iter().try_for_each(|key| hits(tour, counter, key, &body))
}

/// While one zone fills from the owners in the other, all nodes of that zone are killed.
fn source_killed(tour: &mut Tour) -> Result<()> {
    let objects = [("1", WHOLE), ("2", WHOLE), ("3", WHOLE), ("striped", STRIPED)];
    let name = |key: &str| format!("zones/killed-{key}");
    for (key, size) in objects {
        put(tour, &name(key), size)?;
    }
    wait_settled();
    for relay in [&tour.backend, &tour.gateway] {
        relay.set_rate(2 << 20);
    }
    let readers = objects.map(|(key, _)| {
        let (get, pod) = (request(tour, Method::GET, &name(key)), tour.pod(REMOTE, 1));
        thread::spawn(move || send(&pod, get))
    });
    thread::sleep(Duration::from_millis(700));
    for node in [0, 1] {
        tour.nodes[node].stop(Signal::SIGKILL)?;
    }
    for relay in [&tour.backend, &tour.gateway] {
        relay.set_rate(0);
    }
    for (reader, (key, size)) in readers.into_iter().zip(objects) {
        let reply = reader.join().map_err(|_| anyhow!("a reader panicked"))??;
        ensure!(reply.body == content(size), "{key}: {}, {} bytes", reply.status, reply.body.len());
        read(tour, REMOTE, &name(key), &content(size), None)?;
    }
    tour.revive()
}

/// Each zone reads when no node of the other is left.
fn zone_killed(tour: &mut Tour) -> Result<()> {
    let body = put(tour, "zones/lost-old", WHOLE)?;
    wait_settled();
    for node in [1, REMOTE] {
        read(tour, node, "zones/lost-old", &body, None)?;
    }
    for (lost, left) in [(&[2_usize][..], 1), (&[0, 1][..], REMOTE)] {
        let keys: Vec<String> = (0..4).map(|number| format!("zones/lost-{left}-{number}")).collect();
        for key in &keys {
            put(tour, key, WHOLE)?;
        }
        put(tour, &format!("zones/lost-{left}-striped"), STRIPED)?;
        wait_settled();
        for node in lost {
            tour.nodes[*node].stop(Signal::SIGKILL)?;
        }
        for key in keys.iter().chain([&"zones/lost-old".to_owned()]) {
            read(tour, left, key, &body, None)?;
            read(tour, left, key, &body, Some(RANGE))?;
        }
        read(tour, left, &format!("zones/lost-{left}-striped"), &content(STRIPED), None)?;
        tour.revive()?;
    }
    Ok(())
}
