use proptest::prelude::*;

use super::*;

#[test]
fn forms() {
    for (value, expected) in [
        ("bytes=0-0", RangeRequest::FromTo(0, 0)),
        ("bytes=5-9", RangeRequest::FromTo(5, 9)),
        ("Bytes=5-", RangeRequest::From(5)),
        ("bytes=-5", RangeRequest::Last(5)),
        ("bytes=-0", RangeRequest::Last(0)),
        ("bytes=5-2", RangeRequest::Whole),
        ("bytes=", RangeRequest::Whole),
        ("bytes=-", RangeRequest::Whole),
        ("bytes=a-b", RangeRequest::Whole),
        ("bytes=+1-2", RangeRequest::Whole),
        ("bytes=1-99999999999999999999", RangeRequest::Whole),
        ("lines=0-1", RangeRequest::Whole),
        ("", RangeRequest::Whole),
        ("bytes=0-1,3-4", RangeRequest::Several),
    ] {
        assert_eq!(RangeRequest::parse(value), expected, "{value}");
    }
}

#[test]
fn resolution() {
    let range = |start, end| Ok(Some(ByteRange { start, end }));
    for (request, size, expected) in [
        (RangeRequest::FromTo(0, 0), 10, range(0, 1)),
        (RangeRequest::FromTo(5, 99), 10, range(5, 10)),
        (RangeRequest::From(9), 10, range(9, 10)),
        (RangeRequest::From(10), 10, Err(Unsatisfiable)),
        (RangeRequest::Last(3), 10, range(7, 10)),
        (RangeRequest::Last(30), 10, range(0, 10)),
        (RangeRequest::Last(0), 10, Err(Unsatisfiable)),
        (RangeRequest::FromTo(0, 0), 0, Err(Unsatisfiable)),
        (RangeRequest::FromTo(0, u64::MAX), 10, range(0, 10)),
        (RangeRequest::Whole, 0, Ok(None)),
    ] {
        assert_eq!(request.resolve(size), expected, "{request:?} of {size}");
    }
}

proptest! {
    #[test]
    fn any_text_parses(value in ".*") {
        let _ = RangeRequest::parse(&value);
        let _ = ByteRange::parse_content_range(&value);
    }

    #[test]
    fn resolved_ranges_lie_inside(first: u64, last: u64, size: u64) {
        for request in [RangeRequest::FromTo(first, last), RangeRequest::From(first), RangeRequest::Last(last)] {
            if let Ok(Some(range)) = request.resolve(size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }

    #[test]
    fn content_range_round_trips(start in 0..1000u64, length in 1..1000u64, rest in 0..1000u64) {
        let range = ByteRange { start, end: start + length };
        let size = range.end + rest;
        prop_assert_eq!(ByteRange::parse_content_range(&range.content_range(size)), Some((range, size)));
    }

    #[test]
    fn a_range_is_understood_as_it_is_written(start in 0..1000u64, length in 1..1000u64) {
        let range = ByteRange { start, end: start + length };
        prop_assert_eq!(RangeRequest::parse(&range.to_string()).resolve(10_000), Ok(Some(range)));
    }
}
