//! Names and numbers in messages between node and gateway.

use std::{fmt, sync::Arc};

/// Maximum length of a name in bytes.
const MAX_LENGTH: usize = 64;

/// Returns whether a text can be a name: letters, digits and `-_.:/+`, which need no quotes in a header.
fn is_name(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+".contains(&byte);
    (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(is_allowed)
}

/// Name of a cell: whatever the gateway counts changes of. Nodes only compare names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CellName(Arc<str>);

impl CellName {
    /// Parses a name of 1 to 64 letters, digits and `-_.:/+`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        is_name(text).then(|| Self(text.into()))
    }
}

impl fmt::Display for CellName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One life of a gateway's counters. A gateway that may have lost a count, for example at a restart, has a new one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(Arc<str>);

impl InstanceId {
    /// Parses an id of 1 to 64 letters, digits and `-_.:/+`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        is_name(text).then(|| Self(text.into()))
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Number of changes that have begun in a cell. It never decreases within an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChangeNumber(pub u64);
