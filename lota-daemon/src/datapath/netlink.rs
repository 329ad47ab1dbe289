//! Interfaces and addresses, by rtnetlink.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Error, Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
        route::RouteAttribute,
    },
};
use tokio::sync::watch;

use super::{Interface, Interfaces};

/// A view of the node's network.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
    changes: watch::Receiver<()>,
}

impl Netlink {
    /// Connects, and watches interfaces come and go.
    ///
    /// # Errors
    /// If the kernel gives no netlink socket.
    pub fn connect() -> Result<Self> {
        let (connection, handle, mut messages) =
            new_multicast_connection(&[MulticastGroup::Link]).context("opening a netlink socket")?;
        tokio::spawn(connection);
        let (changed, changes) = watch::channel(());
        tokio::spawn(async move {
            while let Some((message, _)) = messages.next().await {
                let about_links = matches!(
                    message.payload,
                    NetlinkPayload::InnerMessage(
                        RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_)
                    ) | NetlinkPayload::Overrun(_)
                );
                if about_links {
                    changed.send_replace(());
                }
            }
        });
        Ok(Self { handle, changes })
    }

    /// Waits until an interface has come, gone, or changed.
    ///
    /// # Errors
    /// If the netlink socket is gone.
    pub async fn changed(&mut self) -> Result<()> {
        self.changes.changed().await.context("the netlink socket is gone")
    }

    /// Every interface.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn interfaces(&self) -> Result<Interfaces> {
        let mut links = self.handle.link().get().execute();
        let mut interfaces = Interfaces::default();
        while let Some(link) = links.try_next().await.context("listing interfaces")? {
            interfaces.0.extend(parse(&link).map(|interface| (link.header.index, interface)));
        }
        Ok(interfaces)
    }

    /// The index of the interface that packets to an address leave by.
    ///
    /// # Errors
    /// If there is none.
    pub async fn toward(&self, address: IpAddr) -> Result<u32> {
        let route = match address {
            IpAddr::V4(address) => {
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build()
            }
            IpAddr::V6(address) => {
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build()
            }
        };
        let no_route = || format!("there is no route to {address}: name its interface");
        let found = self.handle.route().get(route).execute().try_next().await;
        let found = found.with_context(no_route)?.with_context(no_route)?;
        let out = found.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        out.with_context(no_route)
    }

    /// Takes the virtual address off `lo`, if it is there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn remove_virtual_address(&self, address: IpAddr) -> Result<()> {
        let mut found = self.handle.address().get().set_address_filter(address).execute();
        while let Some(message) = found.try_next().await.context("listing addresses")? {
            self.handle
                .address()
                .del(message)
                .execute()
                .await
                .with_context(|| format!("removing {address}"))?;
        }
        Ok(())
    }

    /// Puts the virtual address on `lo`, where it stays: packets to it are then local on this node, and the
    /// datapath decides about them, daemon up or down.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn add_virtual_address(&self, address: IpAddr) -> Result<()> {
        let lo = self.interfaces().await?.index("lo").context("there is no `lo`")?;
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        match self.handle.address().add(lo, address, prefix).execute().await {
            Err(Error::NetlinkError(error)) if error.raw_code() == -nix::libc::EEXIST => {}
            result => result.with_context(|| format!("adding {address} to lo"))?,
        }
        self.handle.link().set(LinkUnspec::new_with_index(lo).up().build()).execute().await.context("lo up")
    }
}

/// Keeps the kernel from giving a port to a connection that wants any: the peer port must be free to listen on,
/// and pods' answers to such a connection would be dropped.
///
/// # Errors
/// If the kernel's list cannot be changed, as where `/proc/sys` is mounted read-only.
pub fn reserve_port(port: u16) -> std::io::Result<()> {
    let list = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let reserved = std::fs::read_to_string(list)?;
    if in_list(reserved.trim(), port) {
        return Ok(());
    }
    let separator = if reserved.trim().is_empty() { "" } else { "," };
    std::fs::write(list, format!("{}{separator}{port}", reserved.trim()))
}

fn in_list(list: &str, port: u16) -> bool {
    list.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        matches!((first.parse(), last.parse()), (Ok(first), Ok(last)) if (first..=last).contains(&port))
    })
}

fn parse(link: &LinkMessage) -> Option<Interface> {
    let mut interface = Interface { name: String::new(), kind: String::new(), controller: None };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Controller(index) if *index != 0 => interface.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                let kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(name_of(kind)),
                    _ => None,
                });
                interface.kind = kind.unwrap_or_default();
            }
            _ => {}
        }
    }
    (!interface.name.is_empty()).then_some(interface)
}

fn name_of(kind: &InfoKind) -> String {
    match kind {
        InfoKind::Other(kind) => kind.clone(),
        kind => format!("{kind:?}").to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports() {
        assert!(in_list("22,7000-7500", 7480) && in_list("7480", 7480));
        assert!(!in_list("", 7480) && !in_list("748,7481-7490", 7480));
    }
}
