//! Interfaces, addresses and routes of the node, by rtnetlink.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::programs::TcAttachType;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream::select};
use parking_lot::Mutex;
use rtnetlink::{
    Error, Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
        route::{RouteMessage, RouteType},
    },
    sys::AsyncSocket as _,
};
use tokio::{sync::watch, time::timeout};

use super::{
    Interface, Interfaces, LOOPBACK_INDEX, PeerInterface,
    sought::{self, SoughtAddresses},
};

/// Timeout for the kernel's answer to one request.
const KERNEL_TIMEOUT: Duration = Duration::from_secs(10);
/// Receive buffer for reports, in bytes. Reports beyond it are lost, for example when a hundred pods end at once.
const REPORT_BUFFER: usize = 4 << 20;

/// Reads and changes interfaces and addresses.
#[derive(Clone, Debug)]
pub struct Netlink {
    /// Requests. They have a socket of their own: the kernel loses responses on a socket that reports overrun.
    pub(crate) handle: Handle,
    changes: watch::Receiver<()>,
    removed: Arc<Mutex<RemovedInterfaces>>,
    sought: SoughtAddresses,
}

/// Interfaces that were removed.
#[derive(Debug, Default)]
pub struct RemovedInterfaces {
    /// Their indices. An interface that has such an index now is another one.
    pub indices: BTreeSet<u32>,
    /// Whether reports were lost, so that there may be more.
    pub is_incomplete: bool,
}

impl Netlink {
    /// Opens netlink sockets that also report changes of interfaces, addresses that were removed, and sought addresses that
    /// appear.
    ///
    /// # Errors
    /// If the kernel refuses the sockets.
    pub fn connect() -> Result<Self> {
        let refused = "cannot open a netlink socket";
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (mut reporting, reports, messages) = new_multicast_connection(&groups).context(refused)?;
        // The kernel limits it to net.core.rmem_max; the reports that do not fit are handled as lost.
        let _ = reporting.socket_mut().socket_mut().set_rx_buf_sz(REPORT_BUFFER);
        // There can be many neighbours and routes. Reports about them must not displace those about interfaces.
        let (sighting, sightings, seen) = new_multicast_connection(&sought::GROUPS).context(refused)?;
        let (requesting, handle, _) = new_connection().context(refused)?;
        // Without one of them, interfaces cannot be followed any more.
        tokio::spawn(async move {
            tokio::select! {
                () = reporting => {}
                () = sighting => {}
                () = requesting => {}
            }
        });
        let (changed, changes) = watch::channel(());
        let removed = Arc::<Mutex<RemovedInterfaces>>::default();
        let sought = SoughtAddresses::default();
        let (noting, seeking) = (removed.clone(), sought.clone());
        tokio::spawn(async move {
            // The connections end with their last handles.
            let _handles = (reports, sightings);
            let interfaces = messages.map(|(message, _)| note(&message.payload, &noting));
            let addresses = seen.map(|(message, _)| seeking.is_seen_in(&message.payload));
            notify(select(interfaces, addresses), changed).await;
        });
        Ok(Self { handle, changes, removed, sought })
    }

    /// Replaces the addresses that are sought: [`Netlink::changed`] also returns when the node gets a neighbour or a route
    /// with one of them.
    pub fn seek(&self, addresses: BTreeSet<IpAddr>) {
        self.sought.set(addresses);
    }

    /// Waits until an interface is added, removed or changed, an address is removed, or a sought address appears.
    ///
    /// # Errors
    /// If the netlink socket fails.
    pub async fn changed(&mut self) -> Result<()> {
        self.changes.changed().await.context("the netlink socket was closed")
    }

    /// Marks that there may be more removed interfaces than were reported.
    pub fn set_incomplete(&self) {
        self.removed.lock().is_incomplete = true;
    }

    /// Returns the interfaces that were removed since the last call.
    #[must_use]
    pub fn take_removed(&self) -> RemovedInterfaces {
        std::mem::take(&mut self.removed.lock())
    }

    /// Returns every interface.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn interfaces(&self) -> Result<Interfaces> {
        let mut links = self.handle.link().get().execute();
        let mut interfaces = Interfaces::default();
        while let Some(link) = answered(links.try_next()).await?.context("cannot list interfaces")? {
            interfaces.0.extend(parse(&link).map(|interface| (link.header.index, interface)));
        }
        Ok(interfaces)
    }

    /// Returns the number of filters that run before the one with this priority and handle at an interface's clsact
    /// hook; `None` if it is not there.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub(crate) async fn filters_ahead(
        &self,
        index: u32,
        direction: TcAttachType,
        priority: u16,
        handle: u32,
    ) -> Result<Option<usize>> {
        let filters = self.handle.traffic_filter(index.cast_signed()).get();
        let filters = if direction == TcAttachType::Egress { filters.egress() } else { filters.ingress() };
        let mut found = filters.execute();
        let mut ahead = 0;
        // The kernel lists filters in the order in which they run, and refuses the request if there is no qdisc.
        while let Ok(Some(filter)) = answered(found.try_next()).await? {
            let filter_handle = u32::from(filter.header.handle);
            match (filter.header.info >> 16, filter_handle) {
                // The head of a priority's list.
                (_, 0) => {}
                other if other == (u32::from(priority), handle) => return Ok(Some(ahead)),
                _ => ahead += 1,
            }
        }
        Ok(None)
    }

    /// Removes the VIP from `lo`, and its blackhole route, if they are there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn remove_virtual_address(&self, address: IpAddr) -> Result<()> {
        let mut found = self.handle.address().get().set_address_filter(address).execute();
        while let Some(message) = answered(found.try_next()).await?.context("cannot list addresses")? {
            answered(self.handle.address().del(message).execute())
                .await?
                .with_context(|| format!("removing {address}"))?;
        }
        match answered(self.handle.route().del(blackhole(address)).execute()).await? {
            Err(Error::NetlinkError(error)) if error.raw_code() == -nix::libc::ESRCH => Ok(()),
            result => result.with_context(|| format!("removing the route to {address}")),
        }
    }

    /// Adds the VIP to `lo`, and a blackhole route to it. Both stay when the daemon ends: packets to the VIP remain local
    /// to the node, and the datapath always decides about them. Without the address the route drops them, so that they
    /// never leave the node. Returns whether the address was absent.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn add_virtual_address(&self, address: IpAddr) -> Result<bool> {
        ignore_existing(answered(self.handle.route().add(blackhole(address)).execute()).await?)
            .with_context(|| format!("cannot add a blackhole route to {address}"))?;
        let add = self.handle.address().add(LOOPBACK_INDEX, address, host_prefix(address)).execute();
        let added =
            ignore_existing(answered(add).await?).with_context(|| format!("cannot add {address} to lo"))?;
        if added {
            let up =
                self.handle.link().set(LinkUnspec::new_with_index(LOOPBACK_INDEX).up().build()).execute();
            answered(up).await?.context("cannot set lo up")?;
        }
        Ok(added)
    }
}

/// Notes removed interfaces. Returns whether a report is one of a change.
fn note(report: &NetlinkPayload<RouteNetlinkMessage>, removed: &Mutex<RemovedInterfaces>) -> bool {
    match report {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => {
            // Bridges report ports that leave them in the same way.
            if link.header.interface_family == AddressFamily::Unspec {
                removed.lock().indices.insert(link.header.index);
            }
            true
        }
        NetlinkPayload::InnerMessage(message) => {
            matches!(message, RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelAddress(_))
        }
        NetlinkPayload::Overrun(_) => {
            removed.lock().is_incomplete = true;
            true
        }
        _ => false,
    }
}

/// Notifies of changes until the reports end, and then closes the channel.
async fn notify(mut reports: impl Stream<Item = bool> + Unpin, changed: watch::Sender<()>) {
    while let Some(is_change) = reports.next().await {
        if is_change {
            changed.send_replace(());
        }
    }
}

/// Waits for the kernel's answer to a request, which is lost if the socket runs out of memory.
pub(crate) async fn answered<T>(request: impl Future<Output = T>) -> Result<T> {
    timeout(KERNEL_TIMEOUT, request).await.context("the kernel did not answer a netlink request")
}

/// Returns whether something was added, rather than there already.
fn ignore_existing(result: Result<(), Error>) -> Result<bool, Error> {
    match result {
        Err(Error::NetlinkError(error)) if error.raw_code() == -nix::libc::EEXIST => Ok(false),
        result => result.map(|()| true),
    }
}

/// Returns the length of a prefix that is one address.
pub(crate) fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Returns a route to this address alone.
pub(crate) fn route_to(address: IpAddr) -> RouteMessage {
    match address {
        IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build(),
        IpAddr::V6(address) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build()
        }
    }
}

/// Returns a route that drops packets to this address if the node does not have it.
fn blackhole(address: IpAddr) -> RouteMessage {
    let mut route = route_to(address);
    route.header.kind = RouteType::BlackHole;
    route
}

/// Reserves ports, so that the kernel does not use them as source ports of the node's own connections. Otherwise the peer
/// port could be in use, pods' answers to such a connection would be dropped, and answers to a connection from a redirected
/// port would look like packets to that port.
///
/// # Errors
/// If the kernel's list cannot be changed, for example because `/proc/sys` is mounted read-only.
pub fn reserve_ports(ports: impl IntoIterator<Item = u16>) -> std::io::Result<()> {
    let list = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    match with_ports(std::fs::read_to_string(list)?.trim(), ports) {
        Some(reserved) => std::fs::write(list, reserved),
        None => Ok(()),
    }
}

/// Returns the list with these ports, or `None` if it has all of them.
fn with_ports(list: &str, ports: impl IntoIterator<Item = u16>) -> Option<String> {
    let missing = ports.into_iter().filter(|port| !in_list(list, *port)).map(|port| port.to_string());
    let missing: Vec<String> = missing.collect();
    let held = [list.to_owned()].into_iter().filter(|list| !list.is_empty());
    (!missing.is_empty()).then(|| held.chain(missing).collect::<Vec<_>>().join(","))
}

fn in_list(list: &str, port: u16) -> bool {
    list.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        matches!((first.parse(), last.parse()), (Ok(first), Ok(last)) if (first..=last).contains(&port))
    })
}

fn parse(link: &LinkMessage) -> Option<Interface> {
    let mut interface = Interface { name: String::new(), kind: String::new(), controller: None, peer: None };
    let (mut peer, mut namespace) = (None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Link(index) => peer = Some(*index),
            LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
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
    if let (Some(index), Some(namespace), "veth" | "netkit") = (peer, namespace, &*interface.kind) {
        interface.peer = Some(PeerInterface { index, namespace });
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

    #[tokio::test]
    async fn the_end_of_either_socket_is_noticed() {
        let Netlink { handle, mut changes, .. } = Netlink::connect().unwrap();
        // The connection for requests ends with its last handle.
        drop(handle);
        let ended = timeout(Duration::from_secs(5), async { while changes.changed().await.is_ok() {} });
        assert!(ended.await.is_ok(), "the socket for requests has ended");
    }

    #[tokio::test]
    async fn the_end_of_reports_is_noticed() {
        let (changed, mut changes) = watch::channel(());
        notify(futures_util::stream::iter([false, true]), changed).await;
        assert!(changes.changed().await.is_ok(), "a change");
        assert!(changes.changed().await.is_err(), "the end of the reports");
    }

    #[test]
    fn reserved_ports() {
        assert!(in_list("22,7000-7500", 7480) && in_list("7480", 7480));
        assert!(!in_list("", 7480) && !in_list("748,7481-7490", 7480));
        assert_eq!(with_ports("", [7480, 80]).as_deref(), Some("7480,80"));
        assert_eq!(with_ports("22,9000-9010", [7480, 9001]).as_deref(), Some("22,9000-9010,7480"));
        assert_eq!(with_ports("22,80,7480", [7480, 80]), None);
    }
}
