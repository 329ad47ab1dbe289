//! The user side of the eBPF programs: loads and attaches them, and reads and writes their maps. The only crate of
//! the daemon that depends on aya and needs the BPF toolchain.
//!
//! Maps and links are pinned: they remain when the daemon exits, so that pods are refused and reach no other
//! listener.

mod access_maps;
mod attach;
mod beside;
mod bridge;
mod cgroups;
mod claims;
mod config;
mod endpoint;
mod entries;
mod identity;
mod interfaces;
mod loader;
mod locate;
mod maps;
mod nat_exemption;
pub mod netlink;
mod nf_tables;
mod nfnetlink;
mod obstacle;
mod offline;
mod pins;
mod preflight;
mod query;
mod redirection;
mod routes;
pub mod rules;
mod skip_reason;
mod sought;
mod status;
mod table;
mod targets;

use std::{
    collections::BTreeMap,
    fs::File,
    net::{IpAddr, TcpListener},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::{Ebpf, include_bytes_aligned};

pub use attach::{AttachMode, GuardMode};
pub use cgroups::{CgroupHierarchy, CgroupProblem, PodCgroup, PodCgroups};
pub use claims::{AddressClaims, AddressRoute};
pub use config::{AttachConfig, DatapathConfig, RedirectionMode, WhenDown};
pub use endpoint::{EndpointName, EndpointNames, EndpointPorts, NameKind};
pub use identity::{AddressHolder, IdentifiedPod, IdentityStatus, IdentityTable, LocalAccess};
pub use interfaces::{
    Interface, Interfaces, LOOPBACK_INDEX, PeerInterface, PodLink, Redirection, RedirectionPlan,
};
pub use loader::Loaded;
pub use maps::{Attempts, Denied, VerdictCounts};
pub use nat_exemption::NatExemption;
pub use obstacle::{Obstacle, RuleObstacle, first_rule_obstacle, legacy_obstacle, subnet_obstacle};
pub use offline::{PinnedMaps, detach};
pub use preflight::{CAPABILITIES, Missing, preflight};
pub use routes::InterfaceSubnet;
pub use skip_reason::SkipReason;
pub use status::{ConnectionsStatus, DatapathStatus, HangingPod, InterfaceStatus, NodeProblem};
pub use table::{AccessEntry, AccessTable, AddressPlace, Subject};
pub use targets::{InterceptedTarget, Targets};

use self::{attach::Hook, maps::Maps, pins::Pins};

/// The compiled programs, built by `build.rs`.
pub static OBJECT: &[u8] = include_bytes_aligned!(env!("LOTA_PROGRAMS"));

/// The loaded programs, and the maps that they share with the daemon.
pub struct Datapath {
    ebpf: Ebpf,
    maps: Maps,
    pins: Pins,
    attach: AttachConfig,
    /// Redirected interfaces, by index.
    redirected: BTreeMap<u32, Attached>,
    /// Programs beside those of redirected interfaces, by hook and index of the interface.
    beside: BTreeMap<(Hook, u32), Attached>,
    /// Addresses and ports at which connections are intercepted.
    targets: Vec<InterceptedTarget>,
    /// Whether programs of the previous daemon at such places were removed.
    is_cleared: bool,
    /// Other interfaces that the plan names, with the reason why they are not redirected.
    skipped: BTreeMap<u32, SkipReason>,
    /// Interface index of the uplink that the guard is attached to, and how it is attached.
    guard: Option<(u32, GuardMode)>,
    /// Reason why the guard is not attached to the configured uplink.
    guard_problem: Option<String>,
    /// Exemption of the VIPs from address translation, or the reason why there is none.
    nat_exemption: Result<NatExemption, String>,
    /// Whether the socket lookup program redirects; otherwise it only refuses.
    lookups: bool,
    /// Whether programs are attached by tcx.
    uses_tcx: bool,
}

#[derive(Clone, Copy, Debug)]
struct Attached {
    mode: AttachMode,
    /// ID of the attached program; 0 if there is none.
    program: u32,
}

impl Datapath {
    /// Writes a sign of life. For three seconds from now, names that need the daemon are answered, and new connections to
    /// targets are intercepted.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn beat(&mut self) -> Result<()> {
        self.maps.set_heartbeat(true)
    }

    /// Returns the targets, with the port of the VIP that stands for each.
    #[must_use]
    pub fn targets(&self) -> &[InterceptedTarget] {
        &self.targets
    }

    /// Ends the answers for names that need the daemon at once, until the next sign of life.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn stop_answering(&mut self) -> Result<()> {
        self.maps.set_heartbeat(false)
    }

    /// Redirects pods' connections to this listener, for its address family.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_listener(&mut self, listener: &TcpListener) -> Result<()> {
        self.maps.set_listener(listener)
    }

    /// Exempts the VIPs from address translation. A failure is reported in [`DatapathStatus`].
    pub fn keep_translation_away(&mut self, vips: &[IpAddr]) {
        let kept = nat_exemption::install(vips).map_err(|error| format!("{error:#}"));
        if kept != self.nat_exemption {
            match &kept {
                Ok(how) => tracing::info!(%how, "the VIP's connections are exempt from address translation"),
                Err(problem) => tracing::warn!(
                    problem,
                    "a hostPort 80 can capture traffic to the VIP on this node: see docs/troubleshooting.md"
                ),
            }
        }
        self.nat_exemption = kept;
    }

    /// Returns whether the exemption of the VIPs from address translation is missing, or does not fit the node any
    /// more.
    #[must_use]
    pub fn has_let_translation_in(&self) -> bool {
        !self.nat_exemption.as_ref().is_ok_and(|how| nat_exemption::holds(*how))
    }

    /// Returns whether programs are attached by tcx, which affects nothing else at an interface.
    #[must_use]
    pub fn uses_tcx(&self) -> bool {
        self.uses_tcx
    }

    /// Attaches a TC program to an interface.
    fn attach(&mut self, hook: Hook, name: &str, index: u32) -> Result<Attached> {
        let (mode, program) = attach::hook(&mut self.ebpf, &self.pins, hook, name, index, self.attach)?;
        Ok(Attached { mode, program })
    }

    /// Attaches the guard to the uplink. Returns how, or `None` if it was attached already.
    ///
    /// # Errors
    /// If the guard cannot be attached in any way.
    pub fn set_uplink(&mut self, interface: &str, index: u32) -> Result<Option<GuardMode>> {
        if self.guard.is_some_and(|(guarded, _)| guarded == index) {
            return Ok(None);
        }
        let guarded = attach::guard(&mut self.ebpf, &self.pins, interface, index, self.attach);
        self.guard_problem = guarded.as_ref().err().map(|error| format!("{error:#}"));
        self.guard = guarded.as_ref().ok().map(|mode| (index, *mode));
        guarded.map(Some)
    }

    /// Replaces the contents of the access maps, and of the maps of identities if there are `identities`.
    ///
    /// # Errors
    /// If the kernel refuses, for example because a map is full. Then no address has more access than before or by `table`.
    pub fn set_access(&mut self, table: &AccessTable, identities: Option<&IdentityTable>) -> Result<()> {
        self.maps.set_access(table, identities)
    }

    /// Returns the contents of the access maps.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn access(&self) -> Result<AccessTable> {
        self.maps.access()
    }

    /// Replaces the addresses in the node maps; `true` marks addresses of this node.
    ///
    /// # Errors
    /// As for [`Datapath::set_access`].
    pub fn set_nodes(&mut self, nodes: &BTreeMap<IpAddr, bool>) -> Result<()> {
        self.maps.set_nodes(nodes)
    }

    /// Removes the programs and maps of builds with other layouts.
    ///
    /// # Errors
    /// If a pin cannot be removed.
    pub fn retire_other_layouts(&self) -> Result<()> {
        self.pins.remove_other_layouts().context("removing the pins of another build's layout")
    }

    /// Returns the attempts of each allowed pod to open connections.
    ///
    /// # Errors
    /// If the clock cannot be read.
    pub fn attempts(&self) -> Result<BTreeMap<IpAddr, Attempts>> {
        self.maps.attempts()
    }

    /// Returns the counters of all verdicts.
    #[must_use]
    pub fn verdicts(&self) -> VerdictCounts {
        self.maps.verdicts()
    }

    /// Returns the folder of the pins.
    #[must_use]
    pub fn pins(&self) -> &Path {
        self.pins.folder()
    }

    /// Returns the lock on the pins, to hand it over.
    #[must_use]
    pub fn lock(&self) -> Option<&File> {
        self.pins.lock()
    }

    /// Releases the lock on the pins, after a handover.
    pub fn release_lock(&mut self) {
        self.pins.release_lock();
    }
}
