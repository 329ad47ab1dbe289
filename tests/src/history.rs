//! Recorded operations, and a checker for their consistency.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use anyhow::{Result, ensure};

/// One operation on one object.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Number of the object.
    pub key: u32,
    /// Time at which it began.
    pub start: Duration,
    /// Time at which it ended; [`Duration::MAX`] for a write without a response, which may take effect at any later time.
    pub end: Duration,
    /// Effect or observation.
    pub what: What,
}

/// An effect or an observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The object was written.
    Write(Object),
    /// This older version became current, because the newest one was deleted.
    Restore(Object),
    /// A GET returned this.
    Get(Object),
    /// A HEAD returned this; its `bytes` are unknown.
    Head(Object),
}

/// State of an object as clients see it. The default is no object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// The value that the body repeats.
    pub bytes: u64,
    /// The value in the metadata, which each write changes.
    pub metadata: u64,
    /// Number of the version.
    pub version: u64,
}

/// A field of an object, which is read and written atomically.
type Register = (&'static str, fn(&Object) -> u64);

const BYTES: Register = ("bytes", |object| object.bytes);
const METADATA: Register = ("metadata", |object| object.metadata);
const VERSION: Register = ("version", |object| object.version);

/// Returns an error for the first read of a value that was not current at any time during that read: its write had not
/// started, or another write had replaced it for certain, that is, started after that write ended and ended before the
/// read started. Each register is checked alone, and bytes and metadata must be of the same write.
///
/// # Errors
/// The read, and the writes near it.
pub fn check(events: &[Event]) -> Result<(), String> {
    let mut writes: HashMap<u32, Vec<(Object, Duration, Duration)>> = HashMap::new();
    for event in events {
        let of_key = writes
            .entry(event.key)
            .or_insert_with(|| vec![(Object::default(), Duration::ZERO, Duration::ZERO)]);
        if let What::Write(object) | What::Restore(object) = event.what {
            of_key.push((object, event.start, event.end));
        }
    }
    let together: HashSet<(u32, u64, u64)> = writes
        .iter()
        .flat_map(|(key, writes)| writes.iter().map(|(object, ..)| (*key, object.bytes, object.metadata)))
        .collect();
    for read in events {
        let (object, registers): (Object, &[Register]) = match read.what {
            What::Write(_) | What::Restore(_) => continue,
            What::Get(object) => (object, &[BYTES, METADATA, VERSION]),
            What::Head(object) => (object, &[METADATA, VERSION]),
        };
        let of_key = &writes[&read.key];
        let replaced = |end: Duration| of_key.iter().any(|other| other.1 > end && other.2 < read.start);
        for (name, register) in registers {
            let value = register(&object);
            let mut possible =
                of_key.iter().filter(|write| register(&write.0) == value && write.1 <= read.end);
            if !possible.any(|write| !replaced(write.2)) {
                let near: Vec<_> = of_key.iter().filter(|write| is_near(read, write)).collect();
                return Err(format!(
                    "{read:?}: its {name} are stale, or were never written; near it: {near:?}"
                ));
            }
        }
        let is_get = matches!(read.what, What::Get(_));
        if is_get && !together.contains(&(read.key, object.bytes, object.metadata)) {
            return Err(format!("{read:?}: bytes and metadata are of different writes"));
        }
    }
    Ok(())
}

/// Returns whether a write ended at most a second before a read started, and started before the read ended.
fn is_near(read: &Event, (_, start, end): &(Object, Duration, Duration)) -> bool {
    *start <= read.end && end.saturating_add(Duration::from_secs(1)) >= read.start
}

/// Tests the checker with consistent and inconsistent reads.
///
/// # Errors
/// If it accepts an inconsistent read, or rejects a consistent one.
pub fn finds_what_is_wrong() -> Result<()> {
    let event = |start, end, what| Event {
        key: 1,
        start: Duration::from_millis(start),
        end: Duration::from_millis(end),
        what,
    };
    let object = |bytes, metadata, version| Object { bytes, metadata, version };
    let none = Object::default();
    // 8 is written with new bytes, 9 with the same bytes, and then the older version is current again.
    let written = [
        event(1, 2, What::Write(object(7, 7, 1))),
        event(4, 6, What::Write(object(8, 8, 2))),
        event(8, 9, What::Write(object(8, 9, 3))),
        event(11, 12, What::Restore(object(8, 8, 2))),
        event(14, 15, What::Write(none)),
    ];
    for (start, end, read, fine) in [
        (2, 3, object(7, 7, 1), true),
        (3, 5, object(7, 7, 1), true),
        (3, 5, object(8, 8, 2), true),
        (5, 6, object(7, 7, 1), true),
        (7, 7, object(8, 8, 2), true),
        (10, 10, object(8, 9, 3), true),
        (13, 13, object(8, 8, 2), true),
        (16, 17, none, true),
        (0, 1, none, true),
        (0, 1, object(7, 7, 1), true),
        (2, 3, object(8, 8, 2), false),
        (7, 7, object(7, 7, 1), false),
        (7, 7, none, false),
        (10, 10, object(8, 8, 3), false),
        (10, 10, object(8, 9, 2), false),
        (13, 13, object(8, 9, 3), false),
        (16, 17, object(8, 8, 2), false),
        (5, 5, object(7, 8, 2), false),
        (3, 3, none, false),
        (3, 3, object(9, 9, 1), false),
    ] {
        let found = check(&[&written[..], &[event(start, end, What::Get(read))]].concat());
        ensure!(found.is_ok() == fine, "a read of {read:?} from {start} to {end}: {found:?}");
    }
    let unknown = Event { end: Duration::MAX, ..event(17, 18, What::Write(object(5, 5, 1))) };
    for (start, read, fine) in [
        (16, object(5, 5, 1), false),
        (19, object(5, 5, 1), true),
        (19, none, true),
        (19, object(8, 8, 2), false),
    ] {
        let read = event(start, start, What::Get(read));
        let found = check(&[&written[..], &[unknown, read]].concat());
        ensure!(found.is_ok() == fine, "{read:?}, with a write without a response: {found:?}");
    }
    let head = event(10, 10, What::Head(object(0, 8, 3)));
    ensure!(check(&[&written[..], &[head]].concat()).is_err(), "a HEAD with stale metadata is not reported");
    Ok(())
}
