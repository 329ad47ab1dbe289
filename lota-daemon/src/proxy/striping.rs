//! Decides which objects are in stripes, and remembers those that this node has read.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use lota_cache::{Stripe, StripeLength};
use lota_s3::{CacheControl, ObjectMeta, ObjectName};
use parking_lot::Mutex;

use super::{config::PlacementConfig, get::Get};

/// Time for which an object is remembered.
const TTL: Duration = Duration::from_secs(600);
/// Maximum number of objects that are remembered.
const MAX_KNOWN: usize = 4096;

/// Objects in stripes. Their descriptions are what the gateway said last; it is asked about each again before they are used.
#[derive(Debug)]
pub struct Striping {
    above: u64,
    length: StripeLength,
    known: Mutex<HashMap<ObjectName, (Arc<ObjectMeta>, Instant)>>,
}

impl Striping {
    /// Creates the rule that the configuration demands.
    #[must_use]
    pub fn new(config: &PlacementConfig) -> Self {
        let above = Some(config.stripe_above.0).filter(|above| *above > 0).unwrap_or(u64::MAX);
        // An object of one stripe would gain nothing.
        let above = above.max(config.stripe.bytes());
        Self { above, length: config.stripe, known: Mutex::default() }
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
        self.above < u64::MAX && !get.is_bodiless() && is_ordinary(get)
    }

    /// Returns the stripe that a HEAD brings into the cache, of an object of `size` bytes: that of its first requested byte.
    pub(super) fn staged_by(&self, get: &Get<'_>, size: u64) -> Option<Stripe> {
        let is_staged = get.is_bodiless()
            && get.store.backend.has_own_credential()
            && is_ordinary(get)
            && self.applies(size);
        let range = get.object.range.resolve(size).ok()?.filter(|_| is_staged)?;
        Some(self.length.containing(range.start))
    }

    /// Returns the description of an object that was in stripes recently.
    pub(super) fn known(&self, name: &ObjectName) -> Option<Arc<ObjectMeta>> {
        let known = self.known.lock();
        let (meta, since) = known.get(name)?;
        (since.elapsed() < TTL).then(|| meta.clone())
    }

    /// Remembers an object that the gateway has described, or forgets it if it is not in stripes.
    pub(super) fn learn(&self, meta: &Arc<ObjectMeta>) {
        let (mut known, name) = (self.known.lock(), &meta.version.name);
        if !self.applies(meta.size) {
            known.remove(name);
            return;
        }
        if known.len() >= MAX_KNOWN {
            known.retain(|_, (_, since)| since.elapsed() < TTL);
        }
        if known.len() < MAX_KNOWN || known.contains_key(name) {
            known.insert(name.clone(), (meta.clone(), Instant::now()));
        }
    }
}

/// Returns whether a request uses the cache and gets the object's own headers.
fn is_ordinary(get: &Get<'_>) -> bool {
    get.object.cache_control == CacheControl::Use && get.object.overrides.is_empty()
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;
    use lota_common::ByteSize;
    use lota_s3::{Learned, ObjectVersion, Validator};

    use super::*;

    fn striping(above: u64) -> Striping {
        let stripe = StripeLength::new(1 << 20).unwrap();
        Striping::new(&PlacementConfig { stripe_above: ByteSize(above), stripe, per_zone: false })
    }

    fn meta(key: usize, size: u64) -> Arc<ObjectMeta> {
        let name = ObjectName::from_parts("http://gateway", "b", &key.to_string(), None).unwrap();
        let validator = Validator { etag: "\"e\"".into(), last_modified: None };
        let version = ObjectVersion { name, validator };
        Arc::new(ObjectMeta::restored(version, size, HeaderMap::new(), false, Learned::default()))
    }

    #[test]
    fn large_objects_are_remembered() {
        let (limit, striping) = (5 << 20, striping(5 << 20));
        let size = |key| striping.known(&meta(key, 0).version.name).map(|meta| meta.size);
        striping.learn(&meta(0, limit + 1));
        assert_eq!((size(0), size(1)), (Some(limit + 1), None));
        striping.learn(&meta(0, limit));
        assert_eq!(size(0), None, "replaced by a small one");
        for key in 0..2 * MAX_KNOWN {
            striping.learn(&meta(key, limit + 2));
        }
        assert_eq!(striping.known.lock().len(), MAX_KNOWN);
    }

    #[test]
    fn the_smallest_object_in_stripes_has_two() {
        assert!(!striping(1).applies(1 << 20));
        assert!(striping(1).applies((1 << 20) + 1));
        assert!(!striping(0).applies(u64::MAX), "turned off");
    }
}
