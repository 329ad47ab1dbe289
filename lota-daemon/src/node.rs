//! One node: the one place that knows every part, and wires them.

mod door;
mod road;

use std::{
    fs::File,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    net::UnixStream,
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinSet,
};

use self::{
    door::Door,
    road::{configured_members, proxy},
};
use crate::{
    admin::{self, Admin, Ready},
    cluster::Members,
    config::{Config, Reload, Reloaded},
    control::{Command, Control, HTTP_PORT},
    datapath::{self, Loaded, netlink},
    dns::Responder,
    handover::{Inherited, Taker},
    http::{
        Seats,
        server::{Life, Limits},
    },
    kubernetes::{Kubernetes, Told},
    metrics::{Exposition, Metrics},
    report::Reporter,
    sockets::{CACHE_LOCK, PINS_LOCK, Sockets},
    workers::Workers,
};

/// Longest a stopping node waits for answers under way, and one that has handed over for its idle clients.
const DRAIN: Duration = Duration::from_secs(30);
/// How often the order of programs on the interfaces is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How soon connections that a successor inherits from nobody learn of its changes of access, and how often a new pod's
/// interface is looked for.
const RELOOK: Duration = Duration::from_millis(250);
/// Most commands that wait for the control part.
const COMMANDS: usize = 64;

/// Runs the node until it is told to stop, another daemon has taken over, or a part of it fails. `workers` run what
/// handles requests; the caller's own runtime changes the kernel side.
///
/// # Errors
/// What failed, and to what it was being done.
pub async fn run(
    config: Config,
    mut reload: Reload,
    mut stop: watch::Receiver<bool>,
    workers: Workers,
) -> Result<()> {
    datapath::preflight(&config.datapath.pins)
        .map_err(|missing| anyhow!("cannot hold the datapath: {missing}"))?;
    raise_descriptor_limit();
    let config = Arc::new(config);
    let mut node = Node::start(config.clone(), workers).await?;
    let handover = node.sockets.handover(&Handle::current())?;
    let (mut look, mut relook) = (tokio::time::interval(LOOK), tokio::time::interval(RELOOK));
    let mut trouble = None;
    let handed_over = loop {
        tokio::select! {
            changed = node.control.changed() => {
                changed?;
                let heard = Instant::now();
                node.follow(&mut trouble).await;
                node.enforced_since(heard);
            }
            _ = look.tick() => {
                if trouble.is_some() {
                    node.follow(&mut trouble).await;
                }
                node.control.regain();
                if let Some(kubernetes) = &node.kubernetes {
                    node.door.proxy.metrics.kubernetes.set(kubernetes.health().is_up());
                }
            }
            Ok(()) = node.pods.changed() => node.follow_pods(&mut trouble).await,
            _ = relook.tick(), if node.control.awaits_pods() => node.follow(&mut trouble).await,
            Ok(()) = node.peers.changed() => {
                let peers = node.peers.borrow_and_update().clone();
                if let Err(error) = node.control.set_peers(peers) {
                    tracing::error!(error = format!("{error:#}"), "the guard does not know all nodes");
                }
            }
            // Told in the log.
            () = reload.asked() => drop(node.reload(&reload).await),
            Some(command) = node.commands.recv() => {
                if let Command::Reload(answer) = command {
                    let _ = answer.send(node.reload(&reload).await);
                    continue;
                }
                let (heard, is_word) = (Instant::now(), matches!(command, Command::Access(..)));
                node.control.obey(command).await;
                if is_word {
                    node.enforced_since(heard);
                }
            }
            Some(ended) = node.doors.join_next() => ended.context("a part of the node panicked")?,
            asked = handover.accept() => {
                if node.asked_to_hand_over(asked).await? {
                    break true;
                }
            }
            _ = stop.wait_for(|stop| *stop) => break false,
        }
    };
    // Whoever asks next asks the next daemon.
    drop(handover);
    let is_pod = node.config.kubernetes.is_some();
    node.end(handed_over, stop.clone()).await;
    if handed_over && is_pod {
        // A pod that ends by itself is started again, and would take over from its successor.
        tracing::info!("finished what was begun; waiting to be told to end");
        let _ = stop.wait_for(|stop| *stop).await;
    }
    Ok(())
}

/// A running node.
struct Node {
    config: Arc<Config>,
    control: Control,
    sockets: Sockets,
    door: Door,
    admin: Admin,
    responder: Responder,
    commands: mpsc::Receiver<Command>,
    kubernetes: Option<Arc<Kubernetes>>,
    /// What the API server tells of this node's pods.
    pods: watch::Receiver<Option<Told>>,
    /// Who the nodes are said to be.
    members: watch::Receiver<Members>,
    /// Their addresses.
    peers: watch::Receiver<Vec<IpAddr>>,
    life: watch::Sender<Life>,
    /// Ends when the last connection has.
    drained: mpsc::Receiver<()>,
    /// Everything that accepts or receives.
    doors: JoinSet<()>,
}

impl Node {
    async fn start(config: Arc<Config>, workers: Workers) -> Result<Self> {
        // Loading takes a while, in which the daemon that runs may as well go on.
        let loaded = match Inherited::is_offered(&config.admin.socket) {
            true => Some(Loaded::new(&config.datapath)?),
            false => None,
        };
        let mut inherited = Inherited::ask(&config.admin.socket)?;
        if inherited.is_some() {
            tracing::info!("taking over from the daemon that runs");
        }
        let metrics = Metrics::default();
        let lock = inherited.take(PINS_LOCK).map(File::from);
        let mut control = Control::start(config.clone(), lock.as_ref(), loaded).await?;
        let locks: Vec<File> = inherited.take_all(CACHE_LOCK).into_iter().map(File::from).collect();
        let proxy = Arc::new(proxy(&config, metrics.clone(), &locks)?);
        let (teller, members) = watch::channel(configured_members(&config));
        proxy.cluster.set_members(members.borrow().clone());
        let kubernetes = Kubernetes::new(&config, teller).map(Arc::new);
        let pods = kubernetes.as_ref().map_or_else(|| watch::channel(None).1, |kubernetes| kubernetes.pods());
        if config.datapath.uplink.is_none() {
            tracing::warn!("no datapath.uplink: the peer port is kept by the cluster's secret alone");
        }
        if let Err(error) = netlink::reserve_port(config.peer_port()) {
            tracing::warn!(port = config.peer_port(), %error, "cannot reserve the peer port");
        }
        let sockets = Sockets::open(&config, &mut inherited)?;
        control.set_listeners(&sockets.hidden)?;

        let (life, lives) = watch::channel(Life::Serving);
        let (alive, drained) = mpsc::channel::<()>(1);
        let (commander, commands) = mpsc::channel(COMMANDS);
        let exposition = Arc::new(Exposition::new(
            &metrics,
            proxy.cache.clone(),
            proxy.gateway.clone(),
            proxy.peers.clone(),
        ));
        let vips = config.endpoint.vips().into_iter().map(|vip| SocketAddr::new(vip, HTTP_PORT)).collect();
        let peers = proxy.cluster.addresses();
        let ready = Ready::default();
        let reporter = Reporter::new(config.clone(), proxy.clone(), ready.clone(), commander.clone());
        let mut node = Self {
            responder: Responder::new(&config.endpoint.zone, config.endpoint.vip, config.endpoint.vip6)?,
            door: Door {
                proxy,
                life: lives,
                alive,
                vips,
                access: control.table(),
                limits: Limits::for_pods(&config.limits),
                seats: Seats::new(config.limits.connections, config.limits.connections_per_pod),
                turned_away: Door::outside(),
                workers,
            },
            admin: Admin {
                exposition,
                ready,
                control: commander,
                asked: Arc::default(),
                reporter: Arc::new(reporter),
            },
            config,
            control,
            sockets,
            commands,
            kubernetes,
            pods,
            members,
            peers,
            life,
            drained,
            doors: JoinSet::new(),
        };
        inherited.serving()?;
        node.open_doors()?;
        node.control.datapath().retire_other_layouts()?;
        Ok(node)
    }

    /// Begins to accept, on every socket.
    fn open_doors(&mut self) -> Result<()> {
        let first = &self.door.workers.first().clone();
        let sockets = self.sockets.accepting(first)?;
        for listener in sockets.hidden {
            self.doors.spawn_on(self.door.clone().serve_pods(listener), first);
        }
        if let Some(listener) = sockets.peers {
            self.doors.spawn_on(self.door.clone().serve_peers(listener), first);
        }
        for socket in sockets.dns_udp {
            let responder = self.responder.clone();
            self.doors.spawn_on(async move { responder.serve_udp(socket).await }, first);
        }
        for listener in sockets.dns_tcp {
            let (responder, alive) = (self.responder.clone(), self.door.alive.clone());
            self.doors.spawn_on(async move { responder.serve_tcp(listener, alive).await }, first);
        }
        let cache = self.door.proxy.cache.clone();
        self.doors.spawn_on(async move { cache.keep().await }, first);
        if let Some(peers) = self.door.proxy.peers.clone() {
            self.doors.spawn_on(async move { peers.look_for_the_lost().await }, first);
            let (cluster, members) = (self.door.proxy.cluster.clone(), self.members.clone());
            self.doors.spawn_on(async move { cluster.follow(members).await }, first);
        }
        if let Some(kubernetes) = self.kubernetes.clone() {
            self.doors.spawn_on(async move { kubernetes.follow().await }, first);
        }
        self.doors.spawn_on(self.admin.clone().serve(sockets.admin, self.life.subscribe()), first);
        if let Some(listener) = sockets.metrics {
            self.doors.spawn_on(self.admin.clone().serve_pods(listener, self.life.subscribe()), first);
        }
        let (control, reporter) = (self.admin.control.clone(), self.admin.reporter.clone());
        let proxy = self.door.proxy.clone();
        self.doors.spawn_on(admin::socket::serve(sockets.admin_socket, control, proxy, reporter), first);
        self.admin.ready.store(true, Ordering::Release);
        tracing::info!(
            node = self.config.node.name,
            vip = %self.config.endpoint.vip,
            zone = self.config.endpoint.zone.as_str(),
            gateway = %self.config.gateway.endpoint,
            pins = %self.control.datapath().pins().display(),
            cached = self.door.proxy.cache.usage().objects,
            "ready"
        );
        Ok(())
    }

    /// Takes up what has changed in the configuration, as far as a daemon that runs can, and has a gateway that failed its
    /// trial tried again. What has changed, and holds only with the next daemon.
    ///
    /// # Errors
    /// If it cannot be read, and nothing has changed; or if the kernel refuses.
    async fn reload(&mut self, reload: &Reload) -> Result<Vec<String>, String> {
        self.door.proxy.gateway.try_again();
        let Reloaded { access, later } = reload.read().map_err(|error| {
            tracing::error!(%error, "the configuration is not read again; what it said before holds");
            error.to_string()
        })?;
        if let Some(kubernetes) = &self.kubernetes {
            kubernetes.set_rules(access.from.clone());
        }
        self.control.set_access(access).await.map_err(|error| {
            tracing::error!(error = format!("{error:#}"), "not all of [access] holds");
            format!("{error:#}")
        })?;
        tracing::info!("the configuration is read again, and [access] holds as it is now");
        for key in &later {
            tracing::warn!(
                key,
                "changed, and holds with the next daemon: start it beside this one, which hands over"
            );
        }
        Ok(later)
    }

    /// Lets in the pods that the API server has just told of.
    async fn follow_pods(&mut self, trouble: &mut Option<String>) {
        let told = self.pods.borrow_and_update().clone();
        let Some(told) = told else { return };
        let heard = told.at;
        match self.control.set_pods(told).await {
            Ok(()) => self.enforced_since(heard),
            Err(error) => self.say(trouble, Some(format!("{error:#}"))),
        }
    }

    /// Follows the interfaces; what was in the way is said once, and tried again.
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
                "not everything follows interfaces and pods"
            );
        }
        *trouble = now;
    }

    /// What the node has heard of access, the kernel enforces now.
    fn enforced_since(&self, heard: Instant) {
        self.door.proxy.metrics.access_lag.observe(heard.elapsed());
    }

    /// Someone has connected to the socket for handing over; true once another daemon serves.
    async fn asked_to_hand_over(
        &mut self,
        asked: io::Result<(UnixStream, tokio::net::unix::SocketAddr)>,
    ) -> Result<bool> {
        let greeted = match asked {
            Ok((stream, _)) => Taker::greet(stream).await,
            Err(error) => {
                // For want of descriptors, say: soon there may be some.
                tokio::time::sleep(LOOK).await;
                Err(error.into())
            }
        };
        match greeted {
            Ok(Some(taker)) => self.hand_over(taker).await,
            Ok(None) => Ok(false),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "nothing is handed over");
                Ok(false)
            }
        }
    }

    /// Gives everything to another daemon; true once that one serves. If it does not, this one goes on.
    ///
    /// # Errors
    /// If it cannot.
    async fn hand_over(&mut self, taker: Taker) -> Result<bool> {
        while let Ok(command) = self.commands.try_recv() {
            self.control.obey(command).await;
        }
        // What connects from here on waits in the sockets, which both have.
        self.doors.abort_all();
        while self.doors.join_next().await.is_some() {}
        let cache = &self.door.proxy.cache;
        cache.set_handed_over(true);
        let cache_locks = cache.locks()?;
        let mut given = self.sockets.names();
        given.extend(self.control.datapath().lock().map(|lock| (PINS_LOCK.to_owned(), lock.as_fd())));
        let of_disks = cache_locks.iter().enumerate();
        given.extend(of_disks.map(|(disk, lock)| (format!("{CACHE_LOCK}{disk}"), lock.as_fd())));
        let given = {
            let mut give = std::pin::pin!(taker.give(&given));
            let mut relook = tokio::time::interval(RELOOK);
            loop {
                tokio::select! {
                    given = &mut give => break given,
                    _ = relook.tick() => self.control.publish_kernel_table(),
                }
            }
        };
        match given {
            Ok(true) => {
                // Should that one die while this one still finishes, the next must not find them locked.
                self.door.proxy.cache.release_locks();
                self.control.release_lock();
                return Ok(true);
            }
            Ok(false) => tracing::error!("the daemon that wanted to take over has failed; going on"),
            Err(error) => tracing::error!(error = format!("{error:#}"), "cannot hand over; going on"),
        }
        self.door.proxy.cache.set_handed_over(false);
        if let Err(error) = self.control.reassert(&self.sockets.hidden).await {
            tracing::error!(error = format!("{error:#}"), "not everything is as it was");
        }
        self.open_doors()?;
        Ok(false)
    }

    /// Finishes what was begun. The datapath stays: until the next daemon comes, pods are refused rather than lost.
    async fn end(self, handed_over: bool, mut stop: watch::Receiver<bool>) {
        let Self { control, sockets, door, admin, commands, life, mut drained, mut doors, .. } = self;
        admin.ready.store(false, Ordering::Release);
        doors.abort_all();
        let cache = door.proxy.cache.clone();
        drop((door, admin, doors, commands));
        if !handed_over {
            tracing::info!("stopping: no new connections, finishing answers under way");
            sockets.unlink();
            // Who comes now is refused, not kept waiting.
            drop(sockets);
            life.send_replace(Life::Ending);
            let _ = tokio::time::timeout(DRAIN, drained.recv()).await;
            cache.close();
            return;
        }
        tracing::info!("handed over: finishing what was begun");
        drop(sockets);
        life.send_replace(Life::Draining);
        // The successor writes the maps now.
        let follow = async {
            let mut relook = tokio::time::interval(RELOOK);
            loop {
                relook.tick().await;
                control.publish_kernel_table();
            }
        };
        let finish = async {
            tokio::select! {
                _ = drained.recv() => return,
                // Idle clients have had their time; transfers under way may take theirs,
                () = tokio::time::sleep(DRAIN) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            life.send_replace(Life::Ending);
            tokio::select! {
                _ = drained.recv() => return,
                _ = stop.wait_for(|stop| *stop) => {}
            }
            // or, once it is told to end, as long as they would have had without a successor.
            let _ = tokio::time::timeout(DRAIN, drained.recv()).await;
        };
        tokio::select! {
            () = follow => {}
            () = finish => {}
        }
    }
}

/// As many descriptors as the system allows: each connection is one, each open object another.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
