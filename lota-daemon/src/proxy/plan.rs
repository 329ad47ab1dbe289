//! Decides how to answer when the gateway sends the object, or the requested range of it, with its authorization.

use lota_s3::{ByteRange, CacheControl};

use crate::{gateway::FillAuthority, metrics::Outcome};

/// Maximum length of a range, in bytes, that is relayed while a fill fetches it again with the whole object. A fill
/// would deliver a range of this length later, and as many bytes are in buffers anyway.
const MAX_RANGE_FETCHED_TWICE: u64 = 1 << 20;

/// Facts that determine how to answer while the gateway's response arrives. `O` is the cached object.
#[derive(Debug)]
pub(super) struct ArrivingFacts<O> {
    /// Whether the request is a HEAD, by which a client has an object brought into the cache.
    pub(super) is_head: bool,
    /// The version that the gateway named, if the cache has the requested bytes or is fetching them.
    pub(super) cached: Option<O>,
    /// Whether the cached version is complete.
    pub(super) is_complete: bool,
    /// The client's use of the cache.
    pub(super) cache_control: CacheControl,
    /// Whether the client replaces headers, so that the response's headers are not the object's.
    pub(super) has_overrides: bool,
    /// Whether the response is the whole object rather than a range.
    pub(super) is_whole: bool,
    /// Authority of a fill that makes a request of its own, if there is one.
    pub(super) authority: Option<FillAuthority>,
    /// Bytes of the response that the client already has.
    pub(super) skip: u64,
    /// Requested range; `None` for the whole object or an unsatisfiable range.
    pub(super) range: Option<ByteRange>,
    /// Whether the response contains exactly that range.
    pub(super) is_range: bool,
    /// Whether ranges are kept of objects that cannot be fetched as a whole.
    pub(super) keeps_ranges: bool,
}

/// Plan for a request for which the gateway's response arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ArrivingPlan<O> {
    /// Serves the cached object; the gateway's response is dropped.
    ServeCached(O),
    /// Relays the gateway's response. The cache does not change.
    Relay {
        /// Outcome to report.
        outcome: Outcome,
        /// Reason to count for an object that is not cached.
        uncached: Option<&'static str>,
    },
    /// Relays the gateway's response to a HEAD as soon as the source of a fill has agreed.
    Stage(FillAuthority),
    /// Fills the cache with the gateway's response, and serves from that fill.
    FillFromThisStream,
    /// Stores the range in the gateway's response as a part of the object, and serves from what is stored.
    KeepRange(ByteRange),
    /// Starts a fill, and relays the gateway's response.
    RelayWhileFilling(FillAuthority),
    /// Starts a fill, and serves from it; the gateway's response is relayed only if the object cannot be cached.
    FillThenServe(FillAuthority),
}

/// Decides how to answer a request for which the gateway's response arrives.
pub(super) fn plan_arriving<O>(facts: ArrivingFacts<O>) -> ArrivingPlan<O> {
    match facts.is_head {
        true => plan_head(facts),
        false => plan_get(facts),
    }
}

fn plan_head<O>(facts: ArrivingFacts<O>) -> ArrivingPlan<O> {
    let relay = |outcome| ArrivingPlan::Relay { outcome, uncached: None };
    match facts.authority {
        _ if facts.cached.is_some() && facts.is_complete => relay(Outcome::Hit),
        _ if facts.cached.is_some() => relay(Outcome::Fill),
        _ if facts.cache_control != CacheControl::Use || facts.has_overrides => relay(Outcome::Miss),
        Some(authority) => ArrivingPlan::Stage(authority),
        None => ArrivingPlan::Relay { outcome: Outcome::Miss, uncached: Some("no-fill-authority") },
    }
}

fn plan_get<O>(facts: ArrivingFacts<O>) -> ArrivingPlan<O> {
    let relay = |uncached| ArrivingPlan::Relay { outcome: Outcome::Miss, uncached };
    let is_cheap_twice =
        || facts.skip == 0 && facts.range.is_some_and(|range| range.length() <= MAX_RANGE_FETCHED_TWICE);
    match (facts.cached, facts.authority) {
        (Some(object), _) => ArrivingPlan::ServeCached(object),
        _ if facts.cache_control == CacheControl::LookOnly => relay(None),
        _ if facts.has_overrides => relay(Some("overrides")),
        _ if facts.is_whole => ArrivingPlan::FillFromThisStream,
        (None, None) => match facts.range {
            Some(range) if facts.keeps_ranges && facts.is_range => ArrivingPlan::KeepRange(range),
            Some(_) if facts.keeps_ranges => relay(Some("response-range")),
            _ => relay(Some("no-fill-authority")),
        },
        (None, Some(authority)) if is_cheap_twice() => ArrivingPlan::RelayWhileFilling(authority),
        (None, Some(authority)) => ArrivingPlan::FillThenServe(authority),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Plan = ArrivingPlan<&'static str>;

    const SMALL: Option<ByteRange> = Some(ByteRange { start: 7, end: 7 + MAX_RANGE_FETCHED_TWICE });
    const LARGE: Option<ByteRange> = Some(ByteRange { start: 7, end: 8 + MAX_RANGE_FETCHED_TWICE });

    /// A GET of a large range of an object that is not cached.
    fn get() -> ArrivingFacts<&'static str> {
        ArrivingFacts {
            is_head: false,
            cached: None,
            is_complete: false,
            cache_control: CacheControl::Use,
            has_overrides: false,
            is_whole: false,
            authority: Some(FillAuthority::Own),
            skip: 0,
            range: LARGE,
            is_range: true,
            keeps_ranges: false,
        }
    }

    fn head() -> ArrivingFacts<&'static str> {
        ArrivingFacts { is_head: true, range: SMALL, ..get() }
    }

    fn relay(outcome: Outcome, uncached: Option<&'static str>) -> Plan {
        Plan::Relay { outcome, uncached }
    }

    #[test]
    fn each_fact_decides_in_its_turn() {
        use CacheControl::{Bypass, LookOnly};
        use FillAuthority::{Client, Own};
        let cached = Some("object");
        let miss = |uncached| relay(Outcome::Miss, uncached);
        let served = Plan::ServeCached("object");
        let table = [
            ("GET, large range", get(), Plan::FillThenServe(Own)),
            (
                "client's authority",
                ArrivingFacts { authority: Some(Client), ..get() },
                Plan::FillThenServe(Client),
            ),
            ("no range resolved", ArrivingFacts { range: None, ..get() }, Plan::FillThenServe(Own)),
            ("small range", ArrivingFacts { range: SMALL, ..get() }, Plan::RelayWhileFilling(Own)),
            (
                "small range, client's authority",
                ArrivingFacts { range: SMALL, authority: Some(Client), ..get() },
                Plan::RelayWhileFilling(Client),
            ),
            // The relayed response would begin with bytes that the client has.
            (
                "small range, resumed",
                ArrivingFacts { range: SMALL, skip: 1, ..get() },
                Plan::FillThenServe(Own),
            ),
            (
                "no authority",
                ArrivingFacts { authority: None, range: SMALL, ..get() },
                miss(Some("no-fill-authority")),
            ),
            (
                "no authority, ranges are kept",
                ArrivingFacts { authority: None, keeps_ranges: true, ..get() },
                Plan::KeepRange(LARGE.unwrap()),
            ),
            (
                "another range than the requested one",
                ArrivingFacts { authority: None, keeps_ranges: true, is_range: false, ..get() },
                miss(Some("response-range")),
            ),
            (
                "authority, ranges are kept",
                ArrivingFacts { keeps_ranges: true, ..get() },
                Plan::FillThenServe(Own),
            ),
            (
                "no authority, no range, ranges are kept",
                ArrivingFacts { authority: None, range: None, keeps_ranges: true, ..get() },
                miss(Some("no-fill-authority")),
            ),
            ("whole", ArrivingFacts { is_whole: true, range: None, ..get() }, Plan::FillFromThisStream),
            (
                "whole, no authority",
                ArrivingFacts { is_whole: true, authority: None, ..get() },
                Plan::FillFromThisStream,
            ),
            (
                "whole for a range",
                ArrivingFacts { is_whole: true, range: SMALL, ..get() },
                Plan::FillFromThisStream,
            ),
            ("overrides", ArrivingFacts { has_overrides: true, ..get() }, miss(Some("overrides"))),
            (
                "overrides, whole, no authority",
                ArrivingFacts { has_overrides: true, is_whole: true, authority: None, ..get() },
                miss(Some("overrides")),
            ),
            ("look only", ArrivingFacts { cache_control: LookOnly, ..get() }, miss(None)),
            (
                "look only, whole, overrides",
                ArrivingFacts { cache_control: LookOnly, is_whole: true, has_overrides: true, ..get() },
                miss(None),
            ),
            // Only an entry node of another version sends such a request to an owner.
            (
                "no-store at the owner",
                ArrivingFacts { cache_control: Bypass, ..get() },
                Plan::FillThenServe(Own),
            ),
            ("cached", ArrivingFacts { cached, is_complete: true, ..get() }, served.clone()),
            ("growing", ArrivingFacts { cached, ..get() }, served.clone()),
            ("cached, look only", ArrivingFacts { cached, cache_control: LookOnly, ..get() }, served.clone()),
            (
                "cached, overrides, no authority",
                ArrivingFacts { cached, has_overrides: true, authority: None, ..get() },
                served.clone(),
            ),
            ("cached, whole", ArrivingFacts { cached, is_whole: true, ..get() }, served),
            ("HEAD", head(), Plan::Stage(Own)),
            (
                "HEAD, no authority",
                ArrivingFacts { authority: None, ..head() },
                miss(Some("no-fill-authority")),
            ),
            ("HEAD, look only", ArrivingFacts { cache_control: LookOnly, ..head() }, miss(None)),
            ("HEAD, no-store", ArrivingFacts { cache_control: Bypass, ..head() }, miss(None)),
            ("HEAD, overrides", ArrivingFacts { has_overrides: true, ..head() }, miss(None)),
            (
                "HEAD, overrides, no authority",
                ArrivingFacts { has_overrides: true, authority: None, ..head() },
                miss(None),
            ),
            (
                "HEAD, cached",
                ArrivingFacts { cached, is_complete: true, ..head() },
                relay(Outcome::Hit, None),
            ),
            ("HEAD, growing", ArrivingFacts { cached, ..head() }, relay(Outcome::Fill, None)),
            (
                "HEAD, cached, look only, overrides, no authority",
                ArrivingFacts {
                    cached,
                    is_complete: true,
                    cache_control: LookOnly,
                    has_overrides: true,
                    authority: None,
                    ..head()
                },
                relay(Outcome::Hit, None),
            ),
        ];
        for (name, facts, plan) in table {
            assert_eq!(plan_arriving(facts), plan, "{name}");
        }
    }

    #[test]
    fn no_combination_of_facts_fills_what_must_not_be_cached() {
        let booleans = [false, true];
        for (bits, cached) in (0..64_u8).flat_map(|bits| [(bits, None), (bits, Some("object"))]) {
            let [is_head, is_complete, has_overrides, is_whole, has_authority, keeps_ranges] =
                [1, 2, 4, 8, 16, 32].map(|bit| bits & bit != 0);
            for cache_control in [CacheControl::Use, CacheControl::LookOnly, CacheControl::Bypass] {
                for (is_resumed, range) in
                    booleans.iter().flat_map(|skip| [(skip, SMALL), (skip, LARGE), (skip, None)])
                {
                    let plan = plan_arriving(ArrivingFacts {
                        is_head,
                        cached,
                        is_complete,
                        cache_control,
                        has_overrides,
                        is_whole,
                        authority: has_authority.then_some(FillAuthority::Own),
                        skip: u64::from(*is_resumed),
                        range,
                        is_range: true,
                        keeps_ranges,
                    });
                    let keeps = matches!(plan, Plan::KeepRange(_));
                    assert!(!keeps || keeps_ranges && range.is_some() && !is_whole, "{plan:?}");
                    let fills = !matches!(plan, Plan::ServeCached(_) | Plan::Relay { .. });
                    if has_overrides || cached.is_some() || cache_control == CacheControl::LookOnly {
                        assert!(!fills, "{plan:?}");
                    }
                    if !has_authority && !is_whole {
                        assert!(!fills || keeps, "{plan:?}");
                    }
                    assert_eq!(matches!(plan, Plan::ServeCached(_)), cached.is_some() && !is_head);
                    assert!(!is_head || matches!(plan, Plan::Relay { .. } | Plan::Stage(_)), "{plan:?}");
                    assert!(!*is_resumed || !matches!(plan, Plan::RelayWhileFilling(_)), "{plan:?}");
                }
            }
        }
    }
}
