//! The known properties of a packet.

use std::net::IpAddr;

use super::bits::Bits;

/// Connections from outside of the node to one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundFlow {
    /// Origin of the connections.
    pub origin: FlowOrigin,
    /// Address of the pod or node, if it is known.
    pub client: Option<IpAddr>,
    /// Interface of this node that they arrive at, if it is known.
    pub interface: Option<NamedInterface>,
    /// Interfaces that they certainly do not arrive at.
    pub others: Vec<NamedInterface>,
    /// The VIP, or the address of this node.
    pub address: IpAddr,
    /// TCP port.
    pub port: u16,
    /// Whether the route to the client is assumed to lead to the interface that it connects from.
    pub is_symmetric: bool,
}

/// Origin of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowOrigin {
    /// Pods of this node, to a VIP on `lo`.
    Pods,
    /// Other nodes.
    Nodes,
}

/// An interface of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedInterface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
}

impl NamedInterface {
    /// Returns whether a value of a rule, padded with zeros, is its name or its index.
    pub(super) fn is(&self, value: &[u8]) -> bool {
        let length = value.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        match value.len() {
            4 => value == self.index.to_ne_bytes(),
            16 => &value[..length] == self.name.as_bytes(),
            _ => false,
        }
    }
}

/// Direction of one of the first two packets of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowDirection {
    /// The SYN.
    Request,
    /// The node's SYN and ACK.
    Reply,
}

// States of connections, as bits that nftables and iptables share.
pub(super) const INVALID: u32 = 1;
pub(super) const ESTABLISHED: u32 = 1 << 1;
pub(super) const NEW: u32 = 1 << 3;
pub(super) const UNTRACKED: u32 = 1 << 6;

/// A packet at a hook. `None` is what is not known.
pub(super) struct HookPacket<'a> {
    pub(super) flow: &'a InboundFlow,
    pub(super) direction: FlowDirection,
    /// State of its connection. Before connection tracking, it is [`INVALID`].
    pub(super) state: Option<u32>,
    /// The state after connection tracking.
    tracked: Option<u32>,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    pub(super) family: u8,
    pub(super) network: Vec<Option<u8>>,
    pub(super) transport: Vec<Option<u8>>,
    /// The mark, which rules can change.
    pub(super) mark: [Bits; 4],
}

/// TCP.
pub(super) const TCP: u8 = 6;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

impl<'a> HookPacket<'a> {
    /// Returns the first packet of a connection.
    pub(super) fn request(flow: &'a InboundFlow) -> Self {
        Self::new(flow, FlowDirection::Request, Some(NEW))
    }

    /// Returns the answer to this packet.
    pub(super) fn reply(&self) -> Self {
        let tracked = self.state.map(|state| if state == NEW { ESTABLISHED } else { INVALID });
        Self::new(self.flow, FlowDirection::Reply, tracked)
    }

    fn new(flow: &'a InboundFlow, direction: FlowDirection, tracked: Option<u32>) -> Self {
        let length = if flow.address.is_ipv4() { 4 } else { 16 };
        let known = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().map(Some).to_vec(),
            IpAddr::V6(address) => address.octets().map(Some).to_vec(),
        };
        let client = flow.client.filter(|client| client.is_ipv4() == flow.address.is_ipv4());
        let client = client.map_or_else(|| vec![None; length], known);
        let [source, destination] = match direction {
            FlowDirection::Request => [client, known(flow.address)],
            FlowDirection::Reply => [known(flow.address), client],
        };
        let addresses = [source, destination].concat();
        let network = match flow.address {
            IpAddr::V4(_) => {
                let length = [None, None];
                let start = [[Some(0x45), Some(0)], length, [None, None], [Some(0x40), Some(0)]];
                [&start.concat()[..], &[Some(64), Some(TCP), None, None], &addresses].concat()
            }
            IpAddr::V6(_) => {
                [&[Some(0x60), None, None, None, None, None, Some(TCP), Some(64)][..], &addresses].concat()
            }
        };
        let [high, low] = flow.port.to_be_bytes().map(Some);
        let (ports, flags) = match direction {
            FlowDirection::Request => ([None, None, high, low], SYN),
            FlowDirection::Reply => ([high, low, None, None], SYN | ACK),
        };
        let mut transport = vec![None; 20];
        transport[..4].copy_from_slice(&ports);
        transport[13] = Some(flags);
        Self {
            flow,
            direction,
            state: Some(INVALID),
            tracked,
            family: if flow.address.is_ipv4() { super::IPV4 } else { super::IPV6 },
            network,
            transport,
            mark: [Bits::new(0); 4],
        }
    }

    /// Notes that the packet gets to a place of a hook: connection tracking may be before it.
    pub(super) fn enter(&mut self, hook: u32, priority: i32) {
        /// `NF_IP_PRI_CONNTRACK`
        const CONNTRACK: i32 = -200;
        let is_tracked = match hook {
            super::INGRESS => false,
            super::PREROUTING | super::OUTPUT => priority >= CONNTRACK,
            _ => true,
        };
        if is_tracked && self.state == Some(INVALID) {
            self.state = self.tracked;
        }
    }

    /// Exempts the packet from connection tracking, with certainty or perhaps.
    pub(super) fn set_untracked(&mut self, is_certain: bool) {
        if self.state == Some(INVALID) {
            self.state = is_certain.then_some(UNTRACKED);
        }
    }

    /// Returns whether the packet arrives at the interface that the route to its source leads to.
    pub(super) fn has_way_back(&self) -> bool {
        self.flow.is_symmetric && self.direction == FlowDirection::Request
    }

    /// Returns the known source or destination port.
    pub(super) fn port(&self, is_source: bool) -> Option<u16> {
        let at = if is_source { 0 } else { 2 };
        Some(u16::from_be_bytes([self.transport[at]?, self.transport[at + 1]?]))
    }

    /// Returns bytes of a header; those behind its end are not known.
    pub(super) fn header(header: &[Option<u8>], offset: usize, length: usize) -> Vec<Bits> {
        (offset..offset.saturating_add(length)).map(|at| header.get(at).copied().flatten().into()).collect()
    }

    /// Notes that the fields that targets change without another effect are not known: DSCP and TTL.
    pub(super) fn forget_service(&mut self) {
        let last = if self.family == super::IPV4 { 8 } else { 7 };
        for at in [0, 1, last] {
            self.network[at] = None;
        }
    }
}
