//! Open-loop load: requests are sent at scheduled times, whether or not earlier ones have been answered, and latency is
//! measured from the scheduled time. A slow server thus cannot reduce its load (coordinated omission).

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use lota_tests::lab::Namespace;

/// Number of connections. Each has a thread, and sends an equal share of the requests.
const CONNECTIONS: u32 = 8;
/// Initial time that is not measured: connections are new, and caches cold.
const WARM_UP: Duration = Duration::from_millis(200);
/// Timeout for bytes to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The requested objects, and how often.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) to: SocketAddr,
    pub(crate) target: String,
    /// Value of `If-None-Match`; no such header if empty.
    pub(crate) etag: String,
    /// Expected status code.
    pub(crate) status: u16,
    pub(crate) per_second: f64,
    pub(crate) time: Duration,
}

/// Latency of responses in seconds.
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// Sends the requests and measures their latency.
pub(crate) fn measure(from: &Namespace, load: Load) -> Result<Latency> {
    let mut took = from.run(move || {
        let begin = Instant::now() + Duration::from_millis(50);
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                let load = load.clone();
                thread::spawn(move || one_connection(&load, number, begin))
            })
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow!("a client's thread has ended"))??);
        }
        Ok::<_, anyhow::Error>(all)
    })??;
    ensure!(took.len() > 100, "too few answers for a percentile: {}", took.len());
    took.sort_by(f64::total_cmp);
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    Ok(Latency { p50: at(50), p99: at(99) })
}

/// Returns the gateway's ETag of an object.
pub(crate) fn etag(from: &Namespace, load: Load) -> Result<String> {
    let answer = from.run(move || -> Result<String> {
        let mut stream = TcpStream::connect(load.to)?;
        stream.write_all(request(&load).as_bytes())?;
        read_answer(&mut stream, &mut Vec::new())
    })??;
    let field =
        answer.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("etag: ").map(String::from));
    field.context("no ETag in the gateway's response")
}

fn one_connection(load: &Load, number: u32, begin: Instant) -> Result<Vec<f64>> {
    // The default timer slack of 50 µs would add to every latency.
    let _ = nix::sys::prctl::set_timerslack(1);
    let interval = Duration::from_secs_f64(f64::from(CONNECTIONS) / load.per_second);
    let mut stream = TcpStream::connect(load.to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    let (request, expected) = (request(load), format!("HTTP/1.1 {}", load.status));
    let (mut took, mut buffer) = (Vec::new(), Vec::new());
    let mut at = begin + interval * number / CONNECTIONS;
    while at < begin + WARM_UP + load.time {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        stream.write_all(request.as_bytes())?;
        let head = read_answer(&mut stream, &mut buffer)?;
        ensure!(head.starts_with(&expected), "{} answered {head}", load.to);
        if at > begin + WARM_UP {
            took.push(at.elapsed().as_secs_f64());
        }
        at += interval;
    }
    Ok(took)
}

fn request(load: &Load) -> String {
    let condition = match load.etag.as_str() {
        "" => String::new(),
        etag => format!("if-none-match: {etag}\r\n"),
    };
    format!("GET {} HTTP/1.1\r\nhost: cwlota.com\r\n{condition}\r\n", load.target)
}

/// Reads a response to its end; returns its head.
fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<String> {
    buffer.resize(256 << 10, 0);
    let mut got = 0;
    let end = loop {
        if let Some(end) = buffer[..got].windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        got += read(stream, &mut buffer[got..])?;
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let is_bodiless = head.starts_with("HTTP/1.1 304");
    let mut left = if is_bodiless { 0 } else { length.context("no length")? } + end - got;
    while left > 0 {
        left = left.checked_sub(read(stream, buffer)?).context("more than was announced")?;
    }
    Ok(head)
}

fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<usize> {
    match stream.read(buffer)? {
        0 => Err(anyhow!("the connection ended")),
        read => Ok(read),
    }
}
