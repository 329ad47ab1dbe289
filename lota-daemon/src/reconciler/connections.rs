//! Finds out why pods' connections do not arrive.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use lota_datapath::{
    ConnectionsStatus, HangingPod, NodeProblem, Obstacle, first_rule_obstacle, legacy_obstacle,
    rules::{FlowOrigin, InboundFlow, NodeRules},
    subnet_obstacle,
};
use tokio::{sync::oneshot, time::timeout};

use super::{
    Control,
    hanging::{Arrivals, AttemptWatch, UnansweredAttempts},
};

/// Interval at which the causes are looked for again.
const DIAGNOSE_INTERVAL: Duration = Duration::from_secs(10);
/// Time that the control thread waits for the rules at a time. A node can have many of them.
const RULES_TIMEOUT: Duration = Duration::from_millis(200);
/// Maximum number of pods whose packets are followed through the rules.
const MAX_DIAGNOSED: usize = 8;
/// Fix where no cause was found.
const UNKNOWN: &str = "see docs/troubleshooting.md#connections-hang for how to trace a packet";

/// State of the diagnosis of connections that do not arrive.
#[derive(Debug, Default)]
pub(super) struct Connections {
    pub(super) arrivals: Arc<Arrivals>,
    watch: AttemptWatch,
    status: ConnectionsStatus,
    diagnosed: Option<Instant>,
    /// The causes, once the rules are read.
    diagnosis: Option<oneshot::Receiver<Vec<NodeProblem>>>,
}

impl Connections {
    /// Returns the state, with the pods that hang.
    pub(super) fn status(&self) -> ConnectionsStatus {
        self.status.clone()
    }
}

impl Control {
    /// Returns where the daemon notes accepted connections.
    #[must_use]
    pub fn arrivals(&self) -> Arc<Arrivals> {
        self.connections.arrivals.clone()
    }

    /// Looks for pods whose connections do not arrive, and for the causes.
    pub async fn watch_connections(&mut self) {
        let arrived = self.connections.arrivals.take();
        let Ok(attempts) = self.datapath.attempts() else { return };
        let hanging = self.connections.watch.look(&attempts, &arrived, Instant::now());
        let known = &self.connections.status.hanging;
        let is_changed = !hanging.keys().eq(known.iter().map(|pod| &pod.address));
        let is_due = self.connections.diagnosed.is_none_or(|at| at.elapsed() >= DIAGNOSE_INTERVAL);
        if (is_changed || is_due) && self.connections.diagnosis.is_none() {
            self.connections.diagnosed = Some(Instant::now());
            match self.diagnose(&hanging).await {
                Ok(found) => self.connections.diagnosis = Some(found.begin()),
                Err(error) => tracing::debug!(error = format!("{error:#}"), "cannot read the node's routes"),
            }
        }
        if let Some(diagnosis) = &mut self.connections.diagnosis
            && let Ok(problems) = timeout(RULES_TIMEOUT, diagnosis).await
        {
            self.connections.diagnosis = None;
            self.connections.status.problems = problems.unwrap_or_default();
        }
        let known = &self.connections.status.hanging;
        let pods = hanging.iter().map(|(pod, attempts)| HangingPod {
            address: *pod,
            interface: self.interfaces.name(attempts.ifindex).map(str::to_owned),
            attempts: attempts.count,
            seconds_ago: attempts.age.as_secs_f64(),
        });
        let pods: Vec<HangingPod> = pods.collect();
        for pod in pods.iter().filter(|pod| !known.iter().any(|known| known.address == pod.address)) {
            tracing::warn!(
                pod = %pod.address,
                interface = pod.interface,
                why = self.connections.status.problems.first().map(|problem| &*problem.what),
                "a pod's connections do not arrive; see `lota status`"
            );
        }
        self.connections.status.hanging = pods;
    }

    /// Returns the causes that keep pods' connections from arriving, except rules.
    async fn diagnose(&self, hanging: &BTreeMap<IpAddr, UnansweredAttempts>) -> Result<NodeDiagnosis> {
        let subnets = self.interfaces.named_subnets(&self.netlink.subnets().await?);
        let vips = self.config.endpoint.vips();
        let obstacles = vips.iter().filter_map(|vip| subnet_obstacle(*vip, &subnets)).collect();
        let mut found = NodeDiagnosis { obstacles, flows: Vec::new() };
        for (pod, attempts) in hanging.iter().take(MAX_DIAGNOSED) {
            let index = attempts.ifindex;
            let Some(vip) = vips.iter().find(|vip| vip.is_ipv4() == pod.is_ipv4()) else { continue };
            if let Some(route) = self.netlink.route_obstacle(*pod, index, *vip, &self.interfaces).await? {
                found.obstacles.push(route);
                continue;
            }
            let interface = self.interfaces.named(index);
            let flow = |port| InboundFlow {
                origin: FlowOrigin::Pods,
                client: Some(*pod),
                interface: interface.clone(),
                others: Vec::new(),
                address: *vip,
                port,
                is_symmetric: false,
            };
            let ports = self.config.ports.raw().into_iter().filter(|port| *port != 0);
            let targets = self.datapath.targets().iter().filter(|_| vip.is_ipv4());
            found.flows.push(ports.chain(targets.map(|target| target.port)).map(flow).collect());
        }
        Ok(found)
    }
}

/// Facts about the node that can explain why connections do not arrive.
struct NodeDiagnosis {
    /// Obstacles that were found without the rules.
    obstacles: Vec<Obstacle>,
    /// The connections of each pod that nothing of this explains.
    flows: Vec<Vec<InboundFlow>>,
}

impl NodeDiagnosis {
    /// Returns the causes later. Rules are read only if connections do not arrive, on a thread that ends afterwards: it
    /// has the capabilities of the control thread.
    fn begin(self) -> oneshot::Receiver<Vec<NodeProblem>> {
        let (found, diagnosis) = oneshot::channel();
        let needs_rules = !self.flows.is_empty();
        let find = move || drop(found.send(self.problems()));
        if needs_rules {
            // Without a thread, there is no diagnosis.
            drop(thread::Builder::new().name("rules".to_owned()).spawn(find));
        } else {
            find();
        }
        diagnosis
    }

    /// Returns the causes.
    fn problems(mut self) -> Vec<NodeProblem> {
        let unexplained =
            self.add_rules().unwrap_or_else(|error| vec![format!("cannot read the node's rules: {error}")]);
        let explained =
            self.obstacles.iter().map(|found| NodeProblem { what: found.to_string(), fix: found.fix() });
        let unexplained = unexplained.into_iter().map(|what| NodeProblem { what, fix: UNKNOWN.to_owned() });
        let mut all: Vec<NodeProblem> = Vec::new();
        for problem in explained.chain(unexplained) {
            if !all.contains(&problem) {
                all.push(problem);
            }
        }
        all
    }

    /// Looks for the rules that drop the packets of pods. Returns further findings.
    fn add_rules(&mut self) -> io::Result<Vec<String>> {
        if self.flows.is_empty() {
            return Ok(Vec::new());
        }
        let rules = NodeRules::open()?;
        let mut unexplained = Vec::new();
        for ports in &self.flows {
            let found = first_rule_obstacle(&rules, ports.iter().cloned())?;
            let is_certain = matches!(&found, Some(Obstacle::Rule(rule)) if rule.is_certain());
            let legacy = legacy_obstacle(&rules).filter(|_| !is_certain);
            if found.is_none() && legacy.is_none() {
                unexplained.push("no rule or route that LOTA can read explains it".to_owned());
            }
            self.obstacles.extend(found.into_iter().chain(legacy));
        }
        Ok(unexplained)
    }
}
