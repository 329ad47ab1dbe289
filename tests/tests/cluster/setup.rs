//! The cluster.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use lota_tests::{
    lab::{
        ADMIN, GATEWAY, GATEWAY_PORT, Lab, NODES, Origin, Relay, UdpServer,
        kubernetes::{
            ApiServer, Programs, dns, images,
            kubelet::{Controllers, Kubelet, NodePrograms},
            network::{PodNetwork, PodRoutes},
        },
        raw::{Request, Signing},
        run,
    },
    suite::Shared,
    tool,
};
use serde_json::Value;

use crate::{
    install::{HOME, Install},
    kubectl::Kubectl,
    reads::Kind,
    workload::Readers,
};

pub(crate) const NAME: &str = "lota-cluster";
/// The object that pods read, with its bucket.
pub(crate) const OBJECT: &str = "data/object";

/// A running cluster. Fields are dropped in this order.
pub(crate) struct Cluster {
    pub(crate) kubectl: Kubectl,
    kubelets: Vec<Kubelet>,
    _controllers: Controllers,
    _server: ApiServer,
    _dns: UdpServer,
    _gateway: Relay,
    _origin: Origin,
    pub(crate) lab: Lab,
    /// MD5 of the content of [`OBJECT`].
    pub(crate) digest: String,
    pub(crate) installed: Option<Install>,
    /// Whether netfilter handles packets at the ports of the bridge.
    is_filtered: bool,
}

impl Shared for Cluster {
    fn revive(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Cluster {
    pub(crate) fn start() -> Result<Self> {
        let begun = Instant::now();
        let progress = |what: &str| eprintln!("{:>6.1} s  {what}", begun.elapsed().as_secs_f64());
        let programs = Programs { apiserver: tool("LOTA_APISERVER")?, etcd: tool("LOTA_ETCD")? };
        let node_programs = NodePrograms {
            kubelet: tool("LOTA_KUBELET")?,
            controller_manager: tool("LOTA_CONTROLLER_MANAGER")?,
            scheduler: tool("LOTA_SCHEDULER")?,
            containerd: tool("LOTA_CONTAINERD")?,
            cni: tool("LOTA_CNI")?,
            busybox: tool("LOTA_BUSYBOX")?,
        };
        let lab = Lab::up_without_pods(NAME)?;
        let origin = Origin::embedded(lab.folder())?;
        let gateway = lab.relay(GATEWAY_PORT, origin.address())?;
        let digest = put_object(&lab)?;
        let dns = dns::start(&lab)?;
        let server = ApiServer::start_with_accounts(&lab, &programs)?;
        progress("the API server runs");
        let controllers = Controllers::start(&server, &node_programs)?;
        let images = [tool("LOTA_IMAGE")?, images::client(lab.folder(), &node_programs.busybox)?];
        let kubelets = (1..=NODES)
            .map(|node| Kubelet::start(&lab, PodNetwork::of(node), &server, &node_programs, &images))
            .collect::<Result<Vec<_>>>()?;
        let kubectl = Kubectl::new(&lab, &server)?;
        let mut cluster = Self {
            kubectl,
            kubelets,
            _controllers: controllers,
            _server: server,
            _dns: dns,
            _gateway: gateway,
            _origin: origin,
            lab,
            digest,
            installed: None,
            is_filtered: false,
        };
        // As flannel and kubeadm need it.
        cluster.set_filtered(true)?;
        cluster.kubectl.run(&["create", "namespace", HOME])?;
        let secret = "--from-literal=cluster-secret=the lab's cluster key, nothing to protect";
        cluster.kubectl.run(&["-n", HOME, "create", "secret", "generic", "lota-cluster-key", secret])?;
        progress("the nodes start");
        Ok(cluster)
    }

    /// Sets whether netfilter handles packets at the ports of the bridge.
    pub(crate) fn set_filtered(&mut self, filtered: bool) -> Result<()> {
        for node in (1..=NODES).filter(|node| PodNetwork::of(*node).routes == PodRoutes::Bridge) {
            self.is_filtered = self.lab.node(node).set_bridge_filter(filtered)?;
        }
        Ok(())
    }

    /// Returns the kinds of reads that LOTA answers for pods on a node.
    pub(crate) fn kinds(&self, readers: &Readers, node: u8) -> &'static [Kind] {
        let is_bridge = PodNetwork::of(node).routes == PodRoutes::Bridge;
        readers.kinds(is_bridge && self.is_filtered)
    }

    /// Returns the root folder of a node.
    pub(crate) fn root(&self, node: u8) -> PathBuf {
        self.kubelets[usize::from(node) - 1].root()
    }

    /// Runs a command of `lota` in the pod of a node; returns its output, whatever its exit status is.
    pub(crate) fn lota(&self, node: u8, command: &[&str]) -> Result<String> {
        let pods = self.lota_pods()?;
        let pod = pods.get(&node).with_context(|| format!("n{node} has no pod of LOTA"))?;
        let exec = [&["-n", HOME, "exec", pod, "--", "lota"], command].concat();
        let output = self.kubectl.command().args(&exec).output()?;
        let (out, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.code() <= Some(1), "{command:?} on n{node}: {out}{errors}");
        Ok(out.into_owned())
    }

    /// Runs a command of `lota` with output in JSON in the pod of a node.
    pub(crate) fn lota_json(&self, node: u8, command: &[&str]) -> Result<Value> {
        let shown = self.lota(node, command)?;
        serde_json::from_str(&shown).with_context(|| format!("{command:?} on n{node}: {shown}"))
    }

    /// Returns a metric of a node, given as `name{labels}`; 0 if it does not exist.
    pub(crate) fn metric(&self, node: u8, name: &str) -> Result<f64> {
        let mut curl = self.lab.node(node).command("curl");
        let text = run(curl.args(["-sSf", "http://127.0.0.1:7481/metrics"]))?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.and_then(|value| value.parse().ok()).unwrap_or(0.0))
    }
}

/// Stores [`OBJECT`] at the gateway; returns the MD5 of its content.
fn put_object(lab: &Lab) -> Result<String> {
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = format!("{:x}", md5::compute(&bytes));
    let host = format!("{GATEWAY}:{GATEWAY_PORT}");
    let put = |path: &str| Request::new(Method::PUT, &host, &format!("/{path}"));
    let puts = [put("data"), put(OBJECT).body(bytes)].map(|put| put.sign(&ADMIN, Signing::Header));
    let puts = puts.into_iter().collect::<Result<_>>()?;
    for reply in lab.switch().send_all((GATEWAY, GATEWAY_PORT).into(), puts)? {
        ensure!(reply.status.is_success(), "an upload was answered {} {}", reply.status, reply.code());
    }
    Ok(digest)
}
