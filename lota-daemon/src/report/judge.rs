//! What the state of each part means, and what to do about it.

use serde::{Deserialize, Serialize};

use super::{
    Access, Backend, Cache, Gateway, Kubernetes, Node, Peer, Report, Traffic,
    text::{bytes, count, duration},
};
use crate::datapath::Status;

/// How a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// As it should be.
    Ok,
    /// It works, with less than it could have.
    Warn,
    /// Pods are refused, or get errors.
    Fail,
}

/// How a part is, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which part.
    pub part: String,
    /// How it is.
    pub mark: Mark,
    /// What there is, or what is wrong.
    pub what: String,
    /// What to do next, if something is wrong.
    pub next: Option<String>,
}

/// How every part is.
pub(super) fn judge(report: &Report) -> Vec<Finding> {
    let parts = [
        ("node", node(&report.node)),
        ("gateway", gateway(&report.gateway)),
        ("backend", backend(report.backend.as_ref(), &report.gateway)),
        ("datapath", datapath(report.datapath.as_ref())),
        ("access", access(report.access.as_ref(), report.kubernetes.is_some())),
        ("cluster", kubernetes(report.kubernetes)),
        ("cache", cache(&report.cache)),
        ("peers", peers(report.peers.as_deref())),
        ("traffic", traffic(&report.traffic)),
    ];
    let finding = |(part, Judged(mark, what, next)): (&str, Judged)| Finding {
        part: part.to_owned(),
        mark,
        what,
        next,
    };
    parts.map(finding).into()
}

struct Judged(Mark, String, Option<String>);

fn ok(what: impl Into<String>) -> Judged {
    Judged(Mark::Ok, what.into(), None)
}

fn warn(what: impl Into<String>, next: impl Into<String>) -> Judged {
    Judged(Mark::Warn, what.into(), Some(next.into()))
}

fn fail(what: impl Into<String>, next: impl Into<String>) -> Judged {
    Judged(Mark::Fail, what.into(), Some(next.into()))
}

fn node(node: &Node) -> Judged {
    let Node { name, address, version, uptime_seconds, .. } = node;
    let who = format!("{name} at {address}, lota {version}, up {}", duration(*uptime_seconds));
    match node.ready {
        true => ok(format!("{who}, ready")),
        false => {
            fail(format!("{who}, NOT ready"), "its log says what it is waiting for, or that it is stopping")
        }
    }
}

fn gateway(gateway: &Gateway) -> Judged {
    let Gateway { endpoint, unreachable, silent_seconds, silent_why, trusted, why, .. } = gateway;
    if let Some(why) = unreachable {
        return fail(
            format!("{endpoint} cannot be reached: {why}"),
            format!("pods get 503 until it answers; from this node: curl -v {endpoint}"),
        );
    }
    if let (Some(since), Some(why)) = (silent_seconds, silent_why) {
        return fail(
            format!(
                "{endpoint} accepts connections, but has answered nothing for {}: {why}",
                duration(*since)
            ),
            "pods get 503 until it answers; ask it from this node, and read its log",
        );
    }
    let resigned = if gateway.resigned { ", requests signed anew" } else { "" };
    match trusted {
        Some(true) => ok(format!("{endpoint} answers, and is trusted{resigned}")),
        None => ok(format!("{endpoint} can be reached; not tried yet: the first hit does that{resigned}")),
        Some(false) => warn(
            format!("{endpoint} is NOT trusted: {}", why.as_deref().unwrap_or("it failed its trial")),
            "nothing is served from the cache: point LOTA at the S3 server itself, not at a cache before it; if it is mended, \
             `lota reload`",
        ),
    }
}

fn backend(backend: Option<&Backend>, gateway: &Gateway) -> Judged {
    let Some(Backend { endpoints, credential }) = backend else {
        return ok(match gateway.protocol {
            crate::config::Protocol::Lota => "none: fills take the gateway's direct paths",
            crate::config::Protocol::S3 => "none: fills use clients' own requests, where they may",
        });
    };
    let down: Vec<_> =
        endpoints.iter().filter_map(|end| Some((&end.address, end.unreachable.as_ref()?))).collect();
    if let [(address, why), ..] = *down {
        return warn(
            format!("{} of {} cannot be reached: {address}: {why}", down.len(), endpoints.len()),
            "fills fail there, and objects pass through uncached; check [backend] endpoints",
        );
    }
    let addresses: Vec<&str> = endpoints.iter().map(|endpoint| endpoint.address.as_str()).collect();
    let credential = if *credential { "a credential of LOTA's own" } else { "no credential" };
    ok(format!("{}, by {credential}", addresses.join(", ")))
}

fn datapath(status: Option<&Status>) -> Judged {
    let Some(status) = status else {
        return fail(
            "the kernel side cannot be asked",
            "the daemon hands over or hangs: ask again, or read its log",
        );
    };
    let steered = status.interfaces.iter().filter(|interface| interface.steered.is_some()).count();
    let guard = match &status.guard {
        Some(guard) => format!("the guard at {}", guard.interface),
        None => "no guard".to_owned(),
    };
    let what = format!("{} steered, {guard}", count(steered, "interface"));
    if let Some(problem) = &status.guard_problem {
        return warn(
            format!("{what}: {problem}"),
            "outsiders may reach the peer port; see `lota datapath status`",
        );
    }
    if let Some(problem) = &status.translation_problem {
        return warn(
            format!("{what}; address translation is not kept away: {problem}"),
            "a host port 80 on this node would lead pods elsewhere: have none",
        );
    }
    if let Some(behind) =
        status.interfaces.iter().find(|interface| interface.position.is_some_and(|at| at > 0))
    {
        return warn(
            format!("{what}; another program sees the packets of {} first", behind.name),
            "it may pass by LOTA what LOTA should see; LOTA goes back ahead every 2 s: who puts it there?",
        );
    }
    // A bridge's port is steered by way of its bridge.
    let skipped = status.interfaces.iter().filter_map(|interface| {
        let why =
            interface.skipped.as_ref().filter(|why| !why.ends_with("instead") && !why.contains("uplink"))?;
        Some((&interface.name, why))
    });
    if let Some((name, why)) = skipped.clone().next() {
        return warn(
            format!("{what}, {} NOT: {name}: {why}", skipped.count()),
            "its pods are refused; `lota datapath status` names each",
        );
    }
    if steered == 0 {
        return warn(
            "no interface is steered",
            "if there are pods on this node, datapath.pod_interfaces does not name their interfaces",
        );
    }
    ok(what)
}

fn access(access: Option<&Access>, is_told: bool) -> Judged {
    let Some(access) = access else {
        return warn("the kernel side cannot be asked", "see datapath");
    };
    let entries = access.entries.iter().map(|(source, entries)| match entries.deny {
        0 => format!("{} by {source}", entries.allow),
        deny => format!("{} and {deny} denied by {source}", entries.allow),
    });
    let entries: Vec<_> = entries.collect();
    let others = if access.default_allow { "all others, too" } else { "no others" };
    let refused = match access.denied.as_slice() {
        [] => String::new(),
        [last, more @ ..] => {
            let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
            format!("; refused lately: {}{more}", last.address)
        }
    };
    let is_empty = access.entries.values().all(|entries| entries.allow == 0) && !access.default_allow;
    if is_empty && is_told {
        return ok(format!("no pod of this node is selected by access.from{refused}"));
    }
    if is_empty {
        return warn(
            format!("nobody may talk to LOTA here{refused}"),
            "[access] says who may; `lota access allow ADDRESS` for one at once",
        );
    }
    match entries.is_empty() {
        true => ok(format!("everyone may{refused}")),
        false => ok(format!("{} allowed, {others}{refused}", entries.join(", "))),
    }
}

fn kubernetes(kubernetes: Option<Kubernetes>) -> Judged {
    match kubernetes {
        None => ok("not asked: the configuration says who is who"),
        Some(Kubernetes { up: true }) => ok("the API server tells of pods and nodes"),
        Some(Kubernetes { up: false }) => warn(
            "the API server does not answer, or not to everything",
            "what it told last holds, new pods are refused; the log says why: is it up, may LOTA ask it (RBAC)?",
        ),
    }
}

fn cache(cache: &Cache) -> Judged {
    let Cache { objects, fills, capacity, disks, .. } = cache;
    let what = format!(
        "{} of {} in {}, {}",
        bytes(cache.bytes),
        bytes(*capacity),
        count(*objects, "object"),
        count(*fills, "fill"),
    );
    let broken: Vec<_> = disks.iter().filter(|disk| !disk.works).map(|disk| disk.folder.as_str()).collect();
    if broken.len() == disks.len() {
        return warn(
            "no disk works: everything passes through",
            format!("check the disk of {}", broken.join(", ")),
        );
    }
    if !broken.is_empty() {
        return warn(
            format!(
                "{what}; {} of {} do not work: {}",
                broken.len(),
                count(disks.len(), "disk"),
                broken.join(", ")
            ),
            "replace the disk, then restart the daemon",
        );
    }
    let corrupt: u64 = disks.iter().map(|disk| disk.corrupt).sum();
    if corrupt > 0 {
        return warn(
            format!("{what}; {corrupt} had other bytes than were stored, and were thrown away"),
            "the disk may be failing: look at its SMART data and at dmesg",
        );
    }
    ok(format!("{what}, {}", count(disks.len(), "disk")))
}

fn peers(peers: Option<&[Peer]>) -> Judged {
    let Some(peers) = peers else { return ok("none: this node is alone") };
    let lost = peers.iter().filter_map(|peer| Some((peer, peer.lost_seconds?)));
    let lost: Vec<_> = lost.map(|(peer, since)| format!("{} for {}", peer.name, duration(since))).collect();
    if lost.is_empty() {
        return ok(format!("{}, none lost", count(peers.len(), "peer")));
    }
    warn(
        format!("{} of {} lost: {}", lost.len(), count(peers.len(), "peer"), lost.join(", ")),
        "others have their objects after a minute; does `lota status` there say it runs, with the same secret?",
    )
}

fn traffic(traffic: &Traffic) -> Judged {
    let (all, hits) = (traffic.count(&[]), traffic.count(&["hit"]));
    let looked = traffic.count(&["hit", "miss", "fill"]);
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let ratio = match looked {
        0 => String::new(),
        _ => format!(", {:.1} % hits", hits as f64 * 100.0 / looked as f64),
    };
    ok(format!("{all} requests{ratio}, {} sent", bytes(traffic.sent.all())))
}

#[cfg(test)]
pub(crate) use tests::healthy;

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
