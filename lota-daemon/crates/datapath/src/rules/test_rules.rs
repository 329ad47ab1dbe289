//! Builds rules for tests, and predicts what they do.

use std::net::IpAddr;

use super::*;
use crate::nfnetlink::Attributes;

/// Rules of one table, `ip filter`.
#[derive(Default)]
pub(super) struct Table {
    pub(super) chains: Vec<RuleChain>,
    pub(super) rules: BTreeMap<String, Vec<ChainRule>>,
    pub(super) sets: BTreeMap<String, Vec<SetElement>>,
}

impl RuleSource for Table {
    fn chains(&self) -> &[RuleChain] {
        &self.chains
    }

    fn rules(&self, chain: &ChainId) -> io::Result<Rc<[ChainRule]>> {
        Ok(self.rules.get(&chain.chain).cloned().unwrap_or_default().into())
    }

    fn elements(&self, _: &ChainId, set: &str) -> Option<Rc<[SetElement]>> {
        self.sets.get(set).cloned().map(Into::into)
    }
}

/// Returns a base chain of a hook.
pub(super) fn base(hook: u32, drops: bool) -> BaseChain {
    BaseChain { hook, priority: 0, devices: Vec::new(), drops, translates: false }
}

impl Table {
    pub(super) fn chain(self, name: &str, hook: Option<(u32, bool)>, rules: &[&[RawExpression]]) -> Self {
        self.chain_at(name, hook.map(|(hook, drops)| base(hook, drops)), rules)
    }

    pub(super) fn chain_at(
        mut self,
        name: &str,
        base: Option<BaseChain>,
        rules: &[&[RawExpression]],
    ) -> Self {
        self.chains.push(RuleChain { id: id(name), base });
        let rules = rules
            .iter()
            .zip(1..)
            .map(|(expressions, handle)| ChainRule { handle, expressions: expressions.to_vec() });
        self.rules.insert(name.to_owned(), rules.collect());
        self
    }

    pub(super) fn predict(&self, flow: &InboundFlow) -> Prediction {
        let Some(PredictedDrop { place, unknown, .. }) = predict(self, flow).unwrap() else { return Passes };
        let RulePlace { chain, handle } = place;
        let place = (chain.chain, handle.unwrap_or(POLICY));
        if unknown.is_none() { Dropped(place) } else { Perhaps(place) }
    }

    pub(super) fn of_pod(&self) -> Prediction {
        self.predict(&flow())
    }
}

/// The prediction, with chain and handle of the rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Prediction {
    Passes,
    Perhaps((String, u64)),
    Dropped((String, u64)),
}

pub(super) use Prediction::{Dropped, Passes, Perhaps};

/// Stands for the handle of a policy.
pub(super) const POLICY: u64 = 0;

pub(super) fn dropped(chain: &str, handle: u64) -> Prediction {
    Dropped((chain.to_owned(), handle))
}

pub(super) fn perhaps(chain: &str, handle: u64) -> Prediction {
    Perhaps((chain.to_owned(), handle))
}

/// Returns what happens in the chain `INPUT` with these rules and this policy.
pub(super) fn input(rules: &[&[RawExpression]], drops: bool) -> Prediction {
    Table::default().chain("INPUT", Some((INPUT, drops)), rules).of_pod()
}

pub(super) fn id(chain: &str) -> ChainId {
    ChainId { family: IPV4, table: "filter".to_owned(), chain: chain.to_owned() }
}

pub(super) fn flow() -> InboundFlow {
    InboundFlow {
        origin: FlowOrigin::Pods,
        client: Some(IpAddr::from([10, 0, 0, 2])),
        interface: Some(NamedInterface { name: "cali12".to_owned(), index: 7 }),
        others: vec![NamedInterface { name: "lo".to_owned(), index: 1 }],
        address: IpAddr::from([169, 254, 77, 80]),
        port: 80,
        is_symmetric: false,
    }
}

/// The connections of a pod that does not run yet.
pub(super) fn future_flow() -> InboundFlow {
    InboundFlow { client: None, interface: None, ..flow() }
}

pub(super) fn expression(name: &str, fill: impl FnOnce(&mut Attributes)) -> RawExpression {
    let mut data = Attributes::default();
    fill(&mut data);
    RawExpression { name: name.to_owned(), data: data.into_bytes() }
}

pub(super) fn verdict(code: i32, chain: &str) -> RawExpression {
    expression("immediate", |data| {
        data.number(1, 0);
        data.nest(2, |value| {
            value.nest(2, |verdict| {
                verdict.number(1, code.cast_unsigned());
                verdict.text(2, chain);
            });
        });
    })
}

pub(super) fn accept() -> RawExpression {
    verdict(1, "")
}

pub(super) fn drop() -> RawExpression {
    verdict(0, "")
}

pub(super) fn load(name: &str, key: u32) -> RawExpression {
    expression(name, |data| {
        data.number(1, 1);
        data.number(2, key);
    })
}

pub(super) fn payload(base: u32, offset: u32, length: u32) -> RawExpression {
    expression("payload", |data| {
        for (kind, number) in [(1, 1), (2, base), (3, offset), (4, length)] {
            data.number(kind, number);
        }
    })
}

pub(super) fn compare(operation: u32, value: &[u8]) -> RawExpression {
    expression("cmp", |data| {
        data.number(1, 1);
        data.number(2, operation);
        data.nest(3, |compared| compared.bytes(1, value));
    })
}

pub(super) fn mask(mask: &[u8]) -> RawExpression {
    expression("bitwise", |data| {
        data.number(1, 1);
        data.number(2, 1);
        data.number(3, u32::try_from(mask.len()).unwrap());
        data.nest(4, |value| value.bytes(1, mask));
        data.nest(5, |value| value.bytes(1, &vec![0; mask.len()]));
    })
}

pub(super) fn lookup(set: &str) -> RawExpression {
    expression("lookup", |data| {
        data.text(1, set);
        data.number(2, 1);
    })
}

/// Something that LOTA cannot evaluate.
pub(super) fn unknown() -> RawExpression {
    xtables("match", "set", &[])
}

pub(super) fn xtables(expression_name: &str, name: &str, info: &[u8]) -> RawExpression {
    expression(expression_name, |data| {
        data.text(1, name);
        data.number(2, 2);
        data.bytes(3, info);
    })
}

/// `ct state` with any of these bits.
pub(super) fn state(bits: u32) -> [RawExpression; 3] {
    [load("ct", 0), mask(&bits.to_ne_bytes()), compare(1, &[0; 4])]
}

pub(super) fn rule(matches: &[&[RawExpression]], end: RawExpression) -> Vec<RawExpression> {
    let mut rule = matches.concat();
    rule.push(end);
    rule
}

pub(super) fn port(port: u16) -> Vec<RawExpression> {
    vec![payload(2, 2, 2), compare(0, &port.to_be_bytes())]
}

/// `fib` with this result and these flags.
pub(super) fn fib(result: u32, flags: u32) -> RawExpression {
    expression("fib", |data| {
        for (kind, number) in [(1, 1), (2, result), (3, flags)] {
            data.number(kind, number);
        }
    })
}

/// An expression without attributes.
pub(super) fn plain(name: &str) -> RawExpression {
    expression(name, |_| ())
}

pub(super) fn name(interface: &[u8]) -> Vec<u8> {
    let mut padded = interface.to_vec();
    padded.resize(16, 0);
    padded
}

pub(super) fn range(operation: u32, first: u16, last: u16) -> RawExpression {
    expression("range", |data| {
        data.number(1, 1);
        data.number(2, operation);
        data.nest(3, |value| value.bytes(1, &first.to_be_bytes()));
        data.nest(4, |value| value.bytes(1, &last.to_be_bytes()));
    })
}

/// `xt_multiport_v1`. `is_range`: whether the first of two ports begins a range.
pub(super) fn multiport(kind: u8, ports: &[u16], is_range: u8) -> Vec<u8> {
    let mut info = vec![0; 48];
    (info[0], info[1], info[32]) = (kind, u8::try_from(ports.len()).unwrap(), is_range);
    for (at, port) in ports.iter().enumerate() {
        info[2 + at * 2..4 + at * 2].copy_from_slice(&port.to_ne_bytes());
    }
    info
}

pub(super) fn conntrack(states: u16) -> Vec<u8> {
    let mut info = vec![0; 160];
    info[146] = 1;
    info[150..152].copy_from_slice(&states.to_ne_bytes());
    info
}

pub(super) fn element(key: &[u8]) -> SetElement {
    SetElement { key: key.to_vec(), has_end: false, data: None, ends: false, is_catch_all: false }
}

/// A lookup in a map of verdicts.
pub(super) fn vmap(set: &str) -> RawExpression {
    expression("lookup", |data| {
        data.text(1, set);
        data.number(2, 1);
        data.number(3, 0);
    })
}

/// An element of a map of verdicts.
pub(super) fn decides(key: &[u8], code: u32) -> SetElement {
    let mut data = Attributes::default();
    data.nest(2, |verdict| verdict.number(1, code));
    SetElement { data: Some(data.into_bytes()), ..element(key) }
}

pub(super) fn connmark(mode: u8, bits: u32) -> Vec<u8> {
    let bits = bits.to_ne_bytes();
    [&[0; 4][..], &bits, &bits, &[0, 0, mode, 0]].concat()
}
