//! Diagnoses the state of each part, and suggests what to do.

use std::net::IpAddr;

use lota_datapath::{ConnectionsStatus, DatapathStatus, IdentityStatus};

use crate::cluster::PeerAuthentication;

use super::{
    AccessStatus, BackendStatus, CacheStatus, Finding, GatewayStatus, KubernetesStatus, Level, NodeReport,
    NodeStatus, PeerStatus, PeerTlsStatus, PinsStatus, TrafficStatus,
    text::{bytes, count, duration},
};

/// Share of a certificate's life that should be left. cert-manager renews when a third is left.
const LEAST_REST: f64 = 0.25;

/// Diagnoses every part.
pub(super) fn diagnose(report: &NodeReport) -> Vec<Finding> {
    let gateways = report.gateways.iter().flat_map(|status| {
        // The only gateway needs no name.
        let of = |part: &str| match report.gateways.len() {
            1 => part.to_owned(),
            _ => format!("{part} {}", status.name),
        };
        [(of("gateway"), gateway(status)), (of("backend"), backend(status))]
    });
    let own = [("node".to_owned(), node(&report.node))];
    let others = [
        ("datapath", datapath(report.datapath.as_ref())),
        ("connections", connections(report.datapath.as_ref())),
        ("access", access(report.access.as_ref(), identity(report))),
        ("kubernetes", kubernetes(report.kubernetes)),
        ("cache", cache(&report.cache)),
        ("peers", peers(report.peers.as_deref(), report.peer_authentication)),
        ("traffic", traffic(&report.traffic)),
    ];
    let others = others.map(|(part, diagnosis)| (part.to_owned(), diagnosis));
    let parts = own.into_iter().chain(gateways).chain(others);
    let parts = parts.map(|(part, Diagnosis(level, what, fix))| Finding { part, level, what, fix });
    parts.chain(report.peer_tls.as_ref().map(peer_certificate)).collect()
}

/// A finding before its part is named.
struct Diagnosis(Level, String, Option<String>);

fn ok(what: impl Into<String>) -> Diagnosis {
    Diagnosis(Level::Ok, what.into(), None)
}

fn warn(what: impl Into<String>, fix: impl Into<String>) -> Diagnosis {
    Diagnosis(Level::Warn, what.into(), Some(fix.into()))
}

fn fail(what: impl Into<String>, fix: impl Into<String>) -> Diagnosis {
    Diagnosis(Level::Fail, what.into(), Some(fix.into()))
}

fn node(node: &NodeStatus) -> Diagnosis {
    let NodeStatus { name, address, version, uptime_seconds, .. } = node;
    let who = format!("{name} at {address}, lota {version}, up {}", duration(*uptime_seconds));
    match node.ready {
        true => ok(format!("{who}, ready")),
        false => {
            fail(format!("{who}, NOT ready"), "see its log for what it waits for, or whether it is stopping")
        }
    }
}

fn gateway(gateway: &GatewayStatus) -> Diagnosis {
    let GatewayStatus { endpoint, unreachable, silent_seconds, silent_why, trusted, why, .. } = gateway;
    if let Some(why) = unreachable {
        return fail(
            format!("{endpoint} cannot be reached: {why}"),
            format!("pods get 503 until it answers; test it from this node: curl -v {endpoint}"),
        );
    }
    if let (Some(since), Some(why)) = (silent_seconds, silent_why) {
        return fail(
            format!("{endpoint} accepts connections, but has not answered for {}: {why}", duration(*since)),
            "pods get 503 until it answers; test it from this node, and see its log",
        );
    }
    let re_signed = if gateway.re_signed { ", requests are re-signed" } else { "" };
    match trusted {
        Some(true) => ok(format!("{endpoint} answers and is trusted{re_signed}")),
        None => ok(format!(
            "{endpoint} can be reached; not verified yet: the first hit starts verification{re_signed}"
        )),
        Some(false) => warn(
            format!("{endpoint} is NOT trusted: {}", why.as_deref().unwrap_or("it failed verification")),
            "nothing is served from the cache: set gateway.endpoint to the S3 server, not to a cache in front of it; \
             once fixed, run `lota reload`",
        ),
    }
}

fn backend(gateway: &GatewayStatus) -> Diagnosis {
    let Some(BackendStatus { endpoints, credential }) = &gateway.backend else {
        return ok(match gateway.protocol {
            crate::gateway::Protocol::Lota => "none: fills take the gateway's direct paths",
            crate::gateway::Protocol::S3 => "none: fills use clients' own requests where possible",
        });
    };
    let down: Vec<_> =
        endpoints.iter().filter_map(|end| Some((&end.address, end.unreachable.as_ref()?))).collect();
    if let [(address, why), ..] = *down {
        return warn(
            format!("{} of {} cannot be reached: {address}: {why}", down.len(), endpoints.len()),
            "fills fail there, and objects pass through uncached; check [backend] endpoints",
        );
    }
    let addresses: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.address.as_str()).collect();
    let credential = if *credential { "a credential of LOTA's own" } else { "no credential" };
    ok(format!("{}, by {credential}", addresses.join(", ")))
}

fn datapath(status: Option<&DatapathStatus>) -> Diagnosis {
    let Some(status) = status else {
        return fail(
            "the state of the kernel side is unavailable",
            "the daemon is handing over or hangs: retry, or see its log",
        );
    };
    let redirected = status.interfaces.iter().filter(|interface| interface.mode.is_some()).count();
    let guard = match &status.guard {
        Some(guard) => format!("guard on {}", guard.interface),
        None => "no guard".to_owned(),
    };
    let what = format!("{} redirected, {guard}", count(redirected, "interface"));
    if let Some(problem) = &status.guard_problem {
        return warn(
            format!("{what}: {problem}"),
            "hosts outside the cluster may reach the peer port; see `lota datapath status`",
        );
    }
    if let Some(problem) = &status.nat_exemption_problem {
        return warn(
            format!("{what}; the VIP is not exempt from address translation: {problem}"),
            "do not use a hostPort 80 on this node: it would redirect pods' requests",
        );
    }
    if let Some(behind) =
        status.interfaces.iter().find(|interface| interface.programs_ahead.is_some_and(|at| at > 0))
    {
        return warn(
            format!("{what}; another program processes the packets of {} first", behind.name),
            "find out what installs it: it may hide packets from LOTA, which re-attaches first every 2 s",
        );
    }
    // A bridge port is redirected at its bridge.
    let skipped = status.interfaces.iter().filter_map(|interface| {
        let why = interface.skipped.as_ref().filter(|why| !why.is_expected())?;
        Some((&interface.name, why))
    });
    if let Some((name, why)) = skipped.clone().next() {
        return warn(
            format!("{what}, {} NOT: {name}: {why}", skipped.count()),
            "its pods are refused; `lota datapath status` names each",
        );
    }
    if redirected == 0 {
        return warn(
            "no interface is redirected",
            "if this node has pods, add their interfaces to datapath.pod_interfaces",
        );
    }
    ok(what)
}

fn connections(status: Option<&DatapathStatus>) -> Diagnosis {
    let Some(ConnectionsStatus { hanging, problems }) = status.map(|status| &status.connections) else {
        return ok("not known: see datapath");
    };
    let causes: Vec<_> = problems.iter().map(|problem| &*problem.what).collect();
    let fixes: Vec<_> = problems.iter().map(|problem| &*problem.fix).collect();
    let (causes, fixes) = (causes.join("; "), fixes.join("; "));
    let [pod, more @ ..] = hanging.as_slice() else {
        return match problems.is_empty() {
            true => ok("connections of all pods with access arrive"),
            false => warn(causes, fixes),
        };
    };
    let interface = pod.interface.as_deref().unwrap_or("an interface that is gone");
    let more =
        if more.is_empty() { String::new() } else { format!(" and of {} more", count(more.len(), "pod")) };
    fail(
        format!(
            "connections of {} at {interface}{more} do not arrive ({}): {causes}",
            pod.address,
            count(usize::try_from(pod.attempts).unwrap_or(usize::MAX), "attempt")
        ),
        fixes,
    )
}

/// Returns how the pods are identified that the API server reports.
fn identity(report: &NodeReport) -> Option<&IdentityStatus> {
    report.kubernetes.and(report.datapath.as_ref()).map(|datapath| &datapath.identity)
}

fn access(access: Option<&AccessStatus>, identity: Option<&IdentityStatus>) -> Diagnosis {
    let Some(access) = access else {
        return warn("the state of the kernel side is unavailable", "see datapath");
    };
    let entries = access.entries.iter().map(|(source, entries)| match entries.deny {
        0 => format!("{} by {source}", entries.allow),
        deny => format!("{} and {deny} denied by {source}", entries.allow),
    });
    let entries: Vec<_> = entries.collect();
    let others = if access.default_allow { "all others allowed" } else { "no others allowed" };
    let mut refused = match access.denied.as_slice() {
        [] => String::new(),
        [last, more @ ..] => {
            let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
            format!("; recently refused: {}{more}", last.address)
        }
    };
    if let Some(egress) = access.denied.iter().find(|denied| is_eks_egress(denied.address)) {
        return warn(
            format!(
                "{} was refused: an IPv4 address that EKS gives to pods of an IPv6 cluster",
                egress.address
            ),
            "set endpoint.vip6, and restart the daemon: the API server knows only the IPv6 addresses of these pods",
        );
    }
    if let Some(IdentityStatus { by_cgroup: true, unidentified, .. }) = identity
        && let Some(pod) = unidentified.first()
    {
        return warn(
            format!(
                "{} identified by address only, since their cgroups are not known: {pod}",
                count(unidentified.len(), "pod")
            ),
            "check access.cgroup_path, and kubelet's --cgroup-root and cgroupsPerQOS; `lota datapath status` lists the pods",
        );
    }
    if let Some(IdentityStatus { problem: Some(problem), can_be_configured: true, .. }) = identity {
        return warn(
            format!("pods are identified by address only: {problem}"),
            "mount the node's cgroup v2 hierarchy there, or the folder that kubelet has as --cgroup-root; or set access.identity to \"address\"",
        );
    }
    if let Some(IdentityStatus { by_cgroup, problem, .. }) = identity {
        let why = problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
        let by = if *by_cgroup { "and cgroup" } else { "only" };
        refused.push_str(&format!("; pods are identified by address {by}{why}"));
    }
    let is_empty = access.entries.values().all(|entries| entries.allow == 0) && !access.default_allow;
    if is_empty && identity.is_some() {
        return ok(format!("no pod of this node is selected by access.from{refused}"));
    }
    if is_empty {
        return warn(
            format!("no address has access{refused}"),
            "configure [access]; `lota access allow ADDRESS` allows one at once",
        );
    }
    match entries.is_empty() {
        true => ok(format!("all addresses have access{refused}")),
        false => ok(format!("{} allowed, {others}{refused}", entries.join(", "))),
    }
}

/// Returns whether pods of IPv6 clusters on EKS use this address to reach IPv4 networks (the CNI plugin `egress-cni`).
fn is_eks_egress(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.octets()[..2] == [169, 254] && address.octets()[2] & !3 == 172)
}

fn kubernetes(kubernetes: Option<KubernetesStatus>) -> Diagnosis {
    match kubernetes {
        None => ok("not configured: nodes and access come from the configuration"),
        Some(KubernetesStatus { up: true }) => ok("the watches of pods and nodes work"),
        Some(KubernetesStatus { up: false }) => warn(
            "some watches on the API server fail",
            "the last known state holds, and new pods are refused; see the log, and check the API server and RBAC",
        ),
    }
}

fn cache(cache: &CacheStatus) -> Diagnosis {
    let CacheStatus { objects, stripes, partial, fills, capacity, disks, pins, .. } = cache;
    let stripes = if *stripes > 0 { format!(", {}", count(*stripes, "stripe")) } else { String::new() };
    let partial = if *partial > 0 { format!(", {partial} partial") } else { String::new() };
    let what = format!(
        "{} of {} in {}{stripes}{partial}, {}{}",
        bytes(cache.bytes),
        bytes(*capacity),
        count(*objects, "object"),
        count(*fills, "fill"),
        pinned(pins),
    );
    let broken: Vec<_> = disks.iter().filter(|disk| !disk.works).map(|disk| disk.folder.as_str()).collect();
    if broken.len() == disks.len() {
        return warn(
            "no disk works: all requests pass through",
            format!("check the disk of {}", broken.join(", ")),
        );
    }
    if !broken.is_empty() {
        return warn(
            format!(
                "{what}; {} of {} failed: {}",
                broken.len(),
                count(disks.len(), "disk"),
                broken.join(", ")
            ),
            "replace the disk, then restart the daemon",
        );
    }
    let corrupt: u64 = disks.iter().map(|disk| disk.corrupt).sum();
    if corrupt > 0 {
        return warn(
            format!("{what}; {corrupt} failed checksum verification and were evicted"),
            "the disk may be failing: check its SMART data and dmesg",
        );
    }
    if pins.bytes > pins.possible {
        let possible = bytes(pins.possible);
        return warn(
            format!("{what}; only {possible} can be pinned in the caches of all nodes"),
            "nodes are missing, or pins were set on two nodes at once: unpin something, or pin fewer bytes",
        );
    }
    ok(format!("{what}, {}", count(disks.len(), "disk")))
}

fn pinned(pins: &PinsStatus) -> String {
    let PinsStatus { count: number, bytes: all, cached, .. } = *pins;
    match number {
        0 => String::new(),
        _ => format!(", {} of {} ({} here)", count(number, "pin"), bytes(all), bytes(cached)),
    }
}

fn peers(peers: Option<&[PeerStatus]>, authentication: Option<PeerAuthentication>) -> Diagnosis {
    let Some(peers) = peers else { return ok("none: this is the only node") };
    let authentication = authentication.unwrap_or(PeerAuthentication::Shared);
    let keyless = peers.iter().filter(|peer| authentication.has_node_keys() && !peer.has_public_key);
    let keyless: Vec<_> = keyless.map(|peer| &*peer.name).collect();
    let without = match &*keyless {
        [] => String::new(),
        nodes => format!("; no public key of {}", nodes.join(", ")),
    };
    let lost = peers.iter().filter_map(|peer| Some((peer, peer.lost_seconds?)));
    let lost = lost.map(|(peer, since)| {
        let why = peer.lost_why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        format!("{} for {}{why}", peer.name, duration(since))
    });
    let lost: Vec<_> = lost.collect();
    let all = count(peers.len(), "peer");
    if authentication == PeerAuthentication::Node && !keyless.is_empty() {
        let lost = if lost.is_empty() { String::new() } else { format!(", lost: {}", lost.join(", ")) };
        return warn(
            format!("{} of {all} cannot be sent to or answered{lost}{without}", keyless.len()),
            "add their public keys (`lota node-key` there) to peers.nodes on all nodes, then run `lota reload`",
        );
    }
    if !lost.is_empty() {
        return warn(
            format!("{} of {all} lost: {}{without}", lost.len(), lost.join(", ")),
            "other nodes take over their objects after a minute; run `lota status` there, and compare the secrets",
        );
    }
    let keys = match authentication {
        PeerAuthentication::Shared => "",
        PeerAuthentication::Both => ", cluster keys and keys of nodes are accepted",
        PeerAuthentication::Node => ", each with a key of its own",
    };
    ok(format!("{all}, none lost{keys}{without}"))
}

fn peer_tls(tls: &PeerTlsStatus) -> Diagnosis {
    let mode = &tls.mode;
    if let Some(problem) = &tls.problem {
        return fail(
            format!("mode \"{mode}\"; other nodes refuse this one: {problem}"),
            "replace the files of [peers.tls]; the daemon reads them within ten seconds",
        );
    }
    let Some(left) = tls.expires_seconds else { return ok(format!("mode \"{mode}\"")) };
    let what = format!("mode \"{mode}\", this node's certificate expires in {}", duration(left));
    match tls.life_seconds.is_some_and(|life| left < life * LEAST_REST) {
        true => warn(what, "find out why it is not renewed: for example, `kubectl describe certificate`"),
        false => ok(what),
    }
}

/// Returns the finding about the certificate for TLS between nodes.
pub(crate) fn peer_certificate(tls: &PeerTlsStatus) -> Finding {
    let Diagnosis(level, what, fix) = peer_tls(tls);
    Finding { part: "peers.tls".to_owned(), level, what, fix }
}

fn traffic(traffic: &TrafficStatus) -> Diagnosis {
    let (all, hits) = (traffic.count(&[]), traffic.count(&["hit"]));
    let looked = traffic.count(&["hit", "miss", "fill"]);
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let ratio = match looked {
        0 => String::new(),
        _ => format!(", {:.1} % hits", hits as f64 * 100.0 / looked as f64),
    };
    ok(format!("{all} requests{ratio}, {} sent", bytes(traffic.sent.all())))
}

#[cfg(test)]
pub(crate) use tests::healthy;

#[cfg(test)]
#[path = "diagnosis_tests.rs"]
mod tests;
