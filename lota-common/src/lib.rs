//! Definitions that the eBPF programs and the daemon share: map layouts, verdicts, limits.
//!
//! Addresses are byte arrays in network order, and ports are numbers, so neither side can get endianness or padding
//! wrong. A change to any layout here requires a new [`LAYOUT`].
#![no_std]

#[cfg(feature = "std")]
extern crate std;

#[cfg(feature = "std")]
mod byte_size;
mod identity;
mod layout;
#[cfg(feature = "std")]
pub mod lockfile;
mod source;
mod verdict;

#[cfg(feature = "std")]
pub use byte_size::ByteSize;
pub use identity::{
    ADMISSION_NS, LocalConnection, MAX_POD_NAME, MAX_UID, RawAdmission, RawHolder, RawIdentity, RawPod, Text,
    text,
};
pub use layout::{
    Address4, Address6, Count, Denial, FIRST_STAND_IN, Heartbeat, MAX_NAME, MAX_PORTS, MAX_TARGETS, NameKey,
    NewDenials, RawAccess, RawAddressAccess, RawAttempts, RawInterface, RawName, RawNode, RawTarget,
    RecentAccess, Settings, StandIn,
};
pub use source::Source;
pub use verdict::Verdict;

/// Whether this build has the next version of the peer protocol, of the maps and of the cache on disk. It differs in nothing
/// else, and exists for the suite `upgrade`, which upgrades to it and rolls back.
pub const HAS_NEXT_FORMATS: bool = cfg!(feature = "next-formats");

/// Version of the layouts in this crate. It is part of the name of the pin directory, so that a daemon never reads maps
/// of another layout.
pub const LAYOUT: u32 = if HAS_NEXT_FORMATS { 8 } else { 7 };

/// Names of the maps as `bpftool map` shows them (the kernel keeps 15 characters).
pub mod map {
    /// Hash: pod IPv4 address → [`super::RawAddressAccess`].
    pub const ACCESS4: &str = "lota_access4";
    /// Hash: pod IPv6 address → [`super::RawAddressAccess`].
    pub const ACCESS6: &str = "lota_access6";
    /// LPM trie: IPv4 prefix → [`super::RawAccess`], for addresses without an entry of their own.
    pub const RULES4: &str = "lota_rules4";
    /// LPM trie: IPv6 prefix → [`super::RawAccess`].
    pub const RULES6: &str = "lota_rules6";
    /// LRU hash: refused IPv4 address → [`super::Denial`].
    pub const DENIED4: &str = "lota_denied4";
    /// LRU hash: refused IPv6 address → [`super::Denial`].
    pub const DENIED6: &str = "lota_denied6";
    /// LRU hash: interface index → [`super::NewDenials`].
    pub const NEW_DENIALS: &str = "lota_new_denied";
    /// LRU hash: allowed IPv4 address → [`super::RawAttempts`].
    pub const ATTEMPTS4: &str = "lota_attempts4";
    /// LRU hash: allowed IPv6 address → [`super::RawAttempts`].
    pub const ATTEMPTS6: &str = "lota_attempts6";
    /// Hash: interface index → [`super::RawInterface`], for interfaces of pods.
    pub const INTERFACES: &str = "lota_interfaces";
    /// Hash: node IPv4 address → [`super::RawNode`].
    pub const NODES4: &str = "lota_nodes4";
    /// Hash: node IPv6 address → [`super::RawNode`].
    pub const NODES6: &str = "lota_nodes6";
    /// LPM trie: [`super::NameKey`] → [`super::RawName`].
    pub const NAMES: &str = "lota_names";
    /// Hash: [`super::RawTarget`] → [`super::StandIn`].
    pub const TARGETS: &str = "lota_targets";
    /// Array: port of the VIP, less [`super::FIRST_STAND_IN`] → the [`super::RawTarget`] that it stands for.
    pub const STAND_INS: &str = "lota_stand_ins";
    /// Array of one: [`super::Heartbeat`].
    pub const HEARTBEAT: &str = "lota_heartbeat";
    /// Array of one: [`super::Settings`].
    pub const SETTINGS: &str = "lota_settings";
    /// Sockmap: the daemon's hidden listeners, [`super::LISTENER4`] and [`super::LISTENER6`].
    pub const LISTENERS: &str = "lota_listeners";
    /// Per-CPU array: [`super::Verdict`] → [`super::Count`].
    pub const VERDICTS: &str = "lota_verdicts";
    /// Per-CPU array: last bits of an IPv4 address → [`super::RecentAccess`].
    pub const RECENT: &str = "lota_recent";
    /// Per-CPU array of one: working memory for DNS queries and responses.
    pub const SCRATCH: &str = "lota_scratch";

    /// Hash: cgroup ID → [`super::RawPod`], for pods of this node.
    pub const CGROUPS: &str = "lota_cgroups";
    /// Hash: pod IPv4 address → [`super::RawHolder`], for all pods of this node, allowed or not.
    pub const HOLDERS4: &str = "lota_holders4";
    /// Hash: pod IPv6 address → [`super::RawHolder`].
    pub const HOLDERS6: &str = "lota_holders6";
    /// Array of one: [`super::RawIdentity`].
    pub const IDENTITY: &str = "lota_identity";
    /// LRU hash: [`super::LocalConnection`] → [`super::RawAdmission`].
    pub const ADMITTED: &str = "lota_admitted";

    /// Names of all maps.
    pub const ALL: [&str; 26] = [
        ACCESS4,
        ACCESS6,
        RULES4,
        RULES6,
        DENIED4,
        DENIED6,
        NEW_DENIALS,
        ATTEMPTS4,
        ATTEMPTS6,
        INTERFACES,
        NODES4,
        NODES6,
        NAMES,
        TARGETS,
        STAND_INS,
        HEARTBEAT,
        SETTINGS,
        LISTENERS,
        VERDICTS,
        RECENT,
        SCRATCH,
        CGROUPS,
        HOLDERS4,
        HOLDERS6,
        IDENTITY,
        ADMITTED,
    ];
}

/// Names of the programs as `bpftool prog` shows them.
pub mod program {
    /// TC ingress on every pod interface: redirect and access control.
    pub const POD: &str = "lota_pod";
    /// TC egress on every pod interface, if there are targets: restores the addresses of replies.
    pub const RESTORE: &str = "lota_restore";
    /// TC ingress on a bridge's ports: drops packets with addresses of other pods than the sender.
    pub const PORT: &str = "lota_port";
    /// TC egress on `lo`: access of processes in the node's own network namespace.
    pub const LOCAL: &str = "lota_local";
    /// `sk_lookup` in the node's network namespace: refuses packets to the VIP that were not redirected.
    pub const BACKSTOP: &str = "lota_backstop";
    /// The backstop, which also redirects connections that no TC program could (kernel 5.17).
    pub const LOOKUP: &str = "lota_lookup";
    /// XDP on the uplink: admits only peers to the peer port, and no packets to the VIP.
    pub const GUARD: &str = "lota_guard";
    /// The guard as a TC program, for uplinks without support for XDP.
    pub const GUARD_TC: &str = "lota_guard_tc";
    /// A TC program that does nothing, as a baseline of benchmarks. The daemon never loads it.
    pub const NOTHING: &str = "lota_nothing";
}

/// Slot of the IPv4 listener in the sockmap.
pub const LISTENER4: u32 = 0;
/// Slot of the IPv6 listener in the sockmap.
pub const LISTENER6: u32 = 1;
/// Slots in the sockmap.
pub const LISTENERS: usize = 2;
/// Maximum number of pods with access entries on a node, per address family.
pub const MAX_PODS: usize = 4096;
/// Maximum number of access entries that a CPU keeps as read recently. A power of two.
pub const MAX_RECENT: usize = 256;
/// Maximum number of admissions of local clients; the least recently used are evicted first.
pub const MAX_ADMITTED: usize = 4096;
/// Maximum number of access rules for prefixes, per address family.
pub const MAX_RULES: usize = 1024;
/// Maximum number of recorded refused addresses, per address family; the least recently refused are evicted first.
pub const MAX_DENIED: usize = 4096;
/// Maximum number of newly refused addresses that are recorded per minute and interface, so that a sender of forged
/// addresses cannot evict the refused pods of other interfaces.
pub const MAX_NEW_DENIALS: u64 = 64;
/// Length of the interval for [`MAX_NEW_DENIALS`], in nanoseconds: one minute.
pub const NEW_DENIALS_NS: u64 = 60_000_000_000;
/// Maximum number of names of the endpoint.
pub const MAX_NAMES: usize = 64;
/// Maximum number of interfaces of pods.
pub const MAX_INTERFACES: usize = 4096;
/// Bytes of working memory for a DNS query or response.
pub const SCRATCH: usize = 1024;
/// Maximum number of nodes in a cluster, per address family.
pub const MAX_NODES: usize = 16384;
