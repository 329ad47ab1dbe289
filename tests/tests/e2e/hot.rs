//! An object that many want at once.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, Mode, Namespace, Style, VIP,
        raw::{Request, Signing},
    },
    tour::{MIB, Tour},
};

const SIZE: u64 = 8 * MIB;
/// Requests of each reader, and how long they may take: enough for several looks at the rate.
const REQUESTS: usize = 4000;
const LONG_ENOUGH: Duration = Duration::from_secs(6);

pub(crate) fn crowd(tour: &mut Tour) -> Result<()> {
    tour.restart_with(Mode::OwnCredential, "nodes = [", "owners = 3\nhot_requests = 30\nnodes = [")?;
    let seen = look(tour);
    tour.restart(Mode::OwnCredential).context("afterwards")?;
    seen
}

fn look(tour: &mut Tour) -> Result<()> {
    let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
    client.put_and_hit(&pod, "hot/trial", 60)?;
    client.put(&pod, "hot/object", 61, SIZE)?;
    client.get(&pod, "hot/object", Style::Path)?;
    tour.wait_cached("hot/object")?;
    let before = tour.fetched();
    let target = format!("/{}", client.name("hot/object"));
    let get = Request::new(Method::GET, "cwlota.com", &target).sign(&ADMIN, Signing::Presigned)?.target;
    let expected = usize::try_from(SIZE)?;
    let answers = thread::scope(|scope| {
        let readers: Vec<_> = (1..=3)
            .map(|node| {
                let (pod, get) = (tour.pod(node, 1), get.clone());
                scope.spawn(move || read_on(&pod, &get, expected))
            })
            .collect();
        let read = |reader: thread::ScopedJoinHandle<'_, Result<usize>>| {
            reader.join().map_err(|_| anyhow!("a reader panicked"))?
        };
        readers.into_iter().map(read).sum::<Result<usize>>()
    })?;
    let holders = tour.holders("hot/object")?;
    ensure!(holders.len() > 1, "after {answers} reads only {holders:?} has it");
    let fetched = tour.fetched() - before;
    ensure!(fetched < SIZE / 2, "{fetched} bytes came from gateway and backend, none of which was needed");
    Ok(())
}

/// Reads an object again and again over one connection; how often.
fn read_on(pod: &Namespace, get: &str, length: usize) -> Result<usize> {
    let ask = format!("GET {get} HTTP/1.1\r\nhost: cwlota.com\r\n\r\n");
    pod.run(move || -> Result<usize> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let (since, mut answers) = (Instant::now(), 0);
        while answers < REQUESTS && since.elapsed() < LONG_ENOUGH {
            stream.write_all(ask.as_bytes())?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte)?;
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            ensure!(head.starts_with("HTTP/1.1 200 "), "answered {head}");
            stream.read_exact(&mut vec![0; length])?;
            answers += 1;
        }
        Ok(answers)
    })?
}
