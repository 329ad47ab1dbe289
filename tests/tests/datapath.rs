//! The kernel side with the daemon around it: how it steers, whom it lets in, what it survives, and how one daemon
//! follows another. Needs root and what `cargo xtask test datapath` installs.

use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use lota_tests::{
    lab::{Node, run},
    suite::{Suite, lab_with},
    tool,
    tour::Tour,
};
use serde_json::Value;

#[path = "datapath/access.rs"]
mod access;
#[path = "datapath/guard.rs"]
mod guard;
#[path = "datapath/handover.rs"]
mod handover;
#[path = "datapath/layout.rs"]
mod layout;
#[path = "datapath/model.rs"]
mod model;
#[path = "datapath/names.rs"]
mod names;
#[path = "datapath/privileges.rs"]
mod privileges;
#[path = "datapath/steering.rs"]
mod steering;
#[path = "datapath/survival.rs"]
mod survival;

const NAME: &str = "lota-path";

type Test = fn(&mut Tour) -> Result<()>;

const TESTS: [(&str, Test); 29] = [
    ("the hidden listener serves nobody who finds it", steering::hidden_listener),
    ("clsact steers as tcx does, and detaches", steering::clsact),
    ("an interface that comes later is steered, one that goes takes its entry", steering::interfaces),
    ("socket lookup steers, refuses and protects", steering::lookup),
    ("a bridge is steered in its ports' place", steering::bridge),
    ("host-networked clients, if configured", steering::host_network),
    ("IPv6 from the pod to the other nodes", steering::ipv6),
    ("status says what is where, and why not", steering::status),
    ("a tuple in TIME_WAIT reconnects at once, whatever the sysctls", survival::sysctls),
    ("other programs before and after ours", survival::neighbours),
    ("a host port 80 leads nobody elsewhere", survival::host_port),
    ("killed, the daemon leaves no more pins than before", survival::killed),
    ("access: allow, deny, forget, list", access::commands),
    ("access: losing it ends open connections", access::revocation),
    ("access: who was denied", access::denied),
    ("access: the default can be to allow", access::default_allow),
    ("access: SIGHUP, and what it cannot change", access::reload),
    ("access: random changes, as the model says", model::random),
    ("names: any resolver, without its cluster knowing", names::resolvers),
    ("names: what the cluster's own DNS answers", names::cluster_answers),
    ("handover: ten restarts, fifty busy connections, no failure", handover::restarts),
    ("handover: a daemon that fails hands nothing on", handover::failed),
    ("handover: a daemon killed after taking over leaves nothing locked", handover::killed),
    ("handover: a stranger cannot take over", handover::stranger),
    ("layouts: another build's pins are replaced, never misread", layout::others),
    ("privileges: three capabilities, and none where requests are handled", privileges::minimal),
    ("guard: by TC where XDP is taken", guard::taken),
    ("guard: in the stack where the driver has no XDP", guard::generic),
    ("everything still works", steering::works),
];

fn main() -> ExitCode {
    Suite::run(NAME, |suite| {
        let tests = TESTS.map(|(title, test)| (title.to_owned(), Box::new(test) as Box<_>));
        suite.in_lab(make, tests.into());
    })
}

fn make() -> Result<Tour> {
    let tour = lab_with(NAME, "embedded")?;
    let made = tour.client.create_bucket(&tour.pod(1, 1))?;
    ensure!(made.status == 200, "making the bucket: {} {}", made.status, made.code);
    Ok(tour)
}

/// A `lota` command on a node, with its configuration; what it printed.
fn lota(node: &Node, words: &[&str]) -> Result<String> {
    run(node.command().args(words).arg("--config").arg(node.config()))
}

/// The same, line by line of JSON.
fn lota_json(node: &Node, words: &[&str]) -> Result<Vec<Value>> {
    let told = run(node.command().args(words).arg("--json").arg("--config").arg(node.config()))?;
    told.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// A pinned map's entries, as `bpftool` shows them to whoever looks.
fn dump(node: &Node, map: &str) -> Result<Vec<Value>> {
    let told = run(Command::new("bpftool").args(["--json", "map", "dump", "pinned"]).arg(node.map(map)))?;
    let entries: Vec<Value> = serde_json::from_str(&told)?;
    Ok(entries.into_iter().map(|mut entry| entry["formatted"].take()).collect())
}
