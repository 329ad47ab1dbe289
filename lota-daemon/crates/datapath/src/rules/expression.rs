//! Evaluates the expressions of a rule for a packet (`linux/netfilter/nf_tables.h`). What is not known here ends
//! certainty.

use std::{cmp::Ordering, collections::BTreeMap, rc::Rc};

use super::{
    RawExpression, SetElement,
    bits::{Bits, all_known, equal, known, unknown},
    certainty::Match,
    fields,
    loads::{fib, meta, tracked},
    number,
    packet::HookPacket,
    text, xtables,
};
use crate::nf_tables::{
    NF_ACCEPT, NF_DROP, NFT_BITWISE_MASK_XOR, NFT_CMP_EQ, NFT_CMP_GT, NFT_CMP_GTE, NFT_CMP_LT, NFT_CMP_LTE,
    NFT_CMP_NEQ, NFT_CONTINUE, NFT_EXTHDR_OP_IPV6, NFT_GOTO, NFT_JUMP, NFT_LOOKUP_F_INV, NFT_META_IIF,
    NFT_META_MARK, NFT_META_NFTRACE, NFT_META_OIFNAME, NFT_META_PRIORITY, NFT_OBJECT_COUNTER,
    NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER, NFT_RANGE_NEQ, NFT_RETURN, NFTA_BITWISE_DREG,
    NFTA_BITWISE_LEN, NFTA_BITWISE_MASK, NFTA_BITWISE_OP, NFTA_BITWISE_SREG, NFTA_BITWISE_XOR, NFTA_CMP_DATA,
    NFTA_CMP_OP, NFTA_CMP_SREG, NFTA_CT_DREG, NFTA_CT_KEY, NFTA_CT_SREG, NFTA_DATA_VALUE, NFTA_DATA_VERDICT,
    NFTA_EXTHDR_FLAGS, NFTA_EXTHDR_OP, NFTA_FIB_DREG, NFTA_FIB_FLAGS, NFTA_FIB_RESULT, NFTA_IMMEDIATE_DATA,
    NFTA_IMMEDIATE_DREG, NFTA_LOOKUP_DREG, NFTA_LOOKUP_FLAGS, NFTA_LOOKUP_SET, NFTA_LOOKUP_SREG,
    NFTA_MATCH_INFO, NFTA_MATCH_NAME, NFTA_MATCH_REV, NFTA_META_DREG, NFTA_META_KEY, NFTA_META_SREG,
    NFTA_OBJREF_IMM_TYPE, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_DREG, NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_OFFSET,
    NFTA_PAYLOAD_SREG, NFTA_RANGE_FROM_DATA, NFTA_RANGE_OP, NFTA_RANGE_SREG, NFTA_RANGE_TO_DATA,
    NFTA_TARGET_INFO, NFTA_TARGET_NAME, NFTA_TARGET_REV, NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE,
};

/// Attributes, by kind.
type Fields<'a> = BTreeMap<u16, &'a [u8]>;

/// Decision of a rule about a packet that it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    /// Anything: other software decides, or something that is not known here.
    Unknown,
}

/// Result of a rule.
pub(super) struct Outcome {
    /// Its verdict, if it may have one.
    pub(super) verdict: Option<Verdict>,
    /// The unknown property or match that the verdict depends on, if there is one.
    pub(super) unknown: Option<String>,
}

/// Returns the elements of a set, if they can be read.
pub(super) type Elements<'a> = &'a dyn Fn(&str) -> Option<Rc<[SetElement]>>;

/// Number of the registers' bytes: sixteen registers of four bytes, or four of sixteen.
const REGISTERS: usize = 64;

/// Registers, in which a rule keeps values.
struct Registers {
    bytes: [Bits; REGISTERS],
    /// The register with the interface, if that is not known.
    interface: Option<u32>,
}

impl Registers {
    const EMPTY: Self = Self { bytes: [Bits::UNKNOWN; REGISTERS], interface: None };

    /// Returns the position of a register: 1 to 4 have 16 bytes each, and 8 to 23 are the same bytes by four.
    fn position(register: u32) -> Option<usize> {
        let register = register as usize;
        match register {
            1..=4 => Some((register - 1) * 16),
            8..=23 => Some((register - 8) * 4),
            _ => None,
        }
    }

    /// Stores a value, padded with zeros to whole words.
    fn store(&mut self, register: Option<u32>, value: &[Bits]) {
        self.interface = None;
        let Some(position) = register.and_then(Self::position) else { return };
        let padded = value.iter().copied().chain(std::iter::repeat(Bits::new(0)));
        let room = self.bytes.iter_mut().skip(position).take(value.len().next_multiple_of(4));
        room.zip(padded).for_each(|(byte, value)| *byte = value);
    }

    fn load(&self, register: Option<u32>, length: usize) -> Option<&[Bits]> {
        let position = register.and_then(Self::position)?;
        self.bytes.get(position..position + length)
    }
}

/// Evaluates the rule with these expressions. `is_here`: whether the packet certainly gets to it.
pub(super) fn evaluate(
    expressions: &[RawExpression],
    packet: &mut HookPacket<'_>,
    is_here: bool,
    elements: Elements<'_>,
) -> Outcome {
    let mut rule =
        RuleRun { registers: Registers::EMPTY, packet, is_here, loaded: "", unknown: None, elements };
    for RawExpression { name, data } in expressions {
        let field = fields(data);
        match rule.step(name, &field) {
            Step::Matches(Match::Yes) => {}
            Step::Matches(Match::No) => return Outcome { verdict: None, unknown: rule.unknown },
            Step::Matches(Match::Maybe) => rule.note_unknown(name, &field),
            Step::Ends(verdict) => {
                if verdict == Verdict::Unknown {
                    rule.note_unknown(name, &field);
                }
                return Outcome { verdict: Some(verdict), unknown: rule.unknown };
            }
        }
    }
    Outcome { verdict: None, unknown: rule.unknown }
}

/// A rule that is being evaluated.
struct RuleRun<'a, 'b> {
    registers: Registers,
    packet: &'a mut HookPacket<'b>,
    is_here: bool,
    /// Name of the property that was last loaded into a register.
    loaded: &'static str,
    /// The first thing that is not known. The rule matched so far with certainty if there is none.
    unknown: Option<String>,
    elements: Elements<'a>,
}

/// Result of an expression.
enum Step {
    Matches(Match),
    Ends(Verdict),
}

impl RuleRun<'_, '_> {
    fn note_unknown(&mut self, name: &str, field: &Fields<'_>) {
        let named = |kind: u16| text(field.get(&kind)).unwrap_or_default();
        self.unknown.get_or_insert_with(|| match name {
            "cmp" => self.loaded.to_owned(),
            "lookup" => format!("{}, the set `{}`", self.loaded, named(NFTA_LOOKUP_SET)),
            "match" => format!("the match `{}`", named(NFTA_MATCH_NAME)),
            "target" => format!("the target `{}`", named(NFTA_TARGET_NAME)),
            _ => format!("`{name}`"),
        });
    }

    fn step(&mut self, name: &str, field: &Fields<'_>) -> Step {
        let numbered = |kind: u16| number(field.get(&kind));
        match name {
            "meta" if field.contains_key(&NFTA_META_SREG) => {
                return Step::Matches(self.set_meta(numbered(NFTA_META_KEY), numbered(NFTA_META_SREG)));
            }
            "meta" => {
                self.loaded = "the interface or the mark";
                let (register, key) = (numbered(NFTA_META_DREG), numbered(NFTA_META_KEY));
                self.registers.store(register, &meta(self.packet, key));
                let is_interface = matches!(key, Some(NFT_META_IIF..=NFT_META_OIFNAME));
                self.registers.interface =
                    register.filter(|_| is_interface && self.packet.flow.interface.is_none());
            }
            "payload" if !field.contains_key(&NFTA_PAYLOAD_SREG) => {
                self.loaded = "the address or the port";
                let [base, offset, length] = [NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_OFFSET, NFTA_PAYLOAD_LEN]
                    .map(|kind| numbered(kind).unwrap_or(u32::MAX));
                let (offset, length) = (offset as usize, (length as usize).min(REGISTERS));
                let header: &[Option<u8>] = match base {
                    NFT_PAYLOAD_NETWORK_HEADER => &self.packet.network,
                    NFT_PAYLOAD_TRANSPORT_HEADER => &self.packet.transport,
                    _ => &[],
                };
                let register = numbered(NFTA_PAYLOAD_DREG);
                self.registers.store(register, &HookPacket::header(header, offset, length));
            }
            // Writes.
            "payload" => {
                self.packet.network.fill(None);
                self.packet.transport.fill(None);
                return self.not_known();
            }
            "ct" if !field.contains_key(&NFTA_CT_SREG) => {
                self.loaded = "the connection (`ct`)";
                let value = tracked(self.packet, numbered(NFTA_CT_KEY));
                self.registers.store(numbered(NFTA_CT_DREG), &value);
            }
            "fib" => {
                self.loaded = "the routes (`fib`)";
                let flags = numbered(NFTA_FIB_FLAGS).unwrap_or(u32::MAX);
                let value = fib(self.packet, numbered(NFTA_FIB_RESULT), flags);
                self.registers.store(numbered(NFTA_FIB_DREG), &value);
            }
            "bitwise" => self.bitwise(field),
            "immediate" => {
                let data = fields(field.get(&NFTA_IMMEDIATE_DATA).copied().unwrap_or_default());
                if let Some(verdict) = data.get(&NFTA_DATA_VERDICT) {
                    return verdict_of(verdict).map_or(Step::Matches(Match::Yes), Step::Ends);
                }
                let value = known(data.get(&NFTA_DATA_VALUE).copied().unwrap_or_default());
                self.registers.store(numbered(NFTA_IMMEDIATE_DREG), &value);
            }
            "cmp" => return Step::Matches(self.compare(field)),
            "range" => return Step::Matches(self.range(field)),
            // Headers of IPv6 that the packet does not have.
            "exthdr"
                if numbered(NFTA_EXTHDR_FLAGS).unwrap_or(0) == 0
                    && numbered(NFTA_EXTHDR_OP).unwrap_or(NFT_EXTHDR_OP_IPV6) == NFT_EXTHDR_OP_IPV6 =>
            {
                return Step::Matches(Match::No);
            }
            "lookup" => return self.lookup(field),
            "match" => {
                let info = field.get(&NFTA_MATCH_INFO).copied().unwrap_or_default();
                let name = text(field.get(&NFTA_MATCH_NAME)).unwrap_or_default();
                let revision = numbered(NFTA_MATCH_REV).unwrap_or(0);
                let matched = xtables::matches(&name, revision, info, self.packet);
                return Step::Matches(matched);
            }
            "target" => return self.target(field),
            "reject" => return Step::Ends(Verdict::Drop),
            "notrack" => self.packet.set_untracked(self.is_here && self.unknown.is_none()),
            // Without a verdict and without an effect on others. `ct` writes here.
            "counter" | "log" | "last" | "ct" => {}
            "objref" if numbered(NFTA_OBJREF_IMM_TYPE) == Some(NFT_OBJECT_COUNTER) => {}
            // Without a verdict.
            "byteorder" | "connlimit" | "dup" | "dynset" | "exthdr" | "flow_offload" | "hash" | "inner"
            | "limit" | "numgen" | "objref" | "osf" | "quota" | "rt" | "socket" | "tunnel" | "xfrm" => {
                return self.not_known();
            }
            _ => return Step::Ends(Verdict::Unknown),
        }
        Step::Matches(Match::Yes)
    }

    /// Result of an expression that may match, and may have written to any register.
    fn not_known(&mut self) -> Step {
        self.registers = Registers::EMPTY;
        Step::Matches(Match::Maybe)
    }

    fn set_meta(&mut self, key: Option<u32>, register: Option<u32>) -> Match {
        match key {
            Some(NFT_META_MARK) => {
                let mark = self.registers.load(register, 4).and_then(|bytes| bytes.try_into().ok());
                self.set_mark(mark.unwrap_or([Bits::UNKNOWN; 4]));
                Match::Yes
            }
            Some(NFT_META_PRIORITY | NFT_META_NFTRACE) => Match::Yes,
            _ => Match::Maybe,
        }
    }

    fn set_mark(&mut self, mark: [Bits; 4]) {
        let is_set = self.is_here && self.unknown.is_none();
        for (old, new) in self.packet.mark.iter_mut().zip(mark) {
            *old = if is_set { new } else { old.or(new) };
        }
    }

    fn target(&mut self, field: &Fields<'_>) -> Step {
        let info = field.get(&NFTA_TARGET_INFO).copied().unwrap_or_default();
        match text(field.get(&NFTA_TARGET_NAME)).unwrap_or_default().as_str() {
            "REJECT" => return Step::Ends(Verdict::Drop),
            "MARK" => self.set_mark(xtables::marked(info, self.packet.mark)),
            "CONNMARK" => {
                let revision = number(field.get(&NFTA_TARGET_REV)).unwrap_or(0);
                self.set_mark(xtables::restored(revision, info, self.packet.mark));
            }
            // XT_CT_NOTRACK
            "CT" if info.first().is_some_and(|flags| flags & 1 == 0) => {}
            "CT" | "NOTRACK" => self.packet.set_untracked(self.is_here && self.unknown.is_none()),
            "DSCP" | "TOS" | "TTL" | "HL" => self.packet.forget_service(),
            "AUDIT" | "CHECKSUM" | "CLASSIFY" | "CONNSECMARK" | "LOG" | "NFLOG" | "SECMARK" | "SET"
            | "TCPMSS" | "TEE" | "TRACE" => {}
            _ => return Step::Ends(Verdict::Unknown),
        }
        Step::Matches(Match::Yes)
    }

    fn bitwise(&mut self, field: &Fields<'_>) {
        let numbered = |kind: u16| number(field.get(&kind));
        let length = (numbered(NFTA_BITWISE_LEN).unwrap_or(0) as usize).min(REGISTERS);
        let source = self.registers.load(numbered(NFTA_BITWISE_SREG), length).map(<[_]>::to_vec);
        let (mask, xor) = (value(field, NFTA_BITWISE_MASK), value(field, NFTA_BITWISE_XOR));
        let operation = numbered(NFTA_BITWISE_OP).unwrap_or(NFT_BITWISE_MASK_XOR);
        let result = match (source, mask, xor, operation) {
            (Some(source), Some(mask), Some(xor), NFT_BITWISE_MASK_XOR) => {
                let masks = mask.iter().zip(xor);
                source.into_iter().zip(masks).map(|(byte, (mask, xor))| byte.and_xor(*mask, *xor)).collect()
            }
            _ => unknown(length),
        };
        self.registers.store(numbered(NFTA_BITWISE_DREG), &result);
    }

    fn compare(&self, field: &Fields<'_>) -> Match {
        let register = number(field.get(&NFTA_CMP_SREG));
        let Some(value) = value(field, NFTA_CMP_DATA) else { return Match::Maybe };
        match number(field.get(&NFTA_CMP_OP)) {
            Some(NFT_CMP_EQ) => self.equal(register, value),
            Some(NFT_CMP_NEQ) => self.equal(register, value).inverted_if(true),
            Some(NFT_CMP_LT) => self.ordered(register, value, Ordering::is_lt),
            Some(NFT_CMP_LTE) => self.ordered(register, value, Ordering::is_le),
            Some(NFT_CMP_GT) => self.ordered(register, value, Ordering::is_gt),
            Some(NFT_CMP_GTE) => self.ordered(register, value, Ordering::is_ge),
            _ => Match::Maybe,
        }
    }

    fn range(&self, field: &Fields<'_>) -> Match {
        let register = number(field.get(&NFTA_RANGE_SREG));
        let (Some(first), Some(last)) =
            (value(field, NFTA_RANGE_FROM_DATA), value(field, NFTA_RANGE_TO_DATA))
        else {
            return Match::Maybe;
        };
        let ends =
            [self.ordered(register, first, Ordering::is_ge), self.ordered(register, last, Ordering::is_le)];
        Match::all(ends).inverted_if(number(field.get(&NFTA_RANGE_OP)) == Some(NFT_RANGE_NEQ))
    }

    /// Returns whether the value of a register and this one are in such an order.
    fn ordered(&self, register: Option<u32>, value: &[u8], is_so: impl FnOnce(Ordering) -> bool) -> Match {
        let loaded = self.registers.load(register, value.len()).and_then(all_known);
        loaded.map_or(Match::Maybe, |loaded| Match::of(is_so(loaded.as_slice().cmp(value))))
    }

    fn equal(&self, register: Option<u32>, value: &[u8]) -> Match {
        let Some(loaded) = self.registers.load(register, value.len()) else { return Match::Maybe };
        let is_interface = register.is_some() && self.registers.interface == register;
        if is_interface && self.packet.flow.others.iter().any(|other| other.is(value)) {
            return Match::No;
        }
        equal(loaded, value)
    }

    fn lookup(&mut self, field: &Fields<'_>) -> Step {
        let numbered = |kind: u16| number(field.get(&kind));
        let elements = (self.elements)(&text(field.get(&NFTA_LOOKUP_SET)).unwrap_or_default());
        let source = numbered(NFTA_LOOKUP_SREG);
        let found = elements.as_deref().and_then(|elements| self.find(elements, source));
        let (found, register) = match (found, numbered(NFTA_LOOKUP_DREG)) {
            (Some(found), register) => (found, register),
            (None, None) => return Step::Matches(Match::Maybe),
            (None, Some(0)) => return Step::Ends(Verdict::Unknown),
            (None, Some(_)) => return self.not_known(),
        };
        let is_inverted = numbered(NFTA_LOOKUP_FLAGS).unwrap_or(0) & NFT_LOOKUP_F_INV != 0;
        let is_found = Match::of(found.is_some()).inverted_if(is_inverted);
        let (Some(register), Some(data)) = (register, found.and_then(|element| element.data.as_deref()))
        else {
            return Step::Matches(is_found);
        };
        let data = fields(data);
        if let Some(verdict) = data.get(&NFTA_DATA_VERDICT) {
            return verdict_of(verdict).map_or(Step::Matches(Match::Yes), Step::Ends);
        }
        let value = known(data.get(&NFTA_DATA_VALUE).copied().unwrap_or_default());
        self.registers.store(Some(register), &value);
        Step::Matches(is_found)
    }

    /// Returns the element that contains the value of a register; `None` if that depends on what is not known.
    fn find<'a>(&self, elements: &'a [SetElement], register: Option<u32>) -> Option<Option<&'a SetElement>> {
        let catch_all = elements.iter().find(|element| element.is_catch_all);
        let single = || elements.iter().filter(|element| !element.is_catch_all);
        if single().any(|element| element.has_end) {
            return None;
        }
        let length = single().map(|element| element.key.len()).max().unwrap_or(0);
        let value = all_known(self.registers.load(register, length)?);
        if single().any(|element| element.ends) {
            let value = value?;
            // An interval begins where another ends: then it is the beginning that counts.
            let before = single().filter(|element| element.key <= value);
            let last = before.max_by_key(|element| (&element.key, !element.ends));
            return Some(last.filter(|element| !element.ends).or(catch_all));
        }
        // An element that differs in a known byte is not the one.
        match single().find(|element| self.equal(register, &element.key) != Match::No) {
            Some(_) if value.is_none() => None,
            found => Some(found.or(catch_all)),
        }
    }
}

/// Returns the value in an attribute of an expression.
fn value<'a>(field: &Fields<'a>, kind: u16) -> Option<&'a [u8]> {
    fields(field.get(&kind)?).get(&NFTA_DATA_VALUE).copied()
}

/// Returns the verdict of an attribute; `None` for "continue".
fn verdict_of(attribute: &[u8]) -> Option<Verdict> {
    let field = fields(attribute);
    let chain = || text(field.get(&NFTA_VERDICT_CHAIN)).unwrap_or_default();
    match number(field.get(&NFTA_VERDICT_CODE)).map(u32::cast_signed) {
        Some(NF_DROP) => Some(Verdict::Drop),
        Some(NF_ACCEPT) => Some(Verdict::Accept),
        Some(NFT_CONTINUE) => None,
        Some(NFT_JUMP) => Some(Verdict::Jump(chain())),
        Some(NFT_GOTO) => Some(Verdict::Goto(chain())),
        Some(NFT_RETURN) => Some(Verdict::Return),
        _ => Some(Verdict::Unknown),
    }
}
