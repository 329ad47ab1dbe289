//! Tests of the datapath with the daemon: redirect, access control, disturbances, and handover between daemons. They
//! require root and the tools that `cargo xtask test datapath` installs.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lota_tests::{
    lab::{Node, dump_map, run},
    suite::{Suite, TestFn, lab_with, tests},
    tool,
    tour::Tour,
};
use serde_json::Value;

#[path = "datapath/access.rs"]
mod access;
#[path = "datapath/cgroup_cluster.rs"]
mod cgroup_cluster;
#[path = "datapath/cgroup_model.rs"]
mod cgroup_model;
#[path = "datapath/cgroups.rs"]
mod cgroups;
#[path = "packet/forge.rs"]
mod forge;
#[path = "datapath/guard.rs"]
mod guard;
#[path = "datapath/handover.rs"]
mod handover;
#[path = "datapath/host_rules.rs"]
mod host_rules;
#[path = "datapath/identity.rs"]
mod identity;
#[path = "datapath/intercepted.rs"]
mod intercepted;
#[path = "datapath/late.rs"]
mod late;
#[path = "datapath/layout.rs"]
mod layout;
#[path = "datapath/model.rs"]
mod model;
#[path = "datapath/names.rs"]
mod names;
#[path = "datapath/privileges.rs"]
mod privileges;
#[path = "datapath/redirection.rs"]
mod redirection;
#[path = "datapath/reports.rs"]
mod reports;
#[path = "datapath/surroundings.rs"]
mod surroundings;
#[path = "datapath/survival.rs"]
mod survival;

const NAME: &str = "lota-path";

const TESTS: [(&str, TestFn); 60] = [
    ("the hidden listener resets direct connections", redirection::hidden_listener),
    ("clsact redirects like tcx, and detaches", redirection::clsact),
    ("clsact filters that others remove or precede are restored", redirection::clsact_disturbed),
    ("new interfaces are attached, and removed ones lose their entries", redirection::interfaces),
    ("socket lookup redirects, refuses and protects", redirection::lookup),
    ("a bridge is attached instead of its ports", redirection::bridge),
    ("host-network clients have access if configured", redirection::host_network),
    ("IPv6 from pods and between nodes", redirection::ipv6),
    ("status reports interfaces, guard and reasons", redirection::status),
    ("a tuple in TIME_WAIT reconnects at once with any sysctls", survival::sysctls),
    ("other programs before and after LOTA's", survival::neighbours),
    ("a hostPort 80 does not hijack the VIP", survival::host_port),
    ("a killed daemon leaves no additional pins", survival::killed),
    ("access: allow, deny, forget, list", access::commands),
    ("access: revocation ends open connections", access::revocation),
    ("access: list of denied addresses", access::denied),
    ("identity: a pod is found whatever the routes are", identity::covering_route),
    ("identity: an address that several pods have is no pod's", identity::claimed_twice),
    ("identity: a reused interface index gives no access", identity::reused_index),
    ("identity: a hundred interfaces that end at once are followed", identity::many_removed),
    ("reports: a pod whose interface was not reported gets access", reports::lost),
    ("reports: if they end, the daemon ends, and the next one gives access", reports::ended),
    ("cgroups: a pod that sends as another pod is refused", cgroups::spoofed),
    ("cgroups: pods behind a bridge cannot send as each other", cgroups::bridge),
    ("cgroups: a reused address is the next pod's once it is reported", cgroups::reused_address),
    ("cgroups: pods on the host network have access by rules", cgroups::host_network),
    ("cgroups: identity is configured each way", cgroups::configured),
    ("cgroups: bpftool shows pods as text", cgroups::text),
    ("late: a pod has access within a second of its network", late::network),
    ("late: a pod's cgroup is known within a second", late::cgroup),
    ("cgroups: random changes agree with the model", cgroup_model::random),
    ("a VIP that is removed from lo comes back, and does not leak", identity::vip_removed),
    ("surroundings: strict reverse-path filters", surroundings::reverse_path),
    ("surroundings: policy routing before local addresses", surroundings::policy_routing),
    ("surroundings: a subnet that contains the VIP", surroundings::masquerade_subnet),
    ("surroundings: an IPv6 cluster with IPv4 egress", surroundings::ipv6_cluster),
    ("surroundings: LOTA's ports are reserved", surroundings::reserved_ports),
    ("surroundings: interfaces with any names", surroundings::interface_names),
    ("access: allow by default", access::default_allow),
    ("access: reload, and changes that need a restart", access::reload),
    ("access: random changes agree with the model", model::random),
    ("DNS: queries to any resolver are answered on the node", names::resolvers),
    ("DNS: queries that the cluster's own DNS answers", names::cluster_answers),
    ("DNS: search lists, caches and processes of the node", names::search_lists_and_caches),
    ("DNS: queries to a Service where netfilter comes first", names::at_bridge),
    ("DNS: names of the gateway while the daemon lives, is stopped and down", intercepted::daemon),
    ("a gateway's address is intercepted while the daemon lives", intercepted::by_address),
    ("a gateway's address is not intercepted where netfilter comes first", intercepted::at_bridge),
    ("a firewall that drops connections to a gateway's address is named", host_rules::of_targets),
    ("DNS: names and ports as bpftool and status show them", intercepted::shown),
    ("handover: ten restarts under load without failures", handover::restarts),
    ("handover: a daemon that fails to start does not take over", handover::failed),
    ("handover: a daemon killed after taking over leaves no lock", handover::killed),
    ("handover: other programs and users cannot take over", handover::stranger),
    ("handover: a peer message that the previous daemon accepted is refused", handover::replayed),
    ("layouts: pins of another build are replaced, never read", layout::others),
    ("privileges: four capabilities, none in request threads", privileges::minimal),
    ("guard: TC where another XDP program is attached", guard::taken),
    ("guard: generic XDP where the driver has none", guard::generic),
    ("reads, writes and refusals still work", redirection::works),
];

fn main() -> ExitCode {
    Suite::run(NAME, |suite| {
        let scenarios = host_rules::scenarios().map(|(title, at)| {
            (title, Box::new(move |tour: &mut Tour| host_rules::scenario(tour, at)) as Box<_>)
        });
        suite.in_lab(make, tests(&TESTS).into_iter().chain(scenarios).collect());
    })
}

fn make() -> Result<Tour> {
    let tour = lab_with(NAME, "embedded")?;
    let made = tour.client.create_bucket(&tour.pod(1, 1))?;
    ensure!(made.status == 200, "making the bucket: {} {}", made.status, made.code);
    Ok(tour)
}

/// Runs a `lota` command with `--json`; returns the lines of its output.
fn lota_json(node: &Node, words: &[&str]) -> Result<Vec<Value>> {
    let output = run(node.command().args(words).arg("--json").arg("--config").arg(node.config()))?;
    output.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Returns the entries of a node's pinned map.
fn dump(node: &Node, map: &str) -> Result<Vec<Value>> {
    dump_map(&node.map(map))
}
