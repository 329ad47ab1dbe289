//! Checks the node: its kernel, interfaces and ports.

use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, TcpListener},
};

use lota_datapath::{self, CgroupHierarchy, RedirectionPlan, SkipReason, netlink::Netlink};

use super::CheckReport;
use crate::{access::IdentityConfig, admin::socket, config::Config};

pub(super) async fn check(report: &mut CheckReport<'_>, config: &Config) {
    match lota_datapath::preflight(&config.datapath.bpffs_path) {
        Ok(()) => report.ok("datapath", "the kernel and this user's privileges suffice"),
        Err(missing) => {
            for one in missing {
                let fix = "run it with the privileges of the daemon: as root, or with the four capabilities; see docs/datapath.md";
                report.fail("datapath", one.to_string(), fix);
            }
        }
    }
    interfaces(report, config).await;
    identity(report, config);
    if socket::request_gateway(&config.admin.socket).await.is_ok() {
        return report.ok("admin", "a daemon runs on this node already; `lota run` takes over from it");
    }
    let peers = config.peers.as_ref().map(|peers| SocketAddr::new(config.node.address, peers.port));
    let ports = [
        ("admin", "admin.listen", Some(config.admin.listen)),
        ("admin", "admin.metrics_listen", config.admin.metrics_listen),
        ("peers", "node.address", peers),
    ];
    for (part, key, address) in ports {
        if let Some(address) = address {
            port(report, part, key, address);
        }
    }
}

/// Checks by what pods can be identified.
fn identity(report: &mut CheckReport<'_>, config: &Config) {
    let (access, by_address) = (&config.access, "pods are identified by address only");
    if access.identity == IdentityConfig::Address || config.kubernetes.is_none() {
        return report.ok("access", by_address);
    }
    match CgroupHierarchy::open(&access.cgroup_path) {
        Ok(_) => report.ok("access", "pods are identified by address and cgroup"),
        Err(problem) => {
            let what =
                format!("{by_address}: {} (access.cgroup_path): {problem}", access.cgroup_path.display());
            let fix = "mount the node's cgroup v2 hierarchy there, read-only, or set access.identity to \"address\"";
            match access.identity {
                IdentityConfig::CgroupAndAddress => report.fail("access", what, fix),
                IdentityConfig::Auto | IdentityConfig::Address => report.warn("access", what, fix),
            }
        }
    }
}

/// Checks that the daemon can listen on an address.
fn port(report: &mut CheckReport<'_>, part: &'static str, key: &str, address: SocketAddr) {
    match TcpListener::bind(address) {
        Ok(_) => report.ok(part, format!("{address} is free to listen on")),
        Err(error) => {
            let fix = match error.kind() {
                io::ErrorKind::AddrInUse => {
                    "find the process with `ss -tlnp`, or use another port".to_owned()
                }
                io::ErrorKind::AddrNotAvailable => format!("{key} must be an address of this node"),
                _ => format!("see {key}"),
            };
            report.fail(part, format!("cannot listen on {address} ({key}): {error}"), fix);
        }
    }
}

async fn interfaces(report: &mut CheckReport<'_>, config: &Config) {
    let found = match Netlink::connect() {
        Ok(netlink) => netlink.interfaces().await,
        Err(error) => Err(error),
    };
    let interfaces = match found {
        Ok(interfaces) => interfaces,
        Err(error) => {
            return report.fail(
                "datapath",
                format!("{error:#}"),
                "cannot list the interfaces of this kernel",
            );
        }
    };
    let RedirectionPlan { redirected, skipped, .. } =
        interfaces.plan(&config.datapath, config.access.host_network, &BTreeSet::new());
    let name = |index: &u32| interfaces.name(*index).unwrap_or("?").to_owned();
    let patterns = config.datapath.pod_interfaces.join(", ");
    if redirected.is_empty() {
        let fix = "expected if no pod runs here yet; otherwise see `ip link` and docs/datapath.md for the interface names of the CNI";
        report.warn("datapath", format!("no interface matches datapath.pod_interfaces ({patterns})"), fix);
    } else {
        let mut names: Vec<_> = redirected.keys().map(name).collect();
        let all = names.len();
        names.truncate(8);
        let more = if all > names.len() { ", …" } else { "" };
        report.ok("datapath", format!("{all} interfaces will be redirected: {}{more}", names.join(", ")));
    }
    for (index, why) in &skipped {
        if !matches!(why, SkipReason::BridgePort { .. }) {
            let fix = "leave it out of datapath.pod_interfaces, or see docs/datapath.md";
            report.warn("datapath", format!("{} is not redirected: {why}", name(index)), fix);
        }
    }
    match &config.datapath.uplink {
        Some(uplink) if interfaces.index(uplink).is_none() => {
            let what = format!("there is no interface {uplink} (datapath.uplink)");
            report.fail(
                "datapath",
                what,
                "set the interface toward the other nodes; find it with `ip route get ADDRESS`",
            );
        }
        Some(uplink) => report.ok("datapath", format!("the guard is attached to {uplink}")),
        None if config.peers.is_some() => report.warn(
            "datapath",
            "datapath.uplink is not set: only the keys of [peers] protect the peer port",
            "set datapath.uplink to the interface toward the other nodes",
        ),
        None => {}
    }
}
