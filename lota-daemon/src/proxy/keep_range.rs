//! Keeps ranges of objects that LOTA may not fetch as a whole: those that clients read with a signed `Range`.

use std::sync::Arc;

use hyper::{HeaderMap, Response, body::Incoming, header};
use lota_cache::RangeFill;
use lota_s3::{ByteRange, ObjectMeta};

use super::{Proxy, fill::bytes_of, fill_quota::FillReservation, get::Get};
use crate::{
    metrics::{Fault, FillLabels},
    process::log_limit::LogLimit,
};

impl Proxy {
    /// Prepares to store the range that the gateway sends. Returns `None` if it must pass through uncached.
    pub(super) async fn keep_range(
        &self,
        get: &Get<'_>,
        meta: &ObjectMeta,
        range: ByteRange,
    ) -> Option<(RangeFill, FillReservation)> {
        let (requested, received) = get.needed_and_received(meta.size);
        let (reservation, response) =
            self.reserve_fill(get.pod, &meta.version.name, range.length(), (requested, received))?;
        match self.cache.keep_range(meta, range, get.pod).await {
            Ok(fill) => {
                let _ = get.reservation.set(response);
                Some((fill, reservation))
            }
            Err(no_room) => {
                self.not_cached(get.pod, &meta.version.name, &no_room);
                None
            }
        }
    }

    /// Stores the range from the gateway's response, whether or not a request still waits for it.
    pub(super) async fn store_range(
        self: Arc<Self>,
        fill: RangeFill,
        range: ByteRange,
        answer: Response<Incoming>,
        mut reservation: FillReservation,
    ) {
        let object = fill.object();
        let (received, end) = fill.run(bytes_of(answer)).await;
        reservation.fetched(received);
        self.metrics.fill_bytes.inc_by(received);
        let end = match end {
            Ok(()) => "range",
            Err(error) => {
                let name = &object.meta().version.name;
                static LINES: LogLimit = LogLimit::every_ten_seconds();
                if let Some(left_out) = LINES.admit() {
                    tracing::warn!(object = %name, %range, %error, left_out, "cannot keep all of a range");
                }
                self.metrics.fault(Fault::FillBroken);
                "broken"
            }
        };
        self.metrics.fills.get_or_create(&FillLabels { authority: "client", end }).inc();
    }
}

/// Returns whether a response contains exactly this range of an object of `size` bytes.
pub(super) fn is_range(answer: &HeaderMap, range: ByteRange, size: u64) -> bool {
    let stated = answer.get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    stated.and_then(ByteRange::parse_content_range) == Some((range, size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::answer;

    #[test]
    fn only_the_requested_range_is_kept() {
        let range = ByteRange { start: 3, end: 5 };
        for (is_kept, stated) in [
            (true, "bytes 3-4/9"),
            (false, "bytes 3-4/10"),
            (false, "bytes 3-3/9"),
            (false, "bytes 4-5/9"),
            (false, "bytes */9"),
            (false, ""),
        ] {
            let (_, headers) = answer(206, &[("content-range", stated)]);
            assert_eq!(is_range(&headers, range, 9), is_kept, "{stated}");
        }
        assert!(!is_range(&HeaderMap::new(), range, 9));
    }
}
