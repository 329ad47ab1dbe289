//! DNS queries for the endpoint's names and their responses: the VIPs for A and AAAA, "no data" for all other types.
//!
//! Only simple queries are answered (one question, class IN, at most an EDNS record without options); any other query
//! continues unchanged to the resolver.

use lota_common::{RawName, Settings};

use crate::packet::{Address, Bytes};

/// Length of the header of a DNS message (RFC 1035, section 4.1.1).
pub const HEADER: usize = 12;
/// TTL of the records, in seconds.
pub const TTL: u32 = 60;
/// TTL of records that are valid only while the daemon lives, in seconds.
pub const SHORT_TTL: u32 = 1;

/// Maximum length of the name of a question, in bytes (RFC 1035, section 2.3.4).
const MAX_QUESTION: usize = 255;
/// Maximum length of the part of a message that is read: header, question, and an EDNS record up to its options.
pub const MAX_LENGTH: usize = HEADER + MAX_QUESTION + 4 + OPT;
/// Maximum number of labels of a name that is answered. The 63 characters of a bucket's name have no more than 32. The
/// limit keeps the loops below cheap for the verifier, which follows each turn of them.
const MAX_LABELS: usize = 40;
const A: usize = 16;
const AAAA: usize = 28;
const SOA: usize = 36;
const OPT: usize = 11;

/// A query for a name of the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsQuery {
    /// Requested type.
    pub kind: QueryType,
    /// Whether the client uses EDNS.
    pub edns: bool,
    /// Length of header and question, in bytes.
    pub length: usize,
    /// Offset of the endpoint's name in the message.
    pub zone: usize,
    /// Flags of the header.
    pub flags: [u8; 2],
    /// The endpoint's name.
    pub name: FoundName,
}

/// A name of the endpoint that is the end of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundName {
    /// Length in wire format, in bytes.
    pub length: usize,
    /// Whether the name also works without LOTA.
    pub is_intercepted: bool,
    /// Whether queries are answered only while the daemon lives.
    pub needs_daemon: bool,
}

impl FoundName {
    /// Returns what a query needs to know of an entry.
    #[inline(always)]
    #[must_use]
    pub fn of(name: &RawName) -> Self {
        Self {
            length: name.length as usize,
            is_intercepted: name.kind != RawName::OWN,
            needs_daemon: name.needs_daemon == 1,
        }
    }
}

impl DnsQuery {
    /// Returns whether the query is for LOTA to answer. Queries for a name that also works without LOTA are left to the
    /// resolver if they are not about addresses, or if they came over an address family without a VIP, since the pod
    /// might have no other.
    #[inline(always)]
    #[must_use]
    pub fn is_ours(&self, settings: &Settings, is_v6: bool) -> bool {
        !self.name.is_intercepted || self.kind != QueryType::Other && !(is_v6 && settings.vip6.is_unset())
    }

    /// Returns the TTL of the records, in seconds.
    #[inline(always)]
    const fn ttl(&self) -> u32 {
        if self.name.needs_daemon { SHORT_TTL } else { TTL }
    }
}

/// Requested type of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryType {
    /// IPv4 address.
    A,
    /// IPv6 address.
    Aaaa,
    /// A service binding (SVCB, HTTPS), which may contain addresses.
    Service,
    /// Any other type.
    Other,
}

/// Records of a response. Stored in words because the compiler would fill bytes with a loop, which the verifier
/// rejects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Records {
    /// Encoded records.
    pub words: [u64; 6],
    /// Length of the encoded records, in bytes.
    pub length: usize,
    /// Number of answer records; with 0, the record belongs to the authority section.
    pub answers: u8,
}

/// A DNS message, with the names of the endpoint.
pub trait Message: Bytes {
    /// Returns the longest name of the endpoint with which the `length` bytes of the message before `end` end, in any
    /// case; `length` is at least 1 and at most [`MAX_NAME`].
    fn find(&self, end: usize, length: usize) -> Option<FoundName>;
}

/// Parses a DNS message; `None` if it is not a simple query for a name of the endpoint. Names whose labels contain the
/// bytes of an endpoint's name, lengths of labels included, are not ours either: no client asks for them.
#[inline(always)]
pub fn query(message: &impl Message, settings: &Settings) -> Option<DnsQuery> {
    let header: [u8; HEADER] = message.load(0)?;
    let [_, _, flags @ .., q1, q0, a1, a0, n1, n0, r1, r0] = header;
    // A standard query (opcode 0), not truncated; one question, no answers or authorities, at most one more record.
    let plain = flags[0] & 0xfa == 0 && [q1, q0, a1, a0, n1, n0, r1] == [0, 1, 0, 0, 0, 0, 0] && r0 <= 1;
    if !plain {
        return None;
    }
    // The loops in these functions have many exits. With numbers that it does not know, the verifier checks what follows
    // once, not once for each exit.
    let end = message.opaque(end_of_name(message)?);
    let longest = usize::from(settings.longest_name);
    if end > HEADER + MAX_QUESTION || longest == 0 {
        return None;
    }
    let name = message.find(end, longest.min(end - HEADER))?;
    let zone = end - name.length;
    if !is_label(message, zone) {
        return None;
    }
    let (end, zone) = (message.opaque(end), message.opaque(zone));
    let [t1, t0, c1, c0] = message.load::<4>(end)?;
    if [c1, c0] != [0, 1] {
        return None;
    }
    let kind = match [t1, t0] {
        [0, 1] => QueryType::A,
        [0, 28] => QueryType::Aaaa,
        [0, 64 | 65] => QueryType::Service,
        _ => QueryType::Other,
    };
    let edns = r0 == 1;
    if edns {
        // RFC 6891, section 6.1.2: the root name, type 41; only version 0 is supported.
        let [root, o1, o0, _, _, _, version] = message.load::<7>(end + 4)?;
        if [root, o1, o0, version] != [0, 0, 41, 0] {
            return None;
        }
    }
    Some(DnsQuery { kind, edns, length: end + 4, zone, flags, name })
}

/// Returns the header of the response, without the identifier.
#[inline(always)]
#[must_use]
pub fn header(query: &DnsQuery, records: &Records) -> [u8; HEADER - 2] {
    // QR, AA and RA: the client expects the response of a recursive resolver.
    let flags = [query.flags[0] | 0x84, query.flags[1] & 0x10 | 0x80];
    let authorities = 1 - records.answers;
    [flags[0], flags[1], 0, 1, 0, records.answers, 0, authorities, 0, u8::from(query.edns)]
}

/// Returns the records of the response.
#[inline(always)]
#[must_use]
pub fn records(query: &DnsQuery, settings: &Settings) -> Records {
    let [t0, t1, t2, t3] = query.ttl().to_be_bytes();
    let word = u64::from_ne_bytes;
    // RFC 6891; 1232 bytes fit any path (DNS flag day 2020).
    let (opt0, opt1, opt2, opt3, opt4) = (0, 0, 41, 0x04, 0xd0);
    let (words, length, answers) = match query.kind {
        QueryType::A => {
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
        QueryType::Aaaa if !settings.vip6.is_unset() => {
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
        QueryType::Aaaa | QueryType::Service | QueryType::Other => {
            // An SOA record limits the caching of "no data" (RFC 2308). Its names point to the endpoint's name.
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

/// Returns the offset after the final zero of a name; `None` if it is too long or compressed.
#[inline(always)]
fn end_of_name(message: &impl Bytes) -> Option<usize> {
    let mut at = HEADER;
    for _ in 0..MAX_LABELS {
        match message.load::<1>(at)? {
            [0] => return Some(at + 1),
            [length @ 1..=63] => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    None
}

/// Returns eight bytes of a name as they are in a [`NameKey`](lota_common::NameKey): in lower case, the last one first.
#[inline(always)]
#[must_use]
pub fn key_word(characters: u64) -> u64 {
    lower_case(characters).swap_bytes()
}

/// Converts eight ASCII characters to lower case. Lengths of labels are below the letters, so they do not change.
#[inline(always)]
fn lower_case(characters: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let low = characters & (0x7f * EACH);
    let (from_a, past_z) = (low + (0x80 - 0x41) * EACH, low + (0x80 - 0x5b) * EACH);
    let upper = !characters & (from_a ^ past_z) & (0x80 * EACH);
    characters | upper >> 2
}

/// Returns whether a label begins at `start`. If not, the bytes there are only the end of another label.
#[inline(always)]
fn is_label(message: &impl Bytes, start: usize) -> bool {
    let mut at = HEADER;
    for _ in 0..MAX_LABELS {
        if at >= start {
            break;
        }
        match message.load::<1>(at) {
            Some([length]) => at += 1 + usize::from(length & 63),
            None => return false,
        }
    }
    at == start
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
