//! Asks the kernel which interfaces addresses are behind.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle, new_connection_with_strict_check,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage},
        route::{RouteAttribute, RouteFlags, RouteType},
    },
};
use tokio::task::JoinHandle;

use super::{
    AddressClaims, AddressRoute, Interfaces, PeerInterface,
    netlink::{Netlink, answered, host_prefix, route_to},
};

/// Maximum number of addresses that are read of one interface. An interface with more claims none, so that a pod cannot
/// make the daemon read forever.
const MAX_ADDRESSES: usize = 256;
/// Kinds of devices that pods are behind. A route to a pod of another node may lead to a tunnel or the uplink.
const KINDS_OF_PODS: [&str; 5] = ["veth", "netkit", "bridge", "vlan", "tun"];

/// A socket with `NETLINK_GET_STRICT_CHK`. Without it the kernel ignores the target namespace of a request and returns
/// the node's own addresses.
struct StrictSocket {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl StrictSocket {
    fn open() -> Result<Self> {
        let (connection, handle, _) =
            new_connection_with_strict_check().context("cannot open a netlink socket")?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Returns the addresses of an interface in another network namespace; `None` if it has too many. Then the socket
    /// cannot be used any more, because the kernel's response is not read to its end.
    ///
    /// # Errors
    /// Without an answer in time, and then the socket cannot be used any more, either. The inner error is the kernel's.
    async fn addresses_of(
        &self,
        peer: PeerInterface,
    ) -> Result<Result<Option<BTreeSet<IpAddr>>, rtnetlink::Error>> {
        let mut addresses = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = self.handle.address().get();
            let message = request.message_mut();
            (message.header.family, message.header.index) = (family, peer.index);
            message.attributes.push(AddressAttribute::TargetNetNsId(peer.namespace));
            let mut found = request.execute();
            loop {
                match answered(found.try_next()).await? {
                    Ok(Some(message)) => addresses.extend(address_behind(&message, peer)),
                    Ok(None) => break,
                    Err(error) => return Ok(Err(error)),
                }
                if addresses.len() > MAX_ADDRESSES {
                    return Ok(Ok(None));
                }
            }
        }
        Ok(Ok(Some(addresses)))
    }
}

impl Drop for StrictSocket {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    /// Returns the interfaces that each of these addresses may be behind: those whose other end has it, and that of the
    /// route to it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn claims(&self, interfaces: &Interfaces, of: &BTreeSet<IpAddr>) -> Result<AddressClaims> {
        let mut claims = AddressClaims::default();
        let mut socket = StrictSocket::open()?;
        let mut answers = true;
        for (index, interface) in &interfaces.0 {
            let Some(peer) = interface.peer else { continue };
            if !answers {
                claims.set_unknown(*index);
                continue;
            }
            match socket.addresses_of(peer).await {
                Ok(Ok(Some(addresses))) => claims.add(*index, addresses.intersection(of).copied()),
                Ok(Ok(None)) => socket = StrictSocket::open()?,
                Ok(Err(_)) => claims.set_unknown(*index),
                Err(_) => {
                    claims.set_unknown(*index);
                    answers = false;
                }
            }
        }
        for address in of {
            let route =
                if answers { self.route(*address, interfaces).await } else { Ok(AddressRoute::Unknown) };
            answers &= route.is_ok();
            claims.set_route(*address, route.unwrap_or(AddressRoute::Unknown));
        }
        // What was read may be of another interface with the same index, and the right claim may be missing.
        let after = self.interfaces().await?;
        let is_same = |index: u32| interfaces.pod_link(index).is_some_and(|link| after.has(link));
        for (index, _) in interfaces.0.iter().filter(|(_, interface)| interface.peer.is_some()) {
            if !is_same(*index) {
                claims.set_unknown(*index);
            }
        }
        claims.retain(is_same);
        Ok(claims)
    }

    /// Returns what the node's route to an address says about the pod that has it.
    async fn route(&self, address: IpAddr, interfaces: &Interfaces) -> Result<AddressRoute> {
        let mut request = route_to(address);
        // Return the route instead of its result.
        request.header.flags |= RouteFlags::FibMatch;
        let mut response = self.handle.route().get(request).execute();
        let Ok(Some(found)) = answered(response.try_next()).await? else { return Ok(AddressRoute::None) };
        let output = found.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let kind = |index: u32| interfaces.0.get(&index).map_or("", |interface| &*interface.kind);
        let is_host = found.header.destination_prefix_length == host_prefix(address);
        Ok(match (found.header.kind, output) {
            (RouteType::Local, _) => AddressRoute::Local,
            (RouteType::Unicast, Some(index)) if is_host && KINDS_OF_PODS.contains(&kind(index)) => {
                AddressRoute::Host(index)
            }
            // All pods behind a bridge are at the bridge. Other routes to wider prefixes say nothing.
            (RouteType::Unicast, Some(index)) if kind(index) == "bridge" => AddressRoute::Bridge(index),
            _ => AddressRoute::None,
        })
    }
}

/// Returns the address of a response about an interface in another network namespace.
fn address_behind(message: &AddressMessage, peer: PeerInterface) -> Option<IpAddr> {
    // A kernel that ignores the target namespace does not state it.
    let is_of_target = message.attributes.contains(&AddressAttribute::TargetNetNsId(peer.namespace));
    if !is_of_target || message.header.index != peer.index {
        return None;
    }
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}
