//! TLS between nodes: introduced under load, unreadable on the way, and refused with a revoked certificate.

use std::{
    fs,
    io::Read as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use lota_scripted::{Authority, CertificatePlan};
use lota_tests::{
    lab::{ADMIN, Mode, Node, PEER_PORT, Style, node_address, raw::content},
    tour::{MIB, Tour, wait_settled, wait_until, wait_within},
};
use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, Socket, Type};

use crate::secrets::{
    OBJECTS, ReadCounts, SIZE, UNASKED, cached_objects, count_all, get, next_hits, put, readers,
    while_reading,
};

/// Larger objects are cached in stripes.
const STRIPED: &str = "[placement]\nstripe_above = \"65MiB\"\nstripe = \"16MiB\"\n[cache]\n";
const REFUSED: &str = "lota_peer_requests_total{role=\"refused\"}";
/// Reads from another node, on each node, after which the next node changes.
const REMOTE_HITS: u64 = 5;
/// Bytes of a capture after which no more is kept.
const CAPTURED: usize = 1 << 20;

/// Certificates of the nodes of a lab.
struct Certificates {
    authority: Authority,
}

impl Certificates {
    fn new() -> Result<Self> {
        Ok(Self { authority: Authority::new("the lab's nodes")? })
    }

    /// Writes the files of a node, whose certificate has this serial number and the node's address.
    fn write(&self, node: &Node, number: u8, serial: u64) -> Result<()> {
        let address = node_address(number).to_string();
        let issued = self.authority.issue(&[&address], CertificatePlan { serial, ..Default::default() })?;
        issued.write(node.folder(), &self.authority.pem())?;
        Ok(fs::write(node.folder().join("ca.crl"), self.authority.revoke(&[])?)?)
    }
}

/// Writes the configuration of a node with TLS in this mode.
fn configure(node: &mut Node, mode: Option<&str>) -> Result<()> {
    let folder = node.folder().display().to_string();
    node.edit("[cache]\n", STRIPED);
    if let Some(mode) = mode {
        let files = [("certificate", "tls.crt"), ("key", "tls.key"), ("ca", "ca.crt"), ("crl", "ca.crl")];
        let files = files.map(|(key, file)| format!("{key} = \"{folder}/{file}\"\n")).concat();
        node.edit("\n[admin]\n", &format!("\n[peers.tls]\nmode = \"{mode}\"\n{files}\n[admin]\n"));
    }
    let written = node.configure(Mode::OwnCredential);
    node.forget_edits();
    written
}

/// Runs a test with a certificate for each node, numbered from 1 on.
fn with_certificates(tour: &mut Tour, test: fn(&mut Tour, &Certificates) -> Result<()>) -> Result<()> {
    let certificates = Certificates::new()?;
    for (number, node) in (1..).zip(&tour.nodes) {
        certificates.write(node, number, number.into())?;
    }
    let tested = test(tour, &certificates);
    tour.restart(Mode::OwnCredential).context("afterwards")?;
    tested
}

/// Capture of the frames at a node's interface from and to peer ports.
struct Capture {
    is_over: Arc<AtomicBool>,
    reader: JoinHandle<Result<Vec<u8>>>,
}

impl Capture {
    fn start(tour: &Tour, node: u8) -> Result<Self> {
        // ETH_P_ALL in network byte order.
        let all = Protocol::from(i32::from(3_u16.to_be()));
        let socket = tour.lab.node(node).run(move || Socket::new(Domain::PACKET, Type::RAW, Some(all)))??;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = is_over.clone();
        let reader = thread::spawn(move || {
            let (mut kept, mut frame, mut socket) = (Vec::new(), vec![0; 1 << 17], socket);
            while !ends.load(Ordering::Relaxed) {
                let Ok(length) = socket.read(&mut frame) else { continue };
                if kept.len() < CAPTURED {
                    kept.extend_from_slice(peer_bytes(&frame[..length]).unwrap_or_default());
                }
            }
            Ok(kept)
        });
        Ok(Self { is_over, reader })
    }

    /// Returns which texts were seen, after some traffic.
    fn seen(self, needles: &[(&'static str, Vec<u8>)]) -> Result<Vec<&'static str>> {
        self.is_over.store(true, Ordering::Relaxed);
        let bytes = self.reader.join().map_err(|_| anyhow!("the capture panicked"))??;
        ensure!(bytes.len() > SIZE, "only {} bytes were captured", bytes.len());
        let is_seen = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        Ok(needles.iter().filter(|(_, needle)| is_seen(needle)).map(|(name, _)| *name).collect())
    }
}

/// Returns what follows the Ethernet and IPv4 header of a TCP segment from or to a peer port.
fn peer_bytes(frame: &[u8]) -> Option<&[u8]> {
    let packet = frame.get(14..).filter(|_| frame[12..14] == [8, 0])?;
    let segment = packet.get(usize::from(packet.first()? & 15) * 4..).filter(|_| packet[9] == 6)?;
    let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
    (port(0)? == PEER_PORT || port(2)? == PEER_PORT).then_some(segment)
}

pub(crate) fn introduced(tour: &mut Tour) -> Result<()> {
    with_certificates(tour, |tour, _| {
        tour.restart_each(|node| configure(node, None))?;
        introduce(tour)?;
        large_objects(tour)
    })
}

/// Sets one mode after the other on all nodes, while pods read.
fn introduce(tour: &mut Tour) -> Result<()> {
    let keys = cached_objects(tour, "peer-tls")?;
    let needles = [
        ("body", content(200)[100..150].to_vec()),
        ("header", b"lota-peer".to_vec()),
        ("key", b"peer-tls/".to_vec()),
        ("signature", b"AWS4-HMAC-SHA256".to_vec()),
    ];
    let reads = [(); 3].map(|()| ReadCounts::default());
    while_reading(&readers(tour, &keys)?, &reads, |_| true, || modes(tour, &reads, &needles))?;
    let all = count_all(&reads);
    println!("  {all} reads during the introduction of TLS; none failed");
    Ok(())
}

fn modes(tour: &mut Tour, reads: &[ReadCounts; 3], needles: &[(&'static str, Vec<u8>)]) -> Result<()> {
    let mut capture = Capture::start(tour, 2)?;
    next_hits(reads, REMOTE_HITS).context("before")?;
    let seen = capture.seen(needles)?;
    ensure!(seen == ["body", "header", "key", "signature"], "without TLS, only {seen:?} can be read");
    for mode in ["accept", "send", "require"] {
        for number in 0..tour.nodes.len() {
            let refused = tour.metric(REFUSED)?;
            ensure!(refused == 0.0, "{refused} refused before n{} is in mode {mode}", number + 1);
            let node = &mut tour.nodes[number];
            configure(node, Some(mode))?;
            node.start()?;
            next_hits(reads, REMOTE_HITS).with_context(|| format!("n{} is in mode {mode}", number + 1))?;
        }
    }
    capture = Capture::start(tour, 2)?;
    next_hits(reads, REMOTE_HITS).context("with TLS")?;
    let seen = capture.seen(needles)?;
    ensure!(seen.is_empty(), "with TLS, {seen:?} can be read");
    ensure!(tour.metric(REFUSED)? == 0.0, "refused");
    for node in &tour.nodes {
        let status = status(node)?;
        ensure!(status.contains("mode \"require\", this node's certificate expires in"), "{status}");
        ensure!(node.metric("lota_peer_certificate_expiry_timestamp_seconds")? > 1e9, "no expiry");
        let checked = node.command().arg("check").arg(node.config()).output()?;
        let checked = String::from_utf8(checked.stdout)?;
        ensure!(checked.contains("2 of 2 other nodes answer"), "{checked}");
    }
    Ok(())
}

/// Reads objects of a long body and in stripes on all nodes.
fn large_objects(tour: &Tour) -> Result<()> {
    let sent = || tour.metric("lota_peer_requests_total{role=\"sent\"}");
    for (key, size) in [("peer-tls/long", 64 * MIB), ("peer-tls/striped", 70 * MIB)] {
        let put = tour.client.put(&tour.pod(1, 1), key, 25, size)?;
        wait_settled();
        let before = sent()?;
        for _ in 0..2 {
            for (node, pod) in tour.one_pod_per_node() {
                let got = tour.client.get(&pod, key, Style::Virtual)?;
                ensure!(got.status == 200 && got.sha256 == put.sha256, "{key} on n{node}: {}", got.status);
            }
        }
        ensure!(sent()? >= before + 4.0, "{key} came from no other node");
    }
    ensure!(tour.metric("lota_cache_stripes")? >= 5.0, "no stripes");
    ensure!(tour.metric("lota_splice_bytes_total")? == 0.0, "bytes between nodes were spliced");
    Ok(())
}

pub(crate) fn revoked(tour: &mut Tour) -> Result<()> {
    with_certificates(tour, |tour, certificates| {
        tour.restart_each(|node| configure(node, Some("require")))?;
        revoke(tour, certificates)
    })
}

fn revoke(tour: &mut Tour, certificates: &Certificates) -> Result<()> {
    let keys: Vec<String> = (0..OBJECTS).map(|number| format!("revoked/{number}")).collect();
    for key in &keys {
        put(tour, key)?;
    }
    wait_settled();
    read_all(tour, &keys)?;
    ensure!(tour.metric("lota_nodes_active")? == 9.0, "a node is lost");

    // Without a signal, and although connections are open.
    let list = certificates.authority.revoke(&[3])?;
    for node in &tour.nodes[..2] {
        node.replace("ca.crl", &list)?;
    }
    for node in &tour.nodes[..2] {
        wait_within(UNASKED + Duration::from_secs(2), "a refusal of the revoked node", || {
            // Requests show it, and get their bytes.
            read_all(tour, &keys)?;
            Ok(node.metric(REFUSED)? > 0.0 && node.metric("lota_nodes_active")? == 2.0)
        })?;
    }
    read_all(tour, &keys).context("n3 is revoked")?;
    let log = fs::read_to_string(tour.nodes[0].log())?;
    let line = log.lines().rfind(|line| line.contains("refused a connection on the peer port"));
    let line = line.context("no line about the refusal")?;
    let address = node_address(3).to_string();
    ensure!(
        line.contains(&address) && line.contains("its certificate is revoked; issue a new one"),
        "{line}"
    );
    let seen = status(&tour.nodes[0])?;
    ensure!(seen.contains("n3 for") && seen.contains("TLS: its certificate is revoked"), "{seen}");
    let seen = status(&tour.nodes[2])?;
    ensure!(seen.contains("it refuses the certificate of this node: it is revoked"), "{seen}");

    // A new certificate is accepted without a restart.
    certificates.write(&tour.nodes[2], 3, 33)?;
    tour.nodes[2].reload()?;
    wait_until("all nodes to be back", || Ok(tour.metric("lota_nodes_active")? == 9.0))?;
    read_all(tour, &keys)?;

    // Files that do not fit change nothing, and prevent a start.
    let node = &mut tour.nodes[1];
    let own = fs::read_to_string(node.folder().join("tls.key"))?;
    node.replace("tls.key", &fs::read_to_string(key_of(node, 1))?)?;
    let error = format!("{:#}", node.reload().err().context("another node's key is accepted")?);
    ensure!(error.contains("tls.key"), "{error}");
    node.stop(Signal::SIGTERM)?;
    let error = format!("{:#}", node.start().err().context("it starts with another node's key")?);
    ensure!(error.contains("cannot use the files of [peers.tls]") && error.contains("tls.key"), "{error}");
    node.replace("tls.key", &own)?;
    tour.revive()
}

/// Returns the output of `lota status`, whatever it reports.
fn status(node: &Node) -> Result<String> {
    let output = node.command().arg("status").arg("--config").arg(node.config()).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Reads all objects on all nodes.
fn read_all(tour: &Tour, keys: &[String]) -> Result<()> {
    for (node, pod) in tour.one_pod_per_node() {
        for key in keys {
            let reply = get(tour, &pod, key, &ADMIN)?;
            let is_right = reply.status == 200 && reply.body == content(SIZE);
            ensure!(is_right, "{key} on n{node}: {} {}", reply.status, reply.code());
        }
    }
    Ok(())
}

/// Returns the key file of another node.
fn key_of(node: &Node, other: u8) -> PathBuf {
    node.folder().with_file_name(format!("n{other}")).join("tls.key")
}
