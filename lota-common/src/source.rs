//! Sources of access entries.

/// Source of an access entry. A later source overrides the previous ones.
///
/// ```
/// use lota_common::Source;
///
/// assert!(Source::Command > Source::Kubernetes);
/// assert_eq!(Source::of(2).map(Source::label), Some("config"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Source {
    /// Kubernetes: a pod of this node that a rule selects.
    Kubernetes = 1,
    /// The configuration file.
    Config = 2,
    /// The command `lota access`.
    Command = 3,
}

impl Source {
    /// Returns the name in tables and JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Config => "config",
            Self::Command => "command",
        }
    }

    /// Returns the source with this number.
    #[must_use]
    pub const fn of(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Kubernetes),
            2 => Some(Self::Config),
            3 => Some(Self::Command),
            _ => None,
        }
    }
}
