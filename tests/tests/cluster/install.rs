//! Installation of LOTA by the chart.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, Result};
use lota_tests::{
    lab::{GATEWAY, GATEWAY_PORT, NODES, kubernetes::kubelet::cgroup_root, run},
    tool,
};
use serde_json::Value;

use crate::{kubectl::wait, setup::Cluster};

/// Namespace of LOTA.
pub(crate) const HOME: &str = "cw-object-storage";

/// Form in which LOTA runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Install {
    Privileged,
    Hardened,
    /// In one of these ways.
    Any,
}

impl Cluster {
    /// Installs LOTA like this unless it runs like this.
    pub(crate) fn install(&mut self, install: Install) -> Result<()> {
        match (self.installed, install) {
            (Some(_), Install::Any) => Ok(()),
            (Some(installed), install) if installed == install => Ok(()),
            (_, install) => {
                self.apply(install)?;
                self.wait_installed()
            }
        }
    }

    /// Applies the chart.
    pub(crate) fn apply(&mut self, install: Install) -> Result<()> {
        self.kubectl.apply(&self.render("lota", install, &[])?)?;
        self.installed = Some(install);
        Ok(())
    }

    /// Returns the chart's DaemonSet.
    pub(crate) fn daemon_set(&self, install: Install) -> Result<Value> {
        let manifest = self.render("lota", install, &["--show-only", "templates/daemonset.yaml"])?;
        let as_json = ["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"];
        Ok(serde_json::from_str(&self.kubectl.with_input(&as_json, &manifest)?)?)
    }

    /// Returns the chart's manifest for a release, with further arguments of helm.
    pub(crate) fn render(&self, release: &str, install: Install, more: &[&str]) -> Result<String> {
        let values = [
            "image={\"repository\":\"localhost/lota\",\"pullPolicy\":\"Never\"}".to_owned(),
            // A server of 1.20 knows no surge.
            "updateStrategy.rollingUpdate={\"maxUnavailable\":1,\"maxSurge\":null}".to_owned(),
            "clusterKey.existingSecret=\"lota-cluster-key\"".to_owned(),
            format!("hardened={}", install == Install::Hardened),
            format!("kubeletCgroupRoot={:?}", cgroup_root(&self.lab)),
            format!("config.gateway.endpoint=\"http://{GATEWAY}:{GATEWAY_PORT}\""),
            format!("config.gateway.addresses=[\"{GATEWAY}\"]"),
            "config.datapath.uplink=\"uplink\"".to_owned(),
            "config.cache={\"disks\":[{\"folder\":\"/var/cache/lota\",\"capacity\":\"1GiB\"}],\"min_free\":\"64MiB\"}".to_owned(),
            "config.access.from=[{\"namespaceSelector\":{\"matchLabels\":{\"lota.dev/access\":\"true\"}},\
             \"podSelector\":{\"matchLabels\":{\"app\":\"train\"}}}]".to_owned(),
            "resources={\"requests\":{\"cpu\":\"10m\"}}".to_owned(),
        ];
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/chart");
        let mut helm = Command::new(tool("LOTA_HELM")?);
        helm.args(["template", release, chart, "--namespace", HOME]).env("HOME", self.lab.folder());
        run(helm.args(values.iter().flat_map(|value| ["--set-json", value])).args(more))
    }

    /// Waits until the newest pods of the DaemonSet are ready; they are the only ones then.
    pub(crate) fn wait_installed(&self) -> Result<()> {
        let mut set = Value::Null;
        let waited = wait("the pods of LOTA to be ready", || {
            set = self.kubectl.json(&["-n", HOME, "get", "daemonset", "lota"])?;
            let number = |field: &str| set["status"][field].as_u64().unwrap_or_default();
            let is_seen = set["status"]["observedGeneration"] == set["metadata"]["generation"];
            let nodes = u64::from(NODES);
            Ok(is_seen
                && ["currentNumberScheduled", "updatedNumberScheduled", "numberAvailable"]
                    .iter()
                    .all(|field| number(field) == nodes))
        });
        waited.with_context(|| {
            let output =
                |arguments: &[&str]| self.kubectl.run(arguments).unwrap_or_else(|error| format!("{error:#}"));
            let pods = output(&["-n", HOME, "describe", "pods"]);
            let log = output(&["-n", HOME, "logs", "--selector=app.kubernetes.io/name=lota", "--tail=20"]);
            format!("{}\n{pods}\n{log}\n{}", set["status"], output(&["get", "nodes", "-o", "wide"]))
        })
    }

    /// Returns the names of LOTA's pods by node.
    pub(crate) fn lota_pods(&self) -> Result<BTreeMap<u8, String>> {
        let pods = self.kubectl.pods(HOME, "app.kubernetes.io/name=lota")?;
        Ok(pods.into_iter().map(|pod| (pod.node, pod.name)).collect())
    }
}
