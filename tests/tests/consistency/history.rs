//! What happened, and whether it may have.

use std::{collections::HashMap, time::Duration};

use anyhow::{Result, ensure};

/// One operation on one object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) key: u32,
    pub(crate) start: Duration,
    pub(crate) end: Duration,
    pub(crate) what: What,
}

/// Values are written once each; 0 is no object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Write(u64),
    Read(u64),
}

/// Finds the first read of a value that was not current at any moment of that read: one whose write had not begun, or
/// that another write had replaced for certain, having begun after the one ended and ended before the read began.
pub(crate) fn check(events: &[Event]) -> Result<(), String> {
    let mut writes: HashMap<u32, Vec<(u64, Duration, Duration)>> = HashMap::new();
    for event in events {
        let of_key = writes.entry(event.key).or_insert_with(|| vec![(0, Duration::ZERO, Duration::ZERO)]);
        if let What::Write(value) = event.what {
            of_key.push((value, event.start, event.end));
        }
    }
    for read in events {
        let What::Read(value) = read.what else { continue };
        let of_key = &writes[&read.key];
        let replaced = |end: Duration| of_key.iter().any(|other| other.1 > end && other.2 < read.start);
        let mut possible = of_key.iter().filter(|write| write.0 == value && write.1 <= read.end);
        if !possible.any(|write| !replaced(write.2)) {
            return Err(format!("{read:?} is stale, or was never written"));
        }
    }
    Ok(())
}

/// The checker itself: what it must find, and what it must not.
pub(crate) fn finds_what_is_wrong() -> Result<()> {
    let event = |start, end, what| Event {
        key: 1,
        start: Duration::from_millis(start),
        end: Duration::from_millis(end),
        what,
    };
    let written = [event(1, 2, What::Write(7)), event(4, 6, What::Write(8)), event(8, 9, What::Write(0))];
    let with = |read| check(&[&written[..], &[read]].concat());
    for (start, end, value, fine) in [
        (2, 3, 7, true),
        (3, 5, 7, true),
        (3, 5, 8, true),
        (5, 6, 7, true),
        (7, 7, 8, true),
        (10, 11, 0, true),
        (0, 1, 0, true),
        (0, 1, 7, true),
        (2, 3, 8, false),
        (7, 7, 7, false),
        (7, 7, 0, false),
        (10, 11, 8, false),
        (3, 3, 0, false),
        (3, 3, 9, false),
    ] {
        let found = with(event(start, end, What::Read(value)));
        ensure!(found.is_ok() == fine, "a read of {value} from {start} to {end}: {found:?}");
    }
    Ok(())
}
