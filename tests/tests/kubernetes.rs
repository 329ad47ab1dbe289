//! What a real API server tells becomes access and membership. Needs root and what `cargo xtask test kubernetes`
//! installs.

use std::process::ExitCode;

use anyhow::Result;
use lota_tests::{
    lab::{
        Mode,
        kubernetes::{ApiServer, Programs},
        run,
    },
    suite::{Suite, lab_with},
    tool,
    tour::Tour,
};

#[path = "kubernetes/api.rs"]
mod api;
#[path = "kubernetes/churn.rs"]
mod churn;
#[path = "kubernetes/manifests.rs"]
mod manifests;
#[path = "kubernetes/nodes.rs"]
mod nodes;

const NAME: &str = "lota-kube";

type Test = fn(&mut Tour) -> Result<()>;

const TESTS: [(&str, Test); 4] = [
    ("manifests: a real API server takes them as they are", manifests::taken),
    ("nodes: who is an endpoint of the service is a node of the cluster", nodes::members),
    ("nodes: a taint is taken off once LOTA serves", nodes::taint),
    ("access: a thousand pods come and go, as the model says", churn::random),
];

fn main() -> ExitCode {
    Suite::run(NAME, |suite| {
        let tests = TESTS.map(|(title, test)| (title.to_owned(), Box::new(test) as Box<_>));
        suite.in_lab(|| lab_with(NAME, "embedded"), tests.into());
    })
}

/// An API server in the tour's lab, which knows what LOTA may see.
fn api_server(tour: &Tour) -> Result<ApiServer> {
    let programs = Programs { apiserver: tool("LOTA_APISERVER")?, etcd: tool("LOTA_ETCD")? };
    let server = ApiServer::start(&tour.lab, &programs)?;
    server.call(api::prepare)?;
    for role in api::ROLES {
        let file = format!("{}/../deploy/base/{role}.yaml", env!("CARGO_MANIFEST_DIR"));
        let mut kubectl = tour.lab.switch().command(tool("LOTA_KUBECTL")?);
        run(kubectl.arg("--kubeconfig").arg(server.kubeconfig("admin")).args(["apply", "-f", &file]))?;
    }
    Ok(server)
}

/// Has every node know its peers by its configuration again.
fn restore(tour: &mut Tour) -> Result<()> {
    for node in tour.nodes.iter_mut().filter(|node| node.uses_kubernetes()) {
        node.use_kubernetes(None);
        node.forget_edits();
        node.set_environment(Vec::new());
        node.configure(Mode::OwnCredential)?;
        node.start()?;
    }
    Ok(())
}
