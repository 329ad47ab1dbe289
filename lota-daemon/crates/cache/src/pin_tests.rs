use proptest::prelude::*;

use super::*;

const TIB: u64 = 1 << 40;

#[test]
fn prefixes_are_parsed_and_shown() {
    for (text, bucket, prefix) in
        [("s3://b/a/k", "b", "a/k"), ("s3://b/", "b", ""), ("s3://b", "b", ""), ("s3://b/a*b ", "b", "a*b ")]
    {
        let parsed: PinnedPrefix = text.parse().unwrap();
        assert_eq!((parsed.bucket.as_str(), parsed.prefix.as_str()), (bucket, prefix));
        assert_eq!(parsed.to_string().parse(), Ok(parsed));
    }
    let long = format!("s3://b/{}", "x".repeat(1025));
    for wrong in ["", "b/k", "s3://", "s3:///k", "S3://b/k", "s3://b/a*", &long] {
        assert!(wrong.parse::<PinnedPrefix>().is_err(), "{wrong}");
    }
}

#[test]
fn a_prefix_matches_keys_of_its_bucket() {
    let pin: PinnedPrefix = "s3://b/a/".parse().unwrap();
    let matches = |bucket: &str, key: &str, version: Option<&str>| {
        let name = ObjectName::from_parts("http://g", bucket, key, version.map(Into::into)).unwrap();
        pin.matches(&name)
    };
    assert!(matches("b", "a/k", None) && matches("b", "a/", Some("v")));
    assert!(!matches("b", "a", None) && !matches("b2", "a/k", None) && !matches("b", "ba/k", None));
}

#[test]
fn limits_of_a_disk() {
    // Four disks of equal size: 0.76 TiB of each may be pinned.
    let of = |pins: &[u64]| limits(pins, TIB, 4 * TIB, 95);
    let room = pinnable(TIB, 95);
    assert!((TIB * 75 / 100..TIB * 77 / 100).contains(&room));
    assert_eq!(of(&[TIB]), [TIB / 2], "twice the share");
    assert_eq!(limits(&[TIB / 2], TIB, TIB, 95), [TIB / 2], "never more than the pin's bytes");
    assert_eq!(of(&[2 * TIB]), [room], "at most what can be pinned");
    assert_eq!(of(&[8 * TIB]), [room], "if nodes are missing");
    assert_eq!(limits(&[1, 2], 0, 0, 95), [0, 0]);
}

proptest! {
    #[test]
    fn limits_are_bounded(
        pins in prop::collection::vec(prop_oneof![0..100u64, 0..8 * TIB, any::<u64>()], 0..20),
        capacity in prop_oneof![0..100u64, 0..8 * TIB],
        others in 0..8 * TIB,
        low in 1..100u8,
    ) {
        let all = capacity + others;
        let (room, limits) = (pinnable(capacity, low), limits(&pins, capacity, all, low));
        prop_assert_eq!(limits.len(), pins.len());
        prop_assert!(limits.iter().map(|limit| u128::from(*limit)).sum::<u128>() <= u128::from(room));
        let share = |bytes: u64| u128::from(bytes) * u128::from(capacity) / u128::from(all.max(1));
        let shares: u128 = pins.iter().map(|bytes| share(*bytes)).sum();
        for (limit, bytes) in limits.into_iter().zip(pins) {
            prop_assert!(limit <= bytes && u128::from(limit) <= 2 * share(bytes));
            prop_assert!(shares > u128::from(room) || u128::from(limit) >= share(bytes), "less than its share");
        }
    }
}
