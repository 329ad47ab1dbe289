//! Asks the kernel about the node's subnets, and how it routes packets between pods and VIPs.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use nix::libc;
use rtnetlink::{
    Error, RouteMessageBuilder,
    packet_route::{
        address::AddressAttribute,
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};

use super::{
    Interfaces, LOOPBACK_INDEX, Obstacle,
    netlink::{Netlink, answered, host_prefix, route_to},
};

/// A subnet, or a single address, that is reached directly through an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceSubnet {
    /// Index of the interface.
    pub interface: u32,
    /// The subnet.
    pub subnet: IpNet,
}

impl Interfaces {
    /// Returns these subnets with the names of their interfaces, without those of unknown interfaces.
    #[must_use]
    pub fn named_subnets(&self, subnets: &[InterfaceSubnet]) -> Vec<(String, IpNet)> {
        let named = subnets.iter().filter_map(|InterfaceSubnet { interface, subnet }| {
            Some((self.name(*interface)?.to_owned(), *subnet))
        });
        named.collect()
    }
}

impl Netlink {
    /// Returns the subnets of the node's interfaces, except of `lo`: those of their addresses and those of routes.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn subnets(&self) -> Result<Vec<InterfaceSubnet>> {
        let mut subnets = Vec::new();
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = answered(addresses.try_next()).await?.context("cannot list addresses")? {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            let subnet = address.and_then(|address| IpNet::new(address, message.header.prefix_len).ok());
            subnets.extend(
                subnet.map(|subnet| InterfaceSubnet {
                    interface: message.header.index,
                    subnet: subnet.trunc(),
                }),
            );
        }
        for all in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let mut routes = self.handle.route().get(all).execute();
            while let Some(route) = answered(routes.try_next()).await?.context("cannot list routes")? {
                subnets.extend(direct(&route));
            }
        }
        subnets.retain(|subnet| subnet.interface != LOOPBACK_INDEX);
        Ok(subnets)
    }

    /// Returns what in the node's routing keeps a pod's packets from a VIP.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub async fn route_obstacle(
        &self,
        pod: IpAddr,
        interface: u32,
        vip: IpAddr,
        interfaces: &Interfaces,
    ) -> Result<Option<Obstacle>> {
        if pod.is_ipv4() != vip.is_ipv4() {
            return Ok(None);
        }
        let mut request = route_to(vip);
        request.header.source_prefix_length = host_prefix(pod);
        request.attributes.push(RouteAttribute::Source(RouteAddress::from(pod)));
        request.attributes.push(RouteAttribute::Iif(interface));
        let mut response = self.handle.route().get(request).execute();
        let name = |index: u32| interfaces.name(index).unwrap_or("?").to_owned();
        let how = match answered(response.try_next()).await? {
            Ok(Some(route)) if route.header.kind == RouteType::Local => return Ok(None),
            Ok(Some(route)) => match output(&route) {
                Some(index) => format!("its route leads to {}", name(index)),
                None => format!("its route is of the kind {:?}", route.header.kind),
            },
            Ok(None) => return Ok(None),
            // Newer kernels report all invalid sources alike.
            Err(Error::NetlinkError(error))
                if error.raw_code() == -libc::EXDEV
                    || error.raw_code() == -libc::EINVAL && filters_reverse_paths(&name(interface)) =>
            {
                return Ok(Some(Obstacle::ReversePath { interface: name(interface) }));
            }
            Err(error) => error.to_string(),
        };
        Ok(Some(Obstacle::Route { vip, how }))
    }
}

/// Returns whether the kernel drops packets from an interface if the route to their source leads elsewhere.
fn filters_reverse_paths(interface: &str) -> bool {
    ["all", interface].iter().any(|name| {
        let mode = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"));
        mode.is_ok_and(|mode| mode.trim() != "0")
    })
}

/// Returns the subnet of a route that leads directly to it.
fn direct(route: &RouteMessage) -> Option<InterfaceSubnet> {
    let has_gateway =
        |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
    if route.header.kind != RouteType::Unicast || route.attributes.iter().any(has_gateway) {
        return None;
    }
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    });
    let subnet = IpNet::new(destination?, route.header.destination_prefix_length).ok()?;
    Some(InterfaceSubnet { interface: output(route)?, subnet: subnet.trunc() })
}

fn output(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}
