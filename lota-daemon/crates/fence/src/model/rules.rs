//! The rules, each of which can be broken.

/// A rule of the protocol that does not hold in a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum BrokenRule {
    /// A change is counted before it is visible.
    CountedBeforeVisible,
    /// A change is in progress until it is complete.
    InProgressUntilComplete,
    /// A decision is not remembered while a cell that it depends on is changing.
    NotRememberedDuringChange,
    /// The numbers of a basis are read before the decision is computed.
    BasisBeforeDecision,
    /// Changes of what a principal may do are counted, too.
    PolicyIsCounted,
    /// A basis has every cell that the decision depends on.
    EveryCellIsStated,
    /// A gateway that has lost its counts has another instance.
    InstancePerLife,
    /// A gateway answers after a restart only when the changes of its predecessor are settled.
    SettledBeforeRestart,
    /// A request joins a fence before it is sent.
    JoinedBeforeSent,
    /// An answer counts for the fence that it is to.
    AnswerOfItsFence,
    /// Without an answer, nothing is served.
    NothingWithoutAnswer,
}

impl BrokenRule {
    pub(super) const ALL: [Self; 11] = [
        Self::CountedBeforeVisible,
        Self::InProgressUntilComplete,
        Self::NotRememberedDuringChange,
        Self::BasisBeforeDecision,
        Self::PolicyIsCounted,
        Self::EveryCellIsStated,
        Self::InstancePerLife,
        Self::SettledBeforeRestart,
        Self::JoinedBeforeSent,
        Self::AnswerOfItsFence,
        Self::NothingWithoutAnswer,
    ];
}
