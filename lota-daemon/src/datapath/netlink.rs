//! Interfaces and addresses, by rtnetlink.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Error, Handle, LinkUnspec, MulticastGroup, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{RouteNetlinkMessage, link::LinkAttribute},
};
use tokio::sync::watch;

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

    /// Every interface, by name: its index.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn interfaces(&self) -> Result<BTreeMap<String, u32>> {
        let mut links = self.handle.link().get().execute();
        let mut interfaces = BTreeMap::new();
        while let Some(link) = links.try_next().await.context("listing interfaces")? {
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            interfaces.extend(name.map(|name| (name, link.header.index)));
        }
        Ok(interfaces)
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
        let lo = *self.interfaces().await?.get("lo").context("there is no `lo`")?;
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

/// Those of `interfaces` that one of `patterns` names; a trailing `*` matches any rest.
#[must_use]
pub fn matching(interfaces: &BTreeMap<String, u32>, patterns: &[String]) -> BTreeMap<String, u32> {
    let matches = |name: &str| {
        patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == pattern,
        })
    };
    interfaces.iter().filter(|(name, _)| matches(name)).map(|(name, index)| (name.clone(), *index)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports() {
        assert!(in_list("22,7000-7500", 7480) && in_list("7480", 7480));
        assert!(!in_list("", 7480) && !in_list("748,7481-7490", 7480));
    }

    #[test]
    fn patterns() {
        let all: BTreeMap<String, u32> = ["lo", "eth0", "veth1", "veth2"]
            .into_iter()
            .zip(1..)
            .map(|(name, index)| (name.to_owned(), index))
            .collect();
        let names = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
            matching(&all, &patterns).into_keys().collect::<Vec<_>>()
        };
        assert_eq!(names(&["veth*"]), ["veth1", "veth2"]);
        assert_eq!(names(&["veth1", "eth"]), ["veth1"]);
        assert_eq!(names(&["*"]).len(), 4);
        assert_eq!(names(&[]), Vec::<String>::new());
    }
}
