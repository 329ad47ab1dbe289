//! The kernel side, as the daemon sees it. The only module that names aya.
//!
//! Maps and links are pinned: they outlive the daemon, so that with the daemon gone pods are still refused
//! rather than reaching whoever else listens.

mod attach;
mod maps;
pub mod netlink;
mod pins;
mod preflight;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, TcpListener},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use lota_common::{Settings, program};

pub use attach::{AttachMode, GuardMode};
pub use maps::VerdictCounts;
pub use preflight::preflight;

use self::{maps::Maps, netlink::Netlink, pins::Pins};
use crate::config;

/// The programs, as `build.rs` left them.
pub static OBJECT: &[u8] = include_bytes_aligned!(env!("LOTA_PROGRAMS"));

/// The loaded programs, and the maps they share with the daemon.
pub struct Datapath {
    ebpf: Ebpf,
    maps: Maps,
    pins: Pins,
    attach: config::Attach,
    /// The interfaces that the pod program is on, by index.
    attached: BTreeSet<u32>,
    /// The uplink that the guard is on, by interface index.
    guarded: Option<u32>,
}

impl Datapath {
    /// Loads the programs against the pinned maps, makes those that are missing, and puts the backstop in
    /// place.
    ///
    /// # Errors
    /// If the kernel refuses, or pinned maps have another shape.
    pub fn load(config: &config::Datapath, settings: Settings) -> Result<Self> {
        let pins = Pins::open(&config.pins)?;
        maps::check_shapes(&pins)?;
        let mut loader = EbpfLoader::new();
        for shape in &maps::SHAPES {
            loader.map_pin_path(shape.name, pins.map(shape.name));
        }
        let mut ebpf = loader.load(OBJECT).context("loading the kernel side")?;
        start_log(&mut ebpf);
        let mut maps = Maps::take(&mut ebpf)?;
        maps.set_settings(settings)?;
        for name in [program::POD, program::BACKSTOP, program::GUARD] {
            attach::load(&mut ebpf, name).with_context(|| format!("loading the program {name}"))?;
        }
        attach::backstop(&mut ebpf, &pins).context("attaching the backstop")?;
        Ok(Self { ebpf, maps, pins, attach: config.attach, attached: BTreeSet::new(), guarded: None })
    }

    /// Hands pods' connections to this listener from now on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_listener(&mut self, listener: &TcpListener) -> Result<()> {
        self.maps.set_listener(listener)
    }

    /// Attaches to exactly these pod-facing interfaces (name and index); what is new among them, with how it
    /// was attached.
    pub fn set_interfaces(
        &mut self,
        interfaces: &BTreeMap<String, u32>,
    ) -> Vec<(String, Result<AttachMode>)> {
        self.attached.retain(|index| interfaces.values().any(|known| known == index));
        // Those that cannot be attached to keep what an earlier daemon had put there.
        self.pins.keep_only_pod_links(interfaces.values().copied());
        let mut reports = Vec::new();
        for (name, index) in interfaces {
            if self.attached.contains(index) {
                continue;
            }
            let mode = attach::pod(&mut self.ebpf, &self.pins, name, *index, self.attach);
            if mode.is_ok() {
                self.attached.insert(*index);
            }
            reports.push((name.clone(), mode));
        }
        reports
    }

    /// Puts the guard on the uplink, unless it is there; how, if it was not.
    ///
    /// # Errors
    /// If no mode of XDP holds there.
    pub fn set_uplink(&mut self, interface: &str, index: u32) -> Result<Option<GuardMode>> {
        if self.guarded == Some(index) {
            return Ok(None);
        }
        let mode = attach::guard(&mut self.ebpf, &self.pins, interface, index)?;
        self.guarded = Some(index);
        Ok(Some(mode))
    }

    /// Makes the access maps hold exactly these entries: pod address → interface index.
    ///
    /// # Errors
    /// If the kernel refuses, as it does when a map is full.
    pub fn set_access(&mut self, entries: &BTreeMap<IpAddr, u32>) -> Result<()> {
        self.maps.set_access(entries)
    }

    /// Makes the node maps hold exactly these addresses; true marks this node's own.
    ///
    /// # Errors
    /// As for access.
    pub fn set_nodes(&mut self, nodes: &BTreeMap<IpAddr, bool>) -> Result<()> {
        self.maps.set_nodes(nodes)
    }

    /// A handle to the verdict counters.
    ///
    /// # Errors
    /// If the map cannot be opened a second time.
    pub fn verdicts(&self) -> Result<VerdictCounts> {
        VerdictCounts::open(&self.pins)
    }

    /// Where everything is pinned.
    #[must_use]
    pub fn pins(&self) -> &Path {
        self.pins.folder()
    }
}

/// Takes LOTA out of the kernel: first the virtual address, which would otherwise be anyone's who listens on
/// the node, then the programs and maps of every layout.
///
/// # Errors
/// If something of it cannot be removed.
pub async fn detach(config: &config::Datapath, vip: IpAddr) -> Result<()> {
    let netlink = Netlink::connect()?;
    netlink.remove_virtual_address(vip).await?;
    for interface in netlink::matching(&netlink.interfaces().await?, &config.pod_interfaces).keys() {
        attach::remove_clsact(interface);
    }
    pins::remove_all(&config.pins).with_context(|| format!("removing {}", config.pins.display()))
}

#[cfg(feature = "datapath-log")]
fn start_log(ebpf: &mut Ebpf) {
    match aya_log::EbpfLogger::init(ebpf) {
        Ok(logger) => match tokio::io::unix::AsyncFd::with_interest(logger, tokio::io::Interest::READABLE) {
            Ok(mut logger) => {
                tokio::spawn(async move {
                    while let Ok(mut ready) = logger.readable_mut().await {
                        ready.get_inner_mut().flush();
                        ready.clear_ready();
                    }
                });
            }
            Err(error) => tracing::warn!(%error, "no log from the kernel side"),
        },
        Err(error) => tracing::warn!(%error, "no log from the kernel side"),
    }
}

#[cfg(not(feature = "datapath-log"))]
fn start_log(_: &mut Ebpf) {}
