//! Whether something matches, where not everything is known.

/// Whether something matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    Yes,
    No,
    /// It depends on what is not known.
    Maybe,
}

impl Match {
    pub(super) fn inverted_if(self, inverted: bool) -> Self {
        match self {
            Self::Yes if inverted => Self::No,
            Self::No if inverted => Self::Yes,
            other => other,
        }
    }

    pub(super) fn of(condition: bool) -> Self {
        if condition { Self::Yes } else { Self::No }
    }

    /// Returns whether all of these match.
    pub(super) fn all(matches: impl IntoIterator<Item = Self>) -> Self {
        matches.into_iter().fold(Self::Yes, |all, next| match (all, next) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Maybe,
        })
    }
}
