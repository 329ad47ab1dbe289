//! Names that also work without LOTA: while the daemon lives, pods with access get the VIP, and all others, always, the
//! answer of the cluster's DNS.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::{Array, Map, MapData};
use lota_common::{Heartbeat, map};
use lota_tests::{
    lab::{GATEWAY, GATEWAY_PORT, Mode, Namespace, Node, Pod, VIP, run},
    tour::{MIB, Tour, wait_until},
};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{
    dump, lota_json,
    names::{ELSEWHERE, cluster, glibc},
    redirection::with_bridge,
};

const NAME: &str = "s3.lab";
const BUCKET: &str = "b.s3.lab";

/// Runs a test with the gateway's own name on the first node.
fn with_name(tour: &mut Tour, test: impl FnOnce(&mut Tour) -> Result<()>) -> Result<()> {
    with_gateway(tour, &format!("names = [\"{NAME}\"]"), test)
}

/// Runs a test with another line in the gateway's section on the first node.
fn with_gateway(tour: &mut Tour, line: &str, test: impl FnOnce(&mut Tour) -> Result<()>) -> Result<()> {
    let node = &mut tour.nodes[0];
    node.edit("[gateway]\n", &format!("[gateway]\n{line}\n"));
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    let tested = test(tour);
    let node = &mut tour.nodes[0];
    node.forget_edits();
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    tested
}

fn find(pod: &Namespace) -> Result<String> {
    glibc(pod, "ahostsv4", BUCKET)
}

/// Waits until a pod finds this address.
fn found(pod: &Namespace, expected: Ipv4Addr) -> Result<()> {
    let expected = expected.to_string();
    wait_until(&format!("{BUCKET} to be {expected}"), || Ok(find(pod)? == expected))
}

pub(crate) fn daemon(tour: &mut Tour) -> Result<()> {
    with_name(tour, |tour| {
        let _cluster = cluster(tour)?;
        let (pod, stranger) = (tour.pod(1, 1), tour.pod(1, 2));
        for pod in [&pod, &stranger] {
            pod.set_resolver(GATEWAY, "")?;
        }
        let address = Pod(1, 2).address().to_string();
        tour.nodes[0].lota(&["access", "deny", &address])?;
        let states = states(&mut tour.nodes[0], &pod, &stranger);
        if tour.nodes[0].pid().is_none() {
            tour.nodes[0].start()?;
        }
        tour.nodes[0].lota(&["access", "forget", &address])?;
        for pod in [&pod, &stranger] {
            pod.set_resolver(VIP, "")?;
        }
        states
    })
}

fn states(node: &mut Node, pod: &Namespace, stranger: &Namespace) -> Result<()> {
    let own = || glibc(pod, "ahostsv4", "b.cwlota.com");
    let (vip, elsewhere) = (VIP.to_string(), ELSEWHERE.to_string());
    let alone = |what: &str| -> Result<()> {
        ensure!(find(stranger)? == elsewhere, "{what}, without access it is {}", find(stranger)?);
        Ok(())
    };
    ensure!(find(pod)? == vip, "with a daemon that lives it is {}", find(pod)?);
    let ttl = run(pod.pod_command("dig").args(["+noall", "+answer", BUCKET]))?;
    ensure!(ttl.split_whitespace().nth(1) == Some("1"), "its TTL is not 1: {ttl}");
    alone("with a daemon that lives")?;

    node.signal(Signal::SIGSTOP)?;
    let stopped = found(pod, ELSEWHERE).and_then(|()| {
        ensure!(own()? == vip, "with a daemon that is stopped, LOTA's own name is {}", own()?);
        alone("with a daemon that is stopped")
    });
    node.signal(Signal::SIGCONT)?;
    stopped?;
    found(pod, VIP)?;

    // A handover has no gap.
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                let found = find(pod)?;
                ensure!(found == vip, "during a handover it is {found}");
            }
            Ok(())
        });
        let started = (0..2).try_for_each(|_| node.start());
        stop.store(true, Ordering::Relaxed);
        let queried = asking.join().map_err(|_| anyhow!("the thread that asks panicked"))?;
        started.and(queried)
    })?;

    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        node.stop(signal)?;
        ensure!(find(pod)? == elsewhere, "after {signal}, it is {}", find(pod)?);
        ensure!(own()? == vip, "after {signal}, LOTA's own name is {}", own()?);
        alone("without a daemon")?;
        node.start()?;
        ensure!(find(pod)? == vip, "started after {signal}, it is {}", find(pod)?);
    }
    Ok(())
}

/// Names, kinds and ports, as `bpftool` and the daemon show them.
pub(crate) fn shown(tour: &mut Tour) -> Result<()> {
    with_name(tour, |tour| {
        let node = &tour.nodes[0];
        let entries = dump(node, map::NAMES)?.into_iter();
        let mut entries: Vec<_> = entries.map(|entry| entry["value"].clone()).collect();
        entries.sort_by_key(|entry| entry["kind"].as_u64());
        let expected = json!([
            { "name": "cwlota.com", "length": 12, "kind": 1, "needs_daemon": 0 },
            { "name": NAME, "length": 8, "kind": 2, "needs_daemon": 1 },
        ]);
        ensure!(json!(entries) == expected, "bpftool shows {}", json!(entries));
        let settings = dump(node, map::SETTINGS)?.pop().context("no settings")?;
        let ports = json!([80, 443, 9000, 0, 0, 0, 0, 0]);
        ensure!(settings["value"]["ports"] == ports, "bpftool shows {settings}");
        let status = &lota_json(node, &["datapath", "status"])?[0];
        let names = json!([
            { "name": "cwlota.com", "kind": "own", "when_down": "refuse" },
            { "name": NAME, "kind": "intercepted", "when_down": "cluster-dns" },
        ]);
        ensure!(
            status["names"] == names && status["ports"] == json!([80, 443, 9000]),
            "the status is {status}"
        );
        let age = status["heartbeat_age_ms"].as_u64().context("no heartbeat")?;
        ensure!(age < 3000, "the last heartbeat is {age} ms old");
        let text = node.lota(&["datapath", "status"])?;
        let lines = ["name     s3.lab (intercepted)", "ports    80, 443, 9000\n"];
        ensure!(lines.iter().all(|line| text.contains(line)), "{text}");
        Ok(())
    })
}

/// Pods that have the gateway's address in their configuration.
pub(crate) fn by_address(tour: &mut Tour) -> Result<()> {
    let _routes_to_pods = cluster(tour)?;
    let (key, endpoint) = ("address/object", format!("http://{GATEWAY}:{GATEWAY_PORT}"));
    let restores = |node: &Node| -> Result<bool> {
        let links = std::fs::read_dir(node.map("links"))?;
        let names = links.map(|link| Ok(link?.file_name())).collect::<Result<Vec<_>>>()?;
        Ok(names.iter().any(|name| name.to_string_lossy().starts_with("restore-")))
    };
    with_gateway(tour, &format!("addresses = [\"{GATEWAY}\"]"), |tour| {
        let (client, pod, stranger) = (tour.client.clone(), tour.pod(1, 1), tour.pod(1, 2));
        let put = client.put_at(&endpoint, &pod, key, 211, 3 * MIB)?;
        // Whether LOTA answered is in a header.
        let by = |pod: &Namespace| -> Result<String> {
            let got = client.get_with(pod, key, json!({ "endpoint": endpoint }))?;
            ensure!(got.sha256 == put.sha256, "{} {}", got.status, got.code);
            Ok(got.cache().to_owned())
        };
        wait_until("a hit at the gateway's address", || Ok(by(&pod)? == "hit"))?;
        let node = &mut tour.nodes[0];
        let status = &lota_json(node, &["datapath", "status"])?[0];
        let target =
            json!([{ "target": format!("{GATEWAY}:{GATEWAY_PORT}"), "port": 65_472, "is_former": false }]);
        ensure!(status["targets"] == target && restores(node)?, "the status is {status}");
        let shown = dump(node, map::TARGETS)?;
        ensure!(shown[0]["key"]["port"] == GATEWAY_PORT, "bpftool shows {}", json!(shown));

        let denied = Pod(1, 2).address().to_string();
        node.lota(&["access", "deny", &denied])?;
        let without_access = by(&stranger);
        node.lota(&["access", "forget", &denied])?;
        ensure!(without_access?.is_empty(), "LOTA answered a pod without access");

        node.stop(Signal::SIGKILL)?;
        let down = by(&pod);
        node.start()?;
        ensure!(down?.is_empty(), "LOTA answered while it was down");
        ensure!(by(&pod)? == "hit", "started again, it is {}", by(&pod)?);
        node.start()?;
        ensure!(by(&pod)? == "hit", "after a handover, it is {}", by(&pod)?);
        Ok(())
    })?;
    // Open connections of the previous daemon needed it.
    let node = &mut tour.nodes[0];
    ensure!(restores(node)?, "the program at egress is not attached any more after a handover");
    node.start()?;
    ensure!(!restores(node)?, "the program at egress is still attached");
    let got = tour.client.get_with(&tour.pod(1, 1), key, json!({ "endpoint": endpoint }))?;
    ensure!(got.status == 200 && got.cache().is_empty(), "{} {}", got.status, got.cache());
    Ok(())
}

/// If netfilter handles packets at a bridge's ports, LOTA sees them after address translation, so nothing is
/// intercepted there.
pub(crate) fn at_bridge(tour: &mut Tour) -> Result<()> {
    let _routes_to_pods = cluster(tour)?;
    let (key, endpoint) = ("address/bridge", format!("http://{GATEWAY}:{GATEWAY_PORT}"));
    let place = tour.lab.node(1);
    place.set_bridge_filter(false)?;
    let intercepts = |tour: &Tour, expected: bool| {
        wait_until(&format!("the bridge's interception to be {expected}"), || {
            let status = &lota_json(&tour.nodes[0], &["datapath", "status"])?[0];
            let interfaces = status["interfaces"].as_array().context("no interfaces")?;
            Ok(interfaces.iter().any(|one| one["name"] == "cni0" && one["intercepts"] == expected))
        })
    };
    let tested = with_gateway(tour, &format!("addresses = [\"{GATEWAY}\"]"), |tour| {
        with_bridge(tour, 1, |tour| {
            let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
            let by = || -> Result<String> {
                let got = client.get_with(&pod, key, json!({ "endpoint": endpoint }))?;
                ensure!(got.status == 200, "{} {}", got.status, got.code);
                Ok(got.cache().to_owned())
            };
            intercepts(tour, true)?;
            client.put_at(&endpoint, &pod, key, 212, MIB)?;
            wait_until("a hit at the gateway's address", || Ok(by()? == "hit"))?;
            ensure!(tour.lab.node(1).set_bridge_filter(true)?, "the machine has no br_netfilter");
            intercepts(tour, false)?;
            ensure!(by()?.is_empty(), "LOTA answered behind a bridge at which netfilter comes first");
            Ok(())
        })
    });
    place.set_bridge_filter(true)?;
    tested
}

/// The oldest heartbeat that a datapath has seen since [`Pulse::start`].
pub(crate) struct Pulse {
    map: Array<MapData, Heartbeat>,
    oldest: Duration,
}

impl Pulse {
    pub(crate) fn start(node: &Node) -> Result<Self> {
        let pinned = Map::from_map_data(MapData::from_pin(node.map(map::HEARTBEAT))?)?;
        Ok(Self { map: pinned.try_into()?, oldest: Duration::ZERO })
    }

    /// Verifies that the daemon lives now.
    pub(crate) fn feel(&mut self) -> Result<()> {
        let heartbeat = self.map.get(&0, 0)?;
        let now = Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?);
        let age = now.saturating_sub(Duration::from_nanos(heartbeat.at_ns));
        self.oldest = self.oldest.max(age);
        ensure!(heartbeat.is_recent(now.as_nanos().try_into()?), "the last heartbeat is {age:?} old");
        Ok(())
    }

    pub(crate) fn oldest(&self) -> Duration {
        self.oldest
    }
}
