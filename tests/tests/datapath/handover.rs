//! Handover from one daemon to the next.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use hmac::{Hmac, Mac as _};
use lota_tests::{
    lab::{Mode, Namespace, PEER_PORT, Pod, Style, VIP, node_address, run},
    tour::{Tour, wait_until},
};
use sha2::Sha256;

use super::intercepted::Pulse;

const RESTARTS: usize = 10;
/// Connections from a pod of the restarted node, and the same number through another node.
const BUSY: u32 = 25;

/// No request of a client without retries, no DNS query and no command fails.
pub(crate) fn restarts(tour: &mut Tour) -> Result<()> {
    let (here, there) = (tour.pod(1, 1), tour.pod(2, 1));
    let client = tour.client.clone();
    client.put_and_hit(&here, "busy/object", 10)?;
    let enough = tour.lab.folder().join("enough");
    let _ = fs::remove_file(&enough);
    let names = AtomicBool::new(true);
    let node = &mut tour.nodes[0];
    let mut pulse = Pulse::start(node)?;
    let mut times = Vec::new();
    let (reads, queries, oldest) = thread::scope(|scope| -> Result<_> {
        let busy = [&here, &there].map(|pod| {
            let (client, enough) = (&client, &enough);
            scope.spawn(move || client.busy(pod, "busy/object", BUSY, enough))
        });
        let asking = scope.spawn(|| -> Result<(u32, Duration)> {
            let (mut queries, mut slowest) = (0, Duration::ZERO);
            while names.load(Ordering::Relaxed) {
                let started = Instant::now();
                // Over TCP, because a lost datagram would be retried.
                let found = run(here.pod_command("dig").args([
                    "+tcp",
                    "+short",
                    "+tries=1",
                    "+time=15",
                    "x.cwlota.com",
                ]))?;
                ensure!(found.trim() == VIP.to_string(), "a DNS query was answered {found:?}");
                (queries, slowest) = (queries + 1, slowest.max(started.elapsed()));
            }
            Ok((queries, slowest))
        });
        // Names that need the daemon are answered throughout.
        let feeling = scope.spawn(|| -> Result<Duration> {
            while names.load(Ordering::Relaxed) {
                pulse.feel()?;
                thread::sleep(Duration::from_millis(10));
            }
            Ok(pulse.oldest())
        });
        thread::sleep(Duration::from_secs(3));
        let mut restarted = Ok(());
        for _ in 0..RESTARTS {
            let started = Instant::now();
            let before = node.pid();
            restarted = node.start().and_then(|()| {
                ensure!(node.pid() != before, "it is the same process");
                node.lota(&["datapath", "status"]).map(|_| ())
            });
            if restarted.is_err() {
                break;
            }
            times.push(started.elapsed());
            thread::sleep(Duration::from_millis(500));
        }
        names.store(false, Ordering::Relaxed);
        fs::write(&enough, "")?;
        let mut reads = 0;
        for busy in busy {
            let (done, failures) = busy.join().map_err(|_| anyhow!("the busy client panicked"))??;
            ensure!(failures.is_empty(), "after {done} reads: {failures}");
            reads += done;
        }
        let queries = asking.join().map_err(|_| anyhow!("the DNS client panicked"))??;
        let oldest = feeling.join().map_err(|_| anyhow!("the thread that reads heartbeats panicked"))??;
        restarted.map(|()| (reads, queries, oldest))
    })?;
    let longest = times.iter().max().copied().unwrap_or_default();
    let (queries, slowest) = queries;
    println!(
        "    {RESTARTS} restarts of {longest:.1?} at most, {reads} reads and {queries} DNS queries (the slowest in \
         {slowest:.1?}), no failure; the oldest heartbeat was {oldest:.1?} old"
    );
    ensure!(reads > 500 && queries > 10, "only {reads} reads and {queries} DNS queries: too little load");
    // The last daemon serves objects that the first one cached.
    let got = client.get(&here, "busy/object-0", Style::Path)?;
    ensure!(got.cache() == "hit", "{} {}", got.status, got.cache());
    Ok(())
}

/// The new daemon takes over and then cannot open its cache.
pub(crate) fn failed(tour: &mut Tour) -> Result<()> {
    let node = &mut tour.nodes[0];
    let pid = node.pid();
    fs::write(node.folder().join("no-folder"), "")?;
    node.edit("/cache\"\n", "/no-folder\"\n");
    node.configure(Mode::OwnCredential)?;
    let failed = node.start();
    node.forget_edits();
    node.configure(Mode::OwnCredential)?;
    ensure!(failed.is_err_and(|error| format!("{error:#}").contains("no-folder")), "it should have failed");
    ensure!(node.pid() == pid, "the first daemon has ended");
    ensure!(node.admin("/readyz")?.starts_with("ready"), "the first daemon is not ready");
    let pod = tour.lab.pod(Pod(1, 1));
    tour.client.put_and_hit(&pod, "failed/object", 1)?;
    tour.nodes[0].start()?;
    ensure!(tour.nodes[0].pid() != pid, "the next one did not take over");
    let got = tour.client.get(&pod, "failed/object-0", Style::Path)?;
    ensure!(got.cache() == "hit", "{} {}", got.status, got.cache());
    Ok(())
}

/// The new daemon is killed after taking over, while the first one still serves a client; the next must find no lock.
pub(crate) fn killed(tour: &mut Tour) -> Result<()> {
    let pod = tour.lab.pod(Pod(1, 1));
    let client = pod.run(|| TcpStream::connect((VIP, 80)))??;
    let node = &mut tour.nodes[0];
    let log = fs::File::options().append(true).open(node.log())?;
    let mut second = node
        .command()
        .args(["run", "--config"])
        .arg(node.config())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let serves = format!("pid={}\n", second.id());
    let taken = wait_until("the second daemon to serve", || Ok(node.admin("/readyz")?.contains(&serves)));
    second.kill()?;
    second.wait()?;
    taken?;
    ensure!(
        node.pid().is_some_and(|pid| fs::exists(format!("/proc/{pid}")).unwrap_or(false)),
        "the first daemon has ended"
    );
    let held = thread::spawn(move || {
        thread::sleep(Duration::from_secs(5));
        drop(client);
    });
    node.start()?;
    held.join().map_err(|_| anyhow!("the client panicked"))?;
    tour.client.put_and_hit(&pod, "killed/object", 1)
}

/// Other programs and other users get nothing from the handover socket, and the daemon keeps running.
pub(crate) fn stranger(tour: &mut Tour) -> Result<()> {
    let node = &tour.nodes[0];
    let socket: PathBuf = node.folder().join("admin.handover");
    let mut stream = UnixStream::connect(&socket).context("connecting as root")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTT")?;
    let answer = stream.read(&mut [0; 100]).map_err(|error| error.kind());
    ensure!(matches!(answer, Ok(0) | Err(ErrorKind::ConnectionReset)), "it answered: {answer:?}");
    let output = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--clear-groups", "--", "/usr/bin/python3", "-c"])
        .arg(format!("import socket; socket.socket(socket.AF_UNIX).connect('{}')", socket.display()))
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(stderr.contains("PermissionError"), "another user could connect: {stderr}");
    ensure!(node.admin("/readyz")?.starts_with("ready"), "the daemon is not ready");
    node.lota(&["datapath", "status"]).map(|_| ())
}

/// A message of a peer that the first daemon has accepted is a replay for the next one.
pub(crate) fn replayed(tour: &mut Tour) -> Result<()> {
    let (peer, node) = (tour.lab.node(2), &mut tour.nodes[0]);
    let secret = fs::read_to_string(node.folder().join("cluster-secret"))?;
    // Both daemons accept this time, whenever they started. A time before the start of the next one is stale to it.
    let time = (SystemTime::now() + Duration::from_secs(20)).duration_since(UNIX_EPOCH)?.as_secs();
    let message = ping(&secret, time, "00000000000000000000000000000001")?;
    ensure!(send(&peer, &message)?.starts_with("HTTP/1.1 200 "), "the first daemon refuses the message");
    ensure!(send(&peer, &message)?.is_empty(), "the first daemon accepts a replay");
    let before = node.pid();
    node.start()?;
    ensure!(node.pid() != before, "it is the same process");
    ensure!(send(&peer, &message)?.is_empty(), "the next daemon accepts a replay");
    let another = ping(&secret, time, "00000000000000000000000000000002")?;
    ensure!(send(&peer, &another)?.starts_with("HTTP/1.1 200 "), "the next daemon refuses another message");
    Ok(())
}

/// Returns a ping of node 2 to node 1, signed as in `lota_daemon::cluster::peer`.
fn ping(secret: &str, time: u64, nonce: &str) -> Result<String> {
    let (host, time) = (format!("{}:{PEER_PORT}", node_address(1)), time.to_string());
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes())?;
    let claims = ["lota-peer-request", "1", "n2", "n1", &time, nonce, "GET", "/"];
    for field in claims.into_iter().chain(["host", &host, "lota-ping", "1"]) {
        mac.update(&(field.len() as u64).to_le_bytes());
        mac.update(field.as_bytes());
    }
    let mac = hex::encode(mac.finalize().into_bytes());
    Ok(format!(
        "GET / HTTP/1.1\r\nhost: {host}\r\nlota-ping: 1\r\n\
         lota-peer: v=1;from=n2;to=n1;time={time};nonce={nonce};mac={mac}\r\nconnection: close\r\n\r\n"
    ))
}

/// Sends a message to the peer port of node 1, and returns the response, which is empty if there is none.
fn send(from: &Namespace, message: &str) -> Result<String> {
    let message = message.to_owned();
    from.run(move || {
        let to = SocketAddr::from((node_address(1), PEER_PORT));
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(message.as_bytes())?;
        let mut answer = String::new();
        match stream.read_to_string(&mut answer) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => Err(error.into()),
            _ => Ok(answer),
        }
    })?
}
