//! The pins of the cluster as one node knows them. There is no central component: each node has all pins with the time of their
//! last change, and nodes merge what they know.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lota_cache::PinnedPrefix;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Maximum number of pins, including removed ones.
const MAX_PINS: usize = 256;
/// Maximum number of bytes of all pins in their encoding.
pub(super) const MAX_ENCODED: usize = 64 << 10;
/// Duration for which a removed pin is remembered, so that a node that was down meanwhile does not bring it back.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 3600);
/// Time in the future up to which a change is accepted. Until then, no later change could replace it.
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
        *self = state.bounded(now)?;
        Ok(())
    }

    /// Merges what another node knows; returns whether anything has changed.
    ///
    /// # Errors
    /// If there are too many pins; nothing is changed then.
    pub fn merge(&mut self, other: Self, now: SystemTime) -> Result<bool, TooManyPins> {
        let (mut state, latest) = (self.clone(), milliseconds(now + MAX_AHEAD));
        for (prefix, change) in other.0.into_iter().filter(|(_, change)| change.changed <= latest) {
            let known = state.0.entry(prefix).or_insert(change);
            *known = change.max(*known);
        }
        let state = state.bounded(now)?;
        let changed = state != *self;
        *self = state;
        Ok(changed)
    }

    /// Forgets old removed pins, and others if there are too many.
    fn bounded(mut self, now: SystemTime) -> Result<Self, TooManyPins> {
        let oldest = milliseconds(now).saturating_sub(milliseconds(UNIX_EPOCH + REMEMBERED));
        self.0.retain(|_, change| change.bytes.is_some() || change.changed > oldest);
        while self.0.len() > MAX_PINS || self.encode().len() > MAX_ENCODED {
            let removed = self.0.iter().filter(|(_, change)| change.bytes.is_none());
            let oldest = removed.min_by_key(|(_, change)| change.changed).map(|(prefix, _)| prefix.clone());
            self.0.remove(&oldest.ok_or(TooManyPins)?);
        }
        Ok(self)
    }

    /// Encodes the pins for the file and for other nodes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let pins = self.0.iter().map(|(prefix, change)| EncodedPin {
            prefix: prefix.clone(),
            bytes: change.bytes,
            changed: change.changed,
        });
        // Keys of this type are always strings.
        serde_json::to_vec(&EncodedPins { version: VERSION, pins: pins.collect() }).unwrap_or_default()
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
        if pins.len() > MAX_PINS || bytes.len() > MAX_ENCODED {
            return Err(UnreadablePins::Malformed(TooManyPins.to_string()));
        }
        if let Some(wrong) = pins.iter().find(|pin| !pin.prefix.is_valid()) {
            return Err(UnreadablePins::Malformed(format!("not a prefix: {}", wrong.prefix)));
        }
        let change = |EncodedPin { prefix, bytes, changed }| (prefix, PinChange { changed, bytes });
        Ok(Self(pins.into_iter().map(change).collect()))
    }
}

/// Returns the time in milliseconds since the epoch.
fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "pins_tests.rs"]
mod tests;
