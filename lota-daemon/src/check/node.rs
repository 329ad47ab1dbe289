//! The node itself: its kernel, its interfaces, its ports.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use super::Report;
use crate::{
    admin::socket,
    config::Config,
    datapath::{self, Plan, netlink::Netlink},
};

pub(super) async fn check(report: &mut Report<'_>, config: &Config) {
    match datapath::preflight(&config.datapath.pins) {
        Ok(()) => report.ok("datapath", "the kernel and this user's privileges suffice"),
        Err(missing) => {
            for one in missing.split("; ") {
                let todo = "run it as the daemon will run: as root, or with the three capabilities; see docs/datapath.md";
                report.fail("datapath", one, todo);
            }
        }
    }
    interfaces(report, config).await;
    if socket::request_gateway(&config.admin.socket).await.is_ok() {
        return report.ok("admin", "a daemon runs on this node already; `lota run` takes over from it");
    }
    let peers = config.peers.as_ref().map(|peers| SocketAddr::new(config.node.address, peers.port));
    let ports = [
        ("admin", "admin.listen", Some(config.admin.listen)),
        ("admin", "admin.metrics_listen", config.admin.metrics_listen),
        ("peers", "node.address", peers),
    ];
    for (about, key, address) in ports {
        if let Some(address) = address {
            port(report, about, key, address);
        }
    }
}

/// Can it be listened there?
fn port(report: &mut Report<'_>, about: &'static str, key: &str, address: SocketAddr) {
    match TcpListener::bind(address) {
        Ok(_) => report.ok(about, format!("{address} is free to listen on")),
        Err(error) => {
            let todo = match error.kind() {
                io::ErrorKind::AddrInUse => "`ss -tlnp` shows who has it; or choose another port".to_owned(),
                io::ErrorKind::AddrNotAvailable => format!("{key} must be an address of this node"),
                _ => format!("see {key}"),
            };
            report.fail(about, format!("cannot listen on {address} ({key}): {error}"), todo);
        }
    }
}

async fn interfaces(report: &mut Report<'_>, config: &Config) {
    let found = match Netlink::connect() {
        Ok(netlink) => netlink.interfaces().await,
        Err(error) => Err(error),
    };
    let interfaces = match found {
        Ok(interfaces) => interfaces,
        Err(error) => {
            return report.fail("datapath", format!("{error:#}"), "this kernel does not tell its interfaces");
        }
    };
    let Plan { steered, skipped } = interfaces.plan(&config.datapath, config.access.host_network);
    let name = |index: &u32| interfaces.name(*index).unwrap_or("?").to_owned();
    let patterns = config.datapath.pod_interfaces.join(", ");
    if steered.is_empty() {
        let todo = "right, if no pod runs here yet; else see `ip link` and docs/datapath.md for what the CNI calls them";
        report.warn("datapath", format!("no interface matches datapath.pod_interfaces ({patterns})"), todo);
    } else {
        let mut names: Vec<_> = steered.keys().map(name).collect();
        let all = names.len();
        names.truncate(8);
        let more = if all > names.len() { ", …" } else { "" };
        report.ok("datapath", format!("{all} interfaces will be steered: {}{more}", names.join(", ")));
    }
    for (index, why) in &skipped {
        if !why.ends_with(datapath::INSTEAD) {
            let todo = "leave it out of datapath.pod_interfaces, or see docs/datapath.md";
            report.warn("datapath", format!("{} is not steered: {why}", name(index)), todo);
        }
    }
    match &config.datapath.uplink {
        Some(uplink) if interfaces.index(uplink).is_none() => {
            let what = format!("there is no interface {uplink} (datapath.uplink)");
            report.fail("datapath", what, "name the one toward the other nodes: `ip route get` one of them");
        }
        Some(uplink) => report.ok("datapath", format!("the guard goes to {uplink}")),
        None if config.peers.is_some() => report.warn(
            "datapath",
            "without datapath.uplink there is no guard: the peer port is kept by the cluster's secret alone",
            "name the interface toward the other nodes",
        ),
        None => {}
    }
}
