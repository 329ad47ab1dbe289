//! Requests on the peer port, from someone who does not have the cluster's secret.

#![no_main]

use hyper::Request;
use libfuzzer_sys::fuzz_target;
use lota_cache::placement::NodeName;
use lota_daemon::{
    cluster::{
        ClusterKeys,
        peer::{PeerCall, Peers, headers::PeerHints},
    },
    http::upstream::Upstream,
    settings::Reloadable,
};
use lota_s3::{Endpoint, Zone};

fuzz_target!(|input: (&str, &str, &str)| {
    let (target, peer, client) = input;
    let Ok(upstream) = Upstream::new(false) else { return };
    let keys = "a key that the fuzzer has no way to know\nanother key that it has no way to know";
    let Ok(keys) = ClusterKeys::parse(keys) else { unreachable!("both are long enough") };
    let peers = Peers::new(NodeName("n1".to_owned()), Reloadable::new(keys), 7480, upstream);
    for peer in [peer, &format!("v=1;to=n1;{peer}")] {
        let request = Request::builder().uri(target).header("lota-peer", peer).header("lota-client", client);
        let request =
            request.header("lota-part", client).header("lota-skip", client).header("lota-load", client);
        if let Ok(request) = request.body(()) {
            assert!(peers.verify(&request).is_err(), "taken for a peer's");
            let _ = PeerHints::of(request.headers());
            if let Ok(zone) = Zone::parse("cwlota.com") {
                let endpoint = Endpoint::of_zone(zone, "http://gateway".into());
                let endpoints = [endpoint].into_iter().collect();
                let _ = PeerCall::decode(request.into_parts().0, &endpoints);
            }
        }
    }
});
