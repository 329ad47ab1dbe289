//! Components that run pods: controllers and a scheduler beside the API server, containerd and a kubelet on each node.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::{ApiServer, dns, end, images, log, network::PodNetwork};
use crate::lab::{Lab, kubelet_cgroups, node_address};

/// The controllers that the tests need.
const CONTROLLERS: &str = "daemonset,deployment,endpoint,endpointslice,garbagecollector,namespace,nodelifecycle,\
                           replicaset,root-ca-cert-publisher,serviceaccount,serviceaccount-token";
/// Script of process 1 of a node.
const SCRIPT: &str = include_str!("node/kubelet.sh");

/// Paths of the programs.
#[derive(Clone, Debug)]
pub struct NodePrograms {
    /// `kubelet`.
    pub kubelet: PathBuf,
    /// `kube-controller-manager`.
    pub controller_manager: PathBuf,
    /// `kube-scheduler`.
    pub scheduler: PathBuf,
    /// Folder with Debian's containerd and runc, unpacked.
    pub containerd: PathBuf,
    /// Folder with CNI plugins.
    pub cni: PathBuf,
    /// Static busybox.
    pub busybox: PathBuf,
}

/// Controllers and a scheduler.
#[derive(Debug)]
pub struct Controllers(Vec<Child>);

impl Controllers {
    /// Starts them in the lab's switch. The API server must run [with accounts](ApiServer::start_with_accounts).
    ///
    /// # Errors
    /// If one cannot be started.
    pub fn start(server: &ApiServer, programs: &NodePrograms) -> Result<Self> {
        let file = |name: &str| server.folder.join(name).display().to_string();
        let kubeconfig = format!("--kubeconfig={}", server.kubeconfig("admin").display());
        let start = |program: &Path, name: &str, arguments: &[String]| {
            let mut command = server.place.command(program);
            command.args([&kubeconfig, "--leader-elect=false", "--bind-address=127.0.0.1", "--port=0"]);
            command.args(arguments).stdout(log(&server.folder, name)?).stderr(log(&server.folder, name)?);
            command.spawn().with_context(|| format!("starting {name}"))
        };
        let accounts = [
            format!("--controllers={CONTROLLERS}"),
            format!("--service-account-private-key-file={}", file("service-account.key")),
            format!("--root-ca-file={}", file("certificates/apiserver.crt")),
        ];
        let mut controllers = Self(Vec::new());
        controllers.0.push(start(&programs.controller_manager, "controller-manager", &accounts)?);
        controllers.0.push(start(&programs.scheduler, "scheduler", &[])?);
        Ok(controllers)
    }
}

impl Drop for Controllers {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ = end(process, Signal::SIGKILL);
        }
    }
}

/// A node's kubelet and everything that it runs. [`Lab::down`] removes its cgroups.
#[derive(Debug)]
pub struct Kubelet {
    process: Child,
}

impl Kubelet {
    /// Starts a kubelet on a node of the lab, with these image archives.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(
        lab: &Lab,
        network: PodNetwork,
        server: &ApiServer,
        programs: &NodePrograms,
        images: &[PathBuf],
    ) -> Result<Self> {
        let node = network.node;
        let folder = folder(lab, node);
        fs::create_dir_all(static_pods(lab, node))?;
        network.prepare(lab, &folder, &programs.cni).context("preparing the network of pods")?;
        let mut archives = vec![images::pause(&folder, &programs.busybox)?];
        archives.extend_from_slice(images);
        let archives: Vec<String> = archives.iter().map(|path| path.display().to_string()).collect();
        let script = folder.join("kubelet.sh");
        fs::write(&script, SCRIPT)?;
        let process = lab
            .node(node)
            .command("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh"])
            .arg(&script)
            .env("NAME", format!("n{node}"))
            .env("ADDRESS", node_address(node).to_string())
            .env("FOLDER", &folder)
            .env("CGROUP", kubelet_cgroups::of_node(lab.name(), node))
            .env("ALL_NODES_CGROUP", kubelet_cgroups::of_all_nodes(lab.name()))
            .env("KUBECONFIG", server.kubeconfig("admin"))
            .env("KUBELET", &programs.kubelet)
            .env("CONTAINERD", &programs.containerd)
            .env("IMAGES", archives.join(" "))
            .env("DNS", dns::SERVICE)
            .stdout(log(&folder, "kubelet")?)
            .stderr(log(&folder, "kubelet")?)
            .spawn()
            .context("starting a kubelet")?;
        Ok(Self { process })
    }

    /// Returns the root folder of the node, whose mounts differ from the machine's.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.process.id()).into()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = end(&mut self.process, Signal::SIGKILL);
    }
}

/// Returns the folder with the definitions of a node's static pods.
#[must_use]
pub fn static_pods(lab: &Lab, node: u8) -> PathBuf {
    folder(lab, node).join("static")
}

/// Returns the folder below `/sys/fs/cgroup` in which each node's kubelet has its cgroups of version 2 (`--cgroup-root`).
#[must_use]
pub fn cgroup_root(lab: &Lab) -> String {
    kubelet_cgroups::node_root(lab.name())
}

/// Returns the folder with all files of a node's kubelet.
pub(super) fn folder(lab: &Lab, node: u8) -> PathBuf {
    lab.folder().join(format!("kubelet-n{node}"))
}
