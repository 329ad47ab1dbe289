//! Verifies with a model of servers whose 304 states little that no stale header is ever granted, regardless of who writes
//! what.

use hyper::HeaderMap;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;

/// Behaviour of a test server for conditional requests.
#[derive(Clone, Copy, Debug)]
struct Ways {
    /// A 304 states `Last-Modified`.
    states_date: bool,
    /// `If-Unmodified-Since` is evaluated.
    checks_date: bool,
    /// A 304 states the version.
    states_version: bool,
    /// Dates have fractions, which are compared but not stated: nothing is unmodified since the date stated.
    has_fractions: bool,
}

const LITTLE: Ways =
    Ways { states_date: false, checks_date: false, states_version: false, has_fractions: false };

#[derive(Clone, Debug)]
struct Written {
    bytes: u32,
    metadata: u32,
    modified: u64,
    version: Option<u32>,
}

#[derive(Debug)]
struct Server {
    ways: Ways,
    clock: u64,
    is_versioned: bool,
    writes: u32,
    /// One bucket for each of two tenants, with the versions of its only object.
    buckets: [Vec<Written>; 2],
}

impl Server {
    fn new(ways: Ways, is_versioned: bool) -> Self {
        let clock = 1_000_000_000;
        Self { ways, clock, is_versioned, writes: 0, buckets: [vec![], vec![]] }
    }

    fn write(&mut self, tenant: usize, bytes: u32) {
        self.writes += 1;
        let version = self.is_versioned.then_some(self.writes);
        let written = Written { bytes, metadata: self.writes, modified: self.clock, version };
        if !self.is_versioned {
            self.buckets[tenant].clear();
        }
        self.buckets[tenant].push(written);
    }

    fn answer(&self, head: &str) -> String {
        let date = format!("date: {}\r\n", http_date(self.clock));
        if !head.contains("signature=00") {
            return format!("HTTP/1.1 403 Forbidden\r\n{date}content-length: 0\r\n\r\n");
        }
        let tenant = usize::from(head.contains("credential=bob/"));
        let Some(current) = self.buckets[tenant].last() else {
            return format!("HTTP/1.1 404 Not Found\r\n{date}content-length: 0\r\n\r\n");
        };
        let field = |name: &str| {
            head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
        };
        let etag = format!("\"e{}\"", current.bytes);
        let since = field("if-unmodified-since").map(|date| seconds(&date));
        let is_modified_since =
            |since| current.modified > since || self.ways.has_fractions && current.modified == since;
        let holds = match field("if-match") {
            Some(tag) => tag == etag,
            None => !(self.ways.checks_date && since.is_some_and(is_modified_since)),
        };
        let modified = format!("last-modified: {}\r\n", http_date(current.modified));
        let version = current.version.map(|version| format!("x-amz-version-id: v{version}\r\n"));
        let version = version.unwrap_or_default();
        if !holds {
            return format!("HTTP/1.1 412 Precondition Failed\r\n{date}content-length: 0\r\n\r\n");
        }
        if field("if-none-match") == Some(etag.clone()) {
            let stated = if self.ways.states_date { &modified } else { "" };
            let version = if self.ways.states_version { &version } else { "" };
            return format!("HTTP/1.1 304 Not Modified\r\n{date}{stated}{version}\r\n");
        }
        let metadata = current.metadata;
        format!(
            "HTTP/1.1 200 OK\r\n{date}etag: {etag}\r\n{modified}{version}x-amz-meta-m: {metadata}\r\ncontent-length: 1\r\n\r\nx"
        )
    }

    /// Returns whether a plain GET would be answered with these headers now.
    fn would_serve(&self, tenant: usize, headers: &HeaderMap) -> bool {
        let current = self.buckets[tenant].last().unwrap();
        let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        text("x-amz-meta-m") == Some(current.metadata.to_string())
            && text("etag") == Some(format!("\"e{}\"", current.bytes))
            && text("x-amz-version-id") == current.version.map(|version| format!("v{version}"))
    }
}

fn http_date(seconds: u64) -> String {
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Parses a date whose letters the test's server has converted to lower case.
fn seconds(date: &str) -> u64 {
    let mut date = date.replace("gmt", "GMT").into_bytes();
    date[0].make_ascii_uppercase();
    date[8].make_ascii_uppercase();
    let date = httpdate::parse_http_date(std::str::from_utf8(&date).unwrap()).unwrap();
    date.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// Runs a random history against a server. Returns how many reads a 304 granted.
async fn run(seed: u64, ways: Ways, is_versioned: bool) -> usize {
    let mut random = StdRng::seed_from_u64(seed);
    let server = Arc::new(Mutex::new(Server::new(ways, is_versioned)));
    let answering = server.clone();
    let (gateway, _) = gateway(Protocol::S3, move |head| answering.lock().unwrap().answer(head)).await;
    let name = ObjectName::from_parts("http://gateway", "b", "k", None).unwrap();
    let (mut held, mut granted) = (None::<Arc<ObjectMeta>>, 0);
    for step in 0..60 {
        let tenant = usize::from(random.random_ratio(1, 4));
        match random.random_range(0..10) {
            0 => server.lock().unwrap().write(tenant, 1),
            1 => {
                // Both tenants write within one second.
                server.lock().unwrap().write(0, 1);
                server.lock().unwrap().write(1, 1);
            }
            2 => server.lock().unwrap().write(tenant, random.random_range(1..3)),
            3 => {
                let mut server = server.lock().unwrap();
                if server.buckets[tenant].len() > 1 {
                    server.buckets[tenant].pop();
                }
            }
            4 | 5 => server.lock().unwrap().clock += random.random_range(0..4),
            _ if server.lock().unwrap().buckets[tenant].is_empty() => {}
            _ => {
                let key = ["alice", "bob"][tenant];
                let signed = SIGNED.replace("Credential=a/", &format!("Credential={key}/"));
                let mut client = client(&[]);
                client.headers.insert("authorization", signed.parse().unwrap());
                if random.random_ratio(1, 5) {
                    let bytes = server.lock().unwrap().buckets[tenant].last().unwrap().bytes;
                    client.headers.insert("if-match", format!("\"e{bytes}\"").parse().unwrap());
                }
                let answer = gateway.authorize(&client, &name, held.as_ref()).await.unwrap();
                let meta = match answer {
                    Authorization::Fresh(grant) => {
                        granted += 1;
                        grant.meta().clone()
                    }
                    Authorization::Arriving(grant, meta, _) => {
                        assert_eq!(grant.meta(), &meta, "the grant is for other headers than the answer's");
                        meta
                    }
                    // The server is not verified yet.
                    Authorization::Relay(answer) if answer.status() == StatusCode::OK => continue,
                    other => panic!("{other:?}"),
                };
                let server = server.lock().unwrap();
                assert!(
                    server.would_serve(tenant, &meta.headers),
                    "seed {seed}, step {step}, {key}: stale {meta:?} of {server:?}"
                );
                held = match held {
                    Some(held) if held.version == meta.version => {
                        Some(held.updated_by(&meta).map_or(held, Arc::new))
                    }
                    _ => Some(meta),
                };
            }
        }
    }
    granted
}

#[tokio::test]
async fn no_stale_header_is_granted() {
    let all = Ways { states_date: true, checks_date: true, states_version: true, has_fractions: false };
    for (ways, is_versioned, proves) in [
        (all, false, true),
        (all, true, true),
        (Ways { states_date: true, ..LITTLE }, false, true),
        (Ways { checks_date: true, ..LITTLE }, false, true),
        (Ways { checks_date: true, states_version: true, ..LITTLE }, true, true),
        (Ways { checks_date: true, ..LITTLE }, true, false),
        (Ways { checks_date: true, has_fractions: true, ..LITTLE }, false, false),
        (LITTLE, false, false),
    ] {
        let mut granted = 0;
        for seed in 0..20 {
            granted += run(seed, ways, is_versioned).await;
        }
        assert_eq!(granted > 0, proves, "{ways:?}, versioned: {is_versioned}");
    }
}

#[tokio::test]
async fn one_request_is_enough_if_the_304_states_the_date() {
    for (ways, questions) in [
        (Ways { states_date: true, ..LITTLE }, 1),
        (Ways { checks_date: true, ..LITTLE }, 2),
        // The object itself.
        (LITTLE, 1),
    ] {
        let mut server = Server::new(ways, false);
        server.write(0, 1);
        server.clock += 2;
        let (gateway, heads) = gateway(Protocol::S3, move |head| server.answer(head)).await;
        let name = ObjectName::from_parts("http://gateway", "b", "k", None).unwrap();
        let Authorization::Arriving(_, held, _) =
            gateway.authorize(&client(CLIENT), &name, None).await.unwrap()
        else {
            panic!("not Authorization::Arriving")
        };
        let ask = async || gateway.authorize(&client(CLIENT), &name, Some(&held)).await.unwrap();
        // The first request learns the server's method.
        ask().await;
        ask().await;
        let before = heads.lock().unwrap().len();
        let rounds = 20;
        for _ in 0..rounds {
            ask().await;
        }
        let put = heads.lock().unwrap().len() - before;
        // A server that proves nothing is probed at intervals.
        assert!((questions * rounds..=questions * rounds + 3 * rounds / 2).contains(&put), "{ways:?}: {put}");
        assert!(questions == 1 || put == questions * rounds, "{ways:?}: {put}");
    }
}
