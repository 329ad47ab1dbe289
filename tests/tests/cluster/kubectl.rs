//! Questions to the API server.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lota_tests::{
    lab::{Lab, Namespace, kubernetes::ApiServer, run, run_with_input},
    tool,
    tour::wait_within,
};
use serde_json::Value;

/// Timeout for pods to start or end, on a machine that is busy with others.
const POD_TIMEOUT: Duration = Duration::from_secs(240);
/// Pause between two questions: kubectl takes a tenth of a second of the CPU.
const PAUSE: Duration = Duration::from_millis(300);

/// kubectl, with all permissions.
#[derive(Clone)]
pub(crate) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    folder: PathBuf,
    namespace: Namespace,
}

/// A pod of the API server.
#[derive(Clone, Debug)]
pub(crate) struct PodInfo {
    pub(crate) name: String,
    pub(crate) node: u8,
    pub(crate) address: String,
    /// Whether it runs and has an address.
    pub(crate) is_ready: bool,
}

impl Kubectl {
    pub(crate) fn new(lab: &Lab, server: &ApiServer) -> Result<Self> {
        Ok(Self {
            program: tool("LOTA_KUBECTL")?,
            kubeconfig: server.kubeconfig("admin"),
            folder: lab.folder().to_owned(),
            namespace: lab.switch(),
        })
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = self.namespace.command(&self.program);
        // Its cache is there.
        command.env("HOME", &self.folder).arg("--kubeconfig").arg(&self.kubeconfig);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        run(self.command().args(arguments)).with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.run(&[arguments, &["-o", "json"]].concat())?)?)
    }

    /// Returns the configuration of kubectl.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Applies a manifest in YAML or JSON.
    pub(crate) fn apply(&self, manifest: &str) -> Result<()> {
        self.with_input(&["apply", "--validate=false", "-f", "-"], manifest).map(drop)
    }

    /// Deletes the objects of a manifest, and waits until they are gone.
    pub(crate) fn delete(&self, manifest: &str) -> Result<()> {
        self.with_input(&["delete", "-f", "-"], manifest).map(drop)
    }

    pub(crate) fn with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        run_with_input(self.command().args(arguments), input)
    }

    /// Returns the pods with this label that are not being deleted.
    pub(crate) fn pods(&self, namespace: &str, label: &str) -> Result<Vec<PodInfo>> {
        let list = self.json(&["-n", namespace, "get", "pods", "--selector", label])?;
        let pods = list["items"].as_array().context("no list")?;
        let kept = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        Ok(kept.map(PodInfo::of).collect())
    }
}

impl PodInfo {
    pub(crate) fn of(pod: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let node = text(&pod["spec"]["nodeName"]);
        let address = text(&pod["status"]["podIP"]);
        Self {
            name: text(&pod["metadata"]["name"]),
            node: node.strip_prefix('n').and_then(|number| number.parse().ok()).unwrap_or_default(),
            is_ready: pod["status"]["phase"] == "Running" && !address.is_empty(),
            address,
        }
    }
}

/// Waits for a condition that is read by kubectl.
pub(crate) fn wait(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_within(POD_TIMEOUT, what, || {
        let is_met = condition()?;
        if !is_met {
            thread::sleep(PAUSE);
        }
        Ok(is_met)
    })
}
