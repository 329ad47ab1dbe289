//! Validates ranges of values, and combinations of keys.

use lota_cache::AfterWrite;
use lota_datapath::Subject;

use super::Config;
use crate::access::{IdentityConfig, rules::Rule};

impl Config {
    /// Validates the configuration as a whole.
    ///
    /// # Errors
    /// The key, the reason, and what to do.
    pub(super) fn check(&self) -> Result<(), String> {
        self.check_gateways()?;
        // Headers carry these values, separated by semicolons.
        let peers = self.peers.iter().flat_map(|peers| &peers.nodes);
        let peers = peers.map(|peer| ("peers.nodes.name", &peer.name));
        for (key, name) in peers.chain([("node.name", &self.node.name)]) {
            if name.is_empty() || !is_header_value(name) {
                return Err(format!(
                    "{key}: `{name}` is not a valid name; use one or more visible ASCII characters, without `;`"
                ));
            }
        }
        let peers = self.peers.iter().flat_map(|peers| &peers.nodes);
        let peers = peers.map(|peer| ("peers.nodes.zone", &peer.zone));
        for (key, text) in peers.chain([("node.zone", &self.node.zone), ("node.region", &self.node.region)]) {
            if !is_header_value(text) {
                return Err(format!(
                    "{key}: `{text}` is not valid; use visible ASCII characters, without `;`"
                ));
            }
        }
        let head = self.limits.header_size.0;
        if !(1 << 13..=1 << 20).contains(&head) {
            return Err(format!("limits.header_size: {head} bytes is out of range; must be 8KiB to 1MiB"));
        }
        for (key, limit) in [
            ("connections", self.limits.connections),
            ("connections_per_pod", self.limits.connections_per_pod),
            ("fills", self.limits.fills),
        ] {
            if limit == 0 {
                return Err(format!("limits.{key}: must be at least 1"));
            }
        }
        if self.cache.max_objects == Some(0) {
            return Err("cache.max_objects: must be at least 1".into());
        }
        if self.cache.after_write != AfterWrite::Off && self.all_gateways().all(|it| it.backend.is_none()) {
            return Err(
                "cache.after_write: \"fetch\" and \"keep\" need [backend], with whose credential LOTA reads what clients write; add that section, or use \"off\""
                    .into(),
            );
        }
        let (low, high) = (self.cache.low_percent, self.cache.high_percent);
        if !(1 <= low && low <= high && high <= 100) {
            return Err(
                "cache.low_percent: must be at least 1 and at most cache.high_percent, which must be at most 100".into(),
            );
        }
        for (place, disk) in self.cache.disks.iter().enumerate() {
            if disk.capacity == 0 {
                return Err(format!(
                    "cache.capacity: 0 bytes for {}; set a larger size",
                    disk.folder.display()
                ));
            }
            if self.cache.disks[..place].iter().any(|before| before.folder == disk.folder) {
                return Err(format!("cache.disks: duplicate folder {}; remove one", disk.folder.display()));
            }
        }
        if let Some(peers) = &self.peers
            && (!(1..=16).contains(&peers.max_owners) || peers.hot_request_rate == 0)
        {
            return Err(
                "peers.max_owners: must be 1 to 16; peers.hot_request_rate: must be at least 1".into()
            );
        }
        if !(1..=64).contains(&self.fill.concurrency) {
            return Err("fill.concurrency: must be 1 to 64".into());
        }
        if !(1 << 20..=1 << 30).contains(&self.fill.part_size.0) {
            return Err("fill.part_size: must be 1MiB to 1GiB".into());
        }
        if !(1..=86_400).contains(&self.limits.idle_timeout_seconds) {
            return Err("limits.idle_timeout_seconds: must be 1 to 86400 (one day)".into());
        }
        if self.limits.pod_bandwidth.is_some_and(|limit| limit.0 < 1 << 20) {
            return Err("limits.pod_bandwidth: must be at least 1MiB per second".into());
        }
        if self.limits.body_memory.0 < 16 << 20 {
            return Err("limits.body_memory: must be at least 16MiB".into());
        }
        if !self.access.forwarders.iter().all(Rule::is_about_pods) {
            return Err("access.forwarders: `ipBlock` is not supported; use selectors of pods".into());
        }
        if let Some(peers) = &self.peers
            && peers.nodes.is_empty()
            && self.kubernetes.is_some()
            && peers.keys.authentication().has_node_keys()
        {
            return Err(format!(
                "peers.authentication: \"{}\" needs the public keys of all nodes, which the API server does not list; list the nodes in peers.nodes, or use \"shared\"",
                peers.keys.authentication().name()
            ));
        }
        if self.kubernetes.is_none() {
            if self.access.identity == IdentityConfig::CgroupAndAddress {
                return Err(
                    "access.identity: \"cgroup+address\" needs [kubernetes], which names the pods; add that section, or use \"auto\""
                        .into(),
                );
            }
            if !self.access.forwarders.is_empty() {
                return Err("access.forwarders: needs [kubernetes]; add that section".into());
            }
            if self.access.from.iter().any(Rule::is_about_pods) {
                return Err("access.from: rules with selectors need [kubernetes]; add that section".into());
            }
            if self.peers.as_ref().is_some_and(|peers| peers.nodes.is_empty()) {
                return Err("peers.nodes: empty; list the nodes, or add [kubernetes]".into());
            }
        }
        let admin = self.admin.listen.ip();
        if !admin.is_loopback() && admin != self.node.address {
            return Err(format!(
                "admin.listen: {admin} cannot be protected from pods; use a loopback address or node.address"
            ));
        }
        let pods = self.access.pods.iter().map(|pod| Subject::Address(pod.address));
        let mut subjects: Vec<Subject> =
            pods.chain(self.access.allow.iter().chain(&self.access.deny).copied()).collect();
        subjects.sort_unstable();
        if let Some(twice) = subjects.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("access: duplicate entry {}; remove one", twice[0]));
        }
        if self.peer_port() == self.admin.listen.port() {
            return Err("peers.port: the same port as admin.listen; change one".into());
        }
        if let Some(metrics) = self.admin.metrics_listen
            && [self.peer_port(), self.admin.listen.port()].contains(&metrics.port())
        {
            return Err(
                "admin.metrics_listen: pods are denied the ports of admin.listen and peers; use another port"
                    .into(),
            );
        }
        Ok(())
    }
}

/// Returns whether a text can be a part of a header's value, where parts are separated by semicolons.
pub(super) fn is_header_value(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';')
}
