//! `Range` and `Content-Range`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lota_s3::{ByteRange, MAX_SIZE, RangeRequest};

fuzz_target!(|input: (u64, &str)| {
    let (size, text) = input;
    let size = size & MAX_SIZE;
    if let Ok(Some(range)) = RangeRequest::parse(text).resolve(size) {
        assert!(range.start < range.end && range.end <= size, "{range:?} of {size}");
        assert_eq!(ByteRange::parse_content_range(&range.content_range(size)), Some((range, size)));
        assert_eq!(RangeRequest::parse(&range.to_string()).resolve(size), Ok(Some(range)));
    }
    if let Some((range, size)) = ByteRange::parse_content_range(text) {
        assert!(range.start < range.end && range.end <= size && size <= MAX_SIZE, "{range:?} of {size}");
    }
});
