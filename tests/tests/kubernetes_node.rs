//! The image, installed by the chart, as the DaemonSet's pod on a real kubelet with containerd. Not among the suites
//! that run by default: `cargo xtask test kubernetes-node`.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lota_tests::{
    lab::{
        GATEWAY, GATEWAY_PORT, Pod, Reached, Style, VIP, knock,
        kubernetes::{
            ApiServer, Programs,
            kubelet::{Controllers, Kubelet, NodePrograms},
        },
        run,
    },
    suite::{Suite, lab_with},
    tool,
    tour::Tour,
};
use nix::sys::signal::Signal;

const NAME: &str = "lota-knode";
const HOME: &str = "cw-object-storage";
/// Longest wait for a pod: images are imported, and kubelet looks once a minute.
const PATIENCE: Duration = Duration::from_secs(150);

fn main() -> ExitCode {
    Suite::run(NAME, |suite| {
        let test = |tour: &mut Tour| ready(tour);
        suite.in_lab(
            || lab_with(NAME, "embedded"),
            vec![(
                "the image runs as the DaemonSet's pod, privileged and hardened".to_owned(),
                Box::new(test) as Box<_>,
            )],
        );
    })
}

fn ready(tour: &mut Tour) -> Result<()> {
    let programs = Programs { apiserver: tool("LOTA_APISERVER")?, etcd: tool("LOTA_ETCD")? };
    let node_programs = NodePrograms {
        kubelet: tool("LOTA_KUBELET")?,
        controller_manager: tool("LOTA_CONTROLLER_MANAGER")?,
        scheduler: tool("LOTA_SCHEDULER")?,
        containerd: tool("LOTA_CONTAINERD")?,
        busybox: tool("LOTA_BUSYBOX")?,
    };
    tour.client.create_bucket(&tour.pod(1, 1))?;
    tour.client.put(&tour.pod(1, 1), "key", 1, 1 << 20)?;
    // The pod takes the place of the first node's process, whose programs leave the kernel with it.
    let node = &mut tour.nodes[0];
    node.stop(Signal::SIGTERM)?;
    run(node.command().args(["datapath", "detach", "--config"]).arg(node.config()))?;

    let server = ApiServer::start_with_accounts(&tour.lab, &programs)?;
    let controllers = Controllers::start(&server, &node_programs)?;
    let kubelet = Kubelet::start(&tour.lab, 1, &server, &node_programs, &[tool("LOTA_IMAGE")?])?;
    let cluster = Cluster { tour, server: &server, kubectl: tool("LOTA_KUBECTL")?, helm: tool("LOTA_HELM")? };
    let ran = cluster.run();
    drop((kubelet, controllers));
    drop(server);
    ran
}

struct Cluster<'a> {
    tour: &'a Tour,
    server: &'a ApiServer,
    kubectl: PathBuf,
    helm: PathBuf,
}

impl Cluster<'_> {
    fn run(&self) -> Result<()> {
        self.kubectl(&["create", "namespace", HOME])?;
        let secret = "--from-literal=cluster-secret=the lab's cluster secret, nothing to protect";
        self.kubectl(&["-n", HOME, "create", "secret", "generic", "lota-cluster-key", secret])?;
        for hardened in ["false", "true"] {
            self.install(hardened)?;
            let pod = self.wait_ready()?;
            eprintln!("\n{}", self.kubectl(&["-n", HOME, "get", "pods", "-o", "wide"])?);
            let exec =
                |command: &[&str]| self.kubectl(&[&["-n", HOME, "exec", &pod, "--"], command].concat());
            let status = exec(&["lota", "datapath", "status"])?;
            eprintln!("{status}");
            ensure!(status.contains("veth-p1"), "nothing is steered:\n{status}");
            // A real client, through the datapath that the pod has attached.
            let got = self.tour.client.get(&self.tour.pod(1, 1), "key", Style::Path)?;
            ensure!(
                got.status == 200 && got.node() == "n1",
                "{} {} by `{}`",
                got.status,
                got.code,
                got.node()
            );
            let (refused, _) = knock(&self.tour.lab.pod(Pod(1, 2)), VIP, 80)?;
            ensure!(refused == Reached::Refused, "a pod that no rule names got {refused:?}");
            eprintln!("{}", exec(&["lota", "status"]).unwrap_or_else(|error| format!("{error:#}")));
        }
        self.kubectl(&["-n", HOME, "delete", "daemonset", "lota", "--timeout=90s"])?;
        Ok(())
    }

    fn install(&self, hardened: &str) -> Result<()> {
        let pod = Pod(1, 1);
        let values = [
            "image={\"repository\":\"localhost/lota\",\"pullPolicy\":\"Never\"}".to_owned(),
            // A server of 1.20 knows no surge.
            "updateStrategy.rollingUpdate={\"maxUnavailable\":1,\"maxSurge\":null}".to_owned(),
            "clusterKey.existingSecret=\"lota-cluster-key\"".to_owned(),
            format!("hardened={hardened}"),
            format!("config.gateway.endpoint=\"http://{GATEWAY}:{GATEWAY_PORT}\""),
            "config.datapath={\"pod_interfaces\":[\"veth-*\"],\"uplink\":\"uplink\"}".to_owned(),
            "config.cache={\"disks\":[{\"folder\":\"/var/cache/lota\",\"capacity\":\"1GiB\"}],\"min_free\":\"64MiB\"}".to_owned(),
            format!("config.access.allow=[\"{}\"]", pod.address()),
            "resources={\"requests\":{\"cpu\":\"10m\"}}".to_owned(),
        ];
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/chart");
        let mut helm = std::process::Command::new(&self.helm);
        helm.args(["template", "lota", chart, "--namespace", HOME]);
        let manifest = run(helm.args(values.iter().flat_map(|value| ["--set-json", value])))?;
        let file = self.tour.lab.folder().join("manifest.yaml");
        std::fs::write(&file, manifest)?;
        self.kubectl(&["apply", "--validate=false", "-f", &file.display().to_string()]).map(|_| ())
    }

    /// Waits until the DaemonSet's newest pod is ready; its name.
    fn wait_ready(&self) -> Result<String> {
        let begun = Instant::now();
        loop {
            let set = self.kubectl(&["-n", HOME, "get", "daemonset", "lota", "-o", "json"])?;
            let set: serde_json::Value = serde_json::from_str(&set)?;
            let number = |field: &str| set["status"][field].as_u64().unwrap_or_default();
            let seen = set["status"]["observedGeneration"] == set["metadata"]["generation"];
            if seen && number("updatedNumberScheduled") == 1 && number("numberReady") == 1 {
                eprintln!("ready after {:.1} s", begun.elapsed().as_secs_f64());
                let name = ["-n", HOME, "get", "pods", "-o", "jsonpath={.items[0].metadata.name}"];
                return self.kubectl(&name);
            }
            if begun.elapsed() > PATIENCE {
                let pods = self.kubectl(&["-n", HOME, "describe", "pods"]).unwrap_or_default();
                let log = self.kubectl(&["-n", HOME, "logs", "daemonset/lota", "--tail=20"]);
                bail!(
                    "not ready after {PATIENCE:?}:\n{pods}\n{}",
                    log.unwrap_or_else(|error| error.to_string())
                );
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut kubectl = self.tour.lab.switch().command(&self.kubectl);
        run(kubectl.arg("--kubeconfig").arg(self.server.kubeconfig("admin")).args(arguments))
            .with_context(|| format!("kubectl {}", arguments.join(" ")))
    }
}
