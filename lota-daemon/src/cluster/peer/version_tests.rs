use std::{net::Ipv4Addr, sync::Arc};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::{version::SpokenVersions, *};
use crate::{cluster::ClusterKeys, settings::Reloadable};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn versions(oldest: u64, newest: u64) -> SpokenVersions {
    SpokenVersions { oldest: WireVersion(oldest), newest: WireVersion(newest) }
}

fn wire(me: &str, versions: SpokenVersions) -> Wire {
    Wire::new(NodeName(me.into()), Reloadable::new(ClusterKeys::parse(SECRET).unwrap())).speaking(versions)
}

fn request(version: u64) -> (Request<()>, MessageMac) {
    let mut request = Request::builder().uri("/b/k").header("host", "cwlota.com").body(()).unwrap();
    let (from, to) = (wire("n1", versions(1, 9)), NodeName("n2".into()));
    let mac = from.sign_request(&to, WireVersion(version), &mut request, SystemTime::now());
    (request, mac.unwrap())
}

#[test]
fn the_newest_version_that_both_speak_is_used() {
    for (own, peers, used) in [
        (versions(1, 1), None, 1),
        (versions(1, 2), None, 1),
        (versions(1, 2), Some(1), 1),
        (versions(1, 2), Some(2), 2),
        (versions(1, 2), Some(3), 2),
        (versions(2, 3), Some(1), 2),
        (versions(1, 2), Some(0), 1),
    ] {
        assert_eq!(own.with(peers.map(WireVersion)), WireVersion(used), "{own:?} {peers:?}");
    }
}

#[test]
fn a_message_in_a_version_that_is_not_spoken_is_refused() {
    for (spoken, version, is_known) in [
        (versions(1, 2), 1, true),
        (versions(1, 2), 2, true),
        (versions(1, 1), 2, false),
        (versions(2, 3), 1, false),
        (versions(2, 3), 4, false),
    ] {
        let verified = wire("n2", spoken).verify_request(&request(version).0).map(|(mac, _)| mac.version());
        let expected = if is_known { Ok(WireVersion(version)) } else { Err(RejectedMessage::Version) };
        assert_eq!(verified, expected, "{version} at {spoken:?}");
    }
    // Nobody can make a message one of another version.
    let (mut request, _) = request(2);
    let value = request.headers()["lota-peer"].to_str().unwrap().replacen("v=2", "v=1", 1);
    request.headers_mut().insert("lota-peer", value.parse().unwrap());
    assert_eq!(wire("n2", versions(1, 2)).verify_request(&request).unwrap_err(), RejectedMessage::Mac);
}

#[test]
fn a_response_has_the_version_of_its_request() {
    let (n1, n2) = (wire("n1", versions(1, 2)), wire("n2", versions(1, 2)));
    let ((old, sent), (_, newer)) = (request(1), request(2));
    let mut answer = Response::new(());
    n2.sign_answer(&n2.verify_request(&old).unwrap().0, &mut answer);
    assert!(answer.headers()["lota-peer"].to_str().unwrap().starts_with("v=1;"));
    let verify = |mac| n1.verify_answer(mac, answer.status(), answer.headers());
    assert_eq!(verify(&sent), Ok(()));
    assert_eq!(verify(&newer), Err(RejectedMessage::Version));
}

/// A node of which builds replace each other.
#[derive(Debug)]
struct Owner {
    speaks: Mutex<SpokenVersions>,
    /// Version of each message that was accepted; `None` for a refused one.
    received: Mutex<Vec<Option<u64>>>,
}

impl Owner {
    fn answer<B>(&self, request: &Request<B>) -> Result<Response<Body>, RejectedMessage> {
        let speaks = *self.speaks.lock();
        let wire = wire("n2", speaks);
        let verified = wire.verify_request(request);
        self.received.lock().push(verified.as_ref().ok().map(|(mac, _)| mac.version().0));
        let mut answer = Response::new(empty());
        answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(0));
        // As a build that speaks the first version only.
        let newest = Some(speaks.newest).filter(|newest| *newest > WireVersion(1));
        PeerHints { wire: newest, ..PeerHints::default() }.write(answer.headers_mut());
        wire.sign_answer(&verified?.0, &mut answer);
        Ok(answer)
    }

    async fn serve(self: Arc<Self>) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (connection, owner) = (listener.accept().await.unwrap().0, self.clone());
                let service = service_fn(move |request| {
                    let answer = owner.answer(&request);
                    async move { answer }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), service));
            }
        });
        port
    }

    fn take_received(&self) -> Vec<Option<u64>> {
        std::mem::take(&mut self.received.lock())
    }
}

#[tokio::test]
async fn builds_that_replace_each_other_cost_no_request() {
    let owner = Arc::new(Owner { speaks: Mutex::new(versions(1, 2)), received: Mutex::default() });
    let port = owner.clone().serve().await;
    let (me, name) = (NodeName("n1".into()), NodeName("n2".into()));
    let upstream = Upstream::new(false).unwrap().without_retries();
    let peers = Peers::new(me, Reloadable::new(ClusterKeys::parse(SECRET).unwrap()), port, upstream);
    let peers = peers.speaking(versions(1, 2));
    peers.set_nodes([(&name, Ipv4Addr::LOCALHOST.into())]);
    let head = Request::builder().uri("/b/k").header("host", "cwlota.com").body(()).unwrap();
    let head = RequestHead::of(head.into_parts().0).unwrap();
    let ask = async |method| {
        let answer = peers.ask(&name, Ipv4Addr::LOCALHOST.into(), &head, method).await;
        (answer.map(|answer| answer.status().as_u16()).ok(), owner.take_received())
    };
    let used = || peers.version_with(&name).0;
    // The first message is a ping.
    assert_eq!((used(), ask(PeerMethod::WHOLE).await), (1, (Some(200), vec![Some(1), Some(2)])));
    assert_eq!((used(), ask(PeerMethod::WHOLE).await), (2, (Some(200), vec![Some(2)])));
    assert!(peers.is_alive(&name).await && owner.take_received() == [Some(1)] && used() == 2, "a ping");
    *owner.speaks.lock() = versions(1, 1);
    assert_eq!(ask(PeerMethod::WHOLE).await, (Some(200), vec![None, Some(1)]));
    assert_eq!((used(), ask(PeerMethod::WHOLE).await), (1, (Some(200), vec![Some(1)])));
    *owner.speaks.lock() = versions(1, 3);
    assert_eq!(ask(PeerMethod::WHOLE).await, (Some(200), vec![Some(1)]));
    assert_eq!(used(), 2);
    // An upload cannot be sent again. The next message, a ping, is understood.
    *owner.speaks.lock() = versions(1, 1);
    let keep = PeerMethod::Keep { size: 0, gateway: "http://gateway".into() };
    assert_eq!(ask(keep).await, (None, vec![None, Some(1)]));
    assert_eq!((used(), ask(PeerMethod::WHOLE).await), (1, (Some(200), vec![Some(1)])));
    // One that speaks no common version is no owner, whoever it is.
    *owner.speaks.lock() = versions(3, 4);
    assert_eq!(ask(PeerMethod::WHOLE).await, (None, vec![None, None, None]));
    assert!(peers.is_lost(&name));
    assert_eq!(used(), 1);
}
