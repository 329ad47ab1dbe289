//! Predicts what the node's netfilter rules do with a connection to LOTA, to name the rule that drops its packets.
//!
//! The rules are evaluated for a SYN and for the answer to it, with what is known about them. Whatever else a rule
//! depends on (an ipset, the time, a rate, an expression that is not known here) is neither true nor false, and what
//! follows from it is only possible. Rules of `iptables-legacy` are not evaluated.

mod bits;
mod certainty;
mod expression;
mod loads;
mod packet;
mod read;
mod walk;
mod xtables;

use std::{collections::BTreeMap, fmt, io, rc::Rc};

use rtnetlink::packet_core::{NLA_HEADER_SIZE, NlasIterator};

pub use packet::{FlowDirection, FlowOrigin, InboundFlow, NamedInterface};
pub use read::NodeRules;
pub use walk::{PredictedDrop, predict};

/// Families of tables (`NFPROTO_*`).
const INET: u8 = 1;
const IPV4: u8 = 2;
const NETDEV: u8 = 5;
const IPV6: u8 = 10;

/// Hooks (`enum nf_inet_hooks`).
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
/// Hook of the family `inet`; here also that of `netdev`, which has another number.
const INGRESS: u32 = 5;
/// Hook of the family `netdev`, with a number of its own here.
const EGRESS: u32 = 6;

/// A chain of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleChain {
    /// Name of the chain, with its table.
    pub id: ChainId,
    /// The hook of a base chain.
    pub base: Option<BaseChain>,
}

/// Name of a chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainId {
    family: u8,
    /// Name of its table.
    pub table: String,
    /// Name of the chain in its table.
    pub chain: String,
}

/// Hook and priority of a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    hook: u32,
    priority: i32,
    /// Interfaces of the hooks [`INGRESS`] and [`EGRESS`]: names, which end with a zero, or beginnings of names.
    devices: Vec<Vec<u8>>,
    /// Whether packets that no rule decides about are dropped.
    drops: bool,
    /// Whether it translates addresses. Such chains do not see packets of the VIP: the table `inet lota` exempts them.
    translates: bool,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainRule {
    /// Handle of the rule, as `nft -a` shows it.
    handle: u64,
    expressions: Vec<RawExpression>,
}

/// An expression of a rule: its name, and the bytes of its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawExpression {
    name: String,
    data: Vec<u8>,
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetElement {
    /// First value, or that behind the last one if `ends`.
    key: Vec<u8>,
    /// Whether it has a last value, as in sets of concatenated intervals.
    has_end: bool,
    /// Value of the map for this key, as bytes of an attribute.
    data: Option<Vec<u8>>,
    /// Whether an interval ends before this value.
    ends: bool,
    /// Whether it stands for all values that no other element contains.
    is_catch_all: bool,
}

/// Source of rules. A node can have many rules, so they are read chain by chain.
pub trait RuleSource {
    /// Returns every chain.
    fn chains(&self) -> &[RuleChain];

    /// Returns the rules of a chain, in order.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn rules(&self, chain: &ChainId) -> io::Result<Rc<[ChainRule]>>;

    /// Returns the elements of a set or map in the table of this chain; `None` if they cannot be read.
    fn elements(&self, chain: &ChainId, set: &str) -> Option<Rc<[SetElement]>>;
}

/// A rule that drops packets, or the policy of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulePlace {
    /// The chain.
    pub chain: ChainId,
    /// Handle of the rule; `None` for the policy.
    pub handle: Option<u64>,
}

impl ChainId {
    /// Returns whether both chains are in the same table.
    #[must_use]
    pub fn is_in_table_of(&self, other: &Self) -> bool {
        (self.family, &self.table) == (other.family, &other.table)
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            INET => "inet",
            IPV4 => "ip",
            IPV6 => "ip6",
            NETDEV => "netdev",
            _ => "other",
        };
        write!(f, "{family} {} {}", self.table, self.chain)
    }
}

impl fmt::Display for RulePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.handle {
            Some(handle) => write!(f, "rule {handle} of the ")?,
            None => f.write_str("the policy of the ")?,
        }
        write!(f, "nftables chain `{}`", self.chain)
    }
}

/// Returns the attributes in these bytes, as kind and value, up to the first that is malformed.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|attribute| {
        let end = usize::from(attribute.length());
        (attribute.kind(), attribute.into_inner().get(NLA_HEADER_SIZE..end).unwrap_or_default())
    })
}

/// Returns the attributes in these bytes, by kind.
fn fields(bytes: &[u8]) -> BTreeMap<u16, &[u8]> {
    attributes(bytes).collect()
}

/// Returns a number in network byte order.
fn number(field: Option<&&[u8]>) -> Option<u32> {
    Some(u32::from_be_bytes((*field?).try_into().ok()?))
}

/// Returns a text that ends with a zero.
fn text(field: Option<&&[u8]>) -> Option<String> {
    let bytes = field?.split(|byte| *byte == 0).next()?;
    String::from_utf8(bytes.to_vec()).ok()
}

#[cfg(test)]
mod test_rules;
#[cfg(test)]
mod tests;
