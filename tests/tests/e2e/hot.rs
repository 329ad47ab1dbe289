//! A hot object that many pods read at once.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, Mode, Namespace, Style, VIP,
        raw::{Request, Signing},
    },
    tour::{MIB, Tour, wait_settled, wait_until},
};

/// Small, so that busy machines read it often, but larger than objects that a repeated verification reads in full.
const SIZE: u64 = 2 * MIB;

pub(crate) fn hot_object(tour: &mut Tour) -> Result<()> {
    tour.restart_with(Mode::OwnCredential, "nodes = [", "max_owners = 3\nhot_request_rate = 10\nnodes = [")?;
    let seen = look(tour);
    tour.restart(Mode::OwnCredential).context("afterwards")?;
    seen
}

fn look(tour: &mut Tour) -> Result<()> {
    let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
    client.put_and_hit(&pod, "hot/trial", 60)?;
    client.put(&pod, "hot/object", 61, SIZE)?;
    wait_settled();
    client.get(&pod, "hot/object", Style::Path)?;
    tour.wait_cached("hot/object")?;
    let before = tour.fetched();
    let target = format!("/{}", client.name("hot/object"));
    let get = Request::new(Method::GET, "cwlota.com", &target).sign(&ADMIN, Signing::Presigned)?.target;
    let expected = usize::try_from(SIZE)?;
    let is_over = Arc::new(AtomicBool::new(false));
    let (spread, answers) = thread::scope(|scope| {
        let readers: Vec<_> = (1..=3)
            .map(|node| {
                let (pod, get, is_over) = (tour.pod(node, 1), get.clone(), is_over.clone());
                scope.spawn(move || read_on(&pod, &get, expected, is_over))
            })
            .collect();
        let read = |reader: thread::ScopedJoinHandle<'_, Result<usize>>| {
            reader.join().map_err(|_| anyhow!("a reader panicked"))?
        };
        let spread = wait_until("another owner", || Ok(tour.holders("hot/object")?.len() > 1));
        is_over.store(true, Ordering::Relaxed);
        (spread, readers.into_iter().map(read).sum::<Result<usize>>())
    });
    let answers = answers?;
    spread.with_context(|| format!("after {answers} reads"))?;
    let fetched = tour.fetched() - before;
    ensure!(fetched < SIZE / 2, "{fetched} bytes came from gateway and backend, but none was needed");
    Ok(())
}

/// Reads an object repeatedly over one connection until `is_over`. Returns the number of reads.
fn read_on(pod: &Namespace, get: &str, length: usize, is_over: Arc<AtomicBool>) -> Result<usize> {
    let ask = format!("GET {get} HTTP/1.1\r\nhost: cwlota.com\r\n\r\n");
    pod.run(move || -> Result<usize> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((VIP, 80)), Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut answers = 0;
        while !is_over.load(Ordering::Relaxed) {
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
