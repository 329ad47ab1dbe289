//! The manifests, accepted by a real API server.

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{kubernetes::ApiServer, run},
    tool,
    tour::Tour,
};
use serde_json::Value;

use super::{api, api_server};

/// Fields that this server (1.20) drops: maxSurge (1.21) and endPort (1.21).
const DROPPED: [&str; 2] = [
    "DaemonSet: spec.updateStrategy.rollingUpdate.maxSurge",
    "NetworkPolicy: spec.ingress.1.ports.0.endPort",
];

/// Renders the chart with these values besides those of `deploy/base`.
pub(crate) fn render(values: &[&str]) -> Result<String> {
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
    let mut helm = std::process::Command::new(tool("LOTA_HELM")?);
    helm.args(["template", "lota", &format!("{deploy}/chart"), "--namespace", api::HOME]);
    helm.args(["--values", &format!("{deploy}/base/values.yaml")]);
    run(helm.args(values.iter().flat_map(|value| ["--set-json", value])))
}

/// Applies a manifest.
pub(crate) fn apply(tour: &Tour, server: &ApiServer, manifest: &str) -> Result<Vec<Value>> {
    let file = tour.lab.folder().join("manifest.yaml");
    std::fs::write(&file, manifest)?;
    let kubectl = |arguments: &[&str]| -> Result<String> {
        let mut kubectl = tour.lab.switch().command(tool("LOTA_KUBECTL")?);
        kubectl.arg("--kubeconfig").arg(server.kubeconfig("admin")).args(arguments);
        // The client-side validation of this version does not know newer fields.
        run(kubectl.args(["--validate=false", "-o", "json", "-f"]).arg(&file))
    };
    // The objects as written, in JSON, and as stored.
    let written: Value = serde_json::from_str(&list(&kubectl(&["create", "--dry-run=client"])?))?;
    let kept: Value = serde_json::from_str(&kubectl(&["apply"])?)?;
    let items = |list: &Value| list["items"].as_array().cloned().unwrap_or_else(|| vec![list.clone()]);
    let mut dropped = Vec::new();
    for (written, kept) in items(&written).iter().zip(items(&kept)) {
        ensure!(written["kind"] == kept["kind"], "{} for {}", kept["kind"], written["kind"]);
        let kind = written["kind"].as_str().context("a kind")?;
        lost(&format!("{kind}: "), written, &kept, &mut dropped);
    }
    ensure!(dropped.iter().all(|path| DROPPED.contains(&path.as_str())), "it has dropped {dropped:?}");
    Ok(items(&kept))
}

/// Returns the objects that kubectl prints one after another.
fn list(printed: &str) -> String {
    let objects: Vec<Value> =
        serde_json::Deserializer::from_str(printed).into_iter::<Value>().flatten().collect();
    match objects.as_slice() {
        [one] => one.to_string(),
        several => serde_json::json!({ "items": several }).to_string(),
    }
}

/// Adds the paths in `written` that are missing in `kept`.
fn lost(path: &str, written: &Value, kept: &Value, found: &mut Vec<String>) {
    let inner = |key: &str| match path.ends_with(": ") {
        true => format!("{path}{key}"),
        false => format!("{path}.{key}"),
    };
    match (written, kept) {
        (Value::Object(written), Value::Object(kept)) => {
            for (key, value) in written.iter().filter(|(_, value)| !is_empty(value)) {
                lost(&inner(key), value, kept.get(key).unwrap_or(&Value::Null), found);
            }
        }
        (Value::Array(written), Value::Array(kept)) if written.len() == kept.len() => {
            for (place, (written, kept)) in written.iter().zip(kept).enumerate() {
                lost(&inner(&place.to_string()), written, kept, found);
            }
        }
        _ if written != kept => found.push(path.to_owned()),
        _ => {}
    }
}

/// Returns whether a value equals the absence of a value, which a server does not store.
fn is_empty(value: &Value) -> bool {
    [Value::Null, false.into(), serde_json::json!({}), serde_json::json!([])].contains(value)
}

pub(crate) fn taken(tour: &mut Tour) -> Result<()> {
    let server = api_server(tour)?;
    // Without support for maxSurge, the server must be allowed to end a pod before the next one starts.
    let unavailable = "updateStrategy={\"rollingUpdate\":{\"maxSurge\":1,\"maxUnavailable\":1}}";
    for hardened in ["hardened=false", "hardened=true"] {
        let kept = apply(tour, &server, &render(&[unavailable, hardened])?)?;
        let kinds: Vec<&str> = kept.iter().filter_map(|object| object["kind"].as_str()).collect();
        for kind in ["ClusterRole", "ConfigMap", "DaemonSet", "NetworkPolicy", "Service", "ServiceAccount"] {
            ensure!(kinds.contains(&kind), "no {kind} among {kinds:?}");
        }
    }
    Ok(())
}
