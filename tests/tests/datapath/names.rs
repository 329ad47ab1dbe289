//! Names: a pod's queries for the zone are answered on its node, whatever resolver it asks, and nothing else is.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use hickory_proto::{
    op::{Message, Metadata, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use lota_tests::{
    lab::{DENIED, GATEWAY, Mode, NODES, Namespace, Pod, VIP, VIP6, node_address, run},
    tour::Tour,
};

use super::{lota, tool};

/// What the cluster's DNS says of names that are not the zone's.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// How often its threads look whether they are still wanted.
const TICK: Duration = Duration::from_millis(50);

/// A cluster's DNS: the zone's names are the gateway's address there, for whoever has no LOTA, and all others one
/// that nobody has.
struct Cluster {
    /// Queries for the zone that reached it.
    asked: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    serving: Vec<thread::JoinHandle<()>>,
}

impl Cluster {
    fn start(place: &Namespace) -> Result<Self> {
        let address = SocketAddr::from((GATEWAY, 53));
        let (udp, tcp) = place
            .run(move || -> Result<_> { Ok((UdpSocket::bind(address)?, TcpListener::bind(address)?)) })??;
        udp.set_read_timeout(Some(TICK))?;
        tcp.set_nonblocking(true)?;
        let (asked, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (asked.clone(), stop.clone());
        let by_udp = thread::spawn(move || {
            let mut query = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, client)) = udp.recv_from(&mut query) else { continue };
                if let Ok(answer) = answer(&query[..length], &counted) {
                    let _ = udp.send_to(&answer, client);
                }
            }
        });
        let (counted, stopped) = (asked.clone(), stop.clone());
        let by_tcp = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((stream, _)) => {
                        let _ = serve(stream, &counted);
                    }
                    Err(_) => thread::sleep(TICK),
                }
            }
        });
        Ok(Self { asked, stop, serving: vec![by_udp, by_tcp] })
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.serving.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: std::net::TcpStream, asked: &AtomicU32) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TICK))?;
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query)?;
        let answer = answer(&query, asked)?;
        stream.write_all(&u16::try_from(answer.len())?.to_be_bytes())?;
        stream.write_all(&answer)?;
    }
    Ok(())
}

fn answer(query: &[u8], asked: &AtomicU32) -> Result<Vec<u8>> {
    let query = Message::from_vec(query)?;
    let question = query.queries.first().context("no question")?;
    let ours = Name::from_ascii("cwlota.com.")?.zone_of(question.name());
    if ours {
        asked.fetch_add(1, Ordering::Relaxed);
    }
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata = Metadata::response_from_request(&query.metadata);
    answer.metadata.response_code = ResponseCode::NoError;
    answer.metadata.recursion_available = true;
    if question.query_type() == RecordType::A {
        let address = if ours { GATEWAY } else { ELSEWHERE };
        answer.add_answer(Record::from_rdata(question.name().clone(), 5, RData::A(rdata::A(address))));
    }
    answer.queries = query.queries.clone();
    Ok(answer.to_vec()?)
}

/// The cluster's DNS at the gateway's address, which pods reach and are reached from.
fn cluster(tour: &Tour) -> Result<Cluster> {
    let switch = tour.lab.switch();
    for node in 1..=NODES {
        switch.ip(&format!("route replace 10.77.{}.0/24 via {}", 10 + node, node_address(node)))?;
    }
    Cluster::start(&switch)
}

/// The addresses that glibc finds.
fn glibc(pod: &Namespace, family: &str, name: &str) -> Result<String> {
    let found = pod.pod_command("getent").args([family, name]).output()?;
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    Ok(found.split_whitespace().next().unwrap_or_default().to_owned())
}

/// A program that asks musl, which asks for both families at once and by itself.
fn musl(tour: &Tour) -> Result<std::path::PathBuf> {
    let program = tour.lab.folder().join("musl-resolve");
    if !program.exists() {
        let source = tour.lab.folder().join("musl-resolve.c");
        std::fs::write(&source, include_str!("musl-resolve.c"))?;
        run(Command::new("musl-gcc").args(["-static", "-o"]).arg(&program).arg(&source))?;
    }
    Ok(program)
}

pub(crate) fn resolvers(tour: &mut Tour) -> Result<()> {
    let cluster = cluster(tour)?;
    let pod = tour.pod(1, 1);
    pod.set_resolver(GATEWAY, "")?;
    let before = cluster.asked();
    let (vip, vip6, elsewhere) = (VIP.to_string(), VIP6.to_string(), ELSEWHERE.to_string());
    for name in ["cwlota.com", "some-bucket.cwlota.com", "SoMe.BuCkEt.CwLoTa.CoM"] {
        for options in ["", "edns0", "single-request", "rotate edns0"] {
            pod.set_resolver(GATEWAY, options)?;
            let found = (glibc(&pod, "ahostsv4", name)?, glibc(&pod, "ahostsv6", name)?);
            ensure!(found == (vip.clone(), vip6.clone()), "glibc with `{options}`: {name} is {found:?}");
        }
        let found = run(pod.pod_command(musl(tour)?).arg(name))?;
        ensure!(
            found.lines().any(|line| line == vip) && found.lines().any(|line| line == vip6),
            "musl: {found}"
        );
    }
    ensure!(glibc(&pod, "ahostsv4", "example.com")? == elsewhere, "glibc: another name");
    ensure!(run(pod.pod_command(musl(tour)?).arg("example.com"))?.trim() == elsewhere, "musl: another name");

    let dig = |words: &[&str]| run(pod.pod_command("dig").args(["+tries=1", "+timeout=2"]).args(words));
    for more in ["+edns", "+noedns", "+cookie", "+dnssec", "+nsid", "+norecurse", "+bufsize=512"] {
        let found = dig(&["+short", more, "BuCkEt.cWlOtA.cOm"])?;
        ensure!(found.trim() == vip, "dig {more}: {found}");
    }
    let whole = dig(&["BuCkEt.cWlOtA.cOm", "MX"])?;
    for says in ["status: NOERROR", "ANSWER: 0", "AUTHORITY: 1", "BuCkEt.cWlOtA.cOm.", "SOA"] {
        ensure!(whole.contains(says), "dig MX does not say `{says}`:\n{whole}");
    }
    ensure!(!whole.contains("WARNING") && !whole.contains("malformed"), "dig complains:\n{whole}");
    ensure!(
        cluster.asked() == before,
        "{} queries for the zone reached the cluster",
        cluster.asked() - before
    );

    // Go's own resolver, in an S3 client.
    let listed = run(pod
        .pod_command(tool("LOTA_RCLONE")?)
        .args(["lsf", ":s3:", "--retries=1", "--config=/dev/null"])
        .env("RCLONE_S3_PROVIDER", "Other")
        .env("RCLONE_S3_ENDPOINT", "http://cwlota.com")
        .env("RCLONE_S3_ACCESS_KEY_ID", &*tour.client.credential.access_key)
        .env("RCLONE_S3_SECRET_ACCESS_KEY", &*tour.client.credential.secret_key))?;
    ensure!(listed.contains("tour-"), "rclone listed {listed:?}");
    ensure!(cluster.asked() == before, "Go's queries reached the cluster");
    pod.set_resolver(VIP, "")
}

/// Over TCP, without access, where LOTA is not, and where it is told not to.
pub(crate) fn cluster_answers(tour: &mut Tour) -> Result<()> {
    let _cluster = cluster(tour)?;
    let gateway = GATEWAY.to_string();
    let (pod, denied) = (tour.pod(1, 1), tour.lab.pod(DENIED));
    pod.set_resolver(GATEWAY, "use-vc")?;
    let found = glibc(&pod, "ahostsv4", "b.cwlota.com")?;
    ensure!(found == gateway, "over TCP it is {found}, where the cluster's DNS says {gateway}");
    denied.set_resolver(GATEWAY, "")?;
    let found = glibc(&denied, "ahostsv4", "b.cwlota.com")?;
    denied.set_resolver(VIP, "")?;
    ensure!(
        found == gateway,
        "for a pod without access it is {found}, where the cluster's DNS says {gateway}"
    );

    pod.set_resolver(GATEWAY, "")?;
    let find = || glibc(&pod, "ahostsv4", "b.cwlota.com");
    ensure!(find()? == VIP.to_string(), "with LOTA it is {}", find()?);
    let node = &mut tour.nodes[0];
    node.edit("pod_interfaces", "answer_names = false\npod_interfaces");
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    node.forget_edits();
    ensure!(find()? == gateway, "switched off, it is {}", find()?);
    // The responder is not: a cluster may forward the zone to it.
    pod.set_resolver(VIP, "")?;
    ensure!(find()? == VIP.to_string(), "at the VIP it is {}", find()?);
    pod.set_resolver(GATEWAY, "")?;
    node.stop(nix::sys::signal::Signal::SIGTERM)?;
    lota(node, &["datapath", "detach"])?;
    ensure!(find()? == gateway, "on a node without LOTA it is {}", find()?);
    let listed = tour.lab.pod(Pod(1, 1));
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    listed.set_resolver(VIP, "")
}
