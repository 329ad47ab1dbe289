use super::*;

const PLAIN: RequestShape = RequestShape::PLAIN;

fn front(port: u16) -> UpstreamServer {
    UpstreamServer { address: ([10, 0, 0, 1], port).into(), certificate: None }
}

fn record_rounds(verification: &Verification, port: u16, results: &[RoundResult]) {
    for result in results {
        verification.record_round(&front(port), PLAIN, result.clone(), Instant::now());
    }
}

fn passed() -> [RoundResult; 2] {
    [RoundResult::Passed, RoundResult::Passed]
}

fn failed() -> [RoundResult; 2] {
    [RoundResult::Contrary("why".into()), RoundResult::Contrary("why".into())]
}

#[test]
fn each_server_is_verified_separately() {
    let verification = Verification::default();
    record_rounds(&verification, 1, &[RoundResult::Passed]);
    record_rounds(&verification, 2, &[RoundResult::Passed]);
    assert_eq!(
        verification.trust(),
        GatewayTrust::Unverified,
        "two servers, each with one half of the proof"
    );
    record_rounds(&verification, 1, &[RoundResult::Passed]);
    assert!(verification.trusts(&front(1), PLAIN) && !verification.trusts(&front(2), PLAIN));
    let renewed = UpstreamServer { certificate: Some([7; 32]), ..front(1) };
    assert!(!verification.trusts(&renewed, PLAIN), "another certificate is another server");
    record_rounds(&verification, 2, &failed());
    assert_eq!(verification.trust(), GatewayTrust::Trusted);
    assert!(verification.trusts(&front(1), PLAIN));
}

#[test]
fn failed_servers_are_forgotten_and_trusted_ones_stay() {
    let verification = Verification::default();
    record_rounds(&verification, 1, &passed());
    record_rounds(&verification, 2, &failed());
    verification.again();
    let known: Vec<UpstreamServer> =
        verification.trust_by_server().into_iter().map(|(front, ..)| front).collect();
    assert_eq!(known, [front(1)]);
}

#[test]
fn one_client_verifies_a_server_at_a_time_and_is_skipped_afterwards() {
    let (verification, now) = (Arc::new(Verification::default()), Instant::now());
    let running = verification.begin(&front(1), PLAIN, "mallory", now).unwrap();
    assert!(verification.begin(&front(1), PLAIN, "alice", now).is_none(), "a verification is in progress");
    running.skip(now);
    drop(running);
    assert!(
        verification.begin(&front(1), PLAIN, "mallory", now).is_none(),
        "its last request was inconclusive"
    );
    let running = verification.begin(&front(1), PLAIN, "alice", now);
    assert!(running.is_some(), "another client's request can be used");
    drop(running);
    assert!(verification.begin(&front(1), PLAIN, "mallory", now + SKIP_TIME).is_some());
}

#[test]
fn a_distrusted_server_is_verified_again() {
    let (verification, now) = (Verification::default(), Instant::now());
    record_rounds(&verification, 1, &failed());
    assert!(matches!(verification.trust(), GatewayTrust::Distrusted(_)));
    assert_eq!(verification.retry(PLAIN, now), None);
    assert_eq!(verification.retry(PLAIN, now + Duration::from_secs(60)), Some(front(1)));
    record_rounds(&verification, 1, &passed());
    assert_eq!(verification.trust(), GatewayTrust::Trusted);
}

#[test]
fn a_trusted_server_waits_for_a_small_object() {
    let (verification, now) = (Verification::default(), Instant::now());
    let is_due =
        |size, seconds| verification.is_due_at(&front(1), PLAIN, size, now + Duration::from_secs(seconds));
    assert!(is_due(MAX_PRIMED_AGAIN + 1, 0), "the first verification does not wait");
    record_rounds(&verification, 1, &passed());
    assert!(!is_due(1, 0));
    // 5 s and up to half of that later.
    assert!(is_due(MAX_PRIMED_AGAIN, 10) && !is_due(MAX_PRIMED_AGAIN + 1, 10));
    assert!(is_due(MAX_PRIMED_AGAIN + 1, 75), "a large object is used if there is no small one");
}
