//! Who says that an address has access, or has none.

/// Where an access entry comes from. A later one overrides those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Source {
    /// Kubernetes: a pod of this node that the rules select.
    Kubernetes = 1,
    /// The configuration file.
    Config = 2,
    /// An operator, by `lota access`.
    Command = 3,
}

impl Source {
    /// Its name in tables and JSON.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Config => "config",
            Self::Command => "command",
        }
    }

    /// The source of this number.
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
