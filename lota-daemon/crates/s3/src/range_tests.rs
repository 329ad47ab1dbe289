use proptest::prelude::*;

use super::*;

#[test]
fn forms() {
    for (value, expected) in [
        ("bytes=0-0", RangeRequest::FromTo(0, 0)),
        ("bytes=5-9", RangeRequest::FromTo(5, 9)),
        ("bytes=5-", RangeRequest::From(5)),
        ("bytes=-5", RangeRequest::Last(5)),
        ("bytes=0-9223372036854775807", RangeRequest::FromTo(0, i64::MAX.cast_unsigned())),
    ] {
        assert_eq!(RangeRequest::parse(value), expected, "{value}");
    }
}

#[test]
fn forms_that_servers_parse_differently_are_unusual() {
    for value in [
        "Bytes=5-",
        "bytes=-0",
        "bytes=5-2",
        "bytes=",
        "bytes=-",
        "bytes=--5",
        "bytes=a-b",
        "bytes=+1-2",
        "bytes=01-2",
        "bytes=0-00",
        "bytes= 0-1",
        "bytes=0-1 ",
        " bytes=0-1",
        "bytes =0-1",
        "bytes=0 - 1",
        "bytes=0-0,",
        "bytes=0-1,3-4",
        "bytes=,0-1",
        "bytes=1-99999999999999999999",
        "bytes=100-18446744073709551616",
        "bytes=100-9223372036854775808",
        "bytes=18446744073709551616-",
        "bytes=-18446744073709551616",
        "lines=0-1",
        "bytes",
        "",
    ] {
        assert_eq!(RangeRequest::parse(value), RangeRequest::Unusual, "{value}");
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
        (RangeRequest::FromTo(0, 0), 0, Err(Unsatisfiable)),
        (RangeRequest::FromTo(0, u64::MAX), 10, range(0, 10)),
        (RangeRequest::Whole, 0, Ok(None)),
    ] {
        assert_eq!(request.resolve(size), expected, "{request:?} of {size}");
    }
}

/// Any text, and `Content-Range` values whose numbers are near the limits.
fn content_range() -> impl Strategy<Value = String> {
    let number = || prop_oneof![0..3u64, MAX_SIZE - 1..=MAX_SIZE + 1, u64::MAX - 1..=u64::MAX];
    let near =
        (number(), number(), number()).prop_map(|(first, last, size)| format!("bytes {first}-{last}/{size}"));
    prop_oneof![".*", near]
}

proptest! {
    #[test]
    fn only_the_canonical_form_is_accepted(value in ".*|[Bb]ytes ?=[ +]?[0-9]{0,21} ?-[0-9]{0,21}[, ]?") {
        let written = match RangeRequest::parse(&value) {
            RangeRequest::FromTo(first, last) => format!("bytes={first}-{last}"),
            RangeRequest::From(first) => format!("bytes={first}-"),
            RangeRequest::Last(length) => format!("bytes=-{length}"),
            RangeRequest::Whole => "only without a header".to_owned(),
            RangeRequest::Unusual => value.clone(),
        };
        prop_assert_eq!(&written, &value);
    }

    #[test]
    fn parsed_content_ranges_lie_inside(value in content_range()) {
        if let Some((range, size)) = ByteRange::parse_content_range(&value) {
            prop_assert!(range.start < range.end && range.end <= size && size <= MAX_SIZE);
        }
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
    fn ranges_round_trip(a in 0..=MAX_SIZE, b in 0..=MAX_SIZE, c in 0..=MAX_SIZE) {
        let mut sorted = [a, b, c];
        sorted.sort_unstable();
        let [start, end, size] = sorted;
        prop_assume!(start < end);
        let range = ByteRange { start, end };
        prop_assert_eq!(ByteRange::parse_content_range(&range.content_range(size)), Some((range, size)));
        prop_assert_eq!(RangeRequest::parse(&range.to_string()).resolve(size), Ok(Some(range)));
    }
}

#[test]
fn sizes_fit_into_a_signed_number() {
    for (value, expected) in [
        ("bytes 0-0/9223372036854775807", Some((ByteRange { start: 0, end: 1 }, MAX_SIZE))),
        ("bytes 0-0/9223372036854775808", None),
        ("bytes 0-18446744073709551615/18446744073709551616", None),
        ("bytes 5-18446744073709551615/100", None),
    ] {
        assert_eq!(ByteRange::parse_content_range(value), expected, "{value}");
    }
}
