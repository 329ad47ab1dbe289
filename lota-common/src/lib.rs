//! What the kernel side and the daemon share: map layouts, verdicts, limits.
//!
//! Every field that crosses the boundary is a byte array in network order, so neither side can get
//! endianness or padding wrong. A change to any layout here must bump [`LAYOUT`].
#![no_std]

mod layout;
mod source;
mod verdict;

pub use layout::{Access, Address4, Address6, Count, Denial, Interface, MAX_ZONE, Node, Settings};
pub use source::Source;
pub use verdict::Verdict;

/// Version of every layout in this crate; part of the pin directory's name, so that a daemon never reads
/// maps written in another layout.
pub const LAYOUT: u32 = 2;

/// Names of the maps as `bpftool map` shows them (the kernel keeps 15 characters).
pub mod map {
    /// Hash: pod IPv4 address → [`super::Access`].
    pub const ACCESS4: &str = "lota_access4";
    /// Hash: pod IPv6 address → [`super::Access`].
    pub const ACCESS6: &str = "lota_access6";
    /// LPM trie: IPv4 prefix → [`super::Access`], for addresses without an entry of their own.
    pub const RULES4: &str = "lota_rules4";
    /// LPM trie: IPv6 prefix → [`super::Access`].
    pub const RULES6: &str = "lota_rules6";
    /// LRU hash: refused IPv4 address → [`super::Denial`].
    pub const DENIED4: &str = "lota_denied4";
    /// LRU hash: refused IPv6 address → [`super::Denial`].
    pub const DENIED6: &str = "lota_denied6";
    /// Hash: interface index → [`super::Interface`], for those that pods are behind.
    pub const INTERFACES: &str = "lota_interfaces";
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
    /// Per-CPU array of one: room to sum up a name answer in.
    pub const SCRATCH: &str = "lota_scratch";

    /// All of them.
    pub const ALL: [&str; 13] = [
        ACCESS4, ACCESS6, RULES4, RULES6, DENIED4, DENIED6, INTERFACES, NODES4, NODES6, SETTINGS, LISTENERS,
        VERDICTS, SCRATCH,
    ];
}

/// Names of the programs as `bpftool prog` shows them.
pub mod program {
    /// TC ingress on every pod-facing interface: steering and access.
    pub const POD: &str = "lota_pod";
    /// `sk_lookup` on the node's network namespace: refuses what reaches the VIP unsteered.
    pub const BACKSTOP: &str = "lota_backstop";
    /// The same, and steers what no TC program could (kernel 5.17).
    pub const LOOKUP: &str = "lota_lookup";
    /// XDP on the uplink: peers only, and nobody to the VIP.
    pub const GUARD: &str = "lota_guard";
    /// The guard as a TC program, for uplinks that take no XDP.
    pub const GUARD_TC: &str = "lota_guard_tc";
    /// A TC program that does nothing: what benchmarks compare with. The daemon never loads it.
    pub const NOTHING: &str = "lota_nothing";
}

/// Slot of the IPv4 listener in the sockmap.
pub const LISTENER4: u32 = 0;
/// Slot of the IPv6 listener in the sockmap.
pub const LISTENER6: u32 = 1;
/// Slots in the sockmap.
pub const LISTENERS: usize = 2;
/// Most pods a node can hold access entries for, per address family.
pub const MAX_PODS: usize = 4096;
/// Most access rules for prefixes, per address family.
pub const MAX_RULES: usize = 1024;
/// Refused addresses remembered, per address family; those refused longest ago are forgotten first.
pub const MAX_DENIED: usize = 4096;
/// Most interfaces that pods are behind.
pub const MAX_INTERFACES: usize = 4096;
/// Room for a UDP header and the longest name answer (a message's header, a question of 255 + 4 bytes, and at most
/// 47 bytes of records): the next power of two.
pub const SCRATCH: usize = 512;
/// Most nodes in a cluster, per address family.
pub const MAX_NODES: usize = 16384;
