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

/// Attributes, by kind.
type Fields<'a> = BTreeMap<u16, &'a [u8]>;

/// What a rule does with a packet that it matches.
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
        let named = || text(field.get(&1)).unwrap_or_default();
        self.unknown.get_or_insert_with(|| match name {
            "cmp" => self.loaded.to_owned(),
            "lookup" => format!("{}, the set `{}`", self.loaded, named()),
            "match" | "target" => format!("the {name} `{}`", named()),
            _ => format!("`{name}`"),
        });
    }

    fn step(&mut self, name: &str, field: &Fields<'_>) -> Step {
        let numbered = |kind: u16| number(field.get(&kind));
        match name {
            "meta" if field.contains_key(&3) => {
                return Step::Matches(self.set_meta(numbered(2), numbered(3)));
            }
            "meta" => {
                self.loaded = "the interface or the mark";
                self.registers.store(numbered(1), &meta(self.packet, numbered(2)));
                let is_interface = matches!(numbered(2), Some(4..=7));
                self.registers.interface =
                    numbered(1).filter(|_| is_interface && self.packet.flow.interface.is_none());
            }
            "payload" if !field.contains_key(&5) => {
                self.loaded = "the address or the port";
                let [base, offset, length] = [2, 3, 4].map(|kind| numbered(kind).unwrap_or(u32::MAX));
                let (offset, length) = (offset as usize, (length as usize).min(REGISTERS));
                let header: &[Option<u8>] = match base {
                    1 => &self.packet.network,
                    2 => &self.packet.transport,
                    _ => &[],
                };
                self.registers.store(numbered(1), &HookPacket::header(header, offset, length));
            }
            // Writes.
            "payload" => {
                self.packet.network.fill(None);
                self.packet.transport.fill(None);
                return self.not_known();
            }
            "ct" if !field.contains_key(&4) => {
                self.loaded = "the connection (`ct`)";
                self.registers.store(numbered(1), &tracked(self.packet, numbered(2)));
            }
            "fib" => {
                self.loaded = "the routes (`fib`)";
                let value = fib(self.packet, numbered(2), numbered(3).unwrap_or(u32::MAX));
                self.registers.store(numbered(1), &value);
            }
            "bitwise" => self.bitwise(field),
            "immediate" => {
                let data = fields(field.get(&2).copied().unwrap_or_default());
                if let Some(verdict) = data.get(&2) {
                    return verdict_of(verdict).map_or(Step::Matches(Match::Yes), Step::Ends);
                }
                self.registers.store(numbered(1), &known(data.get(&1).copied().unwrap_or_default()));
            }
            "cmp" => return Step::Matches(self.compare(field)),
            "range" => return Step::Matches(self.range(field)),
            // Headers of IPv6 that the packet does not have.
            "exthdr" if numbered(5).unwrap_or(0) == 0 && numbered(6).unwrap_or(0) == 0 => {
                return Step::Matches(Match::No);
            }
            "lookup" => return self.lookup(field),
            "match" => {
                let info = field.get(&3).copied().unwrap_or_default();
                let name = text(field.get(&1)).unwrap_or_default();
                let matched = xtables::matches(&name, numbered(2).unwrap_or(0), info, self.packet);
                return Step::Matches(matched);
            }
            "target" => return self.target(field),
            "reject" => return Step::Ends(Verdict::Drop),
            "notrack" => self.packet.set_untracked(self.is_here && self.unknown.is_none()),
            // Without a verdict and without an effect on others. `ct` writes here.
            "counter" | "log" | "last" | "ct" => {}
            // NFT_OBJECT_COUNTER
            "objref" if numbered(1) == Some(1) => {}
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
            // NFT_META_MARK
            Some(3) => {
                let mark = self.registers.load(register, 4).and_then(|bytes| bytes.try_into().ok());
                self.set_mark(mark.unwrap_or([Bits::UNKNOWN; 4]));
                Match::Yes
            }
            // NFT_META_PRIORITY and NFT_META_NFTRACE
            Some(2 | 12) => Match::Yes,
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
        let info = field.get(&3).copied().unwrap_or_default();
        match text(field.get(&1)).unwrap_or_default().as_str() {
            "REJECT" => return Step::Ends(Verdict::Drop),
            "MARK" => self.set_mark(xtables::marked(info, self.packet.mark)),
            "CONNMARK" => {
                let revision = number(field.get(&2)).unwrap_or(0);
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
        let value = |kind: u16| fields(field.get(&kind).copied().unwrap_or_default()).get(&1).copied();
        let length = (numbered(3).unwrap_or(0) as usize).min(REGISTERS);
        let source = self.registers.load(numbered(1), length).map(<[_]>::to_vec);
        let result = match (source, value(4), value(5), numbered(6).unwrap_or(0)) {
            (Some(source), Some(mask), Some(xor), 0) => {
                let masks = mask.iter().zip(xor);
                source.into_iter().zip(masks).map(|(byte, (mask, xor))| byte.and_xor(*mask, *xor)).collect()
            }
            _ => unknown(length),
        };
        self.registers.store(numbered(2), &result);
    }

    fn compare(&self, field: &Fields<'_>) -> Match {
        let Some(value) = fields(field.get(&3).copied().unwrap_or_default()).get(&1).copied() else {
            return Match::Maybe;
        };
        match number(field.get(&2)) {
            Some(operation @ (0 | 1)) => self.equal(number(field.get(&1)), value).inverted_if(operation == 1),
            Some(operation @ 2..=5) => self.ordered(field, value, |order| match operation {
                2 => order.is_lt(),
                3 => order.is_le(),
                4 => order.is_gt(),
                _ => order.is_ge(),
            }),
            _ => Match::Maybe,
        }
    }

    fn range(&self, field: &Fields<'_>) -> Match {
        let value = |kind: u16| fields(field.get(&kind).copied().unwrap_or_default()).get(&1).copied();
        let (Some(first), Some(last)) = (value(3), value(4)) else { return Match::Maybe };
        let ends = [self.ordered(field, first, Ordering::is_ge), self.ordered(field, last, Ordering::is_le)];
        Match::all(ends).inverted_if(number(field.get(&2)) == Some(1))
    }

    /// Returns whether the value of the expression's register and this one are in such an order.
    fn ordered(&self, field: &Fields<'_>, value: &[u8], is_so: impl FnOnce(Ordering) -> bool) -> Match {
        let loaded = self.registers.load(number(field.get(&1)), value.len()).and_then(all_known);
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
        let elements = (self.elements)(&text(field.get(&1)).unwrap_or_default());
        let found = elements.as_deref().and_then(|elements| self.find(elements, numbered(2)));
        let (found, register) = match (found, numbered(3)) {
            (Some(found), register) => (found, register),
            (None, None) => return Step::Matches(Match::Maybe),
            (None, Some(0)) => return Step::Ends(Verdict::Unknown),
            (None, Some(_)) => return self.not_known(),
        };
        let is_found = Match::of(found.is_some()).inverted_if(numbered(5).unwrap_or(0) & 1 == 1);
        let (Some(register), Some(data)) = (register, found.and_then(|element| element.data.as_deref()))
        else {
            return Step::Matches(is_found);
        };
        let data = fields(data);
        if let Some(verdict) = data.get(&2) {
            return verdict_of(verdict).map_or(Step::Matches(Match::Yes), Step::Ends);
        }
        self.registers.store(Some(register), &known(data.get(&1).copied().unwrap_or_default()));
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

/// Returns the verdict of an attribute; `None` for "continue".
fn verdict_of(attribute: &[u8]) -> Option<Verdict> {
    let field = fields(attribute);
    let chain = || text(field.get(&2)).unwrap_or_default();
    match number(field.get(&1)).map(u32::cast_signed) {
        Some(0) => Some(Verdict::Drop),
        Some(1) => Some(Verdict::Accept),
        Some(-1) => None,
        Some(-3) => Some(Verdict::Jump(chain())),
        Some(-4) => Some(Verdict::Goto(chain())),
        Some(-5) => Some(Verdict::Return),
        _ => Some(Verdict::Unknown),
    }
}
