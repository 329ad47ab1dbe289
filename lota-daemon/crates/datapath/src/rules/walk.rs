//! Follows a connection's first packets through the chains of their hooks.

use std::io;

use super::{
    BaseChain, ChainId, ChainRule, EGRESS, FlowDirection, INET, INGRESS, INPUT, InboundFlow, NETDEV, OUTPUT,
    POSTROUTING, PREROUTING, RuleChain, RulePlace, RuleSource,
    bits::Bits,
    expression::{Outcome, Verdict, evaluate},
    packet::HookPacket,
};

/// Depth of jumps that the kernel allows (`NFT_JUMP_STACK_SIZE`).
const MAX_DEPTH: usize = 16;
/// Maximum number of rules that are evaluated.
const MAX_RULES: usize = 100_000;

/// A rule that drops packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PredictedDrop {
    /// The rule.
    pub place: RulePlace,
    /// Packets that it drops.
    pub direction: FlowDirection,
    /// The unknown property or match that the drop depends on; `None` if it is certain.
    pub unknown: Option<String>,
}

/// Returns the rule that drops, or may drop, the first two packets of a connection.
///
/// # Errors
/// If rules cannot be read, or too many apply.
pub fn predict(source: &dyn RuleSource, flow: &InboundFlow) -> io::Result<Option<PredictedDrop>> {
    let mut request = Walk::new(source, HookPacket::request(flow));
    if let Some(place) = request.hooks(&[INGRESS, PREROUTING, INPUT])? {
        return Ok(Some(PredictedDrop { place, direction: FlowDirection::Request, unknown: None }));
    }
    let mut reply = Walk::new(source, request.packet.reply());
    if let Some(place) = reply.hooks(&[OUTPUT, POSTROUTING, EGRESS])? {
        return Ok(Some(PredictedDrop { place, direction: FlowDirection::Reply, unknown: None }));
    }
    Ok(request.possible.or(reply.possible))
}

struct Walk<'a> {
    source: &'a dyn RuleSource,
    packet: HookPacket<'a>,
    /// First rule that may drop the packet.
    possible: Option<PredictedDrop>,
    /// The first thing that is not known and that a verdict depended on.
    unknown: Option<String>,
    evaluated: usize,
    /// Whether no rule of the current base chain may have accepted the packet before.
    is_left: bool,
}

/// Path of the packet after a rule or a chain.
enum Flow {
    /// The next rule is evaluated.
    Continue,
    /// The packet returns to the calling chain.
    Return,
    /// It has passed the base chain.
    Accept,
    /// It may have been dropped, and goes no further in any case.
    End,
    Drop(RulePlace),
}

impl<'a> Walk<'a> {
    fn new(source: &'a dyn RuleSource, packet: HookPacket<'a>) -> Self {
        Self { source, packet, possible: None, unknown: None, evaluated: 0, is_left: true }
    }

    /// Follows the packet through the chains of these hooks. Returns the rule that drops it.
    fn hooks(&mut self, hooks: &[u32]) -> io::Result<Option<RulePlace>> {
        let source = self.source;
        for hook in hooks {
            let families = [INET, NETDEV, self.packet.family];
            let mut at_hook: Vec<(&RuleChain, &BaseChain)> = source
                .chains()
                .iter()
                .filter_map(|chain| Some((chain, chain.base.as_ref()?)))
                .filter(|(chain, base)| {
                    families.contains(&chain.id.family) && base.hook == *hook && !base.translates
                })
                .collect();
            at_hook.sort_by_key(|(_, base)| base.priority);
            for (chain, base) in at_hook {
                self.packet.enter(*hook, base.priority);
                if let Some(dropped) = self.base(&chain.id, base)? {
                    return Ok(Some(dropped));
                }
            }
            self.packet.enter(*hook, i32::MAX);
        }
        Ok(None)
    }

    /// Follows the packet through a base chain. Returns the rule that drops it.
    fn base(&mut self, chain: &ChainId, base: &BaseChain) -> io::Result<Option<RulePlace>> {
        let has_devices = matches!(base.hook, INGRESS | EGRESS);
        let name = self.packet.flow.interface.as_ref().map(|interface| format!("{}\0", interface.name));
        let is_device =
            |device: &Vec<u8>| name.as_ref().is_none_or(|name| name.as_bytes().starts_with(device));
        if has_devices && !base.devices.iter().any(is_device) {
            return Ok(None);
        }
        self.is_left = !has_devices || name.is_some();
        if !self.is_left {
            self.unknown.get_or_insert_with(|| "the interface".to_owned());
        }
        let flow = match self.chain(chain, 0, true)? {
            Flow::Continue | Flow::Return if base.drops => {
                self.drop_at(RulePlace { chain: chain.clone(), handle: None }, true)
            }
            flow => flow,
        };
        Ok(if let Flow::Drop(place) = flow { Some(place) } else { None })
    }

    /// Drops the packet at a place, which it reaches with certainty or not.
    fn drop_at(&mut self, place: RulePlace, is_here: bool) -> Flow {
        if is_here && self.is_left {
            return Flow::Drop(place);
        }
        let unknown = self.unknown.clone();
        self.possible.get_or_insert(PredictedDrop { place, direction: self.packet.direction, unknown });
        Flow::End
    }

    /// Follows the packet through a chain. `is_here`: whether it certainly gets there, if no rule has accepted it.
    fn chain(&mut self, id: &ChainId, depth: usize, mut is_here: bool) -> io::Result<Flow> {
        if depth > MAX_DEPTH || self.evaluated > MAX_RULES {
            return Err(io::Error::other(format!("more than {MAX_RULES} rules apply")));
        }
        let mut may_have_returned = false;
        for rule in &*self.source.rules(id)? {
            self.evaluated += 1;
            let elements = |set: &str| self.source.elements(id, set);
            let is_reached = is_here && self.is_left;
            let Outcome { verdict, unknown } =
                evaluate(&rule.expressions, &mut self.packet, is_reached, &elements);
            let Some(verdict) = verdict else { continue };
            let is_certain = unknown.is_none();
            self.unknown = self.unknown.take().or(unknown);
            if verdict == Verdict::Unknown {
                self.drop_at(place(id, rule), false);
                (self.is_left, is_here, may_have_returned) = (false, false, true);
                self.packet.mark = [Bits::UNKNOWN; 4];
                continue;
            }
            match (self.follow(id, rule, verdict, depth, is_here && is_certain)?, is_certain) {
                (Flow::Drop(place), _) => return Ok(Flow::Drop(place)),
                (Flow::Continue, _) | (Flow::End, false) => {}
                (Flow::Accept, false) => self.is_left = false,
                (Flow::Return, false) => (is_here, may_have_returned) = (false, true),
                (Flow::Accept, true) if may_have_returned => {
                    self.is_left = false;
                    return Ok(Flow::Return);
                }
                (Flow::End, true) if may_have_returned => return Ok(Flow::Return),
                (flow, true) => return Ok(flow),
            }
        }
        Ok(Flow::Return)
    }

    /// Applies a verdict.
    fn follow(
        &mut self,
        id: &ChainId,
        rule: &ChainRule,
        verdict: Verdict,
        depth: usize,
        is_here: bool,
    ) -> io::Result<Flow> {
        let other = |chain: String| ChainId { chain, ..id.clone() };
        Ok(match verdict {
            Verdict::Accept => Flow::Accept,
            Verdict::Return => Flow::Return,
            Verdict::Drop | Verdict::Unknown => self.drop_at(place(id, rule), is_here),
            Verdict::Jump(chain) => match self.chain(&other(chain), depth + 1, is_here)? {
                Flow::Return => Flow::Continue,
                flow => flow,
            },
            Verdict::Goto(chain) => self.chain(&other(chain), depth + 1, is_here)?,
        })
    }
}

fn place(chain: &ChainId, rule: &ChainRule) -> RulePlace {
    RulePlace { chain: chain.clone(), handle: Some(rule.handle) }
}
