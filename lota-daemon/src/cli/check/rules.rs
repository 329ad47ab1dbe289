//! Checks what else on the node keeps connections from LOTA: firewalls, CNIs, subnets.

use std::{cmp::Reverse, collections::BTreeSet, net::IpAddr};

use lota_datapath::{
    InterfaceSubnet, Interfaces, LOOPBACK_INDEX, Obstacle, first_rule_obstacle, legacy_obstacle,
    netlink::Netlink,
    rules::{FlowOrigin, InboundFlow, NamedInterface, NodeRules},
    subnet_obstacle,
};

use super::CheckReport;
use crate::config::Config;

const PART: &str = "rules";
/// Fix if the rules cannot be read.
const UNREAD: &str = "run it with CAP_NET_ADMIN in the node's network namespace";

pub(super) async fn check(report: &mut CheckReport<'_>, config: &Config) {
    let read = async {
        let netlink = Netlink::connect()?;
        anyhow::Ok((netlink.interfaces().await?, netlink.subnets().await?))
    };
    let (interfaces, subnets) = match read.await {
        Ok(read) => read,
        Err(error) => return report.warn(PART, format!("{error:#}"), UNREAD),
    };
    let named = interfaces.named_subnets(&subnets);
    let mut obstacles: Vec<Obstacle> =
        config.endpoint.vips().into_iter().filter_map(|vip| subnet_obstacle(vip, &named)).collect();
    if config.node.address.is_ipv6() && config.endpoint.vip6.is_none() {
        obstacles.push(Obstacle::NoIpv6Vip);
    }
    match NodeRules::open() {
        Ok(rules) => {
            obstacles.extend(legacy_obstacle(&rules));
            for (flow, ports) in flows(config, &interfaces, &subnets) {
                let of_ports = ports.iter().map(|port| InboundFlow { port: *port, ..flow.clone() });
                match first_rule_obstacle(&rules, of_ports) {
                    Ok(Some(found)) => obstacles.push(found),
                    Ok(None) => {
                        report.ok(PART, format!("the rules of nftables accept {}", followed(&flow, &ports)));
                    }
                    Err(error) => {
                        report.warn(PART, format!("cannot read the rules of nftables: {error}"), UNREAD);
                    }
                }
            }
        }
        Err(error) => report.warn(PART, format!("cannot read the rules of the node: {error}"), UNREAD),
    }
    for obstacle in obstacles {
        report.warn(PART, obstacle.to_string(), obstacle.fix());
    }
}

/// Returns which packets were followed through the rules.
fn followed(flow: &InboundFlow, ports: &BTreeSet<u16>) -> String {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let to = format!("{}, TCP port {}, and the replies", flow.address, ports.join(", "));
    if flow.origin == FlowOrigin::Nodes {
        return format!("new connections of other nodes to {to}");
    }
    let of = match (&flow.interface, flow.client) {
        (Some(NamedInterface { name, .. }), Some(pod)) => format!("a pod with the address {pod} at {name}"),
        (Some(NamedInterface { name, .. }), None) => format!("pods at {name}"),
        (None, _) => "pods at any interface (none runs here yet)".to_owned(),
    };
    format!("new connections of {of} to {to}")
}

/// Returns the connections that are followed, and their ports: of a pod to each VIP, and of another node. It is assumed
/// that the node has a route back to the client, since otherwise the client could reach nothing.
fn flows(
    config: &Config,
    interfaces: &Interfaces,
    subnets: &[InterfaceSubnet],
) -> Vec<(InboundFlow, BTreeSet<u16>)> {
    let named = |index: u32| interfaces.named(index);
    let uplink = config.datapath.uplink.as_ref().and_then(|name| named(interfaces.index(name)?));
    let others: Vec<_> = named(LOOPBACK_INDEX).into_iter().collect();
    let mut flows = Vec::new();
    for vip in config.endpoint.vips() {
        let (index, client) = sample(config, interfaces, subnets, vip);
        let flow = InboundFlow {
            origin: FlowOrigin::Pods,
            client,
            interface: index.and_then(named),
            others: others.iter().chain(&uplink).cloned().collect(),
            address: vip,
            port: 0,
            is_symmetric: true,
        };
        let targets = config.targets().ok().filter(|_| vip.is_ipv4()).unwrap_or_default();
        flows.push((flow, config.pod_ports().into_iter().chain(targets.stand_ins()).collect()));
    }
    let flow = InboundFlow {
        origin: FlowOrigin::Nodes,
        client: None,
        interface: uplink,
        others,
        address: config.node.address,
        port: 0,
        is_symmetric: true,
    };
    flows.extend(config.peers.as_ref().map(|peers| (flow, BTreeSet::from([peers.port]))));
    flows
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Returns the interface and the address of a pod of this node, as far as they are known: of one with a route to its
/// interface, or one that could be in a subnet of pods' bridge.
fn sample(
    config: &Config,
    interfaces: &Interfaces,
    subnets: &[InterfaceSubnet],
    vip: IpAddr,
) -> (Option<u32>, Option<IpAddr>) {
    let plan = interfaces.plan(&config.datapath, false, &BTreeSet::new());
    let candidates: BTreeSet<u32> =
        plan.redirected.keys().copied().filter(|index| *index != LOOPBACK_INDEX).collect();
    let of_pods = subnets.iter().filter(|InterfaceSubnet { interface, subnet }| {
        let address = subnet.addr();
        candidates.contains(interface) && address.is_ipv4() == vip.is_ipv4() && !is_link_local(address)
    });
    let smallest =
        of_pods.min_by_key(|found| (Reverse(found.subnet.prefix_len()), found.interface, found.subnet));
    match smallest {
        Some(InterfaceSubnet { interface, subnet }) => {
            let is_pod = subnet.prefix_len() == subnet.max_prefix_len();
            // The first address behind that of the bridge.
            (Some(*interface), subnet.hosts().nth(if is_pod { 0 } else { 1 }))
        }
        None => (candidates.first().copied(), None),
    }
}
