//! What runs pods: controllers and a scheduler beside the API server, containerd and a kubelet at each node.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{ApiServer, end, log};
use crate::lab::{GATEWAY, Lab, node_address, run};

/// Where pods find the API server; the cluster has no other services that need an address.
pub(super) const SERVICE: &str = "10.96.0.1";
/// The controllers that anything here needs.
const CONTROLLERS: &str = "daemonset,endpoint,endpointslice,garbagecollector,namespace,nodelifecycle,\
                           root-ca-cert-publisher,serviceaccount,serviceaccount-token";
/// What process 1 of a node does.
const SCRIPT: &str = include_str!("kubelet.sh");

/// The programs.
#[derive(Clone, Debug)]
pub struct NodePrograms {
    /// `kubelet`.
    pub kubelet: PathBuf,
    /// `kube-controller-manager`.
    pub controller_manager: PathBuf,
    /// `kube-scheduler`.
    pub scheduler: PathBuf,
    /// Debian's containerd and runc, unpacked.
    pub containerd: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
}

/// Controllers and a scheduler.
#[derive(Debug)]
pub struct Controllers(Vec<Child>);

impl Controllers {
    /// Starts them at the lab's switch; the API server must know [accounts](ApiServer::start_with_accounts).
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

/// A node's kubelet, and all that it runs.
#[derive(Debug)]
pub struct Kubelet {
    process: Child,
    cgroup: String,
}

impl Kubelet {
    /// Starts it at a node of the lab, which has these images, as archives.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(
        lab: &Lab,
        node: u8,
        server: &ApiServer,
        programs: &NodePrograms,
        images: &[PathBuf],
    ) -> Result<Self> {
        let name = format!("n{node}");
        let cgroup = format!("{}-{name}", lab.name());
        let folder = lab.folder().join(format!("kubelet-{name}"));
        fs::create_dir_all(&folder)?;
        // Of a run that was killed.
        remove_cgroups(&cgroup);
        lab.node(node).ip(&format!("route replace {SERVICE}/32 via {GATEWAY}"))?;
        let mut archives = vec![pause(&folder, &programs.busybox)?];
        archives.extend_from_slice(images);
        let archives: Vec<String> = archives.iter().map(|path| path.display().to_string()).collect();
        let script = folder.join("kubelet.sh");
        fs::write(&script, SCRIPT)?;
        let process = lab
            .node(node)
            .command("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh"])
            .arg(&script)
            .env("NAME", &name)
            .env("ADDRESS", node_address(node).to_string())
            .env("FOLDER", &folder)
            .env("CGROUP", &cgroup)
            .env("KUBECONFIG", server.kubeconfig("admin"))
            .env("KUBELET", &programs.kubelet)
            .env("CONTAINERD", &programs.containerd)
            .env("IMAGES", archives.join(" "))
            .stdout(log(&folder, "kubelet")?)
            .stderr(log(&folder, "kubelet")?)
            .spawn()
            .context("starting a kubelet")?;
        Ok(Self { process, cgroup })
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = end(&mut self.process, Signal::SIGKILL);
        // What ends with it has left its cgroups in a moment.
        for _ in 0..50 {
            if remove_cgroups(&self.cgroup) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

/// Removes the cgroups of a node that is gone; are they?
fn remove_cgroups(name: &str) -> bool {
    fn remove(folder: &Path) {
        for inner in fs::read_dir(folder).into_iter().flatten().flatten() {
            if inner.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&inner.path());
            }
        }
        let _ = fs::remove_dir(folder);
    }
    let roots = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    let folders: Vec<PathBuf> = roots.map(|root| root.path().join(name)).collect();
    for folder in &folders {
        remove(folder);
    }
    folders.iter().all(|folder| !folder.exists())
}

/// An image of what holds a pod's namespaces, and does nothing: an archive as `docker save` makes it.
fn pause(folder: &Path, busybox: &Path) -> Result<PathBuf> {
    let parts = folder.join("pause");
    fs::create_dir_all(&parts)?;
    fs::copy(busybox, parts.join("busybox"))?;
    let tar = |archive: &str, files: &[&str]| {
        run(Command::new("tar").arg("-C").arg(&parts).args(["-cf", archive]).args(files)).map(|_| ())
    };
    let layer = parts.join("layer.tar");
    tar(&layer.display().to_string(), &["busybox"])?;
    let digest = hex::encode(Sha256::digest(fs::read(&layer)?));
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": ["/busybox", "sleep", "1000000"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["lab/pause:1"], "Layers": ["layer.tar"] }]);
    fs::write(parts.join("config.json"), config.to_string())?;
    fs::write(parts.join("manifest.json"), manifest.to_string())?;
    let archive = folder.join("pause.tar");
    tar(&archive.display().to_string(), &["config.json", "layer.tar", "manifest.json"])?;
    Ok(archive)
}
