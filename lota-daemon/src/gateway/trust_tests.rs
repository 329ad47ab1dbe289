use proptest::prelude::*;

use super::*;

const PATH: RequestShape = RequestShape::PLAIN;

fn contrary() -> RoundResult {
    RoundResult::Contrary("why".into())
}

/// Applies rounds of one shape in order: `p`assed, `c`ontrary, `i`nconclusive.
fn after(rounds: &str) -> (TrustState, Option<NextRound>) {
    let (mut state, now, mut next) = (TrustState::default(), Instant::now(), None);
    for round in rounds.chars() {
        let result = match round {
            'p' => RoundResult::Passed,
            'c' => contrary(),
            _ => RoundResult::Inconclusive("why not"),
        };
        next = Some(state.record_round(PATH, result, now, 0.5));
    }
    (state, next)
}

#[test]
fn trust_takes_two_rounds_and_distrust_two_contrary_results() {
    use NextRound::{Later, Now};
    for (rounds, is_trusted, is_distrusted, next) in [
        ("p", false, false, Now),
        ("pp", true, false, Later),
        ("pip", true, false, Later),
        ("i", false, false, Later),
        ("c", false, false, Now),
        ("cc", false, true, Later),
        ("ppc", false, false, Now),
        ("ppcp", false, false, Now),
        ("ppcpp", true, false, Later),
        ("ppcc", false, true, Later),
        // A cache that answers sometimes.
        ("pcp", false, false, Now),
        ("pcpc", false, true, Later),
        ("ppcpc", false, true, Later),
        ("ppci", false, false, Later),
        ("ppppi", true, false, Later),
        // A server that was repaired.
        ("ccp", false, true, Now),
        ("ccpp", true, false, Later),
        ("ccpc", false, true, Later),
        ("cci", false, true, Later),
        ("ccppc", false, false, Now),
    ] {
        let (state, found) = after(rounds);
        assert_eq!(state.trusts(PATH), is_trusted, "{rounds}");
        assert_eq!(state.distrusted().is_some(), is_distrusted, "{rounds}");
        assert_eq!(found, Some(next), "{rounds}");
    }
}

#[test]
fn a_proof_holds_for_its_shape_and_covered_ones() {
    let shape = |form, range| RequestShape { form, range };
    let (whole, part, from_start) = (RangeForm::Whole, RangeForm::Part, RangeForm::FromStart);
    for (proven, hit, expected) in [
        (shape(Form::Path, whole), shape(Form::Path, part), false),
        (shape(Form::Path, part), shape(Form::Path, whole), false),
        (shape(Form::Path, part), shape(Form::Query, part), true),
        (shape(Form::Path, whole), shape(Form::Query, whole), true),
        (shape(Form::Query, whole), shape(Form::Path, whole), false),
        (shape(Form::Path, whole), shape(Form::Presigned, whole), false),
        (shape(Form::Presigned, whole), shape(Form::Path, whole), false),
        (shape(Form::Presigned, whole), shape(Form::Presigned, part), false),
        (shape(Form::Presigned, part), shape(Form::Presigned, part), true),
        (shape(Form::Query, whole), shape(Form::Unsigned, whole), true),
        (shape(Form::Query, whole), shape(Form::Unsigned, part), false),
        (shape(Form::Presigned, part), shape(Form::Unsigned, part), true),
        (shape(Form::Path, part), shape(Form::Path, from_start), false),
        (shape(Form::Path, whole), shape(Form::Path, from_start), false),
        (shape(Form::Path, from_start), shape(Form::Query, from_start), true),
        (shape(Form::Path, from_start), shape(Form::Path, part), false),
    ] {
        let (mut state, now) = (TrustState::default(), Instant::now());
        assert!(!state.trusts(hit));
        state.record_round(proven, RoundResult::Passed, now, 0.0);
        state.record_round(proven, RoundResult::Passed, now, 0.0);
        assert_eq!(state.trusts(hit), expected, "{proven:?} {hit:?}");
        assert!(state.is_trusted());
        assert_eq!(state.is_due(hit, now), !expected, "{proven:?} {hit:?}");
    }
    assert_eq!(
        RequestShape::provable().map(RequestShape::index).collect::<Vec<_>>(),
        (0..RequestShape::COUNT).collect::<Vec<_>>()
    );
}

fn pass_twice(state: &mut TrustState, range: RangeForm) {
    for _ in 0..ROUNDS_TO_TRUST {
        state.record_round(RequestShape { range, ..PATH }, RoundResult::Passed, Instant::now(), 0.0);
    }
}

#[test]
fn a_range_from_the_start_is_also_proven_by_both_other_forms() {
    let (mut state, from_start) =
        (TrustState::default(), RequestShape { range: RangeForm::FromStart, ..PATH });
    pass_twice(&mut state, RangeForm::Part);
    assert!(!state.trusts(from_start) && state.is_due(from_start, Instant::now()));
    pass_twice(&mut state, RangeForm::Whole);
    assert!(state.trusts(from_start) && !state.is_due(from_start, Instant::now()));
}

#[test]
fn only_the_form_that_failed_ends_distrust() {
    for failed in [RangeForm::Whole, RangeForm::Part, RangeForm::FromStart] {
        for contrary_results in [1, 2] {
            let mut state = TrustState::default();
            pass_twice(&mut state, failed);
            for _ in 0..contrary_results {
                state.record_round(RequestShape { range: failed, ..PATH }, contrary(), Instant::now(), 0.0);
            }
            assert_eq!(state.contrary_range(), Some(failed));
            let others = [RangeForm::Whole, RangeForm::Part, RangeForm::FromStart].into_iter();
            for other in others.filter(|other| *other != failed) {
                pass_twice(&mut state, other);
                assert!(!state.is_trusted(), "{failed:?} {contrary_results} {other:?}");
            }
            pass_twice(&mut state, failed);
            assert!(state.is_trusted() && state.contrary_range().is_none());
        }
    }
}

#[test]
fn a_pass_of_another_form_does_not_hasten_the_next_round_of_a_distrusted_server() {
    let (mut state, now) = (TrustState::default(), Instant::now());
    for _ in 0..2 {
        state.record_round(PATH, contrary(), now, 0.0);
    }
    let later = now + RETRIES[0];
    let part = RequestShape { range: RangeForm::Part, ..PATH };
    assert!(state.is_due(part, later));
    for _ in 0..ROUNDS_TO_TRUST {
        state.record_round(part, RoundResult::Passed, later, 0.0);
    }
    assert!(!state.is_due(part, later) && !state.is_due(PATH, later));
    assert!(state.is_due(PATH, later + RETRIES[0]));
}

#[test]
fn an_inconclusive_round_delays_the_next_one_of_its_shape() {
    let (mut state, now) = (TrustState::default(), Instant::now());
    let query = RequestShape { form: Form::Query, ..PATH };
    state.record_round(query, RoundResult::Inconclusive("why not"), now, 0.0);
    assert!(!state.is_due(query, now) && state.is_due(query, now + 2 * AFTER_INCONCLUSIVE));
    let unsigned = RequestShape { form: Form::Unsigned, ..PATH };
    assert!(!state.is_due(unsigned, now) && state.is_due(unsigned, now + 2 * AFTER_INCONCLUSIVE));
    assert!(state.is_due(PATH, now));
}

#[test]
fn rounds_repeat_indefinitely() {
    let now = Instant::now();
    let due = |rounds: &str, seconds| {
        let (state, _) = after(rounds);
        state.is_due(PATH, now + Duration::from_secs(seconds))
    };
    for (rounds, early, late) in [
        ("pp", 4, 9),
        ("ppp", 29, 60),
        ("pppp", 290, 460),
        ("pppppppp", 290, 460),
        ("i", 0, 3),
        // A round that a client disturbed is repeated soon.
        ("ppppi", 29, 60),
        ("cc", 29, 60),
        ("cccc", 290, 460),
    ] {
        assert!(!due(rounds, early), "{rounds} after {early} s");
        assert!(due(rounds, late), "{rounds} after {late} s");
    }
    assert!(due("ppc", 0), "a contrary result is followed up at once");
}

proptest! {
    #[test]
    fn no_hit_is_served_without_consistent_proofs(rounds in "[pci]{0,40}") {
        let (state, _) = after(&rounds);
        let decisive: String = rounds.chars().filter(|round| *round != 'i').collect();
        let contrary = decisive.ends_with('c');
        prop_assert_eq!(state.trusts(PATH), decisive.ends_with("pp"));
        prop_assert!(!(contrary && state.is_trusted()));
        prop_assert!(!(state.distrusted().is_some() && state.is_trusted()));
        // Inconclusive rounds alone never cause distrust.
        let contraries = decisive.matches('c').count();
        prop_assert!(contraries >= 2 || state.distrusted().is_none());
    }
}
