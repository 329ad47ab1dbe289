//! Trust in one server: a state machine without I/O or clock.

use std::time::{Duration, Instant};

use lota_s3::SignedBy;

/// Number of consecutive rounds that a server must pass before hits are served.
const ROUNDS_TO_TRUST: u32 = 2;
/// Number of contrary results, without trust gained in between, that make a server distrusted.
const CONTRARY_TO_DISTRUST: u8 = 2;
/// Pauses between rounds of a trusted server; the last one repeats. Jitter adds up to half.
const REPEATS: [Duration; 3] = [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(300)];
/// Pauses between rounds of a distrusted server; the last one repeats.
const RETRIES: [Duration; 3] = [Duration::from_secs(30), Duration::from_secs(120), Duration::from_secs(300)];
/// Pause after an inconclusive round while nothing is proven.
const AFTER_INCONCLUSIVE: Duration = Duration::from_secs(1);

/// Location of a request's signature, as far as caches treat it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// In `Authorization`; no query.
    Path,
    /// In `Authorization`, with a query. Many caches do not store such URLs.
    Query,
    /// In the query. Many caches store these, but not requests with `Authorization`.
    Presigned,
    /// None. The gateway gives everyone the same response, so a proof of any other form suffices.
    Unsigned,
}

/// Bytes that a request selects, as far as caches treat it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RangeForm {
    /// No `Range`.
    Whole,
    /// A `Range`. Many caches do not store such requests, and some store only those.
    Part,
    /// `Range: bytes=0-`. Some caches treat it like a request without `Range`.
    FromStart,
}

/// Properties of a request that matter to a cache in front of the gateway. A proof holds for requests of its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestShape {
    pub(super) form: Form,
    pub(super) range: RangeForm,
}

/// Result of one verification round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RoundResult {
    /// The gateway itself has answered, and verifies signatures and ETags.
    Passed,
    /// Something else has answered, or it does not verify them; with the reason.
    Contrary(String),
    /// Neither. It never causes distrust, since a client may have caused it.
    Inconclusive(&'static str),
}

/// Action after a verification round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextRound {
    /// Another round after a short pause.
    Now,
    /// Another round when it is due.
    Later,
}

/// Trust in one server.
#[derive(Clone, Debug, Default)]
pub(super) struct TrustState {
    proofs: [Proof; RequestShape::COUNT],
    /// Contrary results since the server was trusted, or first met.
    contrary: Option<ContraryResults>,
    distrusted: Option<String>,
    /// Number of rounds since the server became distrusted.
    retries: usize,
    retry_due: Option<Instant>,
    last_inconclusive: Option<&'static str>,
}

/// Contrary results of one server.
#[derive(Clone, Copy, Debug)]
struct ContraryResults {
    count: u8,
    /// Form of the requests that gave the last of them. Only a proof of this form ends distrust: a cache may pass the
    /// others on.
    range: RangeForm,
}

/// Proof of one shape.
#[derive(Clone, Copy, Debug, Default)]
struct Proof {
    /// Number of rounds passed.
    rounds: u32,
    due: Option<Instant>,
}

impl RequestShape {
    /// Number of shapes that can be proven.
    const COUNT: usize = 9;
    /// A signed GET of a whole object.
    #[cfg(test)]
    pub(super) const PLAIN: Self = Self { form: Form::Path, range: RangeForm::Whole };

    /// Returns the shape of a request, or `None` if it has several signatures.
    pub(super) fn of(signed: SignedBy, has_query: bool, range: RangeForm) -> Option<Self> {
        let form = match (signed, has_query) {
            (SignedBy::Header, false) => Form::Path,
            (SignedBy::Header, true) => Form::Query,
            (SignedBy::Query, _) => Form::Presigned,
            (SignedBy::Nothing, _) => Form::Unsigned,
            (SignedBy::Several, _) => return None,
        };
        Some(Self { form, range })
    }

    /// Returns whether a proof of this shape holds for a hit of another.
    pub(super) fn covers(self, hit: Self) -> bool {
        let is_form = self.form == hit.form
            || hit.form == Form::Unsigned
            || (self.form == Form::Path && hit.form == Form::Query);
        is_form && self.range == hit.range
    }

    const fn index(self) -> usize {
        self.form as usize * 3 + self.range as usize
    }

    /// Returns the shapes that can be proven.
    fn provable() -> impl Iterator<Item = Self> {
        let forms = [Form::Path, Form::Query, Form::Presigned];
        let ranges = [RangeForm::Whole, RangeForm::Part, RangeForm::FromStart];
        forms.into_iter().flat_map(move |form| ranges.map(|range| Self { form, range }))
    }
}

impl TrustState {
    /// Returns whether a hit of this shape may be served.
    pub(super) fn trusts(&self, hit: RequestShape) -> bool {
        let is_proven = |range| self.proven().any(|shape| shape.covers(RequestShape { range, ..hit }));
        match hit.range {
            RangeForm::Whole | RangeForm::Part => is_proven(hit.range),
            // A cache treats it like one of the others.
            RangeForm::FromStart => {
                is_proven(RangeForm::FromStart) || (is_proven(RangeForm::Whole) && is_proven(RangeForm::Part))
            }
        }
    }

    /// Returns whether hits of any shape may be served.
    pub(super) fn is_trusted(&self) -> bool {
        self.proven().next().is_some()
    }

    fn proven(&self) -> impl Iterator<Item = RequestShape> {
        let is_good = self.contrary.is_none();
        RequestShape::provable()
            .filter(move |shape| is_good && self.proofs[shape.index()].rounds >= ROUNDS_TO_TRUST)
    }

    /// Returns why the server is distrusted, if it is.
    pub(super) fn distrusted(&self) -> Option<&str> {
        self.distrusted.as_deref()
    }

    /// Returns the form of the requests that gave a contrary result since the server was trusted.
    pub(super) fn contrary_range(&self) -> Option<RangeForm> {
        self.contrary.map(|contrary| contrary.range)
    }

    /// Returns why the last round was inconclusive, unless a later one was not.
    pub(super) fn last_inconclusive(&self) -> Option<&'static str> {
        self.last_inconclusive
    }

    /// Returns whether it is time for a round of this shape.
    pub(super) fn is_due(&self, shape: RequestShape, now: Instant) -> bool {
        if shape.range == RangeForm::FromStart && !self.proofs_of(shape).any(|proof| proof.rounds > 0) {
            let is_due = |range| self.is_due(RequestShape { range, ..shape }, now);
            return is_due(RangeForm::Whole) || is_due(RangeForm::Part);
        }
        let is_past = |due: Option<Instant>| due.is_none_or(|due| due <= now);
        match self.distrusted {
            Some(_) => is_past(self.retry_due),
            None => {
                // A shape that another one covers needs no round.
                let proven = self.proofs_of(shape).filter(|proof| proof.rounds >= ROUNDS_TO_TRUST);
                let due = proven.filter_map(|proof| proof.due).max();
                let due = due.or_else(|| self.proofs_of(shape).filter_map(|proof| proof.due).max());
                self.contrary_range() == Some(shape.range) || is_past(due)
            }
        }
    }

    /// Returns the proofs that hold for a shape.
    fn proofs_of(&self, shape: RequestShape) -> impl Iterator<Item = Proof> {
        let covering = RequestShape::provable().filter(move |other| other.covers(shape));
        covering.map(|other| self.proofs[other.index()])
    }

    /// Makes every round due.
    #[cfg(test)]
    pub(super) fn forget_due(&mut self) {
        self.retry_due = None;
        for proof in &mut self.proofs {
            proof.due = None;
        }
    }

    /// Updates the state with the result of a round of this shape. `jitter` is between 0 and 1.
    pub(super) fn record_round(
        &mut self,
        shape: RequestShape,
        result: RoundResult,
        now: Instant,
        jitter: f64,
    ) -> NextRound {
        let after = |pause: Duration| Some(now + pause.mul_f64(1.0 + jitter / 2.0));
        match result {
            RoundResult::Passed => {
                self.last_inconclusive = None;
                let proof = &mut self.proofs[shape.index()];
                proof.rounds = proof.rounds.saturating_add(1);
                if proof.rounds < ROUNDS_TO_TRUST {
                    proof.due = None;
                    return NextRound::Now;
                }
                let repeats = usize::try_from(proof.rounds - ROUNDS_TO_TRUST).unwrap_or(usize::MAX);
                proof.due = after(REPEATS[repeats.min(REPEATS.len() - 1)]);
                if self.contrary_range().is_none_or(|range| range == shape.range) {
                    self.contrary = None;
                    self.distrusted = None;
                    self.retries = 0;
                } else if self.distrusted.is_some() {
                    self.retry_due = after(RETRIES[0]);
                }
                NextRound::Later
            }
            RoundResult::Contrary(why) => {
                self.last_inconclusive = None;
                let count = self.contrary.map_or(0, |contrary| contrary.count).saturating_add(1);
                self.contrary = Some(ContraryResults { count, range: shape.range });
                // All shapes must be proven again: a cache may answer only one shape, or only sometimes.
                self.proofs = Default::default();
                if count < CONTRARY_TO_DISTRUST && self.distrusted.is_none() {
                    return NextRound::Now;
                }
                self.distrusted = Some(why);
                self.retry_due = after(RETRIES[self.retries.min(RETRIES.len() - 1)]);
                self.retries += 1;
                NextRound::Later
            }
            RoundResult::Inconclusive(why) => {
                self.last_inconclusive = Some(why);
                if self.distrusted.is_some() {
                    self.retry_due = after(RETRIES[0]);
                    return NextRound::Later;
                }
                let proof = &mut self.proofs[shape.index()];
                // Existing proofs stay valid, since a client may have disturbed this round.
                let pause = if proof.rounds >= ROUNDS_TO_TRUST { REPEATS[1] } else { AFTER_INCONCLUSIVE };
                proof.due = after(pause);
                NextRound::Later
            }
        }
    }
}

#[cfg(test)]
#[path = "trust_tests.rs"]
mod tests;
