//! Keeps the kernel side in line with interfaces, pods, configuration and operators' commands. It runs on the only
//! thread that keeps capabilities.

mod cgroups;
mod commands;
mod connections;
mod hanging;
mod pods;
mod search;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    net::{IpAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use lota_common::Settings;
use lota_datapath::{
    self, AccessTable, Datapath, DatapathConfig, EndpointName, EndpointNames, EndpointPorts, Interfaces,
    Loaded, RedirectionPlan, Targets, WhenDown, netlink::Netlink,
};
use tokio::sync::watch;

use crate::{
    access::{Access, AccessConfig, IdentityConfig, OperatorEntry},
    dns::EndpointConfig,
    kubernetes::PodUpdate,
};

use self::{cgroups::CgroupSource, connections::Connections, search::PodSearch};
pub use self::{
    commands::{AccessRequest, ControlCommand, ControlError, Entrances, Verb},
    hanging::Arrivals,
};

/// TCP port of the S3 endpoint on the VIPs.
pub const HTTP_PORT: u16 = 80;
/// UDP and TCP port of the DNS responder on the VIPs.
pub const DNS_PORT: u16 = 53;
/// Duration for which the interface and the cgroup of a new pod are looked up repeatedly; afterwards only when interfaces or
/// cgroups change.
const AWAITED: Duration = Duration::from_secs(10);
/// Minimum time between two restorations of a VIP.
const RESTORE_INTERVAL: Duration = Duration::from_secs(1);

/// Parts of the configuration that the kernel side follows.
#[derive(Debug)]
pub struct ControlConfig {
    /// Interfaces, redirection mode and pinning.
    pub datapath: DatapathConfig,
    /// VIPs.
    pub endpoint: EndpointConfig,
    /// Names whose queries are answered in the datapath.
    pub names: EndpointNames,
    /// TCP ports of the VIPs that are redirected.
    pub ports: EndpointPorts,
    /// Addresses and ports at which connections of pods are intercepted.
    pub targets: Targets,
    /// Access at the start; [`Control::set_access`] replaces it.
    pub access: AccessConfig,
    /// Addresses of the other nodes that the configuration lists.
    pub peers: Vec<IpAddr>,
    /// Addresses of this node that the peer port and the admin port listen on.
    pub own: [IpAddr; 2],
    /// The peer port.
    pub peer_port: u16,
    /// The admin port.
    pub admin_port: u16,
    /// Whether the API server reports this node's pods.
    pub has_kubernetes: bool,
}

/// Loads and updates the kernel side.
pub struct Control {
    config: ControlConfig,
    netlink: Netlink,
    datapath: Datapath,
    access: Access,
    cgroups: CgroupSource,
    interfaces: Interfaces,
    table: watch::Sender<Arc<AccessTable>>,
    /// Addresses of the other nodes.
    peers: Vec<IpAddr>,
    search: PodSearch,
    /// Addresses of pods that several interfaces claim.
    disputed: BTreeSet<IpAddr>,
    /// Pods that the API server reported and that are not taken over yet.
    pending: Option<PodUpdate>,
    /// Interfaces that the previous daemon redirected, until the API server has reported this node's pods.
    found: BTreeSet<u32>,
    /// When a VIP was last added to `lo` again.
    restored: Option<Instant>,
    connections: Connections,
}

impl Control {
    /// Loads the kernel side and brings it in line with configuration and interfaces. The order ensures that nothing
    /// is reachable before its protection is in place. `lock` and `entries` come from the previous daemon; `loaded` holds
    /// programs that were loaded in advance.
    ///
    /// # Errors
    /// If the kernel refuses to load or configure something. A program that cannot be attached to an interface is
    /// only logged.
    pub async fn start(
        config: ControlConfig,
        lock: Option<&File>,
        loaded: Option<Loaded>,
        entries: &[OperatorEntry],
    ) -> Result<Self> {
        let cgroups = CgroupSource::open(&config.access, config.has_kubernetes)?;
        cgroups.log();
        let netlink = Netlink::connect()?;
        let vips = config.endpoint.vips();
        let mut access = Access::new(config.access.clone(), vips.clone());
        let datapath = Datapath::load(
            &config.datapath,
            settings(&config),
            (&config.names, &config.targets),
            lock,
            loaded,
        )?;
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let interfaces = netlink.interfaces().await?;
        let found = datapath.access()?;
        access.adopt(&found, &interfaces, now);
        access.adopt_unbound(entries);
        access.forget_interfaces(&datapath.replaced_interfaces(&netlink, &found).await?);
        let (table, _) = watch::channel(Arc::default());
        let peers = config.peers.clone();
        let mut control = Self {
            found: if config.has_kubernetes { datapath.redirected_interfaces()? } else { BTreeSet::new() },
            config,
            netlink,
            datapath,
            access,
            cgroups,
            interfaces,
            table,
            peers,
            search: PodSearch::default(),
            disputed: BTreeSet::new(),
            restored: None,
            connections: Connections::default(),
            pending: None,
        };
        // The exemption from address translation must be in place before the VIP exists.
        control.datapath.keep_translation_away(&vips);
        for vip in vips {
            control.netlink.add_virtual_address(vip).await?;
        }
        control.datapath.set_nodes(&control.nodes())?;
        control.interfaces = control.netlink.interfaces().await?;
        control.read_cgroups();
        control.apply_access()?;
        if let Err(error) = control.attach() {
            tracing::error!(error = format!("{error:#}"), "cannot attach all programs");
        }
        Ok(control)
    }

    /// Restores the state that a daemon which failed to take over may have changed.
    ///
    /// # Errors
    /// Lists what could not be restored, after restoring the rest.
    pub async fn reassert(&mut self, listeners: &[TcpListener]) -> Result<()> {
        let settled = self.datapath.reassert(settings(&self.config), &self.config.names);
        self.datapath.keep_translation_away(&self.config.endpoint.vips());
        let nodes = self.datapath.set_nodes(&self.nodes());
        let listening = self.set_listeners(listeners);
        let followed = self.follow().await;
        settled.and(nodes).and(listening).and(followed)
    }

    /// Redirects pods' connections to these listeners from now on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_listeners(&mut self, listeners: &[TcpListener]) -> Result<()> {
        listeners.iter().try_for_each(|listener| self.datapath.set_listener(listener))
    }

    /// Returns operators' entries that do not depend on an interface, for the next daemon.
    #[must_use]
    pub fn unbound_entries(&self) -> Vec<OperatorEntry> {
        self.access.unbound_entries()
    }

    /// Writes the heartbeat, so that the datapath answers for names that need the daemon. Logs a failure.
    pub fn beat(&mut self) {
        if let Err(error) = self.datapath.beat() {
            tracing::error!(error = format!("{error:#}"), "cannot write the heartbeat");
        }
    }

    /// Ends the heartbeat, because the daemon is about to end. Returns whether names or targets needed it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn stop_answering(&mut self) -> Result<bool> {
        self.datapath.stop_answering()?;
        let needs_daemon = |name: &EndpointName| name.when_down() == WhenDown::ClusterDns;
        Ok(!self.config.targets.is_empty() || self.config.names.iter().any(needs_daemon))
    }

    /// Replaces the access section of the configuration.
    ///
    /// # Errors
    /// Lists what could not be changed, after changing the rest.
    pub async fn set_access(&mut self, access: AccessConfig) -> Result<()> {
        self.cgroups = CgroupSource::open(&access, self.config.has_kubernetes)?;
        self.cgroups.log();
        self.access.set_config(access);
        self.follow().await
    }

    /// Replaces the addresses, besides this node's, that the guard admits to the peer port.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_peers(&mut self, peers: Vec<IpAddr>) -> Result<()> {
        self.peers = peers;
        self.datapath.set_nodes(&self.nodes())
    }

    /// Returns the address of every node, with `true` for this node's own.
    fn nodes(&self) -> BTreeMap<IpAddr, bool> {
        let own = self.config.own.into_iter();
        let own = own.filter(|address| !address.is_unspecified()).map(|address| (address, true));
        self.peers.iter().map(|address| (*address, false)).chain(own).collect()
    }

    fn plan(&self) -> RedirectionPlan {
        let host_network = self.access.admits_local(&self.table.borrow());
        let ports = self.access.ports().union(&self.found).copied().collect();
        let DatapathConfig { uplink, .. } = &self.config.datapath;
        // Until Linux 6.6, a program needs a qdisc, which the `bandwidth` plugin refuses to find at a new pod's
        // interface. Ports of known pods are past that.
        let at_all_ports =
            self.access.config().identity == IdentityConfig::CgroupAndAddress || self.datapath.uses_tcx();
        let plan = self.interfaces.plan(&self.config.datapath, host_network, &ports);
        let plan = plan.checking_senders(&self.interfaces, uplink.as_deref(), at_all_ports);
        match self.access.identities.cgroups() {
            Some(_) => plan.checking_processes(),
            None => plan,
        }
    }

    /// Returns a receiver of the access table and its changes.
    #[must_use]
    pub fn table(&self) -> watch::Receiver<Arc<AccessTable>> {
        self.table.subscribe()
    }

    /// Returns the kernel side.
    #[must_use]
    pub fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// Releases the lock on the pinned maps, so that the next daemon can take it.
    pub fn release_lock(&mut self) {
        self.datapath.release_lock();
    }

    /// Waits until an interface is added, removed or changed, or a pod without a known interface appears in a route or as a
    /// neighbour.
    ///
    /// # Errors
    /// If the netlink socket fails.
    pub async fn changed(&mut self) -> Result<()> {
        self.netlink.changed().await?;
        self.search.hinted(Instant::now());
        Ok(())
    }

    /// Brings attachments, guard and access in line with the current interfaces.
    ///
    /// # Errors
    /// Lists what could not be changed, after changing the rest.
    pub async fn follow(&mut self) -> Result<()> {
        // Access comes first: an address at a new interface may belong to another pod.
        all_of([self.follow_pods().await, self.attach(), self.restore_vips().await])
    }

    /// Adds VIPs to `lo` that other software has removed from it.
    async fn restore_vips(&mut self) -> Result<()> {
        // Software that removes it again and again must not keep this thread busy.
        if self.restored.is_some_and(|restored| restored.elapsed() < RESTORE_INTERVAL) {
            return Ok(());
        }
        for vip in self.config.endpoint.vips() {
            if self.netlink.add_virtual_address(vip).await? {
                tracing::warn!(%vip, "the VIP was removed from lo; added it again");
                self.restored = Some(Instant::now());
            }
        }
        Ok(())
    }

    fn attach(&mut self) -> Result<()> {
        let plan = self.plan();
        let mut problems = Vec::new();
        for (interface, attached) in self.datapath.set_interfaces(&self.interfaces, &plan) {
            match attached {
                Ok(mode) => tracing::info!(interface, %mode, "redirecting connections"),
                Err(error) => problems.push(format!("cannot redirect {interface}: {error:#}")),
            }
        }
        if let Some(uplink) = &self.config.datapath.uplink {
            match self.interfaces.index(uplink).map(|index| self.datapath.set_uplink(uplink, index)) {
                Some(Ok(None)) => {}
                Some(Ok(Some(mode))) => tracing::info!(uplink, %mode, "guard attached"),
                Some(Err(error)) => problems.push(format!("{error:#}")),
                None => problems.push(format!("the uplink {uplink} does not exist")),
            }
        }
        as_result(&problems)
    }

    /// Moves LOTA's programs back before others, attaches those that others have removed, and restores the exemption
    /// from address translation if a firewall reload removed it.
    pub async fn regain(&mut self) {
        if let Err(error) = self.restore_vips().await {
            tracing::error!(error = format!("{error:#}"), "cannot restore the VIP");
        }
        if let Err(error) = self.follow_cgroups() {
            tracing::error!(error = format!("{error:#}"), "cannot follow the cgroups of pods");
        }
        if self.datapath.has_let_translation_in() {
            self.datapath.keep_translation_away(&self.config.endpoint.vips());
        }
        match self.datapath.regain_heads(&self.interfaces, &self.netlink).await {
            Ok(regained) => regained.iter().for_each(|interface| {
                tracing::warn!(
                    interface,
                    "LOTA's program was removed, or another one ran before it; LOTA's is first again"
                );
            }),
            Err(error) => tracing::error!(error = format!("{error:#}"), "another program runs before LOTA's"),
        }
        if self.datapath.intercepts_too_much(&self.interfaces)
            && let Err(error) = self.attach()
        {
            tracing::error!(error = format!("{error:#}"), "cannot attach programs");
        }
    }

    /// Publishes the access table of the kernel's maps to open connections, whichever daemon wrote it.
    pub fn publish_kernel_table(&self) {
        if let Ok(table) = self.datapath.access() {
            self.publish(table);
        }
    }

    /// Updates the kernel first: connections that it admits find the published table, or are checked when it is
    /// published.
    fn apply_access(&mut self) -> Result<()> {
        let table = self.access.table(&self.interfaces);
        let written = self.datapath.set_access(&table, Some(&self.access.identity_table()));
        let allowed = match &written {
            Ok(()) => table,
            // Connections must end that lost their access, and those that do not have it yet in the kernel.
            Err(_) => match self.datapath.access() {
                Ok(held) => table.as_far_as_in(&held),
                Err(_) => table.as_far_as_in(&self.table.borrow()),
            },
        };
        self.publish(allowed);
        written
    }

    fn publish(&self, table: AccessTable) {
        self.table.send_if_modified(|known| {
            let changed = **known != table;
            if changed {
                *known = Arc::new(table);
            }
            changed
        });
    }
}

/// Returns all errors as one.
fn all_of<const N: usize>(results: [Result<()>; N]) -> Result<()> {
    let errors = results.into_iter().filter_map(Result::err);
    as_result(&errors.map(|error| format!("{error:#}")).collect::<Vec<_>>())
}

/// Returns all problems as one error, if there are any.
fn as_result(problems: &[String]) -> Result<()> {
    if problems.is_empty() { Ok(()) } else { Err(anyhow!(problems.join("; "))) }
}

/// Returns the settings, without access by default, which comes with the access table.
fn settings(config: &ControlConfig) -> Settings {
    Settings {
        vip4: config.endpoint.vip.octets(),
        vip6: config.endpoint.vip6.map_or([0; 16], |vip| vip.octets()),
        ports: config.ports.raw(),
        dns_port: DNS_PORT,
        peer_port: config.peer_port,
        admin_port: config.admin_port,
        longest_name: 0,
        answer_dns: u8::from(config.datapath.answer_dns),
        default_allow: 0,
        lookups: 0,
        targets: 0,
        epoch: 0,
    }
}
