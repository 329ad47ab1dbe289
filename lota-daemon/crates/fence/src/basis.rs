//! Basis of a decision: the state of the gateway that it was computed from.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use crate::{CellName, ChangeNumber, FenceAnswer, InstanceId};

/// Cells that a decision depends on, with their numbers before it was computed.
///
/// As text, `instance=ID;CELL=NUMBER;CELL=NUMBER`, in any order of the cells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Basis(Arc<Stated>);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Stated {
    instance: InstanceId,
    numbers: BTreeMap<CellName, ChangeNumber>,
}

/// A text, or a list of cells, is no basis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidBasis;

impl Basis {
    /// Maximum number of cells that a decision can depend on.
    pub const MAX_CELLS: usize = 16;

    /// Returns the basis with these numbers.
    ///
    /// # Errors
    /// Without cells, since a decision that depends on nothing would hold forever, and with more than [`Self::MAX_CELLS`].
    pub fn new(
        instance: InstanceId,
        numbers: BTreeMap<CellName, ChangeNumber>,
    ) -> Result<Self, InvalidBasis> {
        if (1..=Self::MAX_CELLS).contains(&numbers.len()) {
            Ok(Self(Arc::new(Stated { instance, numbers })))
        } else {
            Err(InvalidBasis)
        }
    }

    /// Returns whether nothing that the decision depends on has changed until the moment of the answer.
    #[must_use]
    pub fn holds(&self, answer: &FenceAnswer) -> bool {
        self.0.instance == *answer.instance()
            && self.0.numbers.iter().all(|(cell, number)| answer.number(cell) == Some(*number))
    }

    /// Returns the cells that a fence must ask for.
    pub fn cells(&self) -> impl Iterator<Item = &CellName> {
        self.0.numbers.keys()
    }
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instance={}", self.0.instance)?;
        self.0.numbers.iter().try_for_each(|(cell, ChangeNumber(number))| write!(f, ";{cell}={number}"))
    }
}

impl FromStr for Basis {
    type Err = InvalidBasis;

    fn from_str(text: &str) -> Result<Self, InvalidBasis> {
        let mut fields = text.split(';');
        let instance = fields.next().and_then(|field| field.strip_prefix("instance="));
        let instance = instance.and_then(InstanceId::parse).ok_or(InvalidBasis)?;
        let mut numbers = BTreeMap::new();
        for field in fields {
            let (cell, number) = field.split_once('=').ok_or(InvalidBasis)?;
            let cell = CellName::parse(cell).ok_or(InvalidBasis)?;
            // `u64::from_str` takes a sign.
            if !number.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(InvalidBasis);
            }
            let number = number.parse().map(ChangeNumber).map_err(|_| InvalidBasis)?;
            if numbers.len() == Self::MAX_CELLS || numbers.insert(cell, number).is_some() {
                return Err(InvalidBasis);
            }
        }
        Self::new(instance, numbers)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn basis(text: &str) -> Result<Basis, InvalidBasis> {
        text.parse()
    }

    fn answer(text: &str) -> FenceAnswer {
        let Stated { instance, numbers } = &*basis(text).unwrap().0;
        FenceAnswer::new(instance.clone(), numbers.clone())
    }

    #[test]
    fn a_decision_holds_only_while_every_number_is_the_same() {
        let decided = basis("instance=i1;k:b/7=3;p:AK=9").unwrap();
        for (answered, holds) in [
            ("instance=i1;k:b/7=3;p:AK=9", true),
            ("instance=i1;p:AK=9;k:b/7=3;k:b/8=1", true),
            ("instance=i1;k:b/7=4;p:AK=9", false),
            ("instance=i1;k:b/7=2;p:AK=9", false),
            ("instance=i1;k:b/7=3;p:AK=10", false),
            ("instance=i1;k:b/7=3", false),
            ("instance=i2;k:b/7=3;p:AK=9", false),
        ] {
            assert_eq!(decided.holds(&answer(answered)), holds, "{answered}");
        }
    }

    #[test]
    fn what_is_no_basis_is_refused() {
        let many = (0..=Basis::MAX_CELLS).map(|cell| format!(";c{cell}=1")).collect::<String>();
        for text in [
            "",
            "instance=i1",
            "instance=;a=1",
            "a=1;instance=i1",
            "instance=i1;",
            "instance=i1;a",
            "instance=i1;a=",
            "instance=i1;a=-1",
            "instance=i1;a=+1",
            "instance=i1;a= 1",
            "instance=i1;a=18446744073709551616",
            "instance=i1;a=1;a=1",
            "instance=i1;a b=1",
            &format!("instance=i1{many}"),
            &format!("instance=i1;{}=1", "a".repeat(65)),
        ] {
            assert_eq!(basis(text), Err(InvalidBasis), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in ".*") {
            if let Ok(parsed) = basis(&text) {
                prop_assert_eq!(basis(&parsed.to_string()), Ok(parsed));
            }
        }

        #[test]
        fn a_basis_is_read_as_it_was_written(
            instance in "[a-z0-9]{1,64}",
            numbers in prop::collection::btree_map("[a-zA-Z0-9:/._+-]{1,64}", any::<u64>(), 1..=Basis::MAX_CELLS),
        ) {
            let numbers = numbers.iter().map(|(cell, number)| (CellName::parse(cell).unwrap(), ChangeNumber(*number)));
            let written = Basis::new(InstanceId::parse(&instance).unwrap(), numbers.collect()).unwrap();
            prop_assert_eq!(basis(&written.to_string()), Ok(written));
        }
    }
}
