//! Messages between nodes with keys of their own.

use hyper::{HeaderMap, Request, Response, StatusCode};
use proptest::prelude::*;

use super::*;
use crate::{
    cluster::{ClusterKeys, NodeKey},
    settings::Reloadable,
};

const SHARED: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "a key of no node of this cluster";

/// Returns the key of a node, by a number.
fn key(number: u8) -> NodeKey {
    NodeKey::of_seed([number; 32])
}

/// Returns the public keys of nodes that have the keys with these numbers.
fn known(nodes: &[(&str, &[u8])]) -> PublicKeys {
    let node = |(name, keys): &(&str, &[u8])| {
        (NodeName((*name).into()), keys.iter().map(|number| key(*number).public()).collect())
    };
    nodes.iter().map(node).collect()
}

/// Returns the public keys of n1, n2 and n3.
fn all() -> PublicKeys {
    known(&[("n1", &[1]), ("n2", &[2]), ("n3", &[3])])
}

fn wire(me: &str, shared: Option<&str>, own: Option<u8>, known: &PublicKeys) -> Wire {
    let shared = shared.map(|text| Reloadable::new(ClusterKeys::parse(text).unwrap()));
    let keys = PeerKeys::new(shared, own.map(|number| Reloadable::new(key(number))));
    keys.publish(known.clone());
    Wire::new(NodeName(me.into()), keys)
}

/// Returns a node with a key of its own only.
fn node(me: &str, own: u8) -> Wire {
    wire(me, None, Some(own), &all())
}

/// Returns a request as it arrives, if there is a key for one.
fn try_to_send(from: &Wire, to: &str) -> Option<(Request<()>, MessageMac)> {
    let mut request = Request::builder().uri("/b/k").header("host", "cwlota.com").body(()).unwrap();
    let mac = from.sign_request(&NodeName(to.into()), WireVersion(1), &mut request, SystemTime::now());
    Some((request, mac?))
}

fn sent(from: &Wire, to: &str) -> (Request<()>, MessageMac) {
    try_to_send(from, to).unwrap()
}

fn answered(by: &Wire, received: &MessageMac) -> HeaderMap {
    let mut answer = Response::new(());
    by.sign_answer(received, &mut answer);
    answer.into_parts().0.headers
}

fn verify(by: &Wire, signature: &MessageMac, answer: &HeaderMap) -> Result<(), RejectedMessage> {
    by.verify_answer(signature, StatusCode::OK, answer)
}

/// Returns the result of a request, from the verification of the request to that of the response.
fn exchange(from: &Wire, (name, to): (&str, &Wire)) -> Result<(), RejectedMessage> {
    let (request, signature) = sent(from, name);
    verify(from, &signature, &answered(to, &to.verify_request(&request)?.0))
}

fn header(headers: &HeaderMap) -> &str {
    headers["lota-peer"].to_str().unwrap()
}

#[test]
fn nodes_with_any_key_in_common_understand_each_other() {
    let steps = [(Some(SHARED), false), (Some(SHARED), true), (None, true)];
    for (before, one) in steps.iter().enumerate() {
        for (after, other) in steps.iter().enumerate() {
            let from = wire("n1", one.0, one.1.then_some(1), &all());
            let to = wire("n2", other.0, other.1.then_some(2), &all());
            let result = exchange(&from, ("n2", &to));
            assert_eq!(result.is_ok(), before.abs_diff(after) < 2, "{one:?} to {other:?}: {result:?}");
        }
    }
    // Amid a migration, nodes with different cluster keys have their own keys in common.
    let from = wire("n1", Some(SHARED), Some(1), &all());
    assert_eq!(exchange(&from, ("n2", &wire("n2", Some(OTHER), Some(2), &all()))), Ok(()));
    assert_eq!(exchange(&from, ("n2", &wire("n2", Some(OTHER), None, &all()))), Err(RejectedMessage::Mac));
    // And nodes whose public keys are not known yet have the cluster key.
    let unknown = wire("n1", Some(SHARED), Some(1), &PublicKeys::new());
    assert_eq!(exchange(&unknown, ("n2", &wire("n2", Some(SHARED), Some(2), &all()))), Ok(()));
}

#[test]
fn nodes_of_earlier_builds_accept_messages_with_both_kinds_of_keys() {
    let known = known(&[("n1", &[1]), ("n2", &[2, 4])]);
    let from = wire("n1", Some(&format!("{OTHER}\n{OTHER}, too\n{SHARED}")), Some(1), &known);
    let (mut request, signature) = sent(&from, "n2");
    // They read three MACs.
    let macs: Vec<String> = header(request.headers()).split(";mac=").map(str::to_owned).collect();
    assert_eq!(macs.len(), 1 + 5);
    request.headers_mut().insert("lota-peer", macs[..4].join(";mac=").parse().unwrap());
    let earlier = wire("n2", Some(SHARED), None, &PublicKeys::new());
    let received = earlier.verify_request(&request).unwrap().0;
    assert_eq!(verify(&from, &signature, &answered(&earlier, &received)), Ok(()));
    // And they understand the response to a message of theirs.
    let back = wire("n1", Some(SHARED), Some(1), &known);
    let earlier = wire("n2", Some(SHARED), None, &PublicKeys::new());
    let (request, signature) = sent(&earlier, "n1");
    let answer = answered(&back, &back.verify_request(&request).unwrap().0);
    assert_eq!(header(&answer).matches("mac=").count(), 1);
    assert_eq!(verify(&earlier, &signature, &answer), Ok(()));
}

#[test]
fn a_node_cannot_send_or_answer_as_another() {
    let (one, two, three) = (node("n1", 1), node("n2", 2), node("n3", 3));
    assert_eq!(exchange(&one, ("n2", &two)), Ok(()));
    assert_eq!(exchange(&three, ("n2", &two)), Ok(()));
    let three_as_one = node("n1", 3);
    assert_eq!(exchange(&three_as_one, ("n2", &two)), Err(RejectedMessage::Mac), "a request");
    // Changed on its way.
    let mut request = sent(&three, "n2").0;
    let forged = header(request.headers()).replace("from=n3", "from=n1");
    request.headers_mut().insert("lota-peer", forged.parse().unwrap());
    assert_eq!(two.verify_request(&request).unwrap_err(), RejectedMessage::Mac);
    // n3 has the address of n2, and responds with the keys that it has.
    let (request, signature) = sent(&one, "n2");
    let three_as_two = node("n2", 3);
    assert_eq!(three_as_two.verify_request(&request).unwrap_err(), RejectedMessage::Mac);
    let theirs = signature.clone().under(three.keys().with("n1"));
    assert_eq!(verify(&one, &signature, &answered(&three, &theirs)), Err(RejectedMessage::Mac), "a response");
    let right = two.verify_request(&request).unwrap().0;
    assert_eq!(verify(&one, &signature, &answered(&two, &right)), Ok(()));
}

#[test]
fn a_cluster_key_does_not_count_where_only_keys_of_nodes_do() {
    let thief = wire("n1", Some(SHARED), None, &all());
    assert_eq!(exchange(&thief, ("n2", &node("n2", 2))), Err(RejectedMessage::Mac));
    assert_eq!(
        exchange(&thief, ("n2", &wire("n2", Some(SHARED), Some(2), &all()))),
        Ok(()),
        "amid a migration"
    );
}

#[test]
fn a_node_without_a_public_key_is_refused_and_sent_nothing() {
    let without = known(&[("n1", &[]), ("n2", &[2])]);
    let (one, two) = (node("n1", 1), node("n2", 2));
    two.keys().publish(without.clone());
    assert_eq!(exchange(&one, ("n2", &two)), Err(RejectedMessage::UnknownSender));
    assert!(try_to_send(&two, "n1").is_none());

    two.keys().publish(all());
    let (early, signature) = sent(&one, "n2");
    let received = two.verify_request(&early).unwrap().0;
    two.keys().publish(without);
    assert_eq!(exchange(&one, ("n2", &two)), Err(RejectedMessage::UnknownSender), "its key was removed");
    assert_eq!(verify(&one, &signature, &answered(&two, &received)), Ok(()), "it began before");
    two.keys().publish(known(&[("n1", &[4])]));
    assert_eq!(exchange(&one, ("n2", &two)), Err(RejectedMessage::Mac), "its key was replaced");
    // With cluster keys, too, they are what counts then.
    let migrating = wire("n2", Some(OTHER), Some(2), &PublicKeys::new());
    assert_eq!(exchange(&one, ("n2", &migrating)), Err(RejectedMessage::Mac));
}

#[test]
fn the_key_of_one_node_is_replaced_without_a_refusal() {
    let own = Reloadable::new(key(2));
    let keys = PeerKeys::new(None, Some(own.clone()));
    keys.publish(all());
    let (one, two) = (node("n1", 1), Wire::new(NodeName("n2".into()), keys));
    let both_ways = || exchange(&one, ("n2", &two)).and(exchange(&two, ("n1", &one)));
    assert_eq!(both_ways(), Ok(()));
    // First, the nodes learn the next key, one after the other.
    let next = known(&[("n1", &[1]), ("n2", &[2, 4])]);
    for node in [&one, &two] {
        node.keys().publish(next.clone());
        assert_eq!(both_ways(), Ok(()));
    }
    // Then the node has it, while a message of it and one to it are on their way.
    let (early, signature) = sent(&one, "n2");
    let received = two.verify_request(&early).unwrap().0;
    let (of_two, of_two_signature) = sent(&two, "n1");
    own.set(key(4));
    assert_eq!(both_ways(), Ok(()));
    assert_eq!(verify(&one, &signature, &answered(&two, &received)), Ok(()), "it began with the old key");
    let answer = answered(&one, &one.verify_request(&of_two).unwrap().0);
    assert_eq!(verify(&two, &of_two_signature, &answer), Ok(()));
    // Last, the old key is removed, and counts no more.
    one.keys().publish(known(&[("n1", &[1]), ("n2", &[4])]));
    assert_eq!(both_ways(), Ok(()));
    assert_eq!(exchange(&node("n2", 2), ("n1", &one)), Err(RejectedMessage::Mac));
}

#[test]
fn a_message_has_a_mac_for_each_key() {
    let known = known(&[("n1", &[1]), ("n2", &[2, 4])]);
    for (shared, own, macs) in
        [(Some(SHARED), None, 1), (None, Some(1), 2), (Some(SHARED), Some(1), 3), (None, None, 0)]
    {
        let sent = try_to_send(&wire("n1", shared, own, &known), "n2");
        let count = |(request, _): (Request<()>, _)| header(request.headers()).matches(";mac=").count();
        assert_eq!(sent.map_or(0, count), macs);
    }
}

#[tokio::test]
async fn a_node_without_a_public_key_counts_as_lost() {
    let keys = PeerKeys::new(None, Some(Reloadable::new(key(1))));
    let peers = Peers::new(NodeName("n1".into()), keys, 7480, Upstream::new(false).unwrap());
    let name = NodeName("n2".into());
    peers.set_nodes([(&name, IpAddr::from([127, 0, 0, 9]))]);
    peers.is_here(&name, &peers.origin(&name).unwrap(), PeerHints::default());
    let head = Request::builder().uri("/b/k").header("host", "cwlota.com").body(()).unwrap();
    let head = RequestHead::of(head.into_parts().0).unwrap();
    let ask = || peers.ask(&name, IpAddr::from([10, 0, 0, 9]), &head, PeerMethod::WHOLE);
    assert!(matches!(ask().await, Err(PeerError::NoKey)));
    assert!(peers.is_lost(&name) && !peers.is_alive(&name).await);
    assert_eq!(peers.known_with_key(), 0);
    peers.publish(all());
    assert_eq!(peers.known_with_key(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_sender_is_survived(from in "n[1-4]|[ -:<-~]*", mac: [u8; 32], keep: bool) {
        let (mut request, _) = sent(&node("n1", 1), "n2");
        let (value, right) = header(request.headers()).rsplit_once(";mac=").unwrap();
        let mac = if keep { right.to_owned() } else { hex::encode(mac) };
        let value = format!("{};mac={mac}", value.replace("from=n1", &format!("from={from}")));
        request.headers_mut().insert("lota-peer", value.parse().unwrap());
        let refused = node("n2", 2).verify_request(&request).err();
        let expected = match &*from {
            "n1" if keep => None,
            "n1" | "n2" | "n3" => Some(RejectedMessage::Mac),
            _ => Some(RejectedMessage::UnknownSender),
        };
        prop_assert_eq!(refused, expected);
    }
}
