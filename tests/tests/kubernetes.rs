//! Access and membership with a real API server. Needs root and what `cargo xtask test kubernetes` installs.

use std::process::ExitCode;

use anyhow::Result;
use lota_tests::{
    lab::{
        Mode,
        kubernetes::{ApiServer, Programs},
        run,
    },
    suite::{Suite, TestFn, lab_with, tests},
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

const TESTS: [(&str, TestFn); 4] = [
    ("manifests: a real API server accepts them unchanged", manifests::taken),
    ("nodes: the endpoints of the service are the nodes of the cluster", nodes::members),
    ("nodes: the startup taint is removed once LOTA serves", nodes::taint),
    ("access: a thousand pods come and go, and access equals the model", churn::random),
];

fn main() -> ExitCode {
    Suite::run(NAME, |suite| {
        suite.in_lab(|| lab_with(NAME, "embedded"), tests(&TESTS));
    })
}

/// Starts an API server in the tour's lab, with LOTA's RBAC rules.
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

/// Makes every node use the peers of its configuration again.
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
