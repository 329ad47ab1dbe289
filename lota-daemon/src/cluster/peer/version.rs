//! Versions of the peer protocol. Nodes of two builds use the newest one that both speak.

use lota_common::HAS_NEXT_FORMATS;

/// Version of the peer protocol. It is part of every message and of its MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WireVersion(pub u64);

impl WireVersion {
    /// The newest version that this build speaks.
    pub const NEWEST: Self = Self(if HAS_NEXT_FORMATS { 2 } else { 1 });
}

/// Versions that a node speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpokenVersions {
    /// Version in which the node begins, since a peer of the minor version before may speak no newer one.
    pub(super) oldest: WireVersion,
    pub(super) newest: WireVersion,
}

impl SpokenVersions {
    /// Versions that this build speaks. A minor version that raises the newest one keeps the oldest one (docs/adr/0023).
    pub(super) const OWN: Self = Self { oldest: WireVersion(1), newest: WireVersion::NEWEST };

    pub(super) fn contain(self, version: WireVersion) -> bool {
        self.oldest <= version && version <= self.newest
    }

    /// Returns the version for messages to a peer whose newest one is `peers`, if it has stated it.
    pub(super) fn with(self, peers: Option<WireVersion>) -> WireVersion {
        peers.unwrap_or(self.oldest).clamp(self.oldest, self.newest)
    }
}
