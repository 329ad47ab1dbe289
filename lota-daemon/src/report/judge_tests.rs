use serde_json::{Value, json};

use super::*;

/// A node on which all is well.
pub(crate) fn healthy() -> Value {
    json!({
        "node": {
            "name": "n1", "address": "10.0.0.1", "zone": "", "version": "1.2.3", "pid": 7, "instance": null,
            "uptime_seconds": 12.0, "ready": true,
        },
        "gateway": {
            "endpoint": "http://10.0.0.9:9000", "protocol": "s3", "resigned": false, "unreachable": null,
            "silent_seconds": null, "silent_why": null, "trusted": true, "why": null, "servers": [],
        },
        "backend": {
            "endpoints": [{"address": "http://10.0.0.9:9001", "unreachable": null}], "credential": true,
        },
        "datapath": {
            "pins": "/sys/fs/bpf/lota", "layout": 1, "guard": {"interface": "eth0", "mode": "native"},
            "guard_problem": null, "translation_problem": null, "addresses": 2, "prefixes": 0, "default_allow": false, "verdicts": [],
            "interfaces": [
                {"name": "veth1", "index": 3, "steered": "tcx", "position": 0, "skipped": null},
                {"name": "veth2", "index": 4, "steered": null, "position": null,
                 "skipped": "a port of cni0, which is steered instead"},
            ],
        },
        "access": {
            "default_allow": false, "entries": {"config": {"allow": 2, "deny": 0}},
            "denied": [{"address": "10.1.0.9", "packets": 3, "seconds_ago": 1.0, "interface": null, "verdict": null}],
        },
        "kubernetes": null,
        "cache": {
            "objects": 2, "bytes": 1536, "capacity": 1u64 << 40, "fills": 1,
            "disks": [{
                "folder": "/c", "works": true, "encrypted": true, "objects": 2, "bytes": 1536,
                "capacity": 1u64 << 40, "evictions": 9, "corrupt": 0,
            }],
        },
        "peers": [
            {"name": "n2", "address": "http://10.0.0.2:7480", "capacity": 1, "lost_seconds": null,
             "load_bytes": 0, "heard_seconds": 1.0},
        ],
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

/// The mark and the words of one part, when this of the report is otherwise.
fn judged(part: &str, changes: &[(&str, Value)]) -> (Mark, String) {
    let mut report = healthy();
    for (pointer, value) in changes {
        *report.pointer_mut(pointer).unwrap() = value.clone();
    }
    let findings = judge(&serde_json::from_value(report).unwrap());
    let others = findings.iter().filter(|finding| finding.part != part);
    assert!(others.clone().all(|finding| finding.mark == Mark::Ok), "{part}: {findings:?}");
    let found = findings.into_iter().find(|finding| finding.part == part).unwrap();
    assert_eq!(found.next.is_some(), found.mark != Mark::Ok, "{found:?}");
    (found.mark, found.what)
}

#[test]
fn a_healthy_node_is_ok() {
    let mut report: Report = serde_json::from_value(healthy()).unwrap();
    report.findings = judge(&report);
    assert_eq!(report.mark(), Mark::Ok);
    assert_eq!(
        report.table(false),
        "\
ok    node      n1 at 10.0.0.1, lota 1.2.3, up 12 s, ready
ok    gateway   http://10.0.0.9:9000 answers, and is trusted
ok    backend   http://10.0.0.9:9001, by a credential of LOTA's own
ok    datapath  1 interface steered, the guard at eth0
ok    access    2 by config allowed, no others; refused lately: 10.1.0.9
ok    cluster   not asked: the configuration says who is who
ok    cache     1.5 KiB of 1.0 TiB in 2 objects, 1 fill, 1 disk
ok    peers     1 peer, none lost
ok    traffic   6 requests, 75.0 % hits, 2.0 KiB sent
"
    );
    report.findings[0].mark = Mark::Warn;
    assert_eq!(report.mark(), Mark::Warn);
}

#[test]
fn what_is_wrong_is_said() {
    let says = |part, changes: &[(&str, Value)], mark, words: &str| {
        let (found, what) = judged(part, changes);
        assert!(found == mark && what.contains(words), "{part}: {found:?} {what}");
    };
    says("node", &[("/node/ready", json!(false))], Mark::Fail, "NOT ready");
    let refused = json!("Connection refused");
    says("gateway", &[("/gateway/unreachable", refused.clone())], Mark::Fail, ": Connection refused");
    let silent = [("/gateway/silent_seconds", json!(30.0)), ("/gateway/silent_why", json!("reset"))];
    says("gateway", &silent, Mark::Fail, "nothing for 30 s: reset");
    let distrusted = [("/gateway/trusted", json!(false)), ("/gateway/why", json!("it answered 304"))];
    says("gateway", &distrusted, Mark::Warn, "NOT trusted: it answered 304");
    says("gateway", &[("/gateway/trusted", json!(null))], Mark::Ok, "not tried yet");
    says("backend", &[("/backend/endpoints/0/unreachable", refused)], Mark::Warn, "1 of 1 cannot be reached");
    says("backend", &[("/backend", json!(null))], Mark::Ok, "none");
    says("datapath", &[("/datapath", json!(null))], Mark::Fail, "cannot be asked");
    says("datapath", &[("/datapath/guard_problem", json!("no eth7"))], Mark::Warn, "no eth7");
    says("datapath", &[("/datapath/interfaces/0/position", json!(1))], Mark::Warn, "packets of veth1 first");
    says("datapath", &[("/datapath/interfaces", json!([]))], Mark::Warn, "no interface is steered");
    let skipped = [("/datapath/interfaces/1/skipped", json!("netkit loses assigned sockets"))];
    says("datapath", &skipped, Mark::Warn, "1 NOT: veth2: netkit");
    says("access", &[("/access/entries", json!({}))], Mark::Warn, "nobody may");
    says(
        "access",
        &[("/access/entries", json!({})), ("/access/default_allow", json!(true))],
        Mark::Ok,
        "everyone",
    );
    let told = [("/access/entries", json!({})), ("/kubernetes", json!({"up": true}))];
    says("access", &told, Mark::Ok, "no pod of this node");
    says("cluster", &[("/kubernetes", json!({"up": true}))], Mark::Ok, "tells of pods");
    says("cluster", &[("/kubernetes", json!({"up": false}))], Mark::Warn, "does not answer");
    let translated = [("/datapath/translation_problem", json!("no nf_tables"))];
    says("datapath", &translated, Mark::Warn, "no nf_tables");
    says("cache", &[("/cache/disks/0/works", json!(false))], Mark::Warn, "no disk works");
    says("cache", &[("/cache/disks/0/corrupt", json!(2))], Mark::Warn, "2 had other bytes");
    says("peers", &[("/peers/0/lost_seconds", json!(200.0))], Mark::Warn, "1 of 1 peer lost: n2 for 3 min");
    says("peers", &[("/peers", json!(null))], Mark::Ok, "alone");
}
