//! Reads the node's rules over netlink.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs, io,
    rc::Rc,
};

use nix::libc;

use super::{
    BaseChain, ChainId, ChainRule, EGRESS, INGRESS, NETDEV, RawExpression, RuleChain, RuleSource, SetElement,
    attributes, fields, number, text,
};
use crate::nf_tables::{
    NF_DROP, NFT_SET_ELEM_CATCHALL, NFT_SET_ELEM_INTERVAL_END, NFT_TABLE_F_DORMANT, NFTA_CHAIN_HOOK,
    NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_DATA_VALUE, NFTA_EXPR_DATA,
    NFTA_EXPR_NAME, NFTA_HOOK_DEV, NFTA_HOOK_DEVS, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS, NFTA_RULE_HANDLE, NFTA_RULE_TABLE, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS,
    NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_KEY_END, NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_ELEM_LIST_TABLE, NFTA_TABLE_FLAGS, NFTA_TABLE_NAME,
};
use crate::nfnetlink::{Attributes, GET_CHAIN, GET_RULE, GET_SET_ELEMENTS, GET_TABLE, dump};

/// The names of the tables of `iptables-legacy` and `ip6tables-legacy` in this network namespace.
const LEGACY_TABLES: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];

/// The elements of a set, if it can be read.
type ReadSet = Option<Rc<[SetElement]>>;

/// The rules of nf_tables of this node, which include those of `iptables-nft`. What was read once is kept.
#[derive(Debug)]
pub struct NodeRules {
    chains: Vec<RuleChain>,
    rules: RefCell<BTreeMap<ChainId, Rc<[ChainRule]>>>,
    sets: RefCell<BTreeMap<(ChainId, String), ReadSet>>,
    legacy_tables: BTreeSet<String>,
}

impl NodeRules {
    /// Reads the chains; their rules are read when they are needed.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open() -> io::Result<Self> {
        let legacy_tables = legacy_tables(&LEGACY_TABLES)?;
        Ok(Self {
            chains: read_chains()?,
            rules: RefCell::default(),
            sets: RefCell::default(),
            legacy_tables,
        })
    }

    /// Returns the names of the tables of `iptables-legacy`, whose rules LOTA does not read.
    pub(crate) fn legacy_tables(&self) -> &BTreeSet<String> {
        &self.legacy_tables
    }
}

impl RuleSource for NodeRules {
    fn chains(&self) -> &[RuleChain] {
        &self.chains
    }

    fn rules(&self, chain: &ChainId) -> io::Result<Rc<[ChainRule]>> {
        if let Some(known) = self.rules.borrow().get(chain) {
            return Ok(known.clone());
        }
        let messages = dump(GET_RULE, chain.family, |body: &mut Attributes| {
            body.text(NFTA_RULE_TABLE, &chain.table);
            body.text(NFTA_RULE_CHAIN, &chain.chain);
        })?;
        let is_of_chain = |field: &BTreeMap<u16, &[u8]>| {
            text(field.get(&NFTA_RULE_TABLE)).as_ref() == Some(&chain.table)
                && text(field.get(&NFTA_RULE_CHAIN)).as_ref() == Some(&chain.chain)
        };
        let found = messages.iter().map(|(_, body)| fields(body)).filter(is_of_chain);
        let rules: Rc<[ChainRule]> = found.filter_map(|field| rule(&field)).collect();
        self.rules.borrow_mut().insert(chain.clone(), rules.clone());
        Ok(rules)
    }

    fn elements(&self, chain: &ChainId, set: &str) -> ReadSet {
        let key = (ChainId { chain: String::new(), ..chain.clone() }, set.to_owned());
        let mut sets = self.sets.borrow_mut();
        let read = || {
            let messages = dump(GET_SET_ELEMENTS, chain.family, |body: &mut Attributes| {
                body.text(NFTA_SET_ELEM_LIST_TABLE, &chain.table);
                body.text(NFTA_SET_ELEM_LIST_SET, set);
            });
            let messages = messages.ok()?;
            let lists = messages
                .iter()
                .filter_map(|(_, body)| fields(body).get(&NFTA_SET_ELEM_LIST_ELEMENTS).copied());
            lists.flat_map(attributes).map(|(_, item)| element(item)).collect()
        };
        sets.entry(key).or_insert_with(read).clone()
    }
}

/// Returns the names in these files. A kernel without `iptables-legacy` does not have them.
fn legacy_tables(files: &[&str]) -> io::Result<BTreeSet<String>> {
    let mut tables = BTreeSet::new();
    for file in files {
        match fs::read_to_string(file) {
            Ok(names) => tables.extend(names.lines().map(str::to_owned)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{file}: {error}"))),
        }
    }
    Ok(tables)
}

fn read_chains() -> io::Result<Vec<RuleChain>> {
    let tables = match dump(GET_TABLE, 0, |_| ()) {
        Ok(tables) => tables,
        Err(error) if is_without_nf_tables(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let dormant = tables.iter().filter_map(|(family, body)| dormant(*family, body));
    let dormant: BTreeSet<(u8, String)> = dormant.collect();
    let messages = dump(GET_CHAIN, 0, |_| ())?;
    let mut chains: Vec<RuleChain> =
        messages.iter().filter_map(|(family, body)| chain(*family, body)).collect();
    for RuleChain { id, base } in &mut chains {
        base.take_if(|_| dormant.contains(&(id.family, id.table.clone())));
    }
    Ok(chains)
}

/// Returns whether the kernel has no nf_tables: no netlink for netfilter, or no such subsystem.
fn is_without_nf_tables(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL))
}

/// Returns the name of a table that the kernel does not apply.
fn dormant(family: u8, body: &[u8]) -> Option<(u8, String)> {
    let field = fields(body);
    let is_dormant = number(field.get(&NFTA_TABLE_FLAGS))? & NFT_TABLE_F_DORMANT != 0;
    is_dormant.then_some((family, text(field.get(&NFTA_TABLE_NAME))?))
}

fn chain(family: u8, body: &[u8]) -> Option<RuleChain> {
    let field = fields(body);
    let base = field.get(&NFTA_CHAIN_HOOK).and_then(|hook| {
        let hook = fields(hook);
        let single = hook.get(&NFTA_HOOK_DEV).map(|device| device.to_vec());
        let several = hook.get(&NFTA_HOOK_DEVS).copied().unwrap_or_default();
        let several = attributes(several).map(|(_, device)| device.to_vec());
        Some(BaseChain {
            hook: match (family, number(hook.get(&NFTA_HOOK_HOOKNUM))?) {
                (NETDEV, 0) => INGRESS,
                (NETDEV, _) => EGRESS,
                (_, hook) => hook,
            },
            priority: number(hook.get(&NFTA_HOOK_PRIORITY))?.cast_signed(),
            devices: several.chain(single).collect(),
            drops: number(field.get(&NFTA_CHAIN_POLICY)) == Some(NF_DROP.cast_unsigned()),
            translates: text(field.get(&NFTA_CHAIN_TYPE)).as_deref() == Some("nat"),
        })
    });
    let (table, chain) = (text(field.get(&NFTA_CHAIN_TABLE))?, text(field.get(&NFTA_CHAIN_NAME))?);
    Some(RuleChain { id: ChainId { family, table, chain }, base })
}

fn rule(field: &BTreeMap<u16, &[u8]>) -> Option<ChainRule> {
    let handle = u64::from_be_bytes((*field.get(&NFTA_RULE_HANDLE)?).try_into().ok()?);
    let expressions = attributes(field.get(&NFTA_RULE_EXPRESSIONS).copied().unwrap_or_default());
    let expression = |(_, item)| {
        let field = fields(item);
        let data = field.get(&NFTA_EXPR_DATA).copied().unwrap_or_default().to_vec();
        RawExpression { name: text(field.get(&NFTA_EXPR_NAME)).unwrap_or_default(), data }
    };
    Some(ChainRule { handle, expressions: expressions.map(expression).collect() })
}

fn element(item: &[u8]) -> Option<SetElement> {
    let field = fields(item);
    let flags = number(field.get(&NFTA_SET_ELEM_FLAGS)).unwrap_or(0);
    let is_catch_all = flags & NFT_SET_ELEM_CATCHALL != 0;
    let key = || Some(fields(field.get(&NFTA_SET_ELEM_KEY)?).get(&NFTA_DATA_VALUE)?.to_vec());
    Some(SetElement {
        key: if is_catch_all { Vec::new() } else { key()? },
        has_end: field.contains_key(&NFTA_SET_ELEM_KEY_END),
        data: field.get(&NFTA_SET_ELEM_DATA).map(|data| data.to_vec()),
        ends: flags & NFT_SET_ELEM_INTERVAL_END != 0,
        is_catch_all,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_iptables_legacy() {
        let names = |files: &[&str]| legacy_tables(files).map(Vec::from_iter);
        assert_eq!(names(&["/proc/sys/kernel/ostype", "/nonexistent"]).unwrap(), ["Linux"]);
        assert!(names(&["/proc"]).is_err(), "a file that cannot be read is not one that is empty");
    }

    #[test]
    fn chains_of_dormant_tables_and_of_interfaces() {
        let table = |flags: u32| {
            let mut body = Attributes::default();
            body.text(1, "off");
            body.number(2, flags);
            body.into_bytes()
        };
        assert_eq!(dormant(1, &table(1)), Some((1, "off".to_owned())));
        assert_eq!(dormant(1, &table(2)), None);
        let mut body = Attributes::default();
        body.text(1, "t");
        body.text(3, "c");
        body.nest(4, |hook| {
            hook.number(1, 0);
            hook.number(2, 0);
            hook.nest(4, |devices| {
                devices.text(1, "veth1");
                devices.bytes(2, b"cali");
            });
        });
        let base = chain(NETDEV, &body.into_bytes()).unwrap().base.unwrap();
        assert_eq!((base.hook, base.devices), (INGRESS, vec![b"veth1\0".to_vec(), b"cali".to_vec()]));
    }
}
