//! The listening sockets of the daemon: opened, or taken over from the previous daemon, and handed over to the next.

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener as StdUnixListener,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, UdpSocket, UnixListener},
    runtime::Handle,
};

use crate::{
    config::Config,
    daemon::handover::{self, Inherited},
    reconciler::DNS_PORT,
};

/// Handover name of the lock on the pinned maps.
pub const PINS_LOCK: &str = "lock/pins";
/// Prefix of the handover names of the disks' locks, followed by the number of the disk.
pub const CACHE_LOCK: &str = "lock/cache/";
/// Handover name of the file with the recently verified peer messages.
pub const SEEN_MESSAGES: &str = "memory/seen-messages";
/// Handover name of the file with operators' access entries.
pub const OPERATORS_ENTRIES: &str = "memory/operators-entries";
/// Maximum number of connections that wait to be accepted; the kernel limits it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The sockets, which stay open for the life of this daemon.
pub struct Sockets {
    /// Listeners that only the datapath redirects to; one per family.
    pub hidden: Vec<std::net::TcpListener>,
    peers: Option<std::net::TcpListener>,
    admin: std::net::TcpListener,
    metrics: Option<std::net::TcpListener>,
    dns_udp: Vec<std::net::UdpSocket>,
    dns_tcp: Vec<std::net::TcpListener>,
    admin_socket: StdUnixListener,
    handover: StdUnixListener,
    admin_path: PathBuf,
}

/// The sockets, ready to accept.
pub struct Accepting {
    /// Listeners that only the datapath redirects to; one per family.
    pub hidden: Vec<TcpListener>,
    /// The peer port.
    pub peers: Option<TcpListener>,
    /// Metrics and health.
    pub admin: TcpListener,
    /// Metrics and health for pods.
    pub metrics: Option<TcpListener>,
    /// DNS over UDP.
    pub dns_udp: Vec<UdpSocket>,
    /// DNS over TCP.
    pub dns_tcp: Vec<TcpListener>,
    /// Commands on this node.
    pub admin_socket: UnixListener,
}

impl Sockets {
    /// Takes the sockets that were handed over, and opens the others.
    ///
    /// # Errors
    /// If an address is in use, or does not belong to this node.
    pub fn open(config: &Config, inherited: &mut Inherited) -> Result<Self> {
        let mut hidden = vec![(hidden_name(4), SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))];
        if config.endpoint.vip6.is_some() {
            hidden.push((hidden_name(6), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))));
        }
        let hidden = hidden.into_iter().map(|(name, address)| match inherited.take(&name) {
            Some(descriptor) => Ok(descriptor.into()),
            None => tcp(address).context("cannot open the hidden listener"),
        });
        let hidden = hidden.collect::<Result<_>>()?;
        let mut listen = |what: &str, address: SocketAddr| match inherited.take(&format!("tcp/{address}")) {
            Some(descriptor) => Ok(std::net::TcpListener::from(descriptor)),
            None => tcp(address).with_context(|| format!("cannot listen for {what} on {address}")),
        };
        let dns = config.endpoint.vips().into_iter().map(|vip| SocketAddr::new(vip, DNS_PORT));
        let dns: Vec<SocketAddr> = dns.collect();
        let dns_tcp = dns.iter().map(|address| listen("names (TCP)", *address)).collect::<Result<_>>()?;
        let admin = listen("metrics and health", config.admin.listen)?;
        let metrics = config.admin.metrics_listen.map(|address| listen("metrics", address)).transpose()?;
        let peers = config.peers.as_ref().map(|peers| SocketAddr::new(config.node.address, peers.port));
        let peers = peers.map(|address| listen("peers", address)).transpose()?;
        let dns_udp = dns.iter().map(|address| match inherited.take(&format!("udp/{address}")) {
            Some(descriptor) => Ok(descriptor.into()),
            None => std::net::UdpSocket::bind(address)
                .with_context(|| format!("cannot listen for DNS (UDP) on {address}")),
        });
        let dns_udp = dns_udp.collect::<Result<_>>()?;
        let path = &config.admin.socket;
        let handover = handover::path(path);
        let mut local = |path: &Path| match inherited.take(&unix_name(path)) {
            Some(descriptor) => Ok(StdUnixListener::from(descriptor)),
            None => handover::listen(path),
        };
        Ok(Self {
            hidden,
            peers,
            admin,
            metrics,
            dns_udp,
            dns_tcp,
            admin_socket: local(path)?,
            handover: local(&handover)?,
            admin_path: path.clone(),
        })
    }

    /// Returns each socket with its handover name.
    #[must_use]
    pub fn names(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let mut names = Vec::new();
        for listener in &self.hidden {
            let family = if listener.local_addr().is_ok_and(|address| address.is_ipv4()) { 4 } else { 6 };
            names.push((hidden_name(family), listener.as_fd()));
        }
        for listener in self.peers.iter().chain([&self.admin]).chain(&self.metrics).chain(&self.dns_tcp) {
            names.extend(listener.local_addr().map(|address| (format!("tcp/{address}"), listener.as_fd())));
        }
        for socket in &self.dns_udp {
            names.extend(socket.local_addr().map(|address| (format!("udp/{address}"), socket.as_fd())));
        }
        names.push((unix_name(&self.admin_path), self.admin_socket.as_fd()));
        names.push((unix_name(&handover::path(&self.admin_path)), self.handover.as_fd()));
        names
    }

    /// Returns duplicates of the sockets to accept from, on `runtime`.
    ///
    /// # Errors
    /// If no descriptors are left.
    pub fn accepting(&self, runtime: &Handle) -> Result<Accepting> {
        let _in = runtime.enter();
        let tcp = |listener: &std::net::TcpListener| -> io::Result<TcpListener> {
            let listener = listener.try_clone()?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        let udp = |socket: &std::net::UdpSocket| -> io::Result<UdpSocket> {
            let socket = socket.try_clone()?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        };
        Ok(Accepting {
            hidden: self.hidden.iter().map(tcp).collect::<io::Result<_>>()?,
            peers: self.peers.as_ref().map(tcp).transpose()?,
            admin: tcp(&self.admin)?,
            metrics: self.metrics.as_ref().map(tcp).transpose()?,
            dns_udp: self.dns_udp.iter().map(udp).collect::<io::Result<_>>()?,
            dns_tcp: self.dns_tcp.iter().map(tcp).collect::<io::Result<_>>()?,
            admin_socket: unix(&self.admin_socket)?,
        })
    }

    /// Returns the handover socket, on `runtime`.
    ///
    /// # Errors
    /// If no descriptors are left.
    pub fn handover(&self, runtime: &Handle) -> Result<UnixListener> {
        let _in = runtime.enter();
        Ok(unix(&self.handover)?)
    }

    /// Removes the Unix sockets from the file system.
    pub fn unlink(&self) {
        for path in [self.admin_path.clone(), handover::path(&self.admin_path)] {
            let _ = fs::remove_file(path);
        }
    }
}

fn unix(listener: &StdUnixListener) -> io::Result<UnixListener> {
    let listener = listener.try_clone()?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(OwnedFd::from(socket).into())
}

fn hidden_name(family: u8) -> String {
    format!("hidden/v{family}")
}

fn unix_name(path: &Path) -> String {
    format!("unix/{}", path.display())
}
