//! Notices addresses of pods whose interfaces are not known, when the kernel reports a neighbour or a route with one of them.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use parking_lot::Mutex;
use rtnetlink::{
    MulticastGroup,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute},
        route::{RouteAddress, RouteAttribute, RouteMessage},
    },
};

/// Groups of reports about neighbours and routes.
pub(super) const GROUPS: [MulticastGroup; 3] =
    [MulticastGroup::Neigh, MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];

/// Addresses of pods whose interfaces are not known.
///
/// An address that a CNI adds in a pod's network namespace is not reported in the node's. But a route to it is, if the CNI adds
/// one, and so is the pod as a neighbour, as soon as it sends its first packet.
#[derive(Clone, Debug, Default)]
pub(super) struct SoughtAddresses(Arc<Mutex<BTreeSet<IpAddr>>>);

impl SoughtAddresses {
    pub(super) fn set(&self, addresses: BTreeSet<IpAddr>) {
        *self.0.lock() = addresses;
    }

    /// Returns whether a report is about a sought address. After lost reports, it may have been.
    pub(super) fn is_seen_in(&self, report: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
        let sought = self.0.lock();
        match report {
            _ if sought.is_empty() => false,
            NetlinkPayload::Overrun(_) => true,
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour)) => {
                let mut addresses = neighbour.attributes.iter().filter_map(|attribute| match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                        Some(IpAddr::from(*address))
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                        Some(IpAddr::from(*address))
                    }
                    _ => None,
                });
                addresses.any(|address| sought.contains(&address))
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                destination(route).is_some_and(|prefix| sought.iter().any(|address| prefix.contains(address)))
            }
            _ => false,
        }
    }
}

/// Returns the destination of a route; `None` for a default route, which says nothing about any address.
fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    })?;
    let prefix = IpNet::new(address, route.header.destination_prefix_length).ok()?;
    (prefix.prefix_len() > 0).then_some(prefix)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use rtnetlink::{
        RouteMessageBuilder,
        packet_route::{link::LinkMessage, neighbour::NeighbourMessage},
    };

    use super::*;

    #[test]
    fn sought_addresses_are_seen_as_neighbours_and_in_routes() {
        let (pod, pod6, other) = (
            Ipv4Addr::new(10, 0, 0, 2),
            Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 2),
            Ipv4Addr::new(10, 0, 1, 2),
        );
        let neighbour = |address| {
            let mut message = NeighbourMessage::default();
            message.attributes.push(NeighbourAttribute::Destination(address));
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message))
        };
        let route = |address, length| {
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, length).build();
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route))
        };
        let link = NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(LinkMessage::default()));
        let sought = SoughtAddresses::default();
        let overrun = NetlinkPayload::Overrun(Vec::new());
        assert!(
            !sought.is_seen_in(&neighbour(pod.into())) && !sought.is_seen_in(&overrun),
            "nothing is sought"
        );
        sought.set([IpAddr::from(pod), pod6.into()].into());
        for (report, expected) in [
            (neighbour(pod.into()), true),
            (neighbour(pod6.into()), true),
            (neighbour(other.into()), false),
            (route(pod, 32), true),
            (route(Ipv4Addr::new(10, 0, 0, 0), 24), true),
            (route(other, 32), false),
            (route(Ipv4Addr::UNSPECIFIED, 0), false),
            (overrun, true),
            (link, false),
        ] {
            assert_eq!(sought.is_seen_in(&report), expected, "{report:?}");
        }
    }
}
