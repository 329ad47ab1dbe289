use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn object(key: &str) -> ObjectName {
    ObjectName::from_parts("http://gateway", "b", key, None).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Compares the sketch with exact counts.
    #[test]
    fn no_count_is_too_high_nor_much_too_low(
        seed in any::<u64>(),
        kinds in 1u64..20_000,
        skew in 1u32..6,
        many in 1u64..20_000,
    ) {
        let (mut sketch, mut exact) = (Sketch::default(), HashMap::<u128, (u64, u64)>::new());
        let mut state = seed;
        for _ in 0..many {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // The larger the skew, the more frequent are the first kinds.
            let within = (state >> 33) % kinds;
            let key = u128::from((0..skew).fold(within, |key, power| key.min((state >> power) % kinds)));
            let bytes = state >> 50;
            sketch.count(key, bytes, || key);
            let sum = exact.entry(key).or_default();
            *sum = (sum.0 + 1, sum.1 + bytes);
            prop_assert!(sketch.entries.len() <= 2 * MIN_ENTRIES);
        }
        prop_assert!(sketch.missed <= many / (MIN_ENTRIES as u64 + 1), "{} of {many}", sketch.missed);
        for (key, (requests, bytes)) in &exact {
            let (counted, sent) =
                sketch.entries.get(key).map_or((0, 0), |entry| (entry.requests, entry.bytes));
            prop_assert!(counted <= *requests && sent <= *bytes, "too high");
            prop_assert!(counted + sketch.missed >= *requests, "{counted} of {requests}");
        }
        if exact.len() <= 2 * MIN_ENTRIES {
            prop_assert_eq!(sketch.missed, 0, "few enough are counted exactly");
        }
    }
}

#[test]
fn counts_expire_after_a_minute() {
    let (began, second) = (Instant::now(), Duration::from_secs(1));
    let mut recent = Recent::new(began);
    let read = |recent: &mut Recent<&str>, after| {
        let mut read: Vec<_> =
            recent.read(began + after * second).filter(|(_, requests, _)| *requests > 0).collect();
        read.sort();
        read
    };
    for _ in 0..60 {
        recent.count(began + 59 * second, 1, 10, || "one");
    }
    assert_eq!(read(&mut recent, 59), [("one".to_owned(), 60, 600)]);
    recent.count(began + 61 * second, 2, 7, || "two");
    assert_eq!(read(&mut recent, 90), [("one".to_owned(), 30, 300), ("two".to_owned(), 1, 7)]);
    assert_eq!(read(&mut recent, 119), [("one".to_owned(), 1, 10), ("two".to_owned(), 1, 7)]);
    assert_eq!(read(&mut recent, 120), [("two".to_owned(), 1, 7)]);
    assert!(read(&mut recent, 500).is_empty());
}

#[test]
fn ranks_by_requests() {
    let (top, pod) = (HeavyHitterCounter::default(), |last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last)));
    for _ in 0..3 {
        top.count(pod(1), Some(&object("often")), 5);
    }
    top.count(pod(2), Some(&object("large")), 1000);
    top.count(pod(2), None, 0);
    let ranked = |name: &str, requests, bytes| Ranked { name: name.into(), requests, bytes };
    assert_eq!(top.objects(9), [ranked("b/often", 3, 15), ranked("b/large", 1, 1000)]);
    assert_eq!(top.objects(1).len(), 1);
    assert_eq!(top.pods(9), [ranked("10.0.0.1", 3, 15), ranked("10.0.0.2", 2, 1000)]);
}
