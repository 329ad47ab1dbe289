//! Matches and targets of iptables that have no expression in nftables (`linux/netfilter/xt_*.h`). Others than these
//! are not known.

use std::array;

use super::{
    FlowDirection,
    bits::{Bits, equal},
    certainty::Match,
    packet::{HookPacket, UNTRACKED},
};

/// Returns the kind of an address (`RTN_LOCAL` or `RTN_UNICAST`).
pub(super) fn kind(is_local: bool) -> u32 {
    if is_local { 2 } else { 1 }
}

/// Returns whether a match of iptables matches.
pub(super) fn matches(name: &str, revision: u32, info: &[u8], packet: &HookPacket<'_>) -> Match {
    match name {
        "comment" => Some(Match::Yes),
        "conntrack" => conntrack(revision, info, packet),
        "state" => word(info, 0).map(|states| state_of(u32::from(states), packet, UNTRACKED)),
        "addrtype" => address_kind(info, packet),
        "tcp" => tcp(info, packet),
        "multiport" => multiport(info, packet),
        "mark" => mark(info, packet),
        "rpfilter" => reverse_path(info, packet),
        "pkttype" if packet.direction == FlowDirection::Request => packet_kind(info),
        // Other protocols, and headers of IPv6 that the packet does not have.
        "udp" | "icmp" | "icmp6" | "sctp" | "dccp" | "esp" | "ah" | "rt" | "frag" | "hbh" | "dst" | "mh" => {
            Some(Match::No)
        }
        _ => None,
    }
    .unwrap_or(Match::Maybe)
}

/// Returns the mark after the target `MARK`.
pub(super) fn marked(info: &[u8], mark: [Bits; 4]) -> [Bits; 4] {
    let Some((set, mask)) = four(info, 0).zip(four(info, 4)) else { return [Bits::UNKNOWN; 4] };
    array::from_fn(|at| mark[at].and_xor(!mask[at], set[at]))
}

/// Returns the mark after the target `CONNMARK`, which may replace it by that of the connection.
pub(super) fn restored(revision: u32, info: &[u8], mark: [Bits; 4]) -> [Bits; 4] {
    const RESTORE: u8 = 2;
    let shifted = info.get(13).is_none_or(|bits| revision > 1 && *bits != 0);
    let mode = info.get(if revision > 1 { 14 } else { 12 });
    match (mode, four(info, 4).zip(four(info, 8))) {
        (Some(mode), _) if *mode != RESTORE => mark,
        (Some(_), Some((from, to))) if !shifted => {
            array::from_fn(|at| mark[at].and_xor(!to[at], 0).forget(from[at]))
        }
        _ => [Bits::UNKNOWN; 4],
    }
}

fn word(info: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?))
}

fn long(info: &[u8], at: usize) -> Option<u32> {
    four(info, at).map(u32::from_ne_bytes)
}

fn four(info: &[u8], at: usize) -> Option<[u8; 4]> {
    info.get(at..at + 4)?.try_into().ok()
}

/// `xt_conntrack_mtinfo1` to `xt_conntrack_mtinfo3`, with nothing but states.
fn conntrack(revision: u32, info: &[u8], packet: &HookPacket<'_>) -> Option<Match> {
    const STATE: u16 = 1;
    // Only for people: `-m state`.
    const ALIAS: u16 = 1 << 13;
    let (flags, inverted) = (word(info, 146)?, word(info, 148)?);
    let states = if revision < 2 { u32::from(*info.get(150)?) } else { word(info, 150)?.into() };
    if flags & !ALIAS != STATE {
        return None;
    }
    Some(state_of(states, packet, 1 << 8).inverted_if(inverted & STATE != 0))
}

/// Returns whether the packet's state is among these. The bit `untracked` is not the same in all matches.
fn state_of(states: u32, packet: &HookPacket<'_>, untracked: u32) -> Match {
    let bit = match packet.state {
        None => return Match::Maybe,
        Some(UNTRACKED) => untracked,
        Some(state) => state,
    };
    Match::of(states & bit != 0)
}

/// `xt_addrtype_info_v1`, without limits to interfaces.
fn address_kind(info: &[u8], packet: &HookPacket<'_>) -> Option<Match> {
    let (source, destination, flags) = (word(info, 0)?, word(info, 2)?, long(info, 4)?);
    if flags & !3 != 0 {
        return None;
    }
    let is_request = packet.direction == FlowDirection::Request;
    let fits = |expected: u16, kind: u32, inverted: u32| {
        expected == 0 || (expected & 1 << kind != 0) != (flags & inverted != 0)
    };
    Some(Match::of(fits(source, kind(!is_request), 1) && fits(destination, kind(is_request), 2)))
}

/// `xt_tcp`, without options.
fn tcp(info: &[u8], packet: &HookPacket<'_>) -> Option<Match> {
    let ports = |at: usize| Some(word(info, at)?..=word(info, at + 2)?);
    let (source, destination) = (ports(0)?, ports(4)?);
    let [option, mask, compared, inverted] = *info.get(8..12)? else { return None };
    let port = |range: std::ops::RangeInclusive<u16>, port: Option<u16>, flag: u8| match port {
        _ if range == (0..=u16::MAX) => Match::Yes.inverted_if(inverted & flag != 0),
        Some(port) => Match::of(range.contains(&port)).inverted_if(inverted & flag != 0),
        None => Match::Maybe,
    };
    let flags = packet.transport.get(13).copied().flatten()?;
    let flags = Match::of(flags & mask == compared).inverted_if(inverted & 4 != 0);
    let option = if option == 0 { Match::Yes } else { Match::Maybe };
    Some(Match::all([
        port(source, packet.port(true), 1),
        port(destination, packet.port(false), 2),
        flags,
        option,
    ]))
}

/// `xt_mark_mtinfo1`.
fn mark(info: &[u8], packet: &HookPacket<'_>) -> Option<Match> {
    let (expected, mask, inverted) = (four(info, 0)?, four(info, 4)?, *info.get(8)? != 0);
    let masked: [Bits; 4] = array::from_fn(|at| packet.mark[at].and_xor(mask[at], 0));
    Some(equal(&masked, &expected).inverted_if(inverted))
}

/// `xt_multiport_v1`.
fn multiport(info: &[u8], packet: &HookPacket<'_>) -> Option<Match> {
    let (kind, count, inverted) = (*info.first()?, usize::from(*info.get(1)?), *info.get(47)? != 0);
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < count.min(15) {
        // A flag marks the first port of a range, whose last one follows.
        let length = usize::from(*info.get(32 + at)? != 0);
        ranges.push(word(info, 2 + at * 2)?..=word(info, 2 + (at + length) * 2)?);
        at += 1 + length;
    }
    let is_in = |is_source: bool| match packet.port(is_source) {
        Some(port) => Match::of(ranges.iter().any(|range| range.contains(&port))),
        None => Match::Maybe,
    };
    let matched = match kind {
        0 => is_in(true),
        1 => is_in(false),
        _ => Match::all([true, false].map(|end| is_in(end).inverted_if(true))).inverted_if(true),
    };
    Some(matched.inverted_if(inverted))
}

/// `xt_rpfilter_info`.
fn reverse_path(info: &[u8], packet: &HookPacket<'_>) -> Option<Match> {
    const INVERTED: u8 = 8;
    let flags = *info.first()?;
    packet.has_way_back().then(|| Match::Yes.inverted_if(flags & INVERTED != 0))
}

/// `xt_pkttype_info`: the packet is for this host.
fn packet_kind(info: &[u8]) -> Option<Match> {
    Some(Match::of(long(info, 0)? == 0).inverted_if(long(info, 4)? != 0))
}
