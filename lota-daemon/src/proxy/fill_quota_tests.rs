use proptest::prelude::*;

use super::*;

const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

fn fill_quota(limit: u64) -> Arc<FillQuota> {
    Arc::new(FillQuota::new(limit))
}

/// Returns the excess of a pod and the bytes reserved by its responses.
fn usage(fill_quota: &Arc<FillQuota>) -> (u64, u64) {
    lock(&fill_quota.usage).get(&POD).map_or((0, 0), |usage| (usage.excess, usage.reserved))
}

/// Ends a fill that has fetched all of an object.
fn complete(mut fill: FillReservation, size: u64) {
    fill.fetched(size);
}

/// Reads `sent` bytes of an object of `size` bytes that is filled for `requested` of them; returns false if it is refused.
fn read(fill_quota: &Arc<FillQuota>, pod: IpAddr, size: u64, requested: u64, sent: u64) -> bool {
    let Some((fill, response)) = fill_quota.reserve(pod, size, requested, 0) else { return false };
    let meter = response.meter();
    meter.sent(sent);
    complete(fill, size);
    true
}

#[test]
fn readers_of_whole_objects_have_no_excess() {
    let fill_quota = fill_quota(100);
    for size in [10, 100, 1000, 1 << 40] {
        assert!(read(&fill_quota, POD, size, size, size));
    }
    assert_eq!(usage(&fill_quota), (0, 0));
    // Several at once, none of them aborted.
    let all: Vec<_> = (0..4).map(|_| fill_quota.reserve(POD, 50, 50, 0).unwrap()).collect();
    for (fill, response) in all {
        response.meter().sent(50);
        complete(fill, 50);
    }
    assert_eq!(usage(&fill_quota), (0, 0));
}

#[test]
fn aborted_reads_of_whole_objects_are_excess() {
    let fill_quota = fill_quota(100);
    let mut fetched = 0;
    for _ in 0..60 {
        fetched += if read(&fill_quota, POD, 8, 8, 1) { 8 } else { 0 };
    }
    assert!(fetched <= 100 + 60, "{fetched} bytes for 60 that were read");
    assert!(!read(&fill_quota, POD, 8, 8, 1), "and the next one, too");
    assert!(read(&fill_quota, OTHER, 8, 8, 1), "another pod has its own quota");
}

#[test]
fn a_fill_of_unknown_size_needs_one_byte() {
    let (fill_quota, now) = (fill_quota(3600), Instant::now());
    assert!(fill_quota.has_left_at(POD, now));
    let (fill, _) = fill_quota.reserve_at(POD, 3600, 0, 0, now).unwrap();
    complete(fill, 3600);
    assert!(!fill_quota.has_left_at(POD, now) && fill_quota.has_left_at(OTHER, now));
    assert!(fill_quota.has_left_at(POD, now + Duration::from_secs(1)), "a second's share has expired");
    assert_eq!(usage(&fill_quota).0, 3599);
}

#[test]
fn stalled_responses_are_bounded() {
    let fill_quota = fill_quota(100);
    let mut held: Vec<_> = Vec::new();
    while let Some(reserved) = fill_quota.reserve(POD, 8, 8, 0) {
        held.push(reserved);
    }
    assert_eq!(held.len(), 25, "twice the limit");
    assert!(fill_quota.reserve(OTHER, 1 << 40, 1 << 40, 0).is_some());
}

#[test]
fn parallel_ranges_of_one_object_leave_no_excess() {
    let fill_quota = fill_quota(100);
    let (fill, first) = fill_quota.reserve(POD, 64, 8, 0).unwrap();
    let others: Vec<_> = (0..7).map(|_| fill_quota.refund_meter(POD)).collect();
    assert_eq!(usage(&fill_quota), (56, 8));
    first.meter().sent(8);
    for other in others {
        other.sent(8);
    }
    complete(fill, 64);
    assert_eq!(usage(&fill_quota), (0, 0));
}

#[test]
fn excess_of_first_bytes_expires() {
    let (fill_quota, now) = (fill_quota(100), Instant::now());
    let reserve = |bytes, after| match fill_quota.reserve_at(POD, bytes, 0, 0, now + after) {
        Some((mut fill, response)) => {
            fill.fetched(bytes);
            drop((fill, response));
            true
        }
        None => false,
    };
    assert!(reserve(60, Duration::ZERO) && !reserve(60, Duration::ZERO));
    assert!(!reserve(60, EXCESS_TTL / 10), "50 are left");
    assert!(reserve(60, EXCESS_TTL / 4), "35 were left");
    assert!(reserve(100, EXCESS_TTL * 2));
}

#[test]
fn excess_expires_from_when_it_arises() {
    let (fill_quota, now) = (fill_quota(100), Instant::now());
    let (mut fill, response) = fill_quota.reserve_at(POD, 90, 90, 0, now).unwrap();
    fill.fetched(90);
    drop(fill);
    let unsent = std::mem::take(&mut lock(&response.0.state).reserved);
    fill_quota.release(POD, unsent, unsent, now + EXCESS_TTL);
    assert!(fill_quota.reserve_at(POD, 20, 20, 0, now + EXCESS_TTL).is_none(), "it is new");
}

#[test]
fn bytes_that_were_not_fetched_are_refunded() {
    for answer_ends_first in [false, true] {
        let fill_quota = fill_quota(100);
        let (mut fill, response) = fill_quota.reserve(POD, 100, 60, 0).unwrap();
        fill.fetched(30);
        if answer_ends_first {
            drop(response);
            drop(fill);
        } else {
            drop(fill);
            drop(response);
        }
        assert_eq!(usage(&fill_quota), (30, 0), "answer first: {answer_ends_first}");
    }
    let fill_quota = fill_quota(100);
    drop(fill_quota.reserve(POD, 100, 60, 0));
    assert_eq!(usage(&fill_quota), (0, 0), "a fill that did not start");
}

#[test]
fn a_resumed_response_counts_once() {
    let fill_quota = fill_quota(100);
    // The client has 30 of 50 bytes from another node, and reads the rest.
    let (fill, response) = fill_quota.reserve(POD, 50, 20, 30).unwrap();
    response.meter().sent(20);
    complete(fill, 50);
    assert_eq!(usage(&fill_quota), (0, 0));
}

proptest! {
    /// Fills of a pod fetch at most what it reads, twice the limit and one object.
    #[test]
    fn fetched_bytes_are_bounded_by_read_bytes(steps in prop::collection::vec((1..60u64, 0..=60u64, 0..=60u64, 0..4u8), 1..200)) {
        let fill_quota = fill_quota(100);
        let (mut fetched, mut sent_all, mut open) = (0, 0, Vec::new());
        for (size, requested, sent, how) in steps {
            let Some((mut fill, response)) = fill_quota.reserve(POD, size, requested.min(size), 0) else { continue };
            let (meter, sent) = (response.meter(), sent.min(requested).min(size));
            // It may fail half-way.
            let come = if how == 0 { size / 2 } else { size };
            let sent = sent.min(come);
            fill.fetched(come);
            fetched += come;
            meter.sent(sent);
            sent_all += sent;
            if how == 1 { open.push((fill, meter)) }
            prop_assert!(fetched <= sent_all + 200 + 60, "{} fetched for {} read", fetched, sent_all);
        }
        drop(open);
        let (excess, reserved) = usage(&fill_quota);
        prop_assert_eq!(reserved, 0);
        prop_assert_eq!(excess, fetched - sent_all);
    }
}
