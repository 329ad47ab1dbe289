//! The one part that changes the kernel side, on the one thread that keeps the capabilities for it: it follows
//! the interfaces, merges what the sources of access say, and does what operators ask for.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{IpAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use lota_common::{MAX_ZONE, Settings};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::{
    access::{Access, Subject, Table},
    config::{self, Config},
    datapath::{self, Datapath, Interfaces, Loaded, PinnedMaps, netlink::Netlink},
    kubernetes::Told,
};

/// The endpoint's port.
pub const HTTP_PORT: u16 = 80;
/// The responder's port.
pub const DNS_PORT: u16 = 53;
/// How long a pod's interface is looked for often; after that, when interfaces change.
const AWAITED: Duration = Duration::from_secs(10);

/// What others may ask for.
#[derive(Debug)]
pub enum Command {
    /// Change what operators say about access; about whom that is now, and at which interface.
    Access(AccessRequest, oneshot::Sender<Result<String, String>>),
    /// Read the configuration again; which keys have changed and hold only with the next daemon.
    Reload(oneshot::Sender<Result<Vec<String>, String>>),
    /// Tell the state of the kernel side.
    Status(oneshot::Sender<Result<datapath::Status, String>>),
    /// Tell who may talk to LOTA, as the kernel has it, and who was refused.
    Entrances(oneshot::Sender<Result<Entrances, String>>),
}

/// Who has access, and who was refused, last first.
pub type Entrances = (Table, Vec<datapath::Denied>);

/// What an operator says about access.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRequest {
    /// What to do.
    pub verb: Verb,
    /// About whom.
    pub subject: Subject,
    /// The interface that an allowed address is bound to; that of the route to it, if none is named.
    pub interface: Option<String>,
}

/// What can be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// Access, until its interface is gone.
    Allow,
    /// No access, whatever other sources say.
    Deny,
    /// Nothing any more: what other sources say holds.
    Forget,
}

/// The kernel side, and what it is told.
pub struct Control {
    config: Arc<Config>,
    netlink: Netlink,
    datapath: Datapath,
    access: Access,
    interfaces: Interfaces,
    table: watch::Sender<Arc<Table>>,
    /// The other nodes.
    peers: Vec<IpAddr>,
    /// When the API server told what is not applied yet.
    told: Option<Instant>,
}

impl Control {
    /// Loads the kernel side and brings it in line with configuration and interfaces. In this order, nothing is
    /// ever reachable before what protects it is in place. `lock` is what an earlier daemon handed over, `loaded` what
    /// was loaded meanwhile.
    ///
    /// # Errors
    /// If the kernel refuses any of it. What cannot be attached to an interface is only said: others may do.
    pub async fn start(config: Arc<Config>, lock: Option<&File>, loaded: Option<Loaded>) -> Result<Self> {
        let netlink = Netlink::connect()?;
        let vips = config.endpoint.vips();
        let mut access = Access::new(config.access.clone(), vips.clone());
        let datapath = Datapath::load(&config.datapath, settings(&config, &access), lock, loaded)?;
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let interfaces = netlink.interfaces().await?;
        access.adopt(&datapath.access()?, &interfaces, now);
        let (table, _) = watch::channel(Arc::default());
        let peers = config.peers.iter().flat_map(|peers| &peers.nodes).map(|peer| peer.address).collect();
        let mut control = Self { config, netlink, datapath, access, interfaces, table, peers, told: None };
        // Before there is an address to translate.
        control.datapath.keep_translation_away(&vips);
        for vip in vips {
            control.netlink.add_virtual_address(vip).await?;
        }
        control.datapath.set_nodes(&control.nodes())?;
        control.interfaces = control.netlink.interfaces().await?;
        control.apply_access()?;
        if let Err(error) = control.attach() {
            tracing::error!(error = format!("{error:#}"), "not everything is attached");
        }
        Ok(control)
    }

    /// Brings everything back that a daemon which wanted to take over may have changed.
    ///
    /// # Errors
    /// What could not be, after all that could.
    pub async fn reassert(&mut self, listeners: &[TcpListener]) -> Result<()> {
        let settled = self.datapath.reassert(settings(&self.config, &self.access));
        self.datapath.keep_translation_away(&self.config.endpoint.vips());
        let nodes = self.datapath.set_nodes(&self.nodes());
        let listening = self.set_listeners(listeners);
        let followed = self.follow().await;
        settled.and(nodes).and(listening).and(followed)
    }

    /// Hands pods' connections to these listeners from now on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_listeners(&mut self, listeners: &[TcpListener]) -> Result<()> {
        listeners.iter().try_for_each(|listener| self.datapath.set_listener(listener))
    }

    /// What the configuration says about access from now on.
    ///
    /// # Errors
    /// What could not be changed, after all that could.
    pub async fn set_access(&mut self, access: config::Access) -> Result<()> {
        self.access.set_config(access);
        let settled = self.datapath.reassert(settings(&self.config, &self.access));
        self.follow().await.and(settled)
    }

    /// Whom the guard lets through to the peer port from now on, besides this node.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_peers(&mut self, peers: Vec<IpAddr>) -> Result<()> {
        self.peers = peers;
        self.datapath.set_nodes(&self.nodes())
    }

    /// Every node's address; true for this node's own.
    fn nodes(&self) -> BTreeMap<IpAddr, bool> {
        let own = [self.config.node.address, self.config.admin.listen.ip()].into_iter();
        let own = own.filter(|address| !address.is_unspecified()).map(|address| (address, true));
        self.peers.iter().map(|address| (*address, false)).chain(own).collect()
    }

    /// This node's pods, as the API server has just told.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn set_pods(&mut self, told: Told) -> Result<()> {
        // Not as they were when netlink last told: an address must not be bound to one that is gone.
        self.interfaces = self.netlink.interfaces().await?;
        self.access.kubernetes.set(told.pods, &self.interfaces);
        self.told = Some(told.at);
        self.follow_pods().await
    }

    /// Binds pods to their interfaces, as far as they have one of those just listed, and lets in whom it follows from that.
    ///
    /// # Errors
    /// If the kernel refuses.
    async fn follow_pods(&mut self) -> Result<()> {
        let plan = self.interfaces.plan(&self.config.datapath, self.access.config().host_network);
        for address in self.access.kubernetes.unbound() {
            // A pod whose network is not there yet has another node's route, or none.
            if let Ok(index) = self.netlink.toward(address).await
                && plan.steered.contains_key(&index)
            {
                self.access.kubernetes.bind(address, index);
            }
        }
        self.apply_access()
    }

    /// Has the API server told of pods of late whose interface is not known?
    #[must_use]
    pub fn awaits_pods(&self) -> bool {
        self.told.is_some_and(|told| told.elapsed() < AWAITED) && !self.access.kubernetes.unbound().is_empty()
    }

    /// Who has access, as it changes.
    #[must_use]
    pub fn table(&self) -> watch::Receiver<Arc<Table>> {
        self.table.subscribe()
    }

    /// The kernel side.
    #[must_use]
    pub fn datapath(&self) -> &Datapath {
        &self.datapath
    }

    /// Lets go of the pins, for the daemon that has them now and those after it.
    pub fn release_lock(&mut self) {
        self.datapath.release_lock();
    }

    /// Waits until an interface has come, gone, or changed.
    ///
    /// # Errors
    /// If the netlink socket is gone.
    pub async fn changed(&mut self) -> Result<()> {
        self.netlink.changed().await
    }

    /// Brings attachments, guard and access in line with the interfaces that there are now.
    ///
    /// # Errors
    /// What could not be, after all that could.
    pub async fn follow(&mut self) -> Result<()> {
        self.interfaces = self.netlink.interfaces().await?;
        // Before anything else: an address at a new interface is not who it was.
        match (self.follow_pods().await, self.attach()) {
            (Err(access), Err(attached)) => Err(anyhow!("{access:#}; {attached:#}")),
            (access, attached) => access.and(attached),
        }
    }

    fn attach(&mut self) -> Result<()> {
        let plan = self.interfaces.plan(&self.config.datapath, self.access.config().host_network);
        let mut problems = Vec::new();
        for (interface, attached) in self.datapath.set_interfaces(&self.interfaces, &plan) {
            match attached {
                Ok(mode) => tracing::info!(interface, %mode, "steered"),
                Err(error) => problems.push(format!("steering {interface}: {error:#}")),
            }
        }
        if let Some(uplink) = &self.config.datapath.uplink {
            match self.interfaces.index(uplink).map(|index| self.datapath.set_uplink(uplink, index)) {
                Some(Ok(None)) => {}
                Some(Ok(Some(mode))) => tracing::info!(uplink, %mode, "the guard is up"),
                Some(Err(error)) => problems.push(format!("{error:#}")),
                None => problems.push(format!("the uplink {uplink} does not exist")),
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(anyhow!(problems.join("; "))) }
    }

    /// Takes back what others have changed: programs that went before ours, a firewall that was loaded anew.
    pub fn regain(&mut self) {
        if self.datapath.has_let_translation_in() {
            self.datapath.keep_translation_away(&self.config.endpoint.vips());
        }
        match self.datapath.regain_heads(&self.interfaces) {
            Ok(regained) => regained.iter().for_each(|interface| {
                tracing::warn!(interface, "another program had gone before ours; ours is first again");
            }),
            Err(error) => tracing::error!(error = format!("{error:#}"), "another program is before ours"),
        }
    }

    /// Tells connections what the kernel's maps say, whoever has written them.
    pub fn publish_kernel_table(&self) {
        if let Ok(table) = self.datapath.access() {
            self.publish(table);
        }
    }

    /// Does what was asked for, and answers.
    pub async fn obey(&mut self, command: Command) {
        match command {
            Command::Access(request, answer) => {
                let done = self.change_access(&request).await.map_err(|error| format!("{error:#}"));
                if done.is_ok() {
                    tracing::info!(verb = ?request.verb, subject = %request.subject, "access changed");
                }
                let _ = answer.send(done);
            }
            // The node's own to do; while it hands over, the next daemon reads it anyway.
            Command::Reload(answer) => drop(answer.send(Err("another daemon takes over".into()))),
            Command::Status(answer) => {
                let status = self.datapath.status(&self.interfaces).map_err(|error| format!("{error:#}"));
                let _ = answer.send(status);
            }
            Command::Entrances(answer) => {
                let _ = answer.send(self.entrances().map_err(|error| format!("{error:#}")));
            }
        }
    }

    fn entrances(&self) -> Result<Entrances> {
        Ok((self.datapath.access()?, PinnedMaps::new(&self.config.datapath).denied()?))
    }

    async fn change_access(&mut self, request: &AccessRequest) -> Result<String> {
        // Not as they were when netlink last told: an address must not be bound to one that is gone.
        self.interfaces = self.netlink.interfaces().await?;
        let (before, mut at) = (self.access.clone(), String::new());
        let AccessRequest { verb, subject, interface } = request;
        match (verb, subject) {
            (Verb::Allow, Subject::Prefix(_)) if interface.is_some() => {
                bail!("only a single address can be bound to an interface")
            }
            (Verb::Allow, Subject::Prefix(_)) => self.access.allow(*subject, 0),
            (Verb::Allow, Subject::Address(address)) => {
                let ifindex = self.interface_of(*address, interface.as_deref()).await?;
                self.access.allow(*subject, ifindex);
                at = format!(" at {}", self.interfaces.name(ifindex).unwrap_or_default());
            }
            (Verb::Deny | Verb::Forget, _) if interface.is_some() => {
                bail!("only `allow` takes an interface")
            }
            (Verb::Deny, _) => self.access.deny(*subject),
            (Verb::Forget, _) => {
                if !self.access.forget(*subject) {
                    bail!("no operator has said anything about {subject}");
                }
            }
        }
        if let Err(error) = self.apply_access() {
            // What the kernel does not take must not be in the way of what comes next.
            self.access = before;
            return Err(error);
        }
        Ok(format!("{subject}{at}"))
    }

    async fn interface_of(&self, address: IpAddr, named: Option<&str>) -> Result<u32> {
        let name = match named {
            Some(name) => name.to_owned(),
            None => {
                let index = self.netlink.toward(address).await?;
                self.interfaces.name(index).context("its interface is just gone")?.to_owned()
            }
        };
        let index = self.interfaces.seen_as(&name);
        index.with_context(|| format!("there is no interface `{name}`"))
    }

    /// The kernel first: whoever it lets in finds the rest informed, or is checked again when it is.
    fn apply_access(&mut self) -> Result<()> {
        let table = self.access.table(&self.interfaces);
        self.datapath.set_access(&table)?;
        self.publish(table);
        Ok(())
    }

    fn publish(&self, table: Table) {
        self.table.send_if_modified(|known| {
            let changed = **known != table;
            if changed {
                *known = Arc::new(table);
            }
            changed
        });
    }
}

fn settings(config: &Config, access: &Access) -> Settings {
    let wire = config.endpoint.zone.wire();
    let mut zone = [0; MAX_ZONE];
    // A zone that is too long was refused with the configuration, unless names are not answered at all.
    let fits = wire.len() <= MAX_ZONE;
    if fits {
        zone[MAX_ZONE - wire.len()..].copy_from_slice(&wire);
    }
    Settings {
        vip4: config.endpoint.vip.octets(),
        vip6: config.endpoint.vip6.map_or([0; 16], |vip| vip.octets()),
        http_port: HTTP_PORT.to_be_bytes(),
        dns_port: DNS_PORT.to_be_bytes(),
        peer_port: config.peer_port().to_be_bytes(),
        admin_port: config.admin.listen.port().to_be_bytes(),
        zone,
        zone_length: if fits { u8::try_from(wire.len()).unwrap_or(0) } else { 0 },
        answer_names: u8::from(config.datapath.answer_names && fits),
        default_allow: u8::from(access.config().default == config::DefaultAccess::Allow),
        lookups: 0,
    }
}
