//! The pins of the cluster as one node knows them. There is no central component: each node has all pins with the time of their
//! last change, and nodes merge what they know.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lota_cache::PinnedPrefix;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Maximum number of pins.
const MAX_PINS: usize = 256;
/// Maximum number of removed pins that are remembered.
const MAX_REMOVED: usize = 4 * MAX_PINS;
/// Maximum number of bytes of all pins, and removed ones, in their encoding.
pub(super) const MAX_ENCODED: usize = 256 << 10;
/// Duration for which a removed pin is remembered, so that a node that was down meanwhile does not bring it back.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 3600);
/// Time in the future up to which a change is accepted, and kept. Until then, no later change could replace it.
const MAX_AHEAD: Duration = Duration::from_secs(300);
/// Version of the encoding.
const VERSION: u64 = 1;

/// Pins, and removed pins, with the time of their last change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PinState(BTreeMap<PinnedPrefix, PinChange>);

/// Last change of a pin. Of two, the greater one is valid: the later, or the one with more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PinChange {
    /// Time in milliseconds since the epoch.
    changed: u64,
    /// Bytes of the cluster's cache; `None` if the pin was removed.
    bytes: Option<u64>,
}

/// There are too many pins, or their names are too long.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("there may be {MAX_PINS} pins with {MAX_ENCODED} bytes of names: pin fewer, shorter prefixes")]
pub struct TooManyPins;

/// Reason why encoded pins cannot be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UnreadablePins {
    /// Another version of LOTA has encoded them.
    #[error("encoded by another version of LOTA (format {0})")]
    UnknownVersion(u64),
    /// They are malformed.
    #[error("malformed: {0}")]
    Malformed(String),
}

#[derive(Deserialize)]
struct EncodedVersion {
    version: u64,
}

#[derive(Deserialize, Serialize)]
struct EncodedPins {
    version: u64,
    pins: Vec<EncodedPin>,
}

#[derive(Deserialize, Serialize)]
struct EncodedPin {
    #[serde(flatten)]
    prefix: PinnedPrefix,
    /// Bytes; `None` if the pin was removed.
    bytes: Option<u64>,
    changed: u64,
}

impl PinState {
    /// Returns the pins that are not removed, with their bytes of the cluster's cache.
    pub fn pins(&self) -> impl Iterator<Item = (&PinnedPrefix, u64)> {
        self.0.iter().filter_map(|(prefix, change)| Some((prefix, change.bytes?)))
    }

    /// Returns the bytes of a pin.
    #[must_use]
    pub fn bytes(&self, prefix: &PinnedPrefix) -> Option<u64> {
        self.0.get(prefix)?.bytes
    }

    /// Sets the bytes of a pin, or removes it.
    ///
    /// # Errors
    /// If there are too many pins; nothing is changed then.
    pub fn set(
        &mut self,
        prefix: PinnedPrefix,
        bytes: Option<u64>,
        now: SystemTime,
    ) -> Result<(), TooManyPins> {
        let before = self.0.get(&prefix).map_or(0, |change| change.changed);
        // The clock of the node that made the last change may be ahead.
        let changed = milliseconds(now).max(before + 1);
        let mut state = self.clone();
        state.0.insert(prefix, PinChange { changed, bytes });
        if state.bound(now).is_empty() {
            *self = state;
            return Ok(());
        }
        Err(TooManyPins)
    }

    /// Merges what another node knows; returns whether anything has changed. If there are too many pins then, those that were
    /// changed last are dropped: all nodes drop the same ones.
    pub fn merge(&mut self, other: Self, now: SystemTime) -> bool {
        let (mut state, latest) = (self.clone(), milliseconds(now + MAX_AHEAD));
        for (prefix, change) in other.0.into_iter().filter(|(_, change)| change.changed <= latest) {
            let known = state.0.entry(prefix).or_insert(change);
            *known = change.max(*known);
        }
        for prefix in state.bound(now) {
            tracing::warn!(%prefix, "dropped a pin, since nodes have set too many at the same time");
        }
        let changed = state != *self;
        *self = state;
        changed
    }

    /// Returns whether the last change of a pin in `other`, or a later one, is known. A change too far in the future does not
    /// count.
    #[must_use]
    pub fn knows(&self, prefix: &PinnedPrefix, other: &Self, now: SystemTime) -> bool {
        let latest = milliseconds(now + MAX_AHEAD);
        let known = self.0.get(prefix).filter(|change| change.changed <= latest);
        known >= other.0.get(prefix)
    }

    /// Forgets old removed pins, and the oldest ones if there are too many. If that does not suffice, drops the pins that were
    /// changed last, and returns them. Changes of the future, by a clock that was ahead, become ones that other nodes accept.
    fn bound(&mut self, now: SystemTime) -> Vec<PinnedPrefix> {
        let latest = milliseconds(now + MAX_AHEAD);
        let oldest = milliseconds(now).saturating_sub(milliseconds(UNIX_EPOCH + REMEMBERED));
        self.0.retain(|_, change| change.bytes.is_some() || change.changed > oldest);
        for change in self.0.values_mut() {
            change.changed = change.changed.min(latest);
        }
        let (mut live, mut removed): (Vec<_>, Vec<_>) = (self.0.iter())
            .map(|(prefix, change)| (change.changed, prefix.clone(), change.bytes))
            .partition(|(_, _, bytes)| bytes.is_some());
        live.sort();
        // The next to forget is the last.
        removed.sort_by(|a, b| b.cmp(a));
        let (mut dropped, mut length) = (Vec::new(), self.encode().len());
        loop {
            let is_too_long = length > MAX_ENCODED;
            let is_removed = removed.len() > MAX_REMOVED || is_too_long && !removed.is_empty();
            if !is_removed && !is_too_long && live.len() <= MAX_PINS {
                break;
            }
            let next = if is_removed { removed.pop() } else { live.pop() };
            let Some((changed, prefix, bytes)) = next else { break };
            self.0.remove(&prefix);
            let encoded = EncodedPin { prefix, bytes, changed };
            // With its comma.
            length -= json(&encoded).len() + 1;
            if bytes.is_some() {
                dropped.push(encoded.prefix);
            }
        }
        dropped
    }

    /// Encodes the pins for the file and for other nodes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let pins = self.0.iter().map(|(prefix, change)| EncodedPin {
            prefix: prefix.clone(),
            bytes: change.bytes,
            changed: change.changed,
        });
        json(&EncodedPins { version: VERSION, pins: pins.collect() })
    }

    /// Decodes pins.
    ///
    /// # Errors
    /// [`UnreadablePins`]
    pub fn decode(bytes: &[u8]) -> Result<Self, UnreadablePins> {
        let malformed = |error: serde_json::Error| UnreadablePins::Malformed(error.to_string());
        let EncodedVersion { version } = serde_json::from_slice(bytes).map_err(malformed)?;
        if version != VERSION {
            return Err(UnreadablePins::UnknownVersion(version));
        }
        let EncodedPins { pins, .. } = serde_json::from_slice(bytes).map_err(malformed)?;
        let live = pins.iter().filter(|pin| pin.bytes.is_some()).count();
        if live > MAX_PINS || pins.len() - live > MAX_REMOVED || bytes.len() > MAX_ENCODED {
            return Err(UnreadablePins::Malformed(TooManyPins.to_string()));
        }
        if let Some(wrong) = pins.iter().find(|pin| !pin.prefix.is_valid()) {
            return Err(UnreadablePins::Malformed(format!("not a prefix: {}", wrong.prefix)));
        }
        let change = |EncodedPin { prefix, bytes, changed }| (prefix, PinChange { changed, bytes });
        Ok(Self(pins.into_iter().map(change).collect()))
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // Keys of these types are always strings.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Returns the time in milliseconds since the epoch.
fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "pins_tests.rs"]
mod tests;
