//! Routes, addresses and names of interfaces that other software sets on a node: each works, or `lota check` and
//! `lota status` name it.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{Mode, Namespace, PEER_PORT, Pod, Reached, Style, VIP, knock, run},
    tour::{MIB, Tour, wait_until},
};
use serde_json::Value;

use super::host_rules::{check, finding, has};

/// Node that is changed.
const NODE: u8 = 3;
/// Pod with access on that node.
const POD: Pod = Pod(NODE, 1);

/// Applies changes with `ip` and undoes them after `inside`.
fn with<T>(place: &Namespace, make: &[&str], undo: &[&str], inside: impl FnOnce() -> Result<T>) -> Result<T> {
    let made = make.iter().try_for_each(|arguments| place.ip(arguments));
    let result = made.and_then(|()| inside());
    for arguments in undo {
        place.ip(arguments)?;
    }
    result
}

/// Waits until `lota status` has this level and text about connections, while the pod tries to connect.
fn hangs(tour: &Tour, text: &str) -> Result<()> {
    let mut found = Value::Null;
    let waited = wait_until("lota status to name it", || {
        ensure!(knock(&tour.lab.pod(POD), VIP, 80)?.0 == Reached::Nothing, "it works");
        found = finding(tour, NODE, "connections")?;
        Ok(found["level"] == "fail" && found["what"].as_str().is_some_and(|what| what.contains(text)))
    });
    waited.with_context(|| format!("it shows {found}"))
}

fn recovers(tour: &Tour) -> Result<()> {
    wait_until("connections to arrive again", || {
        Ok(knock(&tour.lab.pod(POD), VIP, 80)?.0 == Reached::Open
            && finding(tour, NODE, "connections")?["level"] == "ok")
    })
}

/// Runs `inside` while the pod has a fixed neighbor entry for its router, as the AWS VPC CNI makes it: a node that
/// drops the pod's packets because of routes does not answer its ARP requests, either.
fn with_router(tour: &Tour, inside: impl FnOnce() -> Result<()>) -> Result<()> {
    let link = run(tour.lab.node(NODE).command("ip").args(["-br", "link", "show", "dev", "veth-p1"]))?;
    let mac = link.split_whitespace().nth(2).context("no address")?;
    let entry = format!("neigh replace 10.77.13.1 lladdr {mac} dev eth0 nud permanent");
    with(&tour.lab.pod(POD), &[&entry], &["neigh del 10.77.13.1 dev eth0"], inside)
}

/// A strict reverse-path filter, and a route to the pod that leads elsewhere.
pub(crate) fn reverse_path(tour: &mut Tour) -> Result<()> {
    let (place, address) = (tour.lab.node(NODE), POD.address());
    let (all, filter) =
        ("/proc/sys/net/ipv4/conf/all/rp_filter", "/proc/sys/net/ipv4/conf/veth-p1/rp_filter");
    place.write(filter, "1")?;
    let route = format!("route replace {address}/32 dev veth-p1");
    let elsewhere = format!("route replace {address}/32 dev uplink");
    let named = with_router(tour, || {
        with(&place, &[&elsewhere], &[&route], || hangs(tour, "from veth-p1, because its route"))
    });
    place.write(filter, "0")?;
    place.write(all, "0")?;
    named?;
    recovers(tour)
}

/// Routing by a rule before that of local addresses, as for security groups of pods on EKS in the mode `strict`.
pub(crate) fn policy_routing(tour: &mut Tour) -> Result<()> {
    let place = tour.lab.node(NODE);
    let make = [
        "rule add pref 20 lookup local",
        "rule del pref 0 lookup local",
        "route add default dev uplink table 101",
        "rule add pref 10 iif veth-p1 lookup 101",
    ];
    let undo = [
        "rule add pref 0 lookup local",
        "rule del pref 20 lookup local",
        "rule del pref 10 iif veth-p1 lookup 101",
        "route flush table 101",
    ];
    with_router(tour, || {
        with(&place, &make, &undo, || {
            hangs(tour, "does not deliver packets to 169.254.77.80: its route leads to uplink")
        })
    })?;
    recovers(tour)
}

/// The masquerade subnet of OVN-Kubernetes, which contains the default VIP.
pub(crate) fn masquerade_subnet(tour: &mut Tour) -> Result<()> {
    let place = tour.lab.node(NODE);
    let make = ["link add br-ex type bridge", "addr add 169.254.0.2/17 dev br-ex", "link set br-ex up"];
    let names = |finding: &Value| {
        finding["level"] == "warn"
            && has(
                finding,
                "what",
                "169.254.0.0/17, a subnet of br-ex (the masquerade subnet of OVN-Kubernetes)",
            )
            && has(finding, "fix", "169.254.177.80")
    };
    with(&place, &make, &["link del br-ex"], || {
        let findings = check(tour, NODE, None)?;
        ensure!(findings.iter().any(names), "lota check: {findings:?}");
        wait_until("lota status to name it", || Ok(names(&finding(tour, NODE, "connections")?)))
    })
    // `host_rules` waits until the status is fine again.
}

/// A node of a cluster with IPv6 addresses only, as on EKS: its pods have IPv4 addresses that the API server does not
/// know.
pub(crate) fn ipv6_cluster(tour: &mut Tour) -> Result<()> {
    let (place, pod) = (tour.lab.node(NODE), tour.lab.pod(POD));
    let node = &mut tour.nodes[usize::from(NODE) - 1];
    // Only the check reads this configuration.
    node.use_ipv6(true);
    node.edit("vip6 = ", "# vip6 = ");
    node.configure(Mode::OwnCredential)?;
    let file = node.folder().join("ipv6.toml");
    fs::copy(node.config(), &file)?;
    node.use_ipv6(false);
    node.forget_edits();
    node.configure(Mode::OwnCredential)?;
    let findings = check(tour, NODE, Some(&file))?;
    let is_named = |finding: &Value| {
        finding["level"] == "warn" && finding["fix"].as_str().is_some_and(|fix| fix.contains("endpoint.vip6"))
    };
    ensure!(findings.iter().any(is_named), "lota check: {findings:?}");

    let router = "via 10.77.13.1 dev eth0";
    with(&place, &["route add 169.254.172.2/32 dev veth-p1"], &["route del 169.254.172.2/32"], || {
        let address = "addr add 169.254.172.2/32 dev eth0";
        let source = format!("route replace default {router} src 169.254.172.2");
        let back = format!("route replace default {router} src {}", POD.address());
        with(&pod, &[address, &source], &[&back, "addr del 169.254.172.2/32 dev eth0"], || {
            let (reached, _) = knock(&pod, VIP, 80)?;
            ensure!(reached == Reached::Refused, "{reached:?}");
            let access = finding(tour, NODE, "access")?;
            ensure!(is_named(&access), "lota status: {access}");
            Ok(())
        })
    })
}

/// Interfaces whose names no pattern of the configuration matches, such as those of Azure and of EKS.
pub(crate) fn interface_names(tour: &mut Tour) -> Result<()> {
    let (place, pod) = (tour.lab.node(NODE), tour.lab.pod(POD));
    let (address, address6) = (POD.address(), POD.address6());
    let node = &tour.nodes[usize::from(NODE) - 1];
    let rename = |from: &str, to: &str| -> Result<()> {
        place.ip(&format!("link set {from} down"))?;
        place.ip(&format!("link set {from} name {to}"))?;
        place.ip(&format!("link set {to} up"))?;
        place.ip(&format!("route replace {address}/32 dev {to}"))?;
        place.ip(&format!("route replace {address6}/128 dev {to}"))
    };
    let mut before = POD.interface();
    for name in ["azv4f1c2d", "vlan9b3e7a", "nomatch0"] {
        rename(&before, name)?;
        before = name.to_owned();
        let output = node.lota(&["access", "allow", &address.to_string()])?;
        let put = tour.client.put(&pod, "names/object", 141, MIB);
        node.lota(&["access", "forget", &address.to_string()])?;
        ensure!(output.contains(name), "it was bound to another interface: {output}");
        let got = put?;
        ensure!(got.status == 200, "{name}: {} {}", got.status, got.code);
    }
    rename(&before, &POD.interface())?;
    wait_until("the interface to be attached again", || {
        Ok(tour.client.get(&pod, "names/object", Style::Path).is_ok_and(|got| got.status == 200))
    })
}

/// The kernel does not use the peer port and the redirected ports as source ports of the node's own connections.
pub(crate) fn reserved_ports(tour: &mut Tour) -> Result<()> {
    const LIST: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let place = tour.lab.node(NODE);
    place.write(LIST, "9000-9010\n")?;
    tour.nodes[usize::from(NODE) - 1].start()?;
    let list = place.run(|| fs::read_to_string(LIST))??;
    let reserved: Vec<&str> = list.trim().split(',').collect();
    for port in ["80".to_owned(), PEER_PORT.to_string(), "9000-9010".to_owned()] {
        ensure!(reserved.contains(&&*port), "{port} is not reserved: {list}");
    }
    Ok(())
}
