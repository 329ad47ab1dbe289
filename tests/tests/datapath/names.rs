//! DNS: a pod's queries for the zone are answered on its node, whatever resolver it uses, and no other queries.

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
    lab::{DENIED, GATEWAY, Mode, NODES, Namespace, Pod, VIP, VIP6, run, run_with_input},
    tour::{Tour, wait_until},
};

use super::{redirection::with_bridge, tool};

/// Answer of the cluster's DNS for names outside the zone.
pub(super) const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// A search domain without names.
const SEARCH: &str = "ns.svc.test.";
/// Address of a node-local DNS cache.
const NODE_LOCAL: Ipv4Addr = Ipv4Addr::new(169, 254, 20, 10);
/// Address of the Service of the cluster's DNS.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Interval at which its threads check whether to stop.
const TICK: Duration = Duration::from_millis(50);

/// A cluster's DNS. It resolves names of the zone to the gateway, for pods without LOTA, and all others but those of a
/// search domain to [`ELSEWHERE`].
pub(super) struct Cluster {
    /// Number of queries for the zone that reached it.
    queries: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    serving: Vec<thread::JoinHandle<()>>,
}

impl Cluster {
    fn start(place: &Namespace, address: Ipv4Addr) -> Result<Self> {
        let address = SocketAddr::from((address, 53));
        let (udp, tcp) = place
            .run(move || -> Result<_> { Ok((UdpSocket::bind(address)?, TcpListener::bind(address)?)) })??;
        udp.set_read_timeout(Some(TICK))?;
        tcp.set_nonblocking(true)?;
        let (queries, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (queries.clone(), stop.clone());
        let by_udp = thread::spawn(move || {
            let mut query = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, client)) = udp.recv_from(&mut query) else { continue };
                if let Ok(answer) = answer(&query[..length], &counted) {
                    let _ = udp.send_to(&answer, client);
                }
            }
        });
        let (counted, stopped) = (queries.clone(), stop.clone());
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
        Ok(Self { queries, stop, serving: vec![by_udp, by_tcp] })
    }

    fn queries(&self) -> u32 {
        self.queries.load(Ordering::Relaxed)
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

fn serve(mut stream: std::net::TcpStream, queries: &AtomicU32) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TICK))?;
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query)?;
        let answer = answer(&query, queries)?;
        stream.write_all(&u16::try_from(answer.len())?.to_be_bytes())?;
        stream.write_all(&answer)?;
    }
    Ok(())
}

fn answer(query: &[u8], queries: &AtomicU32) -> Result<Vec<u8>> {
    let query = Message::from_vec(query)?;
    let question = query.queries.first().context("no question")?;
    let ours = Name::from_ascii("cwlota.com.")?.zone_of(question.name());
    if ours {
        queries.fetch_add(1, Ordering::Relaxed);
    }
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata = Metadata::response_from_request(&query.metadata);
    answer.metadata.response_code = ResponseCode::NoError;
    answer.metadata.recursion_available = true;
    if Name::from_ascii(SEARCH)?.zone_of(question.name()) {
        answer.metadata.response_code = ResponseCode::NXDomain;
    } else if question.query_type() == RecordType::A {
        let address = if ours { GATEWAY } else { ELSEWHERE };
        answer.add_answer(Record::from_rdata(question.name().clone(), 5, RData::A(rdata::A(address))));
    }
    answer.queries = query.queries.clone();
    Ok(answer.to_vec()?)
}

/// Starts the cluster's DNS at the gateway's address, with routes to all pods.
pub(super) fn cluster(tour: &Tour) -> Result<Cluster> {
    let switch = tour.lab.switch();
    (1..=NODES).try_for_each(|node| tour.lab.route_to_pods(node))?;
    Cluster::start(&switch, GATEWAY)
}

/// Returns the first address that glibc finds.
pub(super) fn glibc(pod: &Namespace, family: &str, name: &str) -> Result<String> {
    let found = pod.pod_command("getent").args([family, name]).output()?;
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    Ok(found.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Compiles a program with musl's resolver, which queries both families in parallel.
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
    let before = cluster.queries();
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
    for expected in ["status: NOERROR", "ANSWER: 0", "AUTHORITY: 1", "BuCkEt.cWlOtA.cOm.", "SOA"] {
        ensure!(whole.contains(expected), "no `{expected}` in the output of dig MX:\n{whole}");
    }
    ensure!(!whole.contains("WARNING") && !whole.contains("malformed"), "dig complains:\n{whole}");
    ensure!(
        cluster.queries() == before,
        "{} queries for the zone reached the cluster",
        cluster.queries() - before
    );

    // Go's resolver, in an S3 client.
    let listed = run(pod
        .pod_command(tool("LOTA_RCLONE")?)
        .args(["lsf", ":s3:", "--retries=1", "--config=/dev/null"])
        .env("RCLONE_S3_PROVIDER", "Other")
        .env("RCLONE_S3_ENDPOINT", "http://cwlota.com")
        .env("RCLONE_S3_ACCESS_KEY_ID", &*tour.client.credential.access_key)
        .env("RCLONE_S3_SECRET_ACCESS_KEY", &*tour.client.credential.secret_key))?;
    ensure!(listed.contains("tour-"), "rclone listed {listed:?}");
    ensure!(cluster.queries() == before, "Go's queries reached the cluster");
    pod.set_resolver(VIP, "")
}

/// Over TCP, without access, on a node without LOTA, and if it is disabled.
pub(crate) fn cluster_answers(tour: &mut Tour) -> Result<()> {
    let _cluster = cluster(tour)?;
    let gateway = GATEWAY.to_string();
    let (pod, denied) = (tour.pod(1, 1), tour.lab.pod(DENIED));
    pod.set_resolver(GATEWAY, "use-vc")?;
    let found = glibc(&pod, "ahostsv4", "b.cwlota.com")?;
    ensure!(found == gateway, "over TCP it is {found}, where the cluster's DNS has {gateway}");
    denied.set_resolver(GATEWAY, "")?;
    let found = glibc(&denied, "ahostsv4", "b.cwlota.com")?;
    denied.set_resolver(VIP, "")?;
    ensure!(
        found == gateway,
        "for a pod without access it is {found}, where the cluster's DNS has {gateway}"
    );

    pod.set_resolver(GATEWAY, "")?;
    let find = || glibc(&pod, "ahostsv4", "b.cwlota.com");
    ensure!(find()? == VIP.to_string(), "with LOTA it is {}", find()?);
    let node = &mut tour.nodes[0];
    node.edit("pod_interfaces", "answer_dns = false\npod_interfaces");
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    node.forget_edits();
    ensure!(find()? == gateway, "disabled, it is {}", find()?);
    // The responder stays enabled: a cluster may forward the zone to it.
    pod.set_resolver(VIP, "")?;
    ensure!(find()? == VIP.to_string(), "at the VIP it is {}", find()?);
    pod.set_resolver(GATEWAY, "")?;
    node.stop(nix::sys::signal::Signal::SIGTERM)?;
    node.lota(&["datapath", "detach"])?;
    ensure!(find()? == gateway, "on a node without LOTA it is {}", find()?);
    let listed = tour.lab.pod(Pod(1, 1));
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    listed.set_resolver(VIP, "")
}

/// Search lists, a DNS cache on the node, and processes of the node.
pub(crate) fn search_lists_and_caches(tour: &mut Tour) -> Result<()> {
    let cluster = cluster(tour)?;
    let (pod, place) = (tour.pod(1, 1), tour.lab.node(1));
    let (vip, gateway, elsewhere) = (VIP.to_string(), GATEWAY.to_string(), ELSEWHERE.to_string());
    let resolve = |server: Ipv4Addr, search: &str, name: &str| -> Result<String> {
        let lists = format!("nameserver {server}\nsearch {search}\noptions ndots:5 timeout:1 attempts:2\n");
        pod.set("resolv.conf", &lists)?;
        glibc(&pod, "ahostsv4", name)
    };
    place.ip(&format!("addr add {NODE_LOCAL}/32 dev lo"))?;
    let cache = Cluster::start(&place, NODE_LOCAL)?;
    let before = cluster.queries();
    for (server, search, name, expected) in [
        // The names with search domains are queried first, and do not exist.
        (GATEWAY, "ns.svc.test svc.ns.svc.test", "b.cwlota.com", &vip),
        // A search domain completes the name.
        (GATEWAY, "ns.svc.test cwlota.com", "bucket", &vip),
        (GATEWAY, "cwlota.com", "example.org.", &elsewhere),
        (NODE_LOCAL, "ns.svc.test", "b.cwlota.com", &vip),
        (NODE_LOCAL, "ns.svc.test", "example.com", &elsewhere),
    ] {
        let found = resolve(server, search, name)?;
        ensure!(found == *expected, "{name} with `search {search}` at {server} is {found}");
    }
    ensure!(cache.queries() == 0 && cluster.queries() == before, "queries for the zone left the pod's node");
    // The cache's own queries, and all others of the node's processes.
    let found =
        run(place.command("dig").args(["+short", "+tries=1", &format!("@{GATEWAY}"), "b.cwlota.com"]))?;
    ensure!(found.trim() == gateway, "a process of the node gets {found}");
    drop(cache);
    place.ip(&format!("addr del {NODE_LOCAL}/32 dev lo"))?;
    pod.set_resolver(VIP, "")
}

/// Behind a bridge at whose ports netfilter handles packets first: the destination of a query to a Service is translated
/// before the bridge sees it.
pub(crate) fn at_bridge(tour: &mut Tour) -> Result<()> {
    let cluster = cluster(tour)?;
    let place = tour.lab.node(1);
    ensure!(place.set_bridge_filter(true)?, "the machine has no br_netfilter");
    let commands = [
        "add table ip services",
        "add chain ip services services { type nat hook prerouting priority dstnat; }",
        &format!("add rule ip services services ip daddr {SERVICE} udp dport 53 dnat to {GATEWAY}"),
    ];
    run_with_input(place.command("nft").args(["-f", "-"]), &(commands.join("\n") + "\n"))?;
    let tested = with_bridge(tour, 1, |tour| {
        let pod = tour.pod(1, 1);
        pod.set_resolver(SERVICE, "timeout:1 attempts:1")?;
        let find = |name: &str| glibc(&pod, "ahostsv4", name);
        wait_until("a query to be answered behind the bridge", || {
            Ok(find("b.cwlota.com")? == VIP.to_string())
        })?;
        let before = cluster.queries();
        ensure!(find("b.cwlota.com")? == VIP.to_string(), "the second time it is {}", find("b.cwlota.com")?);
        ensure!(cluster.queries() == before, "a query for the zone reached the cluster");
        ensure!(find("example.com")? == ELSEWHERE.to_string(), "another name is {}", find("example.com")?);
        Ok(())
    });
    run(place.command("nft").args(["delete", "table", "ip", "services"]))?;
    tour.pod(1, 1).set_resolver(VIP, "")?;
    tested
}
