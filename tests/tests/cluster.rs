//! A cluster of three nodes, each with a kubelet, containerd, runc and another kind of CNI: the image, installed by the
//! chart, and pods with an unmodified client. Not among the suites that run by default: `cargo xtask test cluster`.
//!
//! On a machine with cgroups of both versions, kubelet uses v1, and runc also makes the pods' cgroups of v2, by which LOTA
//! identifies pods.

use std::process::ExitCode;

use lota_tests::suite::{Suite, TestFn, tests};

#[path = "cluster/access.rs"]
mod access;
#[path = "cluster/drain.rs"]
mod drain;
#[path = "cluster/identity.rs"]
mod identity;
#[path = "cluster/install.rs"]
mod install;
#[path = "cluster/kubectl.rs"]
mod kubectl;
#[path = "cluster/preflight.rs"]
mod preflight;
#[path = "cluster/reads.rs"]
mod reads;
#[path = "cluster/reuse.rs"]
mod reuse;
#[path = "cluster/rollout.rs"]
mod rollout;
#[path = "cluster/setup.rs"]
mod setup;
#[path = "cluster/watch.rs"]
mod watch;
#[path = "cluster/workload.rs"]
mod workload;

use setup::{Cluster, NAME};

const TESTS: [(&str, TestFn<Cluster>); 10] = [
    ("before the installation, the check shows one table of all nodes", preflight::table),
    ("privileged: pods that the rules select read through LOTA, on every CNI", access::by_rules),
    ("the kernel's maps show pods by namespace, name and UID", identity::shown),
    ("services and host ports are translated beside LOTA", access::services),
    ("a pod's address is used again at once, by a pod with other labels", reuse::at_once),
    ("no read fails while hardened pods take over from privileged ones", rollout::with_surge),
    ("a rollout without surge refuses connections once", rollout::without_surge),
    ("hardened: pods that the rules select read through LOTA, on every CNI", access::of_new_pods),
    ("nodes are drained", drain::all),
    ("the DaemonSet's pods uninstall LOTA", drain::uninstall),
];

fn main() -> ExitCode {
    Suite::run(NAME, |suite| {
        suite.in_lab(Cluster::start, tests(&TESTS));
    })
}
