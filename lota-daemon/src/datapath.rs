//! The kernel side, as the daemon sees it. The only module that names aya.
//!
//! Maps and links are pinned: they outlive the daemon, so that with the daemon gone pods are still refused
//! rather than reaching whoever else listens.

mod attach;
mod interfaces;
mod maps;
pub mod netlink;
mod pins;
mod preflight;
mod query;
mod status;
mod translation;

use std::{
    collections::BTreeMap,
    fs::File,
    net::{IpAddr, TcpListener},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use lota_common::{Settings, program};

pub use attach::{AttachMode, GuardMode};
pub use interfaces::{INSTEAD, Interface, Interfaces, Plan, Steering};
pub use maps::{Denied, VerdictCounts};
pub use preflight::preflight;
pub use status::{InterfaceStatus, Status};

use self::{
    maps::{Maps, Pinned},
    netlink::Netlink,
    pins::Pins,
};
use crate::{access::Table, config};

/// The programs, as `build.rs` left them.
pub static OBJECT: &[u8] = include_bytes_aligned!(env!("LOTA_PROGRAMS"));

/// The loaded programs, and the maps they share with the daemon.
pub struct Datapath {
    ebpf: Ebpf,
    maps: Maps,
    pins: Pins,
    attach: config::Attach,
    /// The interfaces that are steered, by index.
    steered: BTreeMap<u32, Attached>,
    /// Those that are not, though they should be or were asked for, with the reason.
    unsteered: BTreeMap<u32, String>,
    /// The uplink that the guard is on, by interface index.
    guard: Option<(u32, GuardMode)>,
    /// Why there is none, though one is configured.
    guard_problem: Option<String>,
    translation_problem: Option<String>,
    /// Does socket lookup steer? Else it only refuses.
    lookups: bool,
}

#[derive(Clone, Copy, Debug)]
struct Attached {
    mode: AttachMode,
    /// The number of the program that is on it, if one is.
    program: u32,
}

/// The programs, loaded against the pinned maps and not attached yet.
pub struct Loaded {
    ebpf: Ebpf,
    maps: Maps,
}

impl Loaded {
    /// Loads the programs, and makes those maps that are missing. With a daemon running this changes nothing of its,
    /// and is most of the work of following it.
    ///
    /// # Errors
    /// If the kernel refuses, or pinned maps have another shape.
    pub fn new(config: &config::Datapath) -> Result<Self> {
        let folder = Pins::folder_in(&config.pins);
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        maps::check_shapes(&folder)?;
        let mut loader = EbpfLoader::new();
        for shape in &maps::SHAPES {
            loader.map_pin_path(shape.name, folder.join(shape.name));
        }
        let mut ebpf = loader.load(OBJECT).context("loading the kernel side")?;
        let maps = Maps::take(&mut ebpf)?;
        attach::load(&mut ebpf).context("loading the programs")?;
        Ok(Self { ebpf, maps })
    }
}

impl Datapath {
    /// Takes the pinned maps over, and puts a program at socket lookup. `lock` is what an earlier daemon handed over;
    /// `loaded` what was loaded meanwhile.
    ///
    /// # Errors
    /// If the kernel refuses, pinned maps have another shape, or another daemon has not handed over.
    pub fn load(
        config: &config::Datapath,
        settings: Settings,
        lock: Option<&File>,
        loaded: Option<Loaded>,
    ) -> Result<Self> {
        let pins = Pins::open(&config.pins, lock)?;
        let Loaded { mut ebpf, mut maps } = match loaded {
            Some(loaded) => loaded,
            None => Loaded::new(config)?,
        };
        start_log(&mut ebpf);
        let lookups = attach::lookup(&mut ebpf, &pins).context("attaching at socket lookup")?;
        maps.set_settings(Settings { lookups: u8::from(lookups), ..settings })?;
        Ok(Self {
            ebpf,
            maps,
            pins,
            attach: config.attach,
            steered: BTreeMap::new(),
            unsteered: BTreeMap::new(),
            guard: None,
            guard_problem: None,
            translation_problem: None,
            lookups,
        })
    }

    /// Puts settings and lookups back, and has everything else attached again: another daemon may have been at it, or
    /// not have come as far.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn reassert(&mut self, settings: Settings) -> Result<()> {
        self.steered.clear();
        self.guard = None;
        attach::renew_all(&mut self.ebpf)?;
        self.lookups = attach::lookup(&mut self.ebpf, &self.pins)?;
        self.maps.set_settings(Settings { lookups: u8::from(self.lookups), ..settings })
    }

    /// Hands pods' connections to this listener from now on, in its family.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_listener(&mut self, listener: &TcpListener) -> Result<()> {
        self.maps.set_listener(listener)
    }

    /// Steers exactly the interfaces of this plan; what is new among them, with how that went.
    pub fn set_interfaces(
        &mut self,
        interfaces: &Interfaces,
        plan: &Plan,
    ) -> Vec<(String, Result<AttachMode>)> {
        let is = |index: &u32, steering| plan.steered.get(index) == Some(&steering);
        self.steered.retain(|index, attached| match attached.mode {
            AttachMode::SkLookup => is(index, Steering::Lookup),
            AttachMode::Tcx | AttachMode::Clsact => is(index, Steering::Tc),
        });
        // Those that cannot be attached to keep what an earlier daemon had put there.
        let by_tc = plan.steered.iter().filter(|(_, steering)| **steering == Steering::Tc);
        self.pins.keep_only_pod_links(by_tc.map(|(index, _)| *index));
        let mut reports = Vec::new();
        self.unsteered = plan.skipped.clone();
        for (index, steering) in &plan.steered {
            let name = interfaces.name(*index).unwrap_or_default().to_owned();
            if self.steered.contains_key(index) {
                continue;
            }
            let attached = match steering {
                Steering::Lookup if !self.lookups => {
                    Err(anyhow!("this kernel cannot steer at socket lookup (5.17 can)"))
                }
                Steering::Lookup => {
                    attach::remove_clsact(&name);
                    Ok(Attached { mode: AttachMode::SkLookup, program: 0 })
                }
                Steering::Tc => self.attach(&name, *index),
            };
            match &attached {
                Ok(attached) => {
                    self.steered.insert(*index, *attached);
                }
                Err(error) => {
                    self.unsteered.insert(*index, format!("{error:#}"));
                }
            }
            reports.push((name, attached.map(|attached| attached.mode)));
        }
        // Those alone that have what they should: socket lookup steers nothing that TC does not look after.
        let modes = self.steered.iter().map(|(index, attached)| (*index, attached.mode)).collect();
        if let Err(error) = self.maps.set_interfaces(&modes) {
            reports.push(("every interface".to_owned(), Err(error)));
        }
        reports
    }

    fn attach(&mut self, name: &str, index: u32) -> Result<Attached> {
        let mode = attach::pod(&mut self.ebpf, &self.pins, name, index, self.attach)?;
        Ok(Attached { mode, program: attach::id(&mut self.ebpf, program::POD)? })
    }

    /// Keeps address translation away from the virtual addresses. Whether the kernel can, [`Status`] says.
    pub fn keep_translation_away(&mut self, vips: &[IpAddr]) {
        let kept = translation::keep_away(vips).map_err(|error| format!("{error:#}"));
        if let Err(problem) = &kept
            && self.translation_problem.is_none()
        {
            tracing::warn!(problem, "host port 80 is not safe on this node: see docs/troubleshooting.md");
        }
        self.translation_problem = kept.err();
    }

    /// Does somebody else's change let translation in again?
    #[must_use]
    pub fn has_let_translation_in(&self) -> bool {
        !translation::is_kept_away()
    }

    /// Puts the pod program back ahead of others wherever one has gone before it; where that was.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn regain_heads(&mut self, interfaces: &Interfaces) -> Result<Vec<String>> {
        let mut regained = Vec::new();
        let by_tcx: Vec<u32> = self
            .steered
            .iter()
            .filter(|(_, on)| on.mode == AttachMode::Tcx)
            .map(|(index, _)| *index)
            .collect();
        for index in by_tcx {
            // No answer: the interface is just gone.
            let Ok(ids) = query::tcx_ingress(index) else { continue };
            if ids.first() == self.steered.get(&index).map(|attached| &attached.program) {
                continue;
            }
            let Some(name) = interfaces.name(index) else { continue };
            attach::pod_again(&mut self.ebpf, &self.pins, name, index)
                .with_context(|| format!("going ahead of others on {name}"))?;
            let program = attach::id(&mut self.ebpf, program::POD)?;
            self.steered.insert(index, Attached { mode: AttachMode::Tcx, program });
            regained.push(name.to_owned());
        }
        Ok(regained)
    }

    /// How many programs see an interface's packets before ours does.
    fn position(&self, index: u32) -> Option<usize> {
        let ours = self.steered.get(&index)?.program;
        query::tcx_ingress(index).ok()?.iter().position(|id| *id == ours)
    }

    /// Puts the guard on the uplink, unless it is there; how, if it was not.
    ///
    /// # Errors
    /// If nothing holds there.
    pub fn set_uplink(&mut self, interface: &str, index: u32) -> Result<Option<GuardMode>> {
        if self.guard.is_some_and(|(guarded, _)| guarded == index) {
            return Ok(None);
        }
        let guarded = attach::guard(&mut self.ebpf, &self.pins, interface, index, self.attach);
        self.guard_problem = guarded.as_ref().err().map(|error| format!("{error:#}"));
        self.guard = guarded.as_ref().ok().map(|mode| (index, *mode));
        guarded.map(Some)
    }

    /// Makes the access maps hold exactly this.
    ///
    /// # Errors
    /// If the kernel refuses, as it does when a map is full.
    pub fn set_access(&mut self, table: &Table) -> Result<()> {
        self.maps.set_access(table)
    }

    /// What the access maps hold.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn access(&self) -> Result<Table> {
        self.maps.access()
    }

    /// Makes the node maps hold exactly these addresses; true marks this node's own.
    ///
    /// # Errors
    /// As for access.
    pub fn set_nodes(&mut self, nodes: &BTreeMap<IpAddr, bool>) -> Result<()> {
        self.maps.set_nodes(nodes)
    }

    /// Removes what builds with other layouts have left in the kernel, now that this one's is in place.
    ///
    /// # Errors
    /// If a pin cannot be removed.
    pub fn retire_other_layouts(&self) -> Result<()> {
        self.pins.remove_other_layouts().context("removing the pins of another build's layout")
    }

    /// How often each verdict was given.
    #[must_use]
    pub fn verdicts(&self) -> VerdictCounts {
        self.maps.verdicts()
    }

    /// Where everything is pinned.
    #[must_use]
    pub fn pins(&self) -> &Path {
        self.pins.folder()
    }

    /// What says that this process is the one that writes there, to hand over.
    #[must_use]
    pub fn lock(&self) -> Option<&File> {
        self.pins.lock()
    }

    /// Lets go of the pins, for the daemon that has them now and those after it.
    pub fn release_lock(&mut self) {
        self.pins.release_lock();
    }
}

/// What a node's pinned maps say, to whoever may read them, daemon or no daemon.
#[derive(Clone, Debug)]
pub struct PinnedMaps(PathBuf);

impl PinnedMaps {
    /// Looks at the maps under this configuration's folder.
    #[must_use]
    pub fn new(config: &config::Datapath) -> Self {
        Self(Pins::folder_in(&config.pins))
    }

    /// Who has access.
    ///
    /// # Errors
    /// If there are no maps, or they may not be read.
    pub fn access(&self) -> Result<Table> {
        Pinned(&self.0).access()
    }

    /// Who was refused, last first.
    ///
    /// # Errors
    /// As for access.
    pub fn denied(&self) -> Result<Vec<Denied>> {
        Pinned(&self.0).denied()
    }
}

/// Takes LOTA out of the kernel: first the virtual addresses, which would otherwise be anyone's who listens on
/// the node, then the programs and maps of every layout.
///
/// # Errors
/// If something of it cannot be removed.
pub async fn detach(config: &config::Datapath, vips: &[IpAddr]) -> Result<()> {
    pins::check_unused(&config.pins).context("the daemon must be stopped first")?;
    let netlink = Netlink::connect()?;
    for vip in vips {
        netlink.remove_virtual_address(*vip).await?;
    }
    translation::let_in()?;
    let interfaces = netlink.interfaces().await?;
    for index in interfaces.plan(config, true).steered.keys() {
        attach::remove_clsact(interfaces.name(*index).unwrap_or_default());
    }
    config.uplink.iter().for_each(|uplink| attach::remove_clsact(uplink));
    pins::remove_all(&config.pins).with_context(|| format!("removing {}", config.pins.display()))
}

#[cfg(feature = "datapath-log")]
fn start_log(ebpf: &mut Ebpf) {
    match aya_log::EbpfLogger::init(ebpf) {
        Ok(mut logger) => {
            tokio::spawn(async move {
                let mut often = tokio::time::interval(std::time::Duration::from_millis(100));
                loop {
                    often.tick().await;
                    logger.flush();
                }
            });
        }
        Err(error) => tracing::warn!(%error, "no log from the kernel side"),
    }
}

#[cfg(not(feature = "datapath-log"))]
fn start_log(_: &mut Ebpf) {}
