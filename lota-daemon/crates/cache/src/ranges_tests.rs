use proptest::prelude::*;

use super::*;

/// Unit of positions.
const UNIT: u64 = 256 << 10;
/// Size of the object, in units.
const UNITS: usize = 10;

fn range(start: usize, end: usize) -> ByteRange {
    ByteRange { start: start as u64 * UNIT, end: end as u64 * UNIT }
}

#[derive(Clone, Debug)]
enum Step {
    Begin(usize, usize),
    /// Writes the next units of one of the responses.
    Write(usize, usize),
    End(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..UNITS, 1..=UNITS).prop_map(|(start, length)| Step::Begin(start, (start + length).min(UNITS))),
        (0..4usize, 1..4usize).prop_map(|(which, units)| Step::Write(which, units)),
        (0..4usize).prop_map(Step::End),
    ]
}

/// Reference model: each unit is stored or not, and each response has a cursor and an end.
#[derive(Default)]
struct Model {
    stored: [bool; UNITS],
    arriving: Vec<(ArrivalId, usize, usize)>,
}

impl Model {
    fn arrives(&self, unit: usize) -> bool {
        self.arriving.iter().any(|(_, cursor, end)| (*cursor..*end).contains(&unit))
    }
}

fn index(unit: u64) -> usize {
    usize::try_from(unit).unwrap()
}

proptest! {
    #[test]
    fn behave_as_the_model(steps in prop::collection::vec(step(), 0..40)) {
        let (ranges, mut model) = (Ranges::new(UNITS as u64 * UNIT), Model::default());
        for step in steps {
            match step {
                Step::Begin(start, end) => {
                    let id = ranges.begin(range(start, end)).unwrap();
                    model.arriving.push((id, start, end));
                }
                Step::Write(which, units) => {
                    let Some((id, cursor, end)) = model.arriving.get_mut(which) else { continue };
                    let next = (*cursor + units).min(*end);
                    let (id, written) = (*id, *cursor..next);
                    *cursor = next;
                    let mut asked = [false; UNITS];
                    let store = ranges.store(id, next as u64 * UNIT, |missing| {
                        (missing.start / UNIT..missing.end / UNIT).for_each(|unit| asked[index(unit)] = true);
                        Ok(())
                    });
                    prop_assert!(store.is_ok());
                    for (unit, asked) in asked.into_iter().enumerate() {
                        prop_assert_eq!(asked, written.contains(&unit) && !model.stored[unit], "{}", unit);
                    }
                    model.stored[written].fill(true);
                }
                Step::End(which) if which < model.arriving.len() => ranges.end(model.arriving.remove(which).0),
                Step::End(_) => {}
            }
            for unit in 0..UNITS {
                let one = range(unit, unit + 1);
                prop_assert_eq!(ranges.has(one), model.stored[unit]);
                prop_assert_eq!(ranges.covers(one), model.stored[unit] || model.arrives(unit));
                let seen = ranges.state().look(one.start + 1);
                match (model.stored[unit], model.arrives(unit)) {
                    (true, _) => prop_assert!(matches!(seen, Ok(Some(Available::File(end))) if end >= one.end)),
                    (false, true) => prop_assert_eq!(seen, Ok(None)),
                    (false, false) => prop_assert_eq!(seen, Err(Broken)),
                }
                for end in unit + 1..=UNITS {
                    let whole = range(unit, end);
                    let covered = (unit..end).all(|unit| model.stored[unit] || model.arrives(unit));
                    prop_assert_eq!(ranges.covers(whole), covered);
                    prop_assert_eq!(ranges.has(whole), (unit..end).all(|unit| model.stored[unit]));
                }
            }
            let stored = model.stored.iter().filter(|stored| **stored).count();
            prop_assert_eq!(ranges.stored_bytes(), stored as u64 * UNIT);
            prop_assert_eq!(ranges.is_whole(), stored == UNITS);
            let held = (0..UNITS).filter(|unit| model.stored[*unit] || model.arrives(*unit)).count();
            prop_assert_eq!(ranges.disk(), held as u64 * UNIT + 4096);
        }
    }
}

#[test]
fn received_bytes_are_readable_before_they_are_written() {
    let ranges = Ranges::new(100);
    let id = ranges.begin(ByteRange { start: 10, end: 30 }).unwrap();
    ranges.received(id, Bytes::from_static(b"abc"));
    let state = || ranges.state();
    assert_eq!(state().look(11), Ok(Some(Available::Memory(Bytes::from_static(b"bc")))));
    assert_eq!(state().look(13), Ok(None), "they arrive");
    assert_eq!(state().look(9), Err(Broken), "nothing brings them");
    let mut written = Vec::new();
    let write = |missing| {
        written.push(missing);
        Ok(())
    };
    ranges.store(id, 12, write).unwrap();
    assert_eq!(written.first(), Some(&(10..12)));
    assert_eq!(state().look(11), Ok(Some(Available::File(12))));
    ranges.end(id);
    assert_eq!(state().look(12), Err(Broken));
    assert_eq!(state().look(11), Ok(Some(Available::File(12))), "what is stored stays");
}

#[test]
fn separate_ranges_are_limited() {
    let ranges = Ranges::new(u64::MAX);
    for place in 0..MAX_FRAGMENTS as u64 {
        let id = ranges.begin(ByteRange { start: place * 10, end: place * 10 + 1 }).unwrap();
        ranges.store(id, place * 10 + 1, |_| Ok(())).unwrap();
        ranges.end(id);
    }
    for (start, end) in [(5, 6), (8, 10), (5, 99)] {
        assert_eq!(ranges.begin(ByteRange { start, end }), None);
    }
    for (start, end) in [(1, 6), (0, 99), (10, 12)] {
        let id = ranges.begin(ByteRange { start, end }).expect("it does not add a range");
        ranges.end(id);
    }
    assert_eq!(ranges.disk(), 4096 * (MAX_FRAGMENTS as u64 + 1), "each in a block of its own");
}

#[test]
fn a_request_does_not_wait_for_distant_bytes() {
    let ranges = Ranges::new(u64::MAX);
    let id = ranges.begin(ByteRange { start: 10, end: 1 << 40 }).unwrap();
    let from = |start| ByteRange { start, end: 1 << 30 };
    assert!(ranges.covers(from(10)) && ranges.covers(from(10 + MAX_WAIT)));
    assert!(!ranges.covers(from(11 + MAX_WAIT)));
    ranges.store(id, 11, |_| Ok(())).unwrap();
    assert!(ranges.covers(from(11 + MAX_WAIT)), "it has come closer");
    assert!(ranges.covers(from(10)), "from stored bytes on");
}
