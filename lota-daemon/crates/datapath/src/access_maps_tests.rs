use std::{
    cell::RefCell,
    collections::{self, BTreeMap, BTreeSet},
};

use proptest::prelude::*;

use super::*;

type Entry = (bool, u32);
type Rules = BTreeMap<(u32, Address), bool>;

/// An address of three bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Address(u8);

#[derive(Clone, Debug, Default)]
struct Model {
    access: BTreeMap<Address, Entry>,
    rules: Rules,
}

impl Model {
    /// Returns the addresses and interfaces that have access.
    fn allowed(&self) -> BTreeSet<(u8, u32)> {
        let pairs = (0..8).flat_map(|address| (1..3).map(move |ifindex| (address, ifindex)));
        pairs.filter(|(address, ifindex)| self.allows(*address, *ifindex)).collect()
    }

    fn allows(&self, address: u8, ifindex: u32) -> bool {
        if let Some((allow, at)) = self.access.get(&Address(address)) {
            return *allow && (*at == 0 || *at == ifindex);
        }
        let covers =
            |((length, prefix), _): &(&(u32, Address), &bool)| (address ^ prefix.0) >> (3 - length) == 0;
        self.rules
            .iter()
            .filter(covers)
            .max_by_key(|((length, _), _)| *length)
            .is_some_and(|(_, allow)| *allow)
    }
}

/// Maps that record what has access after each change.
#[derive(Default)]
struct Maps {
    model: RefCell<Model>,
    seen: RefCell<Vec<BTreeSet<(u8, u32)>>>,
}

impl Maps {
    fn change(&self, change: impl FnOnce(&mut Model)) {
        change(&mut self.model.borrow_mut());
        self.seen.borrow_mut().push(self.model.borrow().allowed());
    }
}

struct Access<'a>(&'a Maps);
struct PrefixRules<'a>(&'a Maps);

impl Entries for Access<'_> {
    type Key = Address;
    type Value = RawAddressAccess;

    fn held(&self) -> Result<collections::HashMap<Address, RawAddressAccess>> {
        Ok(raw(&self.0.model.borrow()).0.into_iter().collect())
    }

    fn write(&mut self, key: &Address, value: &RawAddressAccess) -> Result<()> {
        self.0.change(|model| {
            model.access.insert(*key, (value.allow == 1, value.ifindex));
        });
        Ok(())
    }

    fn remove(&mut self, key: &Address) -> Result<()> {
        self.0.change(|model| {
            model.access.remove(key);
        });
        Ok(())
    }
}

impl Entries for PrefixRules<'_> {
    type Key = (u32, Address);
    type Value = RawAccess;

    fn held(&self) -> Result<collections::HashMap<(u32, Address), RawAccess>> {
        Ok(raw(&self.0.model.borrow()).1.into_iter().collect())
    }

    fn write(&mut self, key: &(u32, Address), value: &RawAccess) -> Result<()> {
        self.0.change(|model| {
            model.rules.insert(*key, value.allow == 1);
        });
        Ok(())
    }

    fn remove(&mut self, key: &(u32, Address)) -> Result<()> {
        self.0.change(|model| {
            model.rules.remove(key);
        });
        Ok(())
    }
}

type Raw = (Vec<(Address, RawAddressAccess)>, Vec<((u32, Address), RawAccess)>);

fn raw(model: &Model) -> Raw {
    let access = model.access.iter().map(|(address, (allow, ifindex))| {
        let allow = u32::from(*allow);
        (*address, RawAddressAccess { allow, ifindex: *ifindex, ..RawAddressAccess::default() })
    });
    let rule = |allow: bool| RawAccess { allow: u32::from(allow), ifindex: 0, source: 0 };
    (access.collect(), model.rules.iter().map(|(prefix, allow)| (*prefix, rule(*allow))).collect())
}

fn model() -> impl Strategy<Value = Model> {
    let access = prop::collection::btree_map((0u8..8).prop_map(Address), (any::<bool>(), 0u32..3), 0..5);
    let prefix = (0u32..4, 0u8..8).prop_map(|(length, bits)| {
        let mask = u8::try_from(0b111 << (3 - length) & 0b111).unwrap();
        (length, Address(bits & mask))
    });
    let rules = prop::collection::btree_map(prefix, any::<bool>(), 0..5);
    (access, rules).prop_map(|(access, rules)| Model { access, rules })
}

proptest! {
    /// After each single change, what has access had it before, or has it afterwards.
    #[test]
    fn no_address_has_more_access_meanwhile(before in model(), after in model()) {
        let maps = Maps { model: RefCell::new(before.clone()), ..Maps::default() };
        let (mut access, mut rules) = (Access(&maps), PrefixRules(&maps));
        let desired = raw(&after);
        let of_access = Changes::of(&access, &desired.0).unwrap();
        let of_rules = Changes::of(&rules, &desired.1).unwrap();
        narrow((&mut access, &of_access), (&mut rules, &of_rules)).unwrap();
        let narrowed = maps.seen.borrow().last().cloned().unwrap_or_else(|| before.allowed());
        widen((&mut access, &of_access), (&mut rules, &of_rules)).unwrap();
        let either: BTreeSet<_> = before.allowed().union(&after.allowed()).copied().collect();
        for seen in &*maps.seen.borrow() {
            prop_assert!(seen.is_subset(&either), "{seen:?}");
        }
        prop_assert!(narrowed.is_subset(&either));
        prop_assert_eq!(maps.model.borrow().allowed(), after.allowed());
    }
}
