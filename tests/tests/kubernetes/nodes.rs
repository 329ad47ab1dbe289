//! Membership of the cluster's nodes.

use anyhow::{Result, ensure};
use k8s_openapi::api::{
    core::v1::{Endpoints, Node},
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use lota_tests::{
    lab::{Mode, Style, node_address},
    tour::{Tour, wait_until},
};
use serde_json::{Value, json};

use super::{api, api_server, restore};

/// Returns the service's endpoints, with the first so many nodes.
fn endpoints(nodes: u8) -> Value {
    let address = |node| json!({ "ip": node_address(node).to_string(), "nodeName": format!("n{node}") });
    let addresses: Vec<Value> = (1..=nodes).map(address).collect();
    json!({
        "metadata": { "name": "lota", "namespace": api::HOME },
        "subsets": [{ "addresses": addresses, "ports": [{ "name": "peers", "port": 7480 }] }],
    })
}

pub(crate) fn members(tour: &mut Tour) -> Result<()> {
    let server = api_server(tour)?;
    for node in &mut tour.nodes {
        node.use_kubernetes(Some(""));
        node.set_environment(vec![("KUBECONFIG", server.kubeconfig("lota"))]);
        node.configure(Mode::OwnCredential)?;
        node.stop(nix::sys::signal::Signal::SIGTERM)?;
        node.start()?;
        ensure!(node.metric("lota_nodes_active")? == 1.0, "{} must not know other nodes yet", node.name());
    }
    server.call(async |client| {
        api::create(&Api::<Endpoints>::namespaced(client, api::HOME), endpoints(3)).await
    })?;
    let active = |tour: &Tour, expected: [f64; 3]| {
        wait_until("the nodes to know each other", || {
            let seen = tour.nodes.iter().map(|node| node.metric("lota_nodes_active"));
            Ok(seen.collect::<Result<Vec<_>>>()? == expected)
        })
    };
    active(tour, [3.0; 3])?;
    // An object has the same owner on every node.
    let made = tour.client.create_bucket(&tour.pod(1, 1))?;
    ensure!(made.status == 200, "making the bucket: {} {}", made.status, made.code);
    tour.client.put(&tour.pod(1, 1), "members", 1, 1 << 20)?;
    let first = tour.client.get(&tour.pod(1, 1), "members", Style::Path)?;
    ensure!(first.status == 200, "{} {}", first.status, first.code);
    let owner = tour.wait_cached("members")?;
    for (_, pod) in tour.one_pod_per_node() {
        let got = tour.client.get(&pod, "members", Style::Path)?;
        ensure!(
            got.cache() == "hit" && got.node() == owner,
            "{} by {}, not {owner}",
            got.cache(),
            got.node()
        );
    }
    // A removed node keeps its share for a while, since it may only be restarting.
    server.call(async |client| {
        let api = Api::<Endpoints>::namespaced(client, api::HOME);
        api.patch("lota", &PatchParams::default(), &Patch::Merge(endpoints(2))).await?;
        Ok(())
    })?;
    tour.nodes[2].stop(nix::sys::signal::Signal::SIGKILL)?;
    let pod = tour.pod(1, 1);
    for key in 0..8 {
        let key = format!("members-{key}");
        tour.client.put(&pod, &key, 1, 1 << 16)?;
        ensure!(tour.client.get(&pod, &key, Style::Path)?.status == 200, "without the third");
    }
    restore(tour)
}

pub(crate) fn taint(tour: &mut Tour) -> Result<()> {
    let server = api_server(tour)?;
    server.call(async |client| {
        let may = json!({
            "metadata": { "name": "lota-taint" },
            "rules": [{ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"] }],
        });
        api::create(&Api::<ClusterRole>::all(client.clone()), may).await?;
        let is_lotas = json!({
            "metadata": { "name": "lota-taint" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "lota-taint" },
            "subjects": [{ "kind": "ServiceAccount", "name": "lota", "namespace": api::HOME }],
        });
        api::create(&Api::<ClusterRoleBinding>::all(client.clone()), is_lotas).await?;
        let taints = json!([
            { "key": "lota.dev/not-ready", "effect": "NoSchedule" }, { "key": "other", "effect": "NoSchedule" },
        ]);
        let node = json!({ "metadata": { "name": "n2" }, "spec": { "taints": taints } });
        api::create(&Api::<Node>::all(client), node).await
    })?;
    let node = &mut tour.nodes[1];
    node.use_kubernetes(Some(""));
    node.configure(Mode::OwnCredential)?;
    for (who, expected) in [("lota", "lists this node's pods"), ("nobody", "does not list this node's pods")]
    {
        let mut check = node.command();
        check.arg("check").arg(node.config()).env("KUBECONFIG", server.kubeconfig(who));
        let output = String::from_utf8_lossy(&check.output()?.stdout).into_owned();
        ensure!(output.contains(expected), "as {who}: {output}");
    }
    node.edit("[kubernetes]\n", "[kubernetes]\ntaint = \"lota.dev/not-ready\"\n");
    node.set_environment(vec![("KUBECONFIG", server.kubeconfig("lota"))]);
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    wait_until("the taint to be taken off", || {
        let taints = server.call(async |client| {
            let node = Api::<Node>::all(client).get("n2").await?;
            Ok(node.spec.and_then(|spec| spec.taints).unwrap_or_default())
        })?;
        let keys: Vec<&str> = taints.iter().map(|taint| taint.key.as_str()).collect();
        ensure!(keys.contains(&"other"), "the taint of another program is gone: {keys:?}");
        Ok(!keys.contains(&"lota.dev/not-ready"))
    })?;
    restore(tour)
}
