use serde_json::{Value, json};

use super::*;

/// Returns the report of a healthy node.
pub(crate) fn healthy() -> Value {
    json!({
        "node": {
            "name": "n1", "address": "10.0.0.1", "zone": "", "version": "1.2.3", "pid": 7, "instance": null,
            "uptime_seconds": 12.0, "ready": true,
        },
        "gateways": [{
            "name": "default", "names": [],
            "endpoint": "http://10.0.0.9:9000", "protocol": "s3", "re_signed": false, "unreachable": null,
            "silent_seconds": null, "silent_why": null, "trusted": true, "why": null, "servers": [],
            "backend": {
                "endpoints": [{"address": "http://10.0.0.9:9001", "unreachable": null}], "credential": true,
            },
        }],
        "datapath": {
            "bpffs_path": "/sys/fs/bpf/lota", "layout": 1, "guard": {"interface": "eth0", "mode": "native"},
            "guard_problem": null, "nat_exemption": "tracked", "nat_exemption_problem": null, "addresses": 2, "prefixes": 0, "default_allow": false, "verdicts": [],
            "connections": {"hanging": [], "problems": []},
            "identity": {"by_cgroup": false, "problem": null, "can_be_configured": false, "identified": 0, "unidentified": []},
            "interfaces": [
                {"name": "veth1", "index": 3, "mode": "tcx", "programs_ahead": 0, "skipped": null, "checked": false},
                {"name": "veth2", "index": 4, "mode": null, "programs_ahead": null,
                 "skipped": {"reason": "bridge_port", "bridge": "cni0"}, "checked": true},
            ],
        },
        "access": {
            "default_allow": false, "entries": {"config": {"allow": 2, "deny": 0}},
            "denied": [{"address": "10.1.0.9", "packets": 3, "seconds_ago": 1.0, "interface": null, "verdict": null}],
        },
        "kubernetes": null,
        "cache": {
            "objects": 2, "bytes": 1536, "capacity": 1u64 << 40, "fills": 1,
            "pins": {"count": 0, "bytes": 0, "possible": 1u64 << 39, "cached": 0},
            "disks": [{
                "folder": "/c", "works": true, "encrypted": true, "objects": 2, "bytes": 1536,
                "capacity": 1u64 << 40, "evictions": 9, "corrupt": 0,
            }],
        },
        "peer_authentication": "shared",
        "peers": [
            {"name": "n2", "address": "http://10.0.0.2:7480", "capacity": 1, "lost_seconds": null, "lost_why": null,
             "load_bytes": 0, "heard_seconds": 1.0, "has_public_key": false},
        ],
        "peer_tls": null,
        "traffic": {
            "requests": [
                {"cache": "hit", "status": 200, "count": 3}, {"cache": "miss", "status": 206, "count": 1},
                {"cache": "bypass", "status": 503, "count": 2},
            ],
            "sent": {"local": 1024, "remote": 1024, "fill": 0, "gateway": 0}, "filled": 0,
        },
        "top": {"objects": null, "pods": []},
        "findings": [],
    })
}

/// Returns the level and the text of one part for a report with these changes.
fn diagnosed(part: &str, changes: &[(&str, Value)]) -> (Level, String) {
    let mut report = healthy();
    for (pointer, value) in changes {
        *report.pointer_mut(pointer).unwrap() = value.clone();
    }
    let findings = diagnose(&serde_json::from_value(report).unwrap());
    let others = findings.iter().filter(|finding| finding.part != part);
    assert!(others.clone().all(|finding| finding.level == Level::Ok), "{part}: {findings:?}");
    let found = findings.into_iter().find(|finding| finding.part == part).unwrap();
    assert_eq!(found.fix.is_some(), found.level != Level::Ok, "{found:?}");
    (found.level, found.what)
}

#[test]
fn a_healthy_node_is_ok() {
    let mut report: NodeReport = serde_json::from_value(healthy()).unwrap();
    report.findings = diagnose(&report);
    assert_eq!(report.level(), Level::Ok);
    assert_eq!(
        report.table(false),
        "\
ok    node          n1 at 10.0.0.1, lota 1.2.3, up 12 s, ready
ok    gateway       http://10.0.0.9:9000 answers and is trusted
ok    backend       http://10.0.0.9:9001, by a credential of LOTA's own
ok    datapath      1 interface redirected, guard on eth0
ok    connections   connections of all pods with access arrive
ok    access        2 by config allowed, no others allowed; recently refused: 10.1.0.9
ok    kubernetes    not configured: nodes and access come from the configuration
ok    cache         1.5 KiB of 1.0 TiB in 2 objects, 1 fill, 1 disk
ok    peers         1 peer, none lost
ok    traffic       6 requests, 75.0 % hits, 2.0 KiB sent
"
    );
    report.findings[0].level = Level::Warn;
    assert_eq!(report.level(), Level::Warn);
}

#[test]
fn problems_are_reported() {
    let assert_finding = |part, changes: &[(&str, Value)], level, words: &str| {
        let (found, what) = diagnosed(part, changes);
        assert!(found == level && what.contains(words), "{part}: {found:?} {what}");
    };
    assert_finding("node", &[("/node/ready", json!(false))], Level::Fail, "NOT ready");
    let refused = json!("Connection refused");
    assert_finding(
        "gateway",
        &[("/gateways/0/unreachable", refused.clone())],
        Level::Fail,
        ": Connection refused",
    );
    let silent = [("/gateways/0/silent_seconds", json!(30.0)), ("/gateways/0/silent_why", json!("reset"))];
    assert_finding("gateway", &silent, Level::Fail, "not answered for 30 s: reset");
    let distrusted = [("/gateways/0/trusted", json!(false)), ("/gateways/0/why", json!("it answered 304"))];
    assert_finding("gateway", &distrusted, Level::Warn, "NOT trusted: it answered 304");
    assert_finding("gateway", &[("/gateways/0/trusted", json!(null))], Level::Ok, "not verified yet");
    assert_finding(
        "backend",
        &[("/gateways/0/backend/endpoints/0/unreachable", refused)],
        Level::Warn,
        "1 of 1 cannot be reached",
    );
    assert_finding("backend", &[("/gateways/0/backend", json!(null))], Level::Ok, "none");
    assert_finding("datapath", &[("/datapath", json!(null))], Level::Fail, "is unavailable");
    assert_finding("datapath", &[("/datapath/guard_problem", json!("no eth7"))], Level::Warn, "no eth7");
    assert_finding(
        "datapath",
        &[("/datapath/interfaces/0/programs_ahead", json!(1))],
        Level::Warn,
        "packets of veth1 first",
    );
    assert_finding(
        "datapath",
        &[("/datapath/interfaces", json!([]))],
        Level::Warn,
        "no interface is redirected",
    );
    let skipped = [("/datapath/interfaces/1/skipped", json!({"reason": "netkit"}))];
    assert_finding("datapath", &skipped, Level::Warn, "1 NOT: veth2: netkit");
    assert_finding("access", &[("/access/entries", json!({}))], Level::Warn, "no address has access");
    assert_finding(
        "access",
        &[("/access/entries", json!({})), ("/access/default_allow", json!(true))],
        Level::Ok,
        "all addresses have access",
    );
    let watching = [("/access/entries", json!({})), ("/kubernetes", json!({"up": true}))];
    assert_finding("access", &watching, Level::Ok, "no pod of this node");
    let watching = ("/kubernetes", json!({"up": true}));
    let problem = ("/datapath/identity/problem", json!("/c: it is not a cgroup v2 hierarchy"));
    assert_finding(
        "access",
        &[watching.clone(), problem.clone()],
        Level::Ok,
        "by address only: /c: it is not",
    );
    let elsewhere = ("/datapath/identity/can_be_configured", json!(true));
    assert_finding(
        "access",
        &[watching.clone(), problem, elsewhere],
        Level::Warn,
        "by address only: /c: it is not",
    );
    let by_cgroup = ("/datapath/identity/by_cgroup", json!(true));
    assert_finding("access", &[watching.clone(), by_cgroup.clone()], Level::Ok, "by address and cgroup");
    let unknown = ("/datapath/identity/unidentified", json!(["team/x"]));
    assert_finding(
        "access",
        &[watching, by_cgroup, unknown],
        Level::Warn,
        "1 pod identified by address only",
    );
    assert_finding("kubernetes", &[("/kubernetes", json!({"up": true}))], Level::Ok, "watches of pods");
    assert_finding("kubernetes", &[("/kubernetes", json!({"up": false}))], Level::Warn, "API server fail");
    let denied = [("/access/denied/0/address", json!("169.254.172.9"))];
    assert_finding("access", &denied, Level::Warn, "169.254.172.9 was refused");
    let problem = json!([{"what": "a rule drops it", "fix": "accept it"}]);
    let pod = json!([{"address": "10.1.0.9", "interface": "veth1", "attempts": 3, "seconds_ago": 1.0}]);
    assert_finding(
        "connections",
        &[("/datapath/connections/problems", problem.clone())],
        Level::Warn,
        "a rule drops",
    );
    let hanging = [("/datapath/connections/problems", problem), ("/datapath/connections/hanging", pod)];
    let what = "connections of 10.1.0.9 at veth1 do not arrive (3 attempts): a rule drops it";
    assert_finding("connections", &hanging, Level::Fail, what);
    let translated = [("/datapath/nat_exemption_problem", json!("no nf_tables"))];
    assert_finding("datapath", &translated, Level::Warn, "no nf_tables");
    let pins = |possible: u64| json!({"count": 2, "bytes": 2048, "possible": possible, "cached": 1024});
    assert_finding("cache", &[("/cache/pins", pins(2048))], Level::Ok, "2 pins of 2.0 KiB (1.0 KiB here)");
    assert_finding("cache", &[("/cache/pins", pins(2047))], Level::Warn, "only 2.0 KiB can be pinned");
    assert_finding("cache", &[("/cache/disks/0/works", json!(false))], Level::Warn, "no disk works");
    assert_finding("cache", &[("/cache/disks/0/corrupt", json!(2))], Level::Warn, "2 failed checksum");
    assert_finding(
        "peers",
        &[("/peers/0/lost_seconds", json!(200.0))],
        Level::Warn,
        "1 of 1 peer lost: n2 for 3 min",
    );
    assert_finding("peers", &[("/peers", json!(null))], Level::Ok, "only node");
    let mode = |mode: &str| ("/peer_authentication", json!(mode));
    let known = ("/peers/0/has_public_key", json!(true));
    assert_finding("peers", &[mode("both")], Level::Ok, "are accepted; no public key of n2");
    assert_finding("peers", &[mode("node"), known.clone()], Level::Ok, "none lost, each with a key");
    assert_finding("peers", &[mode("node")], Level::Warn, "1 of 1 peer cannot be sent to or answered; no");
    let lost = ("/peers/0/lost_seconds", json!(200.0));
    assert_finding(
        "peers",
        &[mode("node"), lost.clone()],
        Level::Warn,
        "lost: n2 for 3 min; no public key of n2",
    );
    assert_finding("peers", &[mode("node"), lost, known], Level::Warn, "1 of 1 peer lost: n2 for 3 min");
    let lost = [("/peers/0/lost_seconds", json!(2.0)), ("/peers/0/lost_why", json!("TLS: revoked"))];
    assert_finding("peers", &lost, Level::Warn, "n2 for 2 s (TLS: revoked)");
    let certificate = |left: i32, problem: Value| {
        let days = |days: i32| json!(f64::from(days) * 86_400.0);
        let (life, left) = (days(90), days(left));
        json!({"mode": "require", "life_seconds": life, "expires_seconds": left, "problem": problem})
    };
    for (left, problem, level, words) in [
        (30, json!(null), Level::Ok, "mode \"require\", this node's certificate expires in 30 d"),
        (22, json!(null), Level::Warn, "expires in 22 d"),
        (30, json!("its certificate is revoked"), Level::Fail, "refuse this one: its certificate is revoked"),
        (-1, json!("its certificate is expired"), Level::Fail, "certificate is expired"),
    ] {
        assert_finding("peers.tls", &[("/peer_tls", certificate(left, problem))], level, words);
    }
}
