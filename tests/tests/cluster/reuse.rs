//! An address that another pod gets at once.

use std::{fs, thread};

use anyhow::{Context as _, Result, anyhow, ensure};
use lota_tests::lab::{
    NODES,
    kubernetes::network::{POD_ADDRESSES, PodNetwork},
};
use serde_json::json;

use crate::{
    install::Install,
    kubectl::{Kubectl, PodInfo, wait},
    reads::{Kind, ReadLog},
    setup::Cluster,
    watch::AddressWatch,
    workload::{self, ADDRESSES_PER_NODE, SELECTED, TRAIN, TRAINING, pod_spec, reader},
};

/// Keeps a deleted pod, with what was reported of it, in the API server.
const FINALIZER: &str = "lota.dev/lab";
const _: () = assert!(ADDRESSES_PER_NODE + 1 == POD_ADDRESSES);
/// Longest time until a pod has access, in seconds since it runs and the API server has reported its address.
const ACCESS_TIMEOUT: f64 = 1.0;
/// Rounds of refusals of a pod that count as permanent.
const REFUSALS: usize = 20;

/// Verifies that a pod does not get the access of its address' former pod, and gets its own.
pub(crate) fn at_once(cluster: &mut Cluster) -> Result<()> {
    cluster.install(Install::Any)?;
    workload::apply(cluster)?;
    thread::scope(|scope| {
        let cluster = &*cluster;
        let nodes: Vec<_> = (1..=NODES)
            .map(|node| {
                let place = Place {
                    kubectl: cluster.kubectl.clone(),
                    digest: cluster.digest.clone(),
                    used: PodNetwork::of(node).used_addresses(&cluster.lab),
                    kinds: cluster.kinds(&TRAIN, node),
                    node,
                };
                scope.spawn(move || {
                    let done = place.on_node();
                    place.remove_pods()?;
                    done.with_context(|| format!("on n{node}"))
                })
            })
            .collect();
        let results = nodes.into_iter().map(|node| node.join().map_err(|_| anyhow!("a thread panicked"))?);
        results.collect::<Vec<Result<()>>>().into_iter().collect()
    })
}

struct Place {
    kubectl: Kubectl,
    digest: String,
    /// Has a file for each used address.
    used: std::path::PathBuf,
    /// Kinds of reads that LOTA answers for selected pods.
    kinds: &'static [Kind],
    node: u8,
}

impl Place {
    fn on_node(&self) -> Result<()> {
        wait("all addresses but one to be used", || Ok(self.used()?.len() == ADDRESSES_PER_NODE))?;
        let (first, reported) = self.create("first", SELECTED)?;
        self.wait_reached(&first, reported)?;
        self.end(&first)?;

        let (second, _) = self.create("second", "other")?;
        ensure!(second.address == first.address, "{first:?} {second:?}");
        let former = PodInfo::of(&self.kubectl.json(&["-n", TRAINING, "get", "pod", &first.name])?);
        ensure!(former.address == first.address, "the former pod is not reported any more: {former:?}");
        self.wait_refused(&second)?;
        self.end(&second)?;

        let (third, reported) = self.create("third", SELECTED)?;
        ensure!(third.address == first.address, "{first:?} {third:?}");
        self.wait_reached(&third, reported)
    }

    /// Creates a pod, and waits until it runs. Also returns when the API server reported its address, in seconds since the
    /// machine started.
    fn create(&self, name: &str, app: &str) -> Result<(PodInfo, f64)> {
        let name = format!("{name}-n{}", self.node);
        let watch = AddressWatch::start(&self.kubectl, TRAINING, &name)?;
        let mut spec = pod_spec(reader("0.05"));
        spec["nodeName"] = format!("n{}", self.node).into();
        let metadata = json!({
            "namespace": TRAINING, "name": name, "finalizers": [FINALIZER], "labels": { "app": app, "reuse": "true" },
        });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec });
        self.kubectl.apply(&pod.to_string())?;
        let mut shown = None;
        wait(&format!("{name} to run"), || {
            let pod = PodInfo::of(&self.kubectl.json(&["-n", TRAINING, "get", "pod", &name])?);
            let is_ready = pod.is_ready;
            shown = Some(pod);
            Ok(is_ready)
        })?;
        Ok((shown.context("no pod")?, watch.end()?))
    }

    /// Deletes a pod, and waits until its address is free. The API server still has the pod.
    fn end(&self, pod: &PodInfo) -> Result<()> {
        self.kubectl.run(&["-n", TRAINING, "delete", "pod", &pod.name, "--wait=false"])?;
        wait(&format!("the address of {} to be free", pod.name), || Ok(!self.used()?.contains(&pod.address)))
    }

    fn wait_reached(&self, pod: &PodInfo, reported: f64) -> Result<()> {
        let log = ReadLog::wait_hits(&self.kubectl, (TRAINING, &pod.name), self.kinds)?;
        let (reached, started) = (log.verify_selected(&self.digest, self.kinds)?, log.started());
        // A read takes a while on a busy machine, so its end says less about the time at which the pod had access.
        let delay = log.last_unanswered(self.kinds, &self.digest) - reported.max(started);
        eprintln!(
            "  n{}: {} reads {:.2} s after its start; the last refused read began {delay:.2} s after its address was reported",
            pod.node,
            pod.name,
            reached - started
        );
        ensure!(
            delay < ACCESS_TIMEOUT,
            "{} was refused {delay:.2} s after its address was reported",
            pod.name
        );
        Ok(())
    }

    fn wait_refused(&self, pod: &PodInfo) -> Result<()> {
        let rounds = |log: &ReadLog| log.rounds(&[Kind::Address]);
        // From now on, its address is reported.
        let before = ReadLog::of(&self.kubectl, TRAINING, &pod.name)?.as_ref().map_or(0, rounds);
        let log = ReadLog::wait(&self.kubectl, (TRAINING, &pod.name), "refusals", |log| {
            rounds(log) >= before + REFUSALS
        })?;
        log.verify_others(&self.digest).with_context(|| pod.name.clone())
    }

    /// Returns the used addresses.
    fn used(&self) -> Result<Vec<String>> {
        let files = fs::read_dir(&self.used).with_context(|| self.used.display().to_string())?;
        let names = files.flatten().map(|file| file.file_name().to_string_lossy().into_owned());
        Ok(names.filter(|name| name.starts_with("10.")).collect())
    }

    /// Removes what is left of the pods, which kubelet would do within a minute.
    fn remove_pods(&self) -> Result<()> {
        let at_once = ["--grace-period=0", "--force", "--wait=false", "--ignore-not-found"];
        for name in ["first", "second", "third"] {
            let name = format!("{name}-n{}", self.node);
            let without = "{\"metadata\":{\"finalizers\":null}}";
            // It may not have been created.
            let _ = self.kubectl.run(&["-n", TRAINING, "patch", "pod", &name, "-p", without]);
            self.kubectl.run(&[&["-n", TRAINING, "delete", "pod", &name], &at_once[..]].concat())?;
        }
        Ok(())
    }
}
