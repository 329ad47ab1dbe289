//! Obstacles on a node that keep pods' connections from LOTA, each with its remedy.

use std::{
    collections::BTreeSet,
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use ipnet::IpNet;

use crate::rules::{FlowDirection, FlowOrigin, InboundFlow, NodeRules, PredictedDrop, RuleSource, predict};

/// Something on the node that keeps pods' connections from LOTA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A rule of the node's firewall or of the CNI.
    Rule(RuleObstacle),
    /// The node has tables of `iptables-legacy`, whose rules LOTA does not read.
    Legacy(BTreeSet<String>),
    /// The node routes packets to the pod by another interface than they come from, and `rp_filter` is strict.
    ReversePath {
        /// Interface of the pod.
        interface: String,
    },
    /// The node's routes for the pod's packets do not lead to the VIP on `lo`.
    Route {
        /// The VIP.
        vip: IpAddr,
        /// The route that applies.
        how: String,
    },
    /// The VIP is in a subnet of the node that is not link-local, or that something else uses.
    Subnet {
        /// The VIP.
        vip: IpAddr,
        /// The subnet.
        subnet: IpNet,
        /// Its interface.
        interface: String,
    },
    /// Pods of an IPv6 cluster have no address that could get access to the IPv4 VIP.
    NoIpv6Vip,
}

/// A rule that drops packets of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleObstacle {
    /// The rule.
    pub drop: PredictedDrop,
    /// Origin of the connections.
    pub origin: FlowOrigin,
    /// The VIP, or the node's address.
    pub address: IpAddr,
    /// TCP port.
    pub port: u16,
    /// Whether the rule is one of ufw.
    pub is_ufw: bool,
}

/// Returns the rule that drops, or may drop, packets of a flow.
///
/// # Errors
/// If the rules cannot be read.
pub(crate) fn rule_obstacle(source: &dyn RuleSource, flow: &InboundFlow) -> io::Result<Option<Obstacle>> {
    let Some(drop) = predict(source, flow)? else { return Ok(None) };
    let place = &drop.place;
    // The policy of a chain that jumps to those of ufw is set by ufw.
    let user_chain = source
        .chains()
        .iter()
        .any(|other| other.id.chain == "ufw-user-input" && other.id.is_in_table_of(&place.chain));
    let is_ufw = place.chain.chain.starts_with("ufw-") || place.handle.is_none() && user_chain;
    let InboundFlow { origin, address, port, .. } = *flow;
    Ok(Some(Obstacle::Rule(RuleObstacle { drop, origin, address, port, is_ufw })))
}

/// Returns the first rule that drops, or may drop, packets of one of these flows.
///
/// # Errors
/// If the rules cannot be read.
pub fn first_rule_obstacle(
    source: &dyn RuleSource,
    flows: impl IntoIterator<Item = InboundFlow>,
) -> io::Result<Option<Obstacle>> {
    flows.into_iter().find_map(|flow| rule_obstacle(source, &flow).transpose()).transpose()
}

/// Returns the tables of `iptables-legacy`, if the node has any.
#[must_use]
pub fn legacy_obstacle(rules: &NodeRules) -> Option<Obstacle> {
    Some(rules.legacy_tables()).filter(|tables| !tables.is_empty()).cloned().map(Obstacle::Legacy)
}

/// Returns the conflict of a VIP with the subnets of the node's interfaces.
#[must_use]
pub fn subnet_obstacle(vip: IpAddr, subnets: &[(String, IpNet)]) -> Option<Obstacle> {
    let (interface, subnet) = subnets.iter().find(|(_, subnet)| is_conflict(vip, *subnet))?;
    Some(Obstacle::Subnet { vip, subnet: *subnet, interface: interface.clone() })
}

/// Returns whether a VIP must not be in this subnet. The whole link-local prefix is on many interfaces and does no harm.
fn is_conflict(vip: IpAddr, subnet: IpNet) -> bool {
    let is_link_local = matches!(vip, IpAddr::V4(vip) if vip.is_link_local()) && subnet.prefix_len() <= 16;
    subnet.contains(&vip) && subnet.prefix_len() > 0 && !is_link_local
}

/// Returns a link-local address that is in no subnet of the node.
fn free_vip(vip: IpAddr, subnet: IpNet) -> Option<IpAddr> {
    let candidates = [177, 208, 77, 48].map(|third| IpAddr::from(Ipv4Addr::new(169, 254, third, 80)));
    candidates.into_iter().find(|candidate| vip.is_ipv4() && !subnet.contains(candidate))
}

impl Obstacle {
    /// Returns what to do about it.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::Rule(rule) => rule.fix(),
            Self::Legacy(_) => {
                "look for rules that drop TCP port 80 in the output of `iptables-legacy-save` and \
                                `ip6tables-legacy-save`, or move the node's rules to iptables-nft"
                    .to_owned()
            }
            Self::ReversePath { interface } => format!(
                "set net.ipv4.conf.{interface}.rp_filter and net.ipv4.conf.all.rp_filter to 0 or 2, or add a route \
                 to the pod through {interface}"
            ),
            Self::Route { vip, .. } => format!(
                "see `ip rule` and `ip route get {vip} from POD iif INTERFACE`: a rule before the table `local` \
                 must not apply to {vip}"
            ),
            Self::Subnet { vip, subnet, .. } => match free_vip(*vip, *subnet) {
                Some(free) => format!("set endpoint.vip to an address outside of it, for example {free}"),
                None => "set endpoint.vip and endpoint.vip6 to addresses outside of it".to_owned(),
            },
            Self::NoIpv6Vip => "set endpoint.vip6, for example to fd10:face::80".to_owned(),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => rule.fmt(f),
            Self::Legacy(tables) => {
                let names: Vec<&str> = tables.iter().map(String::as_str).collect();
                let names = names.join(", ");
                write!(f, "iptables-legacy may drop packets: it has tables on this node ({names}), whose rules LOTA \
                           does not read")
            }
            Self::ReversePath { interface } => write!(
                f,
                "the kernel drops packets from {interface}, because its route to the pod leads elsewhere (rp_filter)"
            ),
            Self::Route { vip, how } => write!(f, "the node does not deliver packets to {vip}: {how}"),
            Self::Subnet { vip, subnet, interface } => {
                write!(f, "the VIP {vip} is in {subnet}, a subnet of {interface}")?;
                // The prefix of its masquerade subnet is /17 in OpenShift 4.17 and later, /29 before.
                let is_ovn = interface.starts_with("ovn-k8s") || interface.starts_with("br-ex");
                if is_ovn { f.write_str(" (the masquerade subnet of OVN-Kubernetes)") } else { Ok(()) }
            }
            Self::NoIpv6Vip => f.write_str(
                "the node's address is IPv6, but endpoint.vip6 is not set: pods that have only an IPv6 address in \
                 Kubernetes are refused",
            ),
        }
    }
}

impl RuleObstacle {
    /// Returns whether it certainly drops them.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.drop.unknown.is_none()
    }

    fn fix(&self) -> String {
        let Self { drop, origin, address, port, is_ufw } = self;
        let chain = &drop.place.chain;
        match (&*chain.table, &*chain.chain) {
            (_, name) if name.ends_with("cali-wl-to-host") => {
                return "set defaultEndpointToHostAction to Accept in Calico's FelixConfiguration `default`"
                    .to_owned();
            }
            (_, name) if name.contains("cali-") && *origin == FlowOrigin::Pods => {
                return format!("allow egress to {address}, TCP port {port}, in the pod's Calico policies");
            }
            ("firewalld", _) if *origin == FlowOrigin::Pods => {
                return "`firewall-cmd --permanent --zone=trusted --add-source=CIDR_OF_PODS`, then \
                        `firewall-cmd --reload`"
                    .to_owned();
            }
            _ if *is_ufw && drop.direction == FlowDirection::Request => {
                return format!("`ufw allow proto tcp to {address} port {port}`");
            }
            _ => {}
        }
        format!(
            "accept {} in the same chain, before it; `nft -a list chain {chain}` shows it",
            self.packets()
        )
    }

    /// Returns the packets that it drops.
    fn packets(&self) -> String {
        let Self { drop, origin, address, port, .. } = self;
        let (whose, to, at) = match origin {
            FlowOrigin::Pods => ("pods' packets", "pods", SocketAddr::new(*address, *port).to_string()),
            // Without the address, so that it is the same on all nodes.
            FlowOrigin::Nodes => ("other nodes' packets", "other nodes", format!("TCP port {port}")),
        };
        match drop.direction {
            FlowDirection::Request => format!("{whose} to {at}"),
            FlowDirection::Reply => format!("the replies of {at} to {to}"),
        }
    }
}

impl fmt::Display for RuleObstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PredictedDrop { place, unknown, .. } = &self.drop;
        match unknown {
            None => write!(f, "{place} drops {}", self.packets()),
            Some(unknown) => write!(
                f,
                "{place} may drop {} (it depends on what LOTA cannot evaluate: {unknown})",
                self.packets()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_that_contain_the_vip() {
        let vip = IpAddr::from([169, 254, 77, 80]);
        let of = |subnet: &str| {
            subnet_obstacle(
                vip,
                &[
                    ("eth0".to_owned(), "10.0.0.0/8".parse().unwrap()),
                    ("br-ex".to_owned(), subnet.parse().unwrap()),
                ],
            )
        };
        for harmless in ["169.254.0.0/16", "169.254.169.0/29", "0.0.0.0/0", "fd00::/8"] {
            assert_eq!(of(harmless), None, "{harmless}");
        }
        let ovn = of("169.254.0.0/17").unwrap();
        assert_eq!(
            ovn.to_string(),
            "the VIP 169.254.77.80 is in 169.254.0.0/17, a subnet of br-ex (the masquerade subnet of OVN-Kubernetes)"
        );
        assert!(ovn.fix().ends_with("for example 169.254.177.80"), "{}", ovn.fix());
        let private =
            subnet_obstacle([10, 1, 2, 3].into(), &[("eth0".to_owned(), "10.0.0.0/8".parse().unwrap())]);
        assert!(private.is_some());
    }
}
