//! Decides which objects are in stripes, and remembers the sizes of those that this node has read.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use lota_cache::StripeLength;
use lota_s3::{CacheControl, ObjectName};
use parking_lot::Mutex;

use super::{config::PlacementConfig, get::Get};

/// Time for which a size is remembered.
const SIZE_TTL: Duration = Duration::from_secs(60);
/// Maximum number of objects whose sizes are remembered.
const MAX_SIZES: usize = 4096;

/// Objects in stripes. A wrong size costs a further request between nodes, never a wrong byte.
#[derive(Debug)]
pub struct Striping {
    above: u64,
    length: StripeLength,
    sizes: Mutex<HashMap<ObjectName, (u64, Instant)>>,
}

impl Striping {
    /// Creates the rule that the configuration demands.
    #[must_use]
    pub fn new(config: &PlacementConfig) -> Self {
        let above = Some(config.stripe_above.0).filter(|above| *above > 0).unwrap_or(u64::MAX);
        Self { above, length: config.stripe, sizes: Mutex::default() }
    }

    /// Returns the length of stripes.
    pub(super) fn length(&self) -> StripeLength {
        self.length
    }

    /// Returns whether an object of `size` bytes is in stripes.
    pub(super) fn applies(&self, size: u64) -> bool {
        size > self.above
    }

    /// Returns whether a request could be for an object in stripes: an ordinary GET.
    pub(super) fn may_apply(&self, get: &Get<'_>) -> bool {
        let object = get.object;
        self.above < u64::MAX
            && !get.is_bodiless()
            && object.cache_control == CacheControl::Use
            && object.overrides.is_empty()
    }

    /// Returns the size of an object if it was in stripes recently.
    pub(super) fn size(&self, name: &ObjectName) -> Option<u64> {
        let (size, since) = *self.sizes.lock().get(name)?;
        (since.elapsed() < SIZE_TTL).then_some(size)
    }

    /// Remembers the size of an object, or forgets it if the object is not in stripes.
    pub(super) fn set_size(&self, name: &ObjectName, size: u64) {
        let mut sizes = self.sizes.lock();
        if !self.applies(size) {
            sizes.remove(name);
            return;
        }
        if sizes.len() >= MAX_SIZES {
            sizes.retain(|_, (_, since)| since.elapsed() < SIZE_TTL);
        }
        if sizes.len() < MAX_SIZES || sizes.contains_key(name) {
            sizes.insert(name.clone(), (size, Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use lota_common::ByteSize;

    use super::*;

    #[test]
    fn sizes_of_large_objects_are_remembered() {
        let striping = |above| {
            Striping::new(&PlacementConfig { stripe_above: ByteSize(above), ..PlacementConfig::default() })
        };
        let name =
            |key: usize| ObjectName::from_parts("http://gateway", "b", &key.to_string(), None).unwrap();
        let some = striping(10);
        some.set_size(&name(0), 11);
        assert_eq!((some.size(&name(0)), some.size(&name(1))), (Some(11), None));
        some.set_size(&name(0), 10);
        assert_eq!(some.size(&name(0)), None, "replaced by a small one");
        for key in 0..2 * MAX_SIZES {
            some.set_size(&name(key), 12);
        }
        assert_eq!(some.sizes.lock().len(), MAX_SIZES);
        assert!(!striping(0).applies(u64::MAX), "turned off");
    }
}
