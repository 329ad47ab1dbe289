//! What the kernel side and the daemon share: map layouts, verdicts, limits.
//!
//! Every field that crosses the boundary is a byte array in network order, so neither side can get
//! endianness or padding wrong. A change to any layout here must bump [`LAYOUT`].
#![no_std]

mod layout;
mod verdict;

pub use layout::{Access, Address4, Address6, Count, Node, Settings};
pub use verdict::Verdict;

/// Version of every layout in this crate; part of the pin directory's name, so that a daemon never reads
/// maps written in another layout.
pub const LAYOUT: u32 = 1;

/// Names of the maps as `bpftool map` shows them (the kernel keeps 15 characters).
pub mod map {
    /// Hash: pod IPv4 address → [`super::Access`].
    pub const ACCESS4: &str = "lota_access4";
    /// Hash: pod IPv6 address → [`super::Access`].
    pub const ACCESS6: &str = "lota_access6";
    /// Hash: node IPv4 address → [`super::Node`].
    pub const NODES4: &str = "lota_nodes4";
    /// Hash: node IPv6 address → [`super::Node`].
    pub const NODES6: &str = "lota_nodes6";
    /// Array of one: [`super::Settings`].
    pub const SETTINGS: &str = "lota_settings";
    /// Sockmap: the daemon's hidden listeners, [`super::LISTENER4`] and [`super::LISTENER6`].
    pub const LISTENERS: &str = "lota_listeners";
    /// Per-CPU array: [`super::Verdict`] → [`super::Count`].
    pub const VERDICTS: &str = "lota_verdicts";
}

/// Names of the programs as `bpftool prog` shows them.
pub mod program {
    /// TC ingress on every pod-facing interface: steering and access.
    pub const POD: &str = "lota_pod";
    /// `sk_lookup` on the node's network namespace: refuses what reaches the VIP unsteered.
    pub const BACKSTOP: &str = "lota_backstop";
    /// XDP on the uplink: peers only, and nobody to the VIP.
    pub const GUARD: &str = "lota_guard";
}

/// Slot of the IPv4 listener in the sockmap.
pub const LISTENER4: u32 = 0;
/// Slot of the IPv6 listener in the sockmap.
pub const LISTENER6: u32 = 1;
/// Slots in the sockmap.
pub const LISTENERS: usize = 2;
/// Most pods a node can hold access entries for, per address family.
pub const MAX_PODS: usize = 4096;
/// Most nodes in a cluster, per address family.
pub const MAX_NODES: usize = 16384;
