//! Networks and cgroups that pods get long after the API server has reported the pods.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Error, Result, ensure};
use lota_common::map;
use lota_tests::{
    lab::{ApiPod, Pod, Reached, VIP, node_address},
    suite::repeat,
    tour::Tour,
};

use super::{cgroup_cluster::*, dump};

/// Attempts of a test: on a busy machine, the daemon and the test themselves may wait for a CPU.
const ATTEMPTS: usize = 3;
/// Maximum time until a pod has access.
const LIMIT: Duration = Duration::from_millis(900);
/// Time for which the daemon looks for a reported pod's interface repeatedly, and a little more.
const SEARCHED: Duration = Duration::from_millis(11_500);
/// Time between two pods. The daemon also looks every two seconds, and thus after the limit for one of them.
const INTERVAL: Duration = Duration::from_secs(3);

/// A pod's address appears long after its interface. One pod gets a route then; the other one is only seen as a neighbour.
pub(crate) fn network(tour: &mut Tour) -> Result<()> {
    repeat("network", ATTEMPTS, || network_once(tour)).map_err(Error::msg)
}

/// Kubelet makes a pod's cgroup long after the API server has reported the pod.
pub(crate) fn cgroup(tour: &mut Tour) -> Result<()> {
    repeat("cgroup", ATTEMPTS, || cgroup_once(tour)).map_err(Error::msg)
}

fn network_once(tour: &mut Tour) -> Result<()> {
    let cluster = Cluster::start(tour, "identity = \"cgroup+address\"")?;
    let node = cluster.tour.lab.node(3);
    let is_routed = |(pod, _): (Pod, &str)| pod == ONE.0;
    let route = |(pod, _): (Pod, &str)| format!("{}/32 dev {}", pod.address(), pod.interface());
    for pod in [ONE, TWO] {
        node.ip(&format!("route del {}", route(pod)))?;
        cluster.tour.lab.pod(pod.0).ip(&format!("addr del {}/32 dev eth0", pod.0.address()))?;
    }
    let tested = (|| -> Result<()> {
        // Replies find the way without a route in the main table.
        node.ip(&format!("rule add from {VIP} lookup 77"))?;
        node.ip(&format!("route add {} table 77", route(TWO)))?;
        cluster.report("yes", "yes")?;
        sleep(SEARCHED);
        let mut started = Instant::now();
        for pod in [ONE, TWO] {
            let place = cluster.tour.lab.pod(pod.0);
            place.ip(&format!("addr add {}/32 dev eth0", pod.0.address()))?;
            place.ip("route replace 10.77.13.1 dev eth0")?;
            place.ip("route replace default via 10.77.13.1")?;
            if is_routed(pod) {
                node.ip(&format!("route add {}", route(pod)))?;
            }
            let mut reached = Reached::Nothing;
            while reached != Reached::Open && started.elapsed() < LIMIT {
                reached = cluster.knock(pod.1, &place, VIP)?.0;
            }
            let after = started.elapsed();
            ensure!(reached == Reached::Open && after < LIMIT, "{pod:?} got {reached:?} after {after:?}");
            sleep(INTERVAL.saturating_sub(after));
            started = Instant::now();
        }
        Ok(())
    })();
    let _ = node.ip(&format!("rule del from {VIP} lookup 77"));
    let _ = node.ip("route flush table 77");
    for pod in [ONE, TWO] {
        let place = cluster.tour.lab.pod(pod.0);
        place.ip(&format!("addr replace {}/32 dev eth0", pod.0.address()))?;
        place.ip("route replace 10.77.13.1 dev eth0")?;
        place.ip("route replace default via 10.77.13.1")?;
        node.ip(&format!("route replace {}", route(pod)))?;
    }
    tested
}

fn cgroup_once(tour: &mut Tour) -> Result<()> {
    let cluster = Cluster::start(tour, "identity = \"cgroup+address\"")?;
    let is_known = |uid: &str| -> Result<bool> {
        Ok(dump(cluster.node(), map::CGROUPS)?.iter().any(|entry| entry["value"]["uid"] == uid))
    };
    let uids = ["cccc-3", "dddd-4"];
    for uid in uids {
        // On the host network: the interfaces of such pods are not looked for, which would also find the cgroup.
        let pod = ApiPod::new(uid, uid, Some(node_address(3)), "yes");
        cluster.api.apply(&ApiPod { host_network: true, ..pod });
    }
    // Until the daemon has heard of them.
    sleep(Duration::from_secs(1));
    for uid in uids {
        let started = Instant::now();
        cluster.cgroups.make_pod(uid, CLASS)?;
        while !is_known(uid)? && started.elapsed() < LIMIT {}
        let after = started.elapsed();
        ensure!(after < LIMIT, "the cgroup of {uid} is not known after {after:?}");
        sleep(INTERVAL.saturating_sub(after));
    }
    Ok(())
}
