//! Requests on the peer port, from someone who does not have the cluster's secret.

#![no_main]

use hyper::Request;
use libfuzzer_sys::fuzz_target;
use lota_cache::placement::NodeName;
use lota_daemon::{
    cluster::peer::{PeerCall, Peers, headers::PeerHints},
    http::upstream::Upstream,
};
use lota_s3::{Endpoint, Secret, Zone};

fuzz_target!(|input: (&str, &str, &str)| {
    let (target, peer, client) = input;
    let Ok(upstream) = Upstream::new(false) else { return };
    let secret = Secret::from("a secret that the fuzzer has no way to know".to_owned());
    let peers = Peers::new(NodeName("n1".to_owned()), &secret, 7480, upstream);
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
