//! Metrics that are cheap to update: no lock and no lookup.

use std::{
    fmt,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// Values of a label.
pub trait Value: Copy + fmt::Debug + Send + Sync + 'static {
    /// Name of the label.
    const LABEL: &'static str;
    /// Every value, in the order of their indices.
    const ALL: &'static [Self];

    /// Returns the name of the value.
    fn name(self) -> &'static str;

    /// Returns the index of the value in [`Value::ALL`].
    fn place(self) -> usize;
}

/// Defines the values of a label as an enum whose variants have names.
macro_rules! values {
    ($(#[$meta:meta])* $type:ident, $label:literal: $($(#[doc = $doc:literal])* $value:ident = $name:literal),* $(,)?) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[doc = $doc])* $value),*
        }

        impl $crate::metrics::each::Value for $type {
            const LABEL: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$value),*];

            fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $name),*
                }
            }

            fn place(self) -> usize {
                self as usize
            }
        }
    };
}
pub(super) use values;

/// One metric for each value of a label. All are exported from the start, so that rates include the first event.
#[derive(Debug)]
pub struct Each<V, M>(Arc<[M]>, PhantomData<V>);

impl<V, M> Clone for Each<V, M> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<V: Value, M: Default> Default for Each<V, M> {
    fn default() -> Self {
        Self::made(|_| M::default())
    }
}

impl<V: Value, M> Each<V, M> {
    /// Returns metrics that `make` creates, one for each value.
    pub(super) fn made(make: impl Fn(V) -> M) -> Self {
        Self(V::ALL.iter().map(|value| make(*value)).collect(), PhantomData)
    }

    /// Returns the metric of a value.
    #[must_use]
    pub fn of(&self, value: V) -> &M {
        &self.0[value.place()]
    }
}

impl<V: Value, M: EncodeMetric + TypedMetric> EncodeMetric for Each<V, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for value in V::ALL {
            self.of(*value).encode(encoder.encode_family(&[(V::LABEL, value.name())])?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

/// Upper bounds of the buckets, in nanoseconds and in seconds.
const BOUNDS: [(u64, f64); 16] = [
    (500_000, 0.0005),
    (1_000_000, 0.001),
    (2_500_000, 0.0025),
    (5_000_000, 0.005),
    (10_000_000, 0.01),
    (25_000_000, 0.025),
    (50_000_000, 0.05),
    (100_000_000, 0.1),
    (250_000_000, 0.25),
    (500_000_000, 0.5),
    (1_000_000_000, 1.0),
    (2_500_000_000, 2.5),
    (5_000_000_000, 5.0),
    (10_000_000_000, 10.0),
    (30_000_000_000, 30.0),
    (120_000_000_000, 120.0),
];

/// A histogram of durations. The crate's histogram takes a lock for each observation, which all threads would contend
/// for.
#[derive(Clone, Debug, Default)]
pub struct Timing(Arc<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Timing {
    /// Adds an observation.
    pub fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|(bound, _)| nanos <= *bound).unwrap_or(BOUNDS.len());
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

impl TypedMetric for Timing {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Timing {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS.iter().map(|(_, seconds)| *seconds).chain([f64::INFINITY]);
        let counts = self.0.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let seconds = Duration::from_nanos(self.0.nanos.load(Ordering::Relaxed)).as_secs_f64();
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, metrics::counter::Counter, registry::Registry};

    use super::*;
    use crate::metrics::Locality;

    #[test]
    fn every_value_is_exported_and_counted_separately() {
        let each = Each::<Locality, Counter>::default();
        each.of(Locality::Remote).inc();
        let mut registry = Registry::default();
        registry.register("a", "Something", each);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert!(text.contains("a_total{locality=\"local\"} 0\n"), "{text}");
        assert!(text.contains("a_total{locality=\"remote\"} 1\n"), "{text}");
    }

    #[test]
    fn durations_are_counted_in_their_buckets() {
        let timing = Timing::default();
        for millis in [0, 1, 3, 200_000] {
            timing.observe(Duration::from_millis(millis));
        }
        let mut registry = Registry::default();
        registry.register("a", "Something", timing);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for (le, count) in
            [("0.0005", 1), ("0.001", 2), ("0.0025", 2), ("0.005", 3), ("120.0", 3), ("+Inf", 4)]
        {
            assert!(text.contains(&format!("a_bucket{{le=\"{le}\"}} {count}\n")), "{le}: {text}");
        }
        assert!(text.contains("a_sum 200.004\n") && text.contains("a_count 4\n"), "{text}");
    }
}
