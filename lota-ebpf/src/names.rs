//! Name queries for the zone, and what is answered: A and AAAA are the virtual addresses, all else is "no data".
//!
//! Only the plainest queries are taken (one question, class IN, at most a bare EDNS record beside it): whatever
//! else there may be in a query is the resolver's, which sees it untouched.

use lota_common::{MAX_ZONE, Settings};

use crate::packet::{Address, Bytes};

/// Length of a DNS message's header (RFC 1035, section 4.1.1).
pub const HEADER: usize = 12;
/// How long resolvers may keep an answer, in seconds.
pub const TTL: u32 = 60;

/// Most labels of a name that is answered here. A bucket's name has no more than 32, in 63 characters; what has more
/// is the resolver's. The verifier follows each way out of each round of the loops below, and its patience ends.
const MAX_LABELS: usize = 40;
const A: usize = 16;
const AAAA: usize = 28;
const SOA: usize = 36;
const OPT: usize = 11;

/// A query for a name of the zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// What is asked for.
    pub kind: Kind,
    /// Does the client speak EDNS?
    pub edns: bool,
    /// Length of header and question.
    pub length: usize,
    /// Where in the message the zone's own name begins.
    pub zone: usize,
    /// The flags and counts of its header: eight bytes after the identifier.
    pub flags: [u8; 2],
}

/// What a query asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An IPv4 address.
    A,
    /// An IPv6 address.
    Aaaa,
    /// Anything else.
    Other,
}

/// The records of an answer. In words for the verifier's sake: the compiler fills bytes by a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Records {
    /// The records, one after the other.
    pub words: [u64; 6],
    /// How many bytes of it they are.
    pub length: usize,
    /// How many of them are answers; else the one is an authority.
    pub answers: u8,
}

/// The query in the UDP payload that begins at `message`, if it is one for the zone.
#[inline(always)]
pub fn query(bytes: &impl Bytes, message: usize, settings: &Settings) -> Option<Query> {
    let header: [u8; HEADER] = bytes.load(message)?;
    let [_, _, flags @ .., q1, q0, a1, a0, n1, n0, r1, r0] = header;
    // A query, of kind 0, whole; one question, no answers, no authorities, at most one more record.
    let plain = flags[0] & 0xfa == 0 && [q1, q0, a1, a0, n1, n0, r1] == [0, 1, 0, 0, 0, 0, 0] && r0 <= 1;
    if !plain {
        return None;
    }
    let start = message + HEADER;
    let end = bytes.opaque(end_of_name(bytes, start)?);
    let zone_length = usize::from(settings.zone_length);
    // The verifier wants to hear it again.
    if end > start + 255 || zone_length == 0 || end < start + zone_length {
        return None;
    }
    let zone = end - zone_length;
    if !ends_with_zone(bytes, end, settings) || !is_label(bytes, start, zone) {
        return None;
    }
    let [t1, t0, c1, c0] = bytes.load::<4>(end)?;
    if [c1, c0] != [0, 1] {
        return None;
    }
    let kind = match [t1, t0] {
        [0, 1] => Kind::A,
        [0, 28] => Kind::Aaaa,
        _ => Kind::Other,
    };
    let edns = r0 == 1;
    if edns {
        // RFC 6891, section 6.1.2: the root's name, type 41; version 0 is the only one we speak.
        let [root, o1, o0, _, _, _, version] = bytes.load::<7>(end + 4)?;
        if [root, o1, o0, version] != [0, 0, 41, 0] {
            return None;
        }
    }
    Some(Query { kind, edns, length: end + 4 - message, zone: zone - message, flags })
}

/// What follows the identifier in the header of the answer.
#[inline(always)]
#[must_use]
pub fn header(query: &Query, records: &Records) -> [u8; HEADER - 2] {
    // Answer, authoritative, and recursion available: the client thinks that its resolver speaks.
    let flags = [query.flags[0] | 0x84, query.flags[1] & 0x10 | 0x80];
    let authorities = 1 - records.answers;
    [flags[0], flags[1], 0, 1, 0, records.answers, 0, authorities, 0, u8::from(query.edns)]
}

/// The records that answer a query.
#[inline(always)]
#[must_use]
pub fn records(query: &Query, settings: &Settings) -> Records {
    let [t0, t1, t2, t3] = TTL.to_be_bytes();
    let word = u64::from_ne_bytes;
    // RFC 6891; 1232 bytes fit any path (DNS flag day 2020).
    let (opt0, opt1, opt2, opt3, opt4) = (0, 0, 41, 0x04, 0xd0);
    let (words, length, answers) = match query.kind {
        Kind::A => {
            let [a, b, c, d] = settings.vip4;
            let words = [
                word([0xc0, 12, 0, 1, 0, 1, t0, t1]),
                word([t2, t3, 0, 4, a, b, c, d]),
                word([opt0, opt1, opt2, opt3, opt4, 0, 0, 0]),
                0,
                0,
                0,
            ];
            (words, A, 1)
        }
        Kind::Aaaa if !settings.vip6.is_unset() => {
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = settings.vip6;
            let words = [
                word([0xc0, 12, 0, 28, 0, 1, t0, t1]),
                word([t2, t3, 0, 16, a, b, c, d]),
                word([e, f, g, h, i, j, k, l]),
                word([m, n, o, p, opt0, opt1, opt2, opt3]),
                word([opt4, 0, 0, 0, 0, 0, 0, 0]),
                0,
            ];
            (words, AAAA, 1)
        }
        Kind::Aaaa | Kind::Other => {
            // The zone's SOA says for how long there is no data (RFC 2308). Names in it are the zone's own.
            let [z1, z0] = (0xc000 | u16::try_from(query.zone).unwrap_or(0)).to_be_bytes();
            let words = [
                word([z1, z0, 0, 6, 0, 1, t0, t1]),
                word([t2, t3, 0, 24, z1, z0, z1, z0]),
                word([0, 0, 0, 1, t0, t1, t2, t3]),
                word([t0, t1, t2, t3, t0, t1, t2, t3]),
                word([t0, t1, t2, t3, opt0, opt1, opt2, opt3]),
                word([opt4, 0, 0, 0, 0, 0, 0, 0]),
            ];
            (words, SOA, 0)
        }
    };
    Records { words, length: if query.edns { length + OPT } else { length }, answers }
}

/// Where a name ends, after its final zero; `None` if it does not, or is compressed.
#[inline(always)]
fn end_of_name(bytes: &impl Bytes, start: usize) -> Option<usize> {
    let mut at = start;
    for _ in 0..MAX_LABELS {
        match bytes.load::<1>(at)? {
            [0] => return Some(at + 1),
            [length @ 1..=63] => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    None
}

/// Are the bytes before `end` the zone's name, in any case? Eight at a time, from the last on, each eight at a
/// place of its own: the verifier takes no loop over them without CAP_PERFMON.
#[inline(always)]
fn ends_with_zone(bytes: &impl Bytes, end: usize, settings: &Settings) -> bool {
    eight_match::<0>(bytes, end, settings)
        && eight_match::<1>(bytes, end, settings)
        && eight_match::<2>(bytes, end, settings)
        && eight_match::<3>(bytes, end, settings)
        && eight_match::<4>(bytes, end, settings)
        && eight_match::<5>(bytes, end, settings)
        && eight_match::<6>(bytes, end, settings)
        && eight_match::<7>(bytes, end, settings)
}

#[inline(always)]
fn eight_match<const N: usize>(bytes: &impl Bytes, end: usize, settings: &Settings) -> bool {
    let left = usize::from(settings.zone_length).saturating_sub(8 * N);
    if left == 0 {
        return true;
    }
    let Some(found) = bytes.load::<8>(end - 8 * (N + 1)) else { return false };
    let mut wanted = [0; 8];
    wanted.copy_from_slice(&settings.zone[MAX_ZONE - 8 * (N + 1)..MAX_ZONE - 8 * N]);
    let differs = lower_case(u64::from_le_bytes(found)) ^ u64::from_le_bytes(wanted);
    // Of the last eight, only the end may be the zone's.
    let ignored = if left < 8 { 64 - 8 * left } else { 0 };
    differs >> ignored == 0
}

/// Eight ASCII characters in lower case. Lengths of labels are below the letters, so they stay.
#[inline(always)]
fn lower_case(characters: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let low = characters & (0x7f * EACH);
    let (from_a, past_z) = (low + (0x80 - 0x41) * EACH, low + (0x80 - 0x5b) * EACH);
    let upper = !characters & (from_a ^ past_z) & (0x80 * EACH);
    characters | upper >> 2
}

/// Does a label begin at `wanted`? Else it is only the end of one that looks like the zone.
#[inline(always)]
fn is_label(bytes: &impl Bytes, start: usize, wanted: usize) -> bool {
    let mut at = start;
    for _ in 0..MAX_LABELS {
        if at >= wanted {
            break;
        }
        match bytes.load::<1>(at) {
            Some([length]) => at += 1 + usize::from(length & 63),
            None => return false,
        }
    }
    at == wanted
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
