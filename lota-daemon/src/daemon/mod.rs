//! The daemon's life cycle: starts every part, connects them, hands over and stops.

mod assemble;
mod descriptors;
mod ending;
pub mod handover;
mod listeners;
mod memory_file;
mod operators_entries;
mod peer_port;
mod peer_stream;
mod pod_stream;
mod secret_files;
mod seen_messages;
pub mod sockets;

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use lota_datapath::{self, Loaded, netlink};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinSet,
    time::MissedTickBehavior,
};

use self::{
    assemble::{configured_members, control_config, pass_targets, pod_rules, proxy, targets, tls_server},
    descriptors::DescriptorBudget,
    listeners::{PodListeners, Streams, TURNED_AWAY},
    peer_port::PeerPort,
    peer_stream::{PeerLife, PeerStreams},
    pod_stream::PodStreams,
    secret_files::SecretFiles,
};
use crate::{
    admin::{self, Admin, Exposition, Ready, node_status::Reporter},
    cluster::Members,
    config::{Config, Reload, Reloaded},
    daemon::{
        handover::Inherited,
        sockets::{CACHE_LOCK, OPERATORS_ENTRIES, PINS_LOCK, SEEN_MESSAGES, Sockets},
    },
    dns::{Responder, SHORT_TTL},
    http::{
        ConnectionLimiter, PodBandwidth,
        server::{ConnectionLimits, Life},
    },
    kubernetes::{Kubernetes, PodUpdate},
    metrics::{Fault, Metrics},
    process::workers::Workers,
    reconciler::{Control, ControlCommand, ControlError},
};

/// Interval at which the order of programs on the interfaces is verified.
const VERIFY_INTERVAL: Duration = Duration::from_secs(2);
/// Interval at which the interface of a new pod is looked up, and at which an old daemon reads access changes from the
/// kernel after a handover.
const LOOKUP_INTERVAL: Duration = Duration::from_millis(250);
/// Interval at which files with secrets are read again.
const SECRETS_INTERVAL: Duration = Duration::from_secs(10);
/// Interval of the heartbeat that the daemon writes for the datapath.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of commands that wait for the control thread.
const COMMANDS: usize = 64;

/// Runs the daemon until SIGTERM or SIGINT, another daemon has taken over, or a part of it fails. `workers` handle
/// requests; the caller's own runtime changes the kernel side.
///
/// # Errors
/// The part that failed, and the operation.
pub async fn run(
    config: Config,
    mut reload: Reload,
    mut stop: watch::Receiver<bool>,
    workers: Workers,
) -> Result<()> {
    lota_datapath::preflight(&config.datapath.bpffs_path).map_err(|missing| {
        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
        anyhow!("cannot load the datapath: {}", missing.join("; "))
    })?;
    let budget = DescriptorBudget::claim(&config.limits, TURNED_AWAY);
    let config = Arc::new(config);
    let mut node = Daemon::start(config.clone(), workers, budget).await?;
    let handover = node.sockets.handover(&Handle::current())?;
    let (mut verify, mut lookup) =
        (tokio::time::interval(VERIFY_INTERVAL), tokio::time::interval(LOOKUP_INTERVAL));
    let mut beats = node.beat.subscribe();
    let mut trouble = None;
    let handed_over = loop {
        tokio::select! {
            changed = node.control.changed() => {
                changed?;
                let received = Instant::now();
                node.follow(&mut trouble).await;
                node.enforced_since(received);
            }
            Ok(()) = beats.changed() => node.control.beat(),
            _ = verify.tick() => {
                if trouble.is_some() || node.control.has_unbound_pods() {
                    node.follow(&mut trouble).await;
                }
                node.control.regain().await;
                node.control.watch_connections().await;
                if let Some(kubernetes) = &node.kubernetes {
                    node.listeners.proxy.metrics.kubernetes.set(kubernetes.health().is_up());
                }
            }
            Ok(()) = node.pods.changed() => node.follow_pods(&mut trouble).await,
            _ = lookup.tick(), if node.control.awaits_pods() || node.control.awaits_cgroups() => {
                node.look_for_pods(&mut trouble).await;
            }
            Ok(()) = node.peers.changed() => {
                let peers = node.peers.borrow_and_update().clone();
                if let Err(error) = node.control.set_peers(peers) {
                    tracing::error!(error = format!("{error:#}"), "cannot update the guard's list of nodes");
                }
            }
            // The result is in the log.
            () = reload.requested() => drop(node.reload(&reload).await),
            Some(command) = node.commands.recv() => {
                if let ControlCommand::Reload(answer) = command {
                    let _ = answer.send(node.reload(&reload).await);
                    continue;
                }
                let (received, changes_access) = (Instant::now(), matches!(command, ControlCommand::Access(..)));
                node.control.obey(command).await;
                if changes_access {
                    node.enforced_since(received);
                }
            }
            Some(ended) = node.tasks.join_next() => ended.context("a task of the daemon panicked")?,
            accepted = handover.accept() => {
                if node.handover_requested(accepted).await? {
                    break true;
                }
            }
            _ = stop.wait_for(|stop| *stop) => break false,
        }
    };
    if !handed_over {
        node.leave_names().await;
    }
    // Later requests for a handover go to the next daemon.
    drop(handover);
    let is_pod = node.config.kubernetes.is_some();
    node.end(handed_over, stop.clone()).await;
    if handed_over && is_pod {
        // Kubernetes would restart a pod that exits by itself, and it would take over from its successor.
        tracing::info!("finished open requests; waiting for a signal to exit");
        let _ = stop.wait_for(|stop| *stop).await;
    }
    Ok(())
}

/// A running daemon.
struct Daemon {
    config: Arc<Config>,
    secrets: Arc<SecretFiles>,
    control: Control,
    sockets: Sockets,
    listeners: PodListeners,
    peer_port: PeerPort,
    admin: Admin,
    responder: Responder,
    commands: mpsc::Receiver<ControlCommand>,
    kubernetes: Option<Arc<Kubernetes>>,
    /// Pods of this node, as the API server reports them.
    pods: watch::Receiver<Option<PodUpdate>>,
    /// Nodes of the cluster.
    members: watch::Receiver<Members>,
    /// Addresses of the other nodes.
    peers: watch::Receiver<Vec<IpAddr>>,
    life: watch::Sender<Life>,
    /// State of the connections from peers.
    peer_life: PeerLife,
    /// Changes every second while the worker that accepts connections lives.
    beat: watch::Sender<()>,
    /// Closes with the last connection.
    drained: mpsc::Receiver<()>,
    /// Tasks that accept or receive.
    tasks: JoinSet<()>,
}

impl Daemon {
    async fn start(config: Arc<Config>, workers: Workers, budget: DescriptorBudget) -> Result<Self> {
        // Programs are loaded while the previous daemon still serves.
        let loaded = match Inherited::is_offered(&config.admin.socket) {
            true => Some(Loaded::new(&config.datapath)?),
            false => None,
        };
        let mut inherited = Inherited::ask(&config.admin.socket)?;
        if inherited.is_some() {
            tracing::info!("taking over from the running daemon");
        }
        let metrics = Metrics::default();
        let lock = inherited.take(PINS_LOCK).map(File::from);
        let entries = operators_entries::read(inherited.take(OPERATORS_ENTRIES))?;
        let mut control = Control::start(control_config(&config)?, lock.as_ref(), loaded, &entries).await?;
        let locks: Vec<File> = inherited.take_all(CACHE_LOCK).into_iter().map(File::from).collect();
        let secrets = Arc::new(SecretFiles::new(metrics.clone()));
        let proxy = Arc::new(proxy(&config, &secrets, metrics.clone(), &locks)?);
        let (teller, members) = watch::channel(configured_members(&config));
        proxy.cluster.set_members(members.borrow().clone());
        let follows_nodes = config.peers.as_ref().is_some_and(|peers| peers.nodes.is_empty());
        let kubernetes = config.kubernetes.clone().map(|kubernetes| {
            let (node, rules) = (config.node.clone(), pod_rules(&config.access));
            Arc::new(Kubernetes::new(kubernetes, node, rules, follows_nodes.then_some(teller)))
        });
        let pods = kubernetes.as_ref().map_or_else(|| watch::channel(None).1, |kubernetes| kubernetes.pods());
        if config.datapath.uplink.is_none() {
            tracing::warn!("datapath.uplink is not set: only the keys of [peers] protect the peer port");
        }
        let reserved = [config.peer_port()].into_iter().chain(config.pod_ports());
        if let Err(error) = netlink::reserve_ports(reserved) {
            tracing::warn!(%error, "cannot reserve the peer port and the ports of the VIP");
        }
        let sockets = Sockets::open(&config, &mut inherited)?;
        control.set_listeners(&sockets.hidden)?;

        let (life, lives) = watch::channel(Life::Serving);
        let (alive, drained) = mpsc::channel::<()>(1);
        let (commander, commands) = mpsc::channel(COMMANDS);
        let exposition = Arc::new(Exposition::new(
            &metrics,
            proxy.cache.clone(),
            proxy.stores.each().map(|store| (store.name.clone(), store.gateway.clone())).collect(),
            proxy.peers.clone(),
        ));
        let vips: Arc<[SocketAddr]> = config
            .endpoint
            .vips()
            .into_iter()
            .flat_map(|vip| config.pod_ports().into_iter().map(move |port| SocketAddr::new(vip, port)))
            .collect();
        let targets = Arc::new(targets(&config, control.datapath().targets()));
        let tls = tls_server(&config, &secrets)?;
        let peers = proxy.cluster.addresses();
        let peer_life = PeerLife::new();
        let peer_tls = proxy.peers.as_ref().and_then(|peers| peers.tls().cloned());
        let streams = PeerStreams::new(peer_tls, metrics.clone());
        let peer_port = PeerPort::new(budget.peers, peers.clone(), peer_life.clone(), streams);
        let ready = Ready::default();
        let reporter = Reporter::new(
            config.node.clone(),
            &config
                .all_gateways()
                .map(|configured| (configured.gateway, configured.backend))
                .collect::<Vec<_>>(),
            proxy.clone(),
            ready.clone(),
            commander.clone(),
        );
        let mut node = Self {
            responder: Responder::new(
                &config.names().map_err(anyhow::Error::msg)?,
                config.endpoint.vip,
                config.endpoint.vip6,
                control.table(),
            )?
            .counting(metrics.faults.of(Fault::DnsPanicked).clone()),
            listeners: PodListeners {
                proxy,
                life: lives,
                alive,
                access: control.table(),
                arrivals: control.arrivals(),
                limits: ConnectionLimits::for_pods(config.limits.header_size, config.limits.idle_timeout()),
                limiter: ConnectionLimiter::new(budget.pods, budget.of_one_pod),
                turned_away: PodListeners::outside(),
                heads: PodListeners::heads(),
                bandwidth: Some(PodBandwidth::new(config.limits.pod_bandwidth.map(|limit| limit.0))),
                workers,
                streams: Streams::Pods(PodStreams::new(
                    tls,
                    config.named_endpoints().collect(),
                    pass_targets(&config),
                    vips.clone(),
                    metrics.clone(),
                    config.limits.idle_timeout(),
                )),
                vips,
                targets,
            },
            peer_port,
            admin: Admin {
                exposition,
                ready,
                control: commander,
                scraped: Arc::default(),
                reporter: Arc::new(reporter),
            },
            config,
            secrets,
            control,
            sockets,
            commands,
            kubernetes,
            pods,
            members,
            peers,
            life,
            peer_life,
            beat: watch::Sender::new(()),
            drained,
            tasks: JoinSet::new(),
        };
        let seen = inherited.take(SEEN_MESSAGES);
        inherited.serving()?;
        if let (Some(seen), Some(peers)) = (seen, &node.listeners.proxy.peers) {
            seen_messages::adopt(peers, seen)?;
        }
        node.open_doors()?;
        // Until here, the daemon before could have resumed serving with them.
        node.control.datapath().retire_other_layouts()?;
        node.listeners.proxy.cache.remove_other_formats();
        Ok(node)
    }

    /// Starts to accept on every socket.
    fn open_doors(&mut self) -> Result<()> {
        let first = &self.listeners.workers.first().clone();
        let sockets = self.sockets.accepting(first)?;
        for listener in sockets.hidden {
            self.tasks.spawn_on(self.listeners.clone().serve_pods(listener), first);
        }
        if let Some(listener) = sockets.peers {
            self.tasks.spawn_on(self.peer_port.clone().serve(listener, self.listeners.clone()), first);
        }
        for socket in sockets.dns_udp {
            let responder = self.responder.clone();
            self.tasks.spawn_on(async move { responder.serve_udp(socket).await }, first);
        }
        for listener in sockets.dns_tcp {
            let (responder, alive) = (self.responder.clone(), self.listeners.alive.clone());
            self.tasks.spawn_on(async move { responder.serve_tcp(listener, alive).await }, first);
        }
        let (secrets, proxy) = (self.secrets.clone(), self.listeners.proxy.clone());
        let peer_life = self.peer_life.clone();
        self.tasks.spawn_on(
            async move {
                loop {
                    tokio::time::sleep(SECRETS_INTERVAL).await;
                    secrets.refresh_on(&Handle::current(), &proxy, &peer_life).await;
                }
            },
            first,
        );
        let beat = self.beat.clone();
        self.tasks.spawn_on(async move { tick(&beat).await }, first);
        self.control.beat();
        let cache = self.listeners.proxy.cache.clone();
        self.tasks.spawn_on(async move { cache.run_upkeep().await }, first);
        self.tasks.spawn_on(self.listeners.proxy.pins.clone().follow(), first);
        if let Some(peers) = self.listeners.proxy.peers.clone() {
            self.tasks.spawn_on(async move { peers.look_for_the_lost().await }, first);
            let (cluster, members) = (self.listeners.proxy.cluster.clone(), self.members.clone());
            self.tasks.spawn_on(async move { cluster.follow(members).await }, first);
        }
        if let Some(kubernetes) = self.kubernetes.clone() {
            self.tasks.spawn_on(async move { kubernetes.follow().await }, first);
        }
        self.tasks.spawn_on(self.admin.clone().serve(sockets.admin, self.life.subscribe()), first);
        if let Some(listener) = sockets.metrics {
            self.tasks.spawn_on(self.admin.clone().serve_pods(listener, self.life.subscribe()), first);
        }
        let (control, reporter) = (self.admin.control.clone(), self.admin.reporter.clone());
        let proxy = self.listeners.proxy.clone();
        self.tasks.spawn_on(admin::socket::serve(sockets.admin_socket, control, proxy, reporter), first);
        self.admin.ready.store(true, Ordering::Release);
        tracing::info!(
            node = self.config.node.name,
            vip = %self.config.endpoint.vip,
            zone = self.config.endpoint.zone.as_str(),
            gateway = %self.config.gateway.endpoint,
            pins = %self.control.datapath().pins().display(),
            cached = self.listeners.proxy.cache.usage().objects,
            "ready"
        );
        Ok(())
    }

    /// Leaves names that need the daemon to other resolvers, and serves until pods have forgotten their addresses.
    async fn leave_names(&mut self) {
        match self.control.stop_answering() {
            Ok(true) => tokio::time::sleep(SHORT_TTL).await,
            Ok(false) => {}
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "cannot end the heartbeat; intercepted names lead to LOTA until it is stale"
            ),
        }
    }

    /// Applies the changes of the configuration and of files with secrets that a running daemon can apply, and verifies gateway
    /// servers again that failed verification. Returns the changed keys that apply only after a restart.
    ///
    /// # Errors
    /// If the configuration cannot be read, in which case nothing of it has changed; if the kernel refuses; or if a file with
    /// secrets cannot be used, after everything else has been applied.
    async fn reload(&mut self, reload: &Reload) -> Result<Vec<String>, ControlError> {
        let (worker, proxy) = (self.listeners.workers.first(), &self.listeners.proxy);
        let secrets = self.secrets.refresh_on(worker, proxy, &self.peer_life).await;
        self.listeners.proxy.stores.each().for_each(|store| store.gateway.try_again());
        let Reloaded { access, public_keys, later } = reload.read().map_err(|error| {
            tracing::error!(%error, "cannot reload the configuration; keeping the previous one");
            ControlError::Conflict(error.to_string())
        })?;
        // Before anything that can fail: a key that was removed must not count any more. A node that is about to leave keys of nodes
        // needs its keys until then.
        if let (Some(peers), Some(public_keys)) = (&self.listeners.proxy.peers, public_keys) {
            peers.publish(public_keys);
        }
        self.control.check_identity(&access).map_err(|error| {
            tracing::error!(error = format!("{error:#}"), "cannot reload [access]; keeping the previous one");
            ControlError::Conflict(format!("{error:#}"))
        })?;
        if let Some(kubernetes) = &self.kubernetes {
            kubernetes.set_rules(pod_rules(&access));
        }
        self.control.set_access(access).await.map_err(|error| {
            tracing::error!(error = format!("{error:#}"), "cannot apply all of [access]");
            ControlError::Failed(error)
        })?;
        tracing::info!("configuration reloaded; [access] and public keys of nodes apply now");
        for key in &later {
            tracing::warn!(
                key,
                "changed, but applies only after a restart: start a new daemon, which takes over"
            );
        }
        if !secrets.trouble.is_empty() {
            let trouble = secrets.trouble.join("; ");
            return Err(ControlError::Conflict(format!("{trouble}; still using what was read before")));
        }
        Ok(later)
    }

    /// Updates access after an update from the API server.
    async fn follow_pods(&mut self, trouble: &mut Option<String>) {
        let pods = self.pods.borrow_and_update().clone();
        let Some(pods) = pods else { return };
        let received = pods.at;
        match self.control.set_pods(pods).await {
            Ok(()) => self.enforced_since(received),
            Err(error) => self.say(trouble, Some(format!("{error:#}"))),
        }
    }

    /// Looks for the interfaces and cgroups of new pods.
    async fn look_for_pods(&mut self, trouble: &mut Option<String>) {
        if self.control.awaits_pods() {
            self.follow(trouble).await;
        } else if let Err(error) = self.control.follow_cgroups() {
            self.say(trouble, Some(format!("{error:#}")));
        }
    }

    /// Follows changes of the interfaces. A problem is logged once, and the update is retried.
    async fn follow(&mut self, trouble: &mut Option<String>) {
        let now = self.control.follow().await.err().map(|error| format!("{error:#}"));
        self.say(trouble, now);
    }

    fn say(&self, trouble: &mut Option<String>, now: Option<String>) {
        if now != *trouble
            && let Some(error) = &now
        {
            tracing::error!(
                node = self.config.node.name,
                error,
                "cannot apply all changes of interfaces and pods"
            );
        }
        *trouble = now;
    }

    /// Records the time from when the node learned of a change until now, when the kernel enforces it.
    fn enforced_since(&self, received: Instant) {
        self.listeners.proxy.metrics.access_lag.observe(received.elapsed());
    }
}

/// Changes the value every second.
async fn tick(beat: &watch::Sender<()>) {
    let mut interval = tokio::time::interval(HEARTBEAT_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        beat.send_replace(());
    }
}
