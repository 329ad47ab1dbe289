//! The request path end to end, on real parts: one test per step of the tour and per kind of bad input, against the
//! embedded gateway, SeaweedFS and Ceph RGW. Needs root and what `cargo xtask test e2e` installs.

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use lota_tests::{
    suite::{self, Suite, TestFn, lab_with},
    tour::{STEPS, Step, Tour},
};

#[path = "e2e/admin.rs"]
mod admin;
#[path = "e2e/bad_input.rs"]
mod bad_input;
#[path = "e2e/cold.rs"]
mod cold;
#[path = "e2e/commands.rs"]
mod commands;
#[path = "e2e/connection.rs"]
mod connection;
#[path = "e2e/failover.rs"]
mod failover;
#[path = "e2e/gateways.rs"]
mod gateways;
#[path = "e2e/hot.rs"]
mod hot;
#[path = "e2e/http.rs"]
mod http;
#[path = "e2e/intercepted.rs"]
mod intercepted;
#[path = "e2e/kept.rs"]
mod kept;
#[path = "e2e/logs.rs"]
mod logs;
#[path = "e2e/misbehaviour.rs"]
mod misbehaviour;
#[path = "e2e/node_keys.rs"]
mod node_keys;
#[path = "e2e/peer_tls.rs"]
mod peer_tls;
#[path = "e2e/per_zone.rs"]
mod per_zone;
#[path = "e2e/pins.rs"]
mod pins;
#[path = "e2e/ports.rs"]
mod ports;
#[path = "e2e/public_cloud.rs"]
mod public_cloud;
#[path = "e2e/re_sign.rs"]
mod re_sign;
#[path = "e2e/requests.rs"]
mod requests;
#[path = "e2e/secrets.rs"]
mod secrets;
#[path = "e2e/start.rs"]
mod start;
#[path = "e2e/status.rs"]
mod status;
#[path = "e2e/striped.rs"]
mod striped;
#[path = "e2e/tls.rs"]
mod tls;
#[path = "e2e/verification.rs"]
mod verification;
#[path = "e2e/write_fetches.rs"]
mod write_fetches;
#[path = "e2e/written.rs"]
mod written;

/// Lab of the suite with the embedded gateway.
const EMBEDDED: &str = "lota-e2e";
/// Lab of the suite with the other gateways only, which may run at the same time.
const OTHERS: &str = "lota-e2e-gw";

/// Steps of the tour that do not involve the gateway: the datapath, and failure of an owner. Run with one gateway.
const OWN_STEPS: [u8; 2] = [7, 9];
/// Steps of the tour whose outcome depends only on the gateway: signatures, freshness, refusals. Run with each gateway.
const GATEWAY_STEPS: [u8; 3] = [3, 5, 6];

/// Further tests whose outcome depends on the gateway. Run with each gateway.
const GATEWAY: [(&str, TestFn); 10] = [
    ("odd keys are stored and read, and stay in the cache folder", bad_input::odd_keys),
    ("impossible ranges are 416 in S3's form, cold and cached", bad_input::impossible_ranges),
    ("parallel multipart uploads pass byte-exact", bad_input::multipart),
    ("a HEAD of the first byte stages the whole object", requests::staging),
    ("the first read after a write is a hit", written::first_reads),
    ("an upload that was kept is a hit without a read from the backend", kept::first_reads),
    ("requests are re-signed for configured clients", re_sign::requests_are_re_signed),
    ("valid chunks are re-signed, others rejected", re_sign::chunks),
    ("status shows what the gateway's 304 proves by", verification::proves_by),
    ("a gateway that answers 304 to anyone is distrusted and proxied", verification::cache_in_front),
];

/// Tests for which two different gateways are enough. The last ones restart nodes in other modes.
const MORE: [(&str, TestFn); 14] = [
    ("malformed HTTP is rejected or the connection is closed", http::malformed),
    ("a far range of a cold object does not wait for what is before it", cold::far_ranges),
    ("64 readers of a big cold object cost its bytes once", cold::hot_objects),
    ("an interrupted fill requests only the rest", cold::broken_sources),
    ("an object larger than any cache passes through and is counted", cold::too_large),
    ("a response continues when its owner is killed", failover::killed),
    ("a response continues when its owner hangs", failover::hanging),
    ("a hot object gets more owners, which fill from the first", hot::hot_object),
    ("pipelined requests are answered in order", connection::pipelined),
    ("a client's Lota-* headers have no effect", http::stripped_headers),
    ("prefetched objects are cached and not fetched twice", requests::prefetch),
    ("damaged cache files are misses", bad_input::damaged_cache),
    ("a gateway with TLS needs a trusted certificate", tls::gateway),
    ("unchanged pods get hits from a public cloud's name over HTTPS", public_cloud::hits),
];

/// Tests that do not depend on the gateway. Run with one gateway.
const OWN: [(&str, TestFn); 47] = [
    ("100-continue comes from the gateway", requests::expectations),
    ("an early error reaches a client that is still sending", requests::early_errors),
    ("stalled connections time out, slow ones do not", connection::slow),
    ("a connection beyond the limit receives SlowDown", requests::connections),
    (
        "3,000 hostile connections to each port are bounded in memory and do not affect service",
        ports::hostile,
    ),
    ("one-byte reads of many objects are limited", requests::first_bytes_only),
    ("canceled whole reads count against the overread limit", requests::given_up_reads),
    ("a 404 evicts nothing", requests::not_found),
    ("an upload of 5 GiB takes constant memory", requests::endless_uploads),
    ("status reports a healthy node", status::healthy),
    ("top shows a node without a terminal", status::top),
    ("the admin socket and port answer with the right status", admin::statuses),
    ("a probe reports its own daemon", status::ready),
    ("status reports an unreachable gateway", status::gateway_gone),
    ("a support bundle contains everything but secrets", status::support_bundle),
    ("without the gateway nothing is served", bad_input::gateway_down),
    ("each request has one log line at level debug", logs::requests),
    ("a request is counted and logged if its client goes away", logs::abandoned_requests),
    ("no signature, token or secret is ever logged", logs::secrets),
    ("a pod with nothing changed reads through LOTA at the gateway's own name", intercepted::by_name),
    ("an unchanged pod that uses the gateway's address reads hits through LOTA", intercepted::by_address),
    ("HTTPS at the gateway's own name ends at LOTA or is passed on", intercepted::https),
    ("several gateways have their own names, objects and failures", gateways::several),
    ("a misbehaving gateway is relayed or refused, and not cached", misbehaviour::gateways),
    ("only a result in the body of a 200 counts as a write", written::late_results),
    ("an object is fetched only with the ETag of its write", write_fetches::etags),
    ("many writes of a pod do not delay the fetches of another", write_fetches::turns),
    ("a write beyond the pod's quota causes no request to the backend", write_fetches::quota),
    ("an upload is kept only if the backend states its bytes", kept::only_what_the_backend_states),
    ("an upload is not kept before the gateway has stored it", kept::not_before_the_gateway),
    ("an upload does not wait for an owner that hangs or dies", kept::owners_that_fail),
    ("bytes that a gateway sends after a 304 are not taken for a response", misbehaviour::stray_bytes),
    ("a backend with another content is reported, a replaced object is not", misbehaviour::other_content),
    ("an object in stripes is larger than any cache, always a hit, and of one version", striped::objects),
    ("with owners per zone, hits do not cross zones, and the storage is read once", per_zone::zones),
    ("pinned objects are hits on all nodes after scans, restarts and failures", pins::survive_scans),
    ("the cluster key is replaced under load, and no node refuses another", secrets::cluster_key),
    ("keys of nodes replace the cluster key and each other under load", node_keys::migration),
    (
        "TLS between nodes is introduced under load, and then nothing is readable on the way",
        peer_tls::introduced,
    ),
    ("a node with a revoked certificate is refused, and serves by the gateway", peer_tls::revoked),
    ("clients are added and removed without a restart", secrets::clients),
    ("fills go on with a new credential after the old one was revoked", secrets::backend),
    ("check reports every problem of a configuration", commands::check),
    ("commands inspect, evict and repair the cache", commands::cache),
    ("errors of the configuration name the key and the closest valid one", start::bad_configuration),
    ("errors name missing privileges", start::missing_privileges),
    ("a second daemon on the same cache folder is refused", start::second_daemon),
];

fn main() -> ExitCode {
    let gateways = suite::gateways();
    let has_embedded = gateways.contains(&"embedded");
    let name = if has_embedded { EMBEDDED } else { OTHERS };
    Suite::run(name, |suite| {
        for gateway in gateways {
            let tests: Vec<&(&str, TestFn)> = match gateway {
                "embedded" => GATEWAY.iter().chain(&MORE).chain(&OWN).collect(),
                "rgw" => GATEWAY.iter().collect(),
                _ => GATEWAY.iter().chain(&MORE).collect(),
            };
            suite.in_lab(move || make(name, gateway), with_steps(gateway, &tests));
        }
        if has_embedded {
            suite.alone("10 Ctrl-C removes everything", start::interrupted);
            suite.alone("10 lab up, exec, down", start::kept_lab);
        }
    })
}

/// Returns the steps of the tour that are run with a gateway, and then these tests.
fn with_steps(gateway: &str, tests: &[&(&'static str, TestFn)]) -> Vec<suite::Test> {
    let is_run = |step: &&Step| match gateway {
        "embedded" => true,
        "rgw" => GATEWAY_STEPS.contains(&step.number),
        _ => !OWN_STEPS.contains(&step.number),
    };
    let mut all: Vec<suite::Test> = vec![(format!("{gateway}: 1 the lab starts"), Box::new(|_| Ok(())))];
    all.extend(STEPS.iter().filter(is_run).map(|step| {
        let (run, name) = (step.run, format!("{gateway}: {} {}", step.number, step.title));
        (name, Box::new(move |tour: &mut Tour| run(tour).map(drop)) as _)
    }));
    all.extend(tests.iter().map(|(title, test)| (format!("{gateway}: {title}"), Box::new(*test) as _)));
    all
}

fn make(name: &str, gateway: &str) -> Result<Tour> {
    let tour = lab_with(name, gateway)?;
    ensure!(tour.nodes.len() == 3, "{} nodes", tour.nodes.len());
    tour.client.create_bucket(&tour.pod(1, 1))?;
    Ok(tour)
}

/// Returns the `lota-lab` that was built with this suite.
fn lota_lab() -> Command {
    Command::new(env!("CARGO_BIN_EXE_lota-lab"))
}
