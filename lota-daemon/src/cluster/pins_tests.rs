use proptest::prelude::*;

use super::*;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

fn prefix(number: usize) -> PinnedPrefix {
    format!("s3://bucket/{number}/").parse().unwrap()
}

fn state(pins: &[(usize, Option<u64>, u64)]) -> PinState {
    let mut state = PinState::default();
    for (number, bytes, seconds) in pins {
        state.set(prefix(*number), *bytes, at(*seconds)).unwrap();
    }
    state
}

fn merged(mut to: PinState, from: &PinState) -> PinState {
    to.merge(from.clone(), at(1000));
    to
}

#[test]
fn the_later_change_is_valid_and_of_equal_ones_the_larger() {
    let old = state(&[(1, Some(10), 1), (2, Some(10), 1), (3, None, 5)]);
    let new = state(&[(1, Some(5), 2), (2, None, 2), (3, Some(7), 5)]);
    let both = merged(old.clone(), &new);
    assert_eq!(both.pins().collect::<Vec<_>>(), [(&prefix(1), 5), (&prefix(3), 7)]);
    assert_eq!(both, merged(new.clone(), &old));
    assert!(!old.clone().merge(old, at(9)));
}

#[test]
fn a_change_replaces_one_of_a_clock_that_is_ahead() {
    let mut pins = state(&[(1, Some(10), 200)]);
    pins.set(prefix(1), None, at(100)).unwrap();
    assert_eq!(merged(state(&[(1, Some(10), 200)]), &pins).bytes(&prefix(1)), None);
}

#[test]
fn changes_of_the_future_are_refused() {
    let mut pins = state(&[(1, Some(10), 0)]);
    pins.merge(state(&[(1, None, 301), (2, Some(1), 301), (3, Some(1), 300)]), at(0));
    assert_eq!(pins.pins().collect::<Vec<_>>(), [(&prefix(1), 10), (&prefix(3), 1)]);
}

#[test]
fn own_changes_of_the_future_become_acceptable() {
    // The clock was an hour ahead.
    let mut ahead = state(&[(1, Some(10), 3600)]);
    let mut other = PinState::default();
    other.merge(ahead.clone(), at(0));
    assert!(!other.knows(&prefix(1), &ahead, at(0)), "the command reports it");
    assert!(
        !ahead.knows(&prefix(1), &state(&[(1, None, 0)]), at(0)),
        "nor is a change known that is not valid there"
    );
    assert!(ahead.merge(PinState::default(), at(0)));
    other.merge(ahead.clone(), at(0));
    assert!(other.knows(&prefix(1), &ahead, at(0)));
    let mut ahead = state(&[(1, Some(10), 3600)]);
    ahead.set(prefix(1), None, at(0)).unwrap();
    let mut other = state(&[(1, Some(10), 0)]);
    assert!(other.merge(ahead.clone(), at(0)) && other == ahead);
}

#[test]
fn removals_are_remembered_for_a_month() {
    let month = REMEMBERED.as_secs();
    let mut pins = state(&[(1, Some(1), 0), (1, None, 1)]);
    assert!(!pins.merge(state(&[(1, Some(1), 0)]), at(month)));
    assert!(pins.merge(PinState::default(), at(month + 2)));
    assert_eq!(pins, PinState::default());
}

#[test]
fn the_number_of_pins_is_bounded() {
    let many = |from: usize, seconds| {
        let pins = (from..from + MAX_PINS).map(|number| (number, Some(1), seconds));
        state(&pins.collect::<Vec<_>>())
    };
    let mut pins = many(0, 400);
    pins.set(prefix(0), None, at(450)).unwrap();
    pins.set(prefix(MAX_PINS), Some(1), at(500)).expect("a removed one does not count");
    assert_eq!((pins.pins().count(), pins.0.len()), (MAX_PINS, MAX_PINS + 1));
    assert_eq!(PinState::decode(&pins.encode()), Ok(pins.clone()));
    let full = pins.clone();
    assert_eq!(pins.set(prefix(9999), Some(1), at(500)), Err(TooManyPins));
    assert_eq!(pins, full);

    // Of too many, the last ones are dropped, and removals are merged.
    assert!(pins.merge(state(&[(1, None, 500), (9998, Some(1), 499), (9999, Some(1), 499)]), at(500)));
    assert_eq!((pins.bytes(&prefix(1)), pins.pins().count()), (None, MAX_PINS));
    let last = [9998, 9999, MAX_PINS].map(|number| pins.bytes(&prefix(number)));
    assert_eq!(last, [Some(1), Some(1), None]);
    let (old, new) = (many(0, 0), many(1000, 1));
    assert_eq!(merged(old.clone(), &new), merged(new, &old));

    let mut pins = many(0, 0);
    for number in 0..2 * MAX_REMOVED {
        pins.set(prefix(10_000 + number), None, at(number as u64)).unwrap();
    }
    assert_eq!((pins.pins().count(), pins.0.len()), (MAX_PINS, MAX_PINS + MAX_REMOVED));
    assert!(pins.0.contains_key(&prefix(10_000 + 2 * MAX_REMOVED - 1)), "the oldest are forgotten");

    let mut long = PinState::default();
    let set = |number: usize| {
        let prefix = format!("s3://b/{number}{}", "x".repeat(1000));
        long.set(prefix.parse().unwrap(), Some(1), at(0))
    };
    let stored = (0..MAX_PINS).map(set).take_while(Result::is_ok).count();
    assert!((230..MAX_PINS).contains(&stored), "{stored}");
    assert!(long.encode().len() <= MAX_ENCODED && PinState::decode(&long.encode()) == Ok(long));
}

#[test]
fn malformed_pins_are_refused() {
    assert_eq!(PinState::decode(b"{\"version\":2}"), Err(UnreadablePins::UnknownVersion(2)));
    for wrong in [
        "",
        "{}",
        "{\"version\":1}",
        "{\"version\":1,\"pins\":[{\"bucket\":\"b\",\"prefix\":\"k\",\"bytes\":-1,\"changed\":1}]}",
        "{\"version\":1,\"pins\":[{\"bucket\":\"\",\"prefix\":\"k\",\"bytes\":1,\"changed\":1}]}",
        "{\"version\":1,\"pins\":[{\"bucket\":\"a/b\",\"prefix\":\"k\",\"bytes\":1,\"changed\":1}]}",
    ] {
        assert!(matches!(PinState::decode(wrong.as_bytes()), Err(UnreadablePins::Malformed(_))), "{wrong}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_without_a_panic(bytes: Vec<u8>, text in "\\PC*") {
        let _ = (PinState::decode(&bytes), PinState::decode(text.as_bytes()));
    }

    #[test]
    fn states_round_trip_and_merges_commute(
        changes in prop::collection::vec((0..3usize, 0..4usize, prop::option::of(0..3u64), 0..5u64), 0..30),
    ) {
        // Three nodes, each with some changes.
        let of = |node: usize| {
            let of = changes.iter().filter(|change| change.0 == node);
            let mut state = PinState::default();
            for (_, number, bytes, seconds) in of {
                state.set(prefix(*number), *bytes, at(*seconds)).unwrap();
            }
            state
        };
        let [a, b, c] = [0, 1, 2].map(of);
        prop_assert_eq!(PinState::decode(&a.encode()), Ok(a.clone()));
        let all = merged(merged(a.clone(), &b), &c);
        prop_assert_eq!(&all, &merged(a.clone(), &merged(b.clone(), &c)));
        prop_assert_eq!(&all, &merged(merged(c, &a), &b));
        prop_assert_eq!(&merged(all.clone(), &a), &all);
    }
}
