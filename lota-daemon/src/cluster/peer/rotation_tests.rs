//! Messages between nodes while the cluster key is replaced.

use hyper::{HeaderMap, Request, Response, StatusCode};
use proptest::prelude::*;

use super::*;
use crate::{cluster::ClusterKeys, settings::Reloadable};

const OLD: &str = "0123456789abcdef0123456789abcdef";
const NEW: &str = "fedcba9876543210fedcba9876543210";
const OTHER: &str = "a key of no node of this cluster";

fn keys(text: &str) -> ClusterKeys {
    ClusterKeys::parse(text).unwrap()
}

fn wire(me: &str, text: &str) -> Wire {
    Wire::new(NodeName(me.into()), Reloadable::new(keys(text)))
}

/// Returns a request of `from` to n2 as it arrives.
fn sent(from: &Wire) -> (Request<()>, MessageMac) {
    let mut request = Request::builder().uri("/b/k").header("host", "cwlota.com").body(()).unwrap();
    let signature =
        from.sign_request(&NodeName("n2".into()), WireVersion(1), &mut request, SystemTime::now());
    (request, signature.unwrap())
}

fn answer(from: &Wire, request: &Request<()>) -> Result<Response<()>, RejectedMessage> {
    let mut answer = Response::new(());
    from.sign_answer(&from.verify_request(request)?.0, &mut answer);
    Ok(answer)
}

fn verify(by: &Wire, signature: &MessageMac, answer: &Response<()>) -> Result<(), RejectedMessage> {
    by.verify_answer(signature, answer.status(), answer.headers())
}

/// Returns the result of a request, from the verification of the request to that of the response.
fn exchange(from: &Wire, to: &Wire) -> Result<(), RejectedMessage> {
    let (request, signature) = sent(from);
    verify(from, &signature, &answer(to, &request)?)
}

fn header(message: &HeaderMap) -> &str {
    message["lota-peer"].to_str().unwrap()
}

#[test]
fn nodes_with_one_key_in_common_understand_each_other() {
    let both = format!("{OLD}\n{NEW}");
    let turned = format!("{NEW}\n{OLD}");
    let three = format!("{OTHER}\n{NEW}\n{OLD}");
    for (one, other) in
        [(OLD, &*both), (NEW, &both), (OLD, &turned), (NEW, &turned), (&both, &turned), (OLD, &three)]
    {
        assert_eq!(exchange(&wire("n1", one), &wire("n2", other)), Ok(()), "{one:?} to {other:?}");
        assert_eq!(exchange(&wire("n1", other), &wire("n2", one)), Ok(()), "{other:?} to {one:?}");
    }
    for (one, other) in [(OLD, NEW), (OTHER, &both), (&both, OTHER)] {
        assert_eq!(
            exchange(&wire("n1", one), &wire("n2", other)),
            Err(RejectedMessage::Mac),
            "{one:?} to {other:?}"
        );
    }
}

#[test]
fn the_first_mac_is_that_of_the_first_key() {
    // Nodes of earlier builds have one key, and read one MAC.
    let (mut request, _) = sent(&wire("n1", &format!("{OLD}\n{NEW}")));
    assert_eq!(header(request.headers()).matches(";mac=").count(), 2);
    let first = header(request.headers()).rsplit_once(";mac=").unwrap().0.to_owned();
    request.headers_mut().insert("lota-peer", first.parse().unwrap());
    assert!(wire("n2", OLD).verify_request(&request).is_ok());
    assert_eq!(wire("n2", NEW).verify_request(&request).unwrap_err(), RejectedMessage::Mac);
    let single = sent(&wire("n1", OLD)).0;
    assert_eq!(
        header(single.headers()).matches("mac=").count(),
        1,
        "a second key costs nothing while there is none"
    );
}

#[test]
fn a_response_has_one_mac_under_the_key_that_matched() {
    let (request, signature) = sent(&wire("n1", NEW));
    let answer = answer(&wire("n2", &format!("{OLD}\n{NEW}")), &request).unwrap();
    assert_eq!(header(answer.headers()).matches("mac=").count(), 1);
    assert_eq!(verify(&wire("n1", NEW), &signature, &answer), Ok(()));
}

#[test]
fn keys_are_replaced_for_the_next_message_and_not_for_one_on_its_way() {
    let (n1_keys, n2_keys) = (Reloadable::new(keys(OLD)), Reloadable::new(keys(&format!("{OLD}\n{NEW}"))));
    let n1 = Wire::new(NodeName("n1".into()), n1_keys.clone());
    let n2 = Wire::new(NodeName("n2".into()), n2_keys.clone());
    let (early, signature) = sent(&n1);
    let received = n2.verify_request(&early).unwrap().0;
    n1_keys.set(keys(NEW));
    n2_keys.set(keys(NEW));
    let mut answer = Response::new(());
    n2.sign_answer(&received, &mut answer);
    assert_eq!(verify(&n1, &signature, &answer), Ok(()), "it began with the old key");
    assert_eq!(exchange(&n1, &n2), Ok(()));
    assert_eq!(n2.verify_request(&early).unwrap_err(), RejectedMessage::Mac, "the old key is refused");
    assert_eq!(exchange(&wire("n1", OLD), &n2), Err(RejectedMessage::Mac));
    assert_eq!((n1.keys().shared(), n2.keys().shared()), (1, 1));
}

#[test]
fn only_as_many_macs_are_read_as_a_node_has_keys() {
    let (mut request, _) = sent(&wire("n1", OLD));
    let (head, right) = header(request.headers()).rsplit_once(";mac=").unwrap();
    let (head, right) = (head.to_owned(), right.to_owned());
    let wrong = hex::encode([7; 32]);
    let n2 = wire("n2", OLD);
    let mut result = |macs: &[&str]| {
        let macs: String = macs.iter().map(|mac| format!(";mac={mac}")).collect();
        request.headers_mut().insert("lota-peer", format!("{head}{macs}").parse().unwrap());
        n2.verify_request(&request).map(drop)
    };
    assert_eq!(result(&[&wrong, &wrong, &wrong, &wrong, &right]), Ok(()));
    assert_eq!(result(&[&wrong, &wrong, &wrong, &wrong, &wrong, &right]), Err(RejectedMessage::Mac));
    for malformed in ["", "zz", &right[1..], &format!("{right}00")] {
        assert_eq!(result(&[malformed]), Err(RejectedMessage::NoHeader), "{malformed}");
        assert_eq!(result(&[&right, malformed]), Err(RejectedMessage::NoHeader), "{malformed}");
    }
    assert_eq!(result(&[]), Err(RejectedMessage::NoHeader));
}

proptest! {
    #[test]
    fn any_macs_are_survived(
        macs in prop::collection::vec("([0-9a-f]{64}|[0-9a-fA-F]{0,70}|[ -~]{0,9})", 0..9),
        kept in prop::option::of(0_usize..9),
    ) {
        let n2 = wire("n2", &format!("{NEW}\n{OLD}"));
        let (mut request, signature) = sent(&wire("n1", OLD));
        let (head, right) = header(request.headers()).rsplit_once(";mac=").unwrap();
        let (head, right) = (head.to_owned(), right.to_owned());
        let mut macs = macs;
        if let Some(place) = kept {
            macs.insert(place.min(macs.len()), right.clone());
        }
        let read = &macs[..macs.len().min(PeerKeys::MAX_MACS)];
        // A semicolon begins another field.
        let is_plain = |mac: &String| mac.len() == 64 && mac.bytes().all(|byte| byte.is_ascii_hexdigit());
        let all: String = macs.iter().map(|mac| format!(";mac={mac}")).collect();
        let value = format!("{head}{all}");
        let is_clean = !macs.iter().any(|mac| mac.contains(';'));
        request.headers_mut().insert("lota-peer", value.parse().unwrap());
        let expected = read.iter().all(is_plain) && read.contains(&right);
        let accepted = n2.verify_request(&request).is_ok();
        prop_assert!(!is_clean || accepted == expected, "{value}");
        // In a response, none of them is right.
        let mut answer = Response::new(());
        answer.headers_mut().insert("lota-peer", format!("v=1{all}").parse().unwrap());
        prop_assert!(n2.verify_answer(&signature, StatusCode::OK, answer.headers()).is_err());
    }
}
