//! What no single value can be wrong about, and which values are out of bounds.

use std::net::IpAddr;

use lota_common::MAX_ZONE;

use super::{Config, Protocol, Style};
use crate::access::{Subject, rules::Rule};

impl Config {
    /// Is it sound as a whole? If not, the key, and what is wrong.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.gateway.protocol == Protocol::S3 && !self.gateway.direct_allow.is_empty() {
            return Err(
                "gateway.direct_allow: only a gateway with `protocol = \"lota\"` has direct paths".into()
            );
        }
        if self.backend.as_ref().is_some_and(|backend| backend.endpoints.is_empty()) {
            return Err("backend.endpoints: name at least one, or leave [backend] out".into());
        }
        // They stand in headers, between semicolons.
        let sound = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';');
        let peers = self.peers.iter().flat_map(|peers| &peers.nodes).map(|peer| &peer.name);
        for name in peers.chain([&self.node.name]) {
            if name.is_empty() || !sound(name) {
                return Err(format!("node.name: `{name}` must be visible ASCII characters, without `;`"));
            }
        }
        for (key, text) in [("node.zone", &self.node.zone), ("node.region", &self.node.region)] {
            if !sound(text) {
                return Err(format!("{key}: `{text}` must be visible ASCII characters, without `;`"));
            }
        }
        let backend = self.backend.as_ref().map(|backend| ("backend.region", &backend.region));
        let resign = self.gateway.resign.as_ref().map(|resign| ("gateway.resign.region", &resign.region));
        for (key, region) in backend.into_iter().chain(resign) {
            if region.is_empty() || !sound(region) {
                return Err(format!("{key}: `{region}` must be visible ASCII characters, without `;`"));
            }
        }
        let is_address =
            self.gateway.endpoint.authority.host().trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        if is_address && self.gateway.resign.as_ref().is_some_and(|resign| resign.style == Style::VirtualHost)
        {
            return Err("gateway.resign.style: \"virtual-host\" needs a gateway.endpoint with a name".into());
        }
        let head = self.limits.head.0;
        if !(1 << 13..=1 << 20).contains(&head) {
            return Err(format!("limits.head: {head} bytes; must be 8KiB at least and 1MiB at most"));
        }
        for (key, limit) in [
            ("connections", self.limits.connections),
            ("connections_per_pod", self.limits.connections_per_pod),
            ("fills", self.limits.fills),
        ] {
            if limit == 0 {
                return Err(format!("limits.{key}: must be 1 at least"));
            }
        }
        let (low, high) = (self.cache.low_percent, self.cache.high_percent);
        if !(1 <= low && low <= high && high <= 100) {
            return Err("cache.low_percent: must be 1 at least, and no more than cache.high_percent, which is 100 at most".into());
        }
        for (place, disk) in self.cache.disks.iter().enumerate() {
            if disk.capacity == 0 {
                return Err(format!("cache.capacity: nothing fits into {}", disk.folder.display()));
            }
            if self.cache.disks[..place].iter().any(|before| before.folder == disk.folder) {
                return Err(format!("cache.disks: {} stands there twice", disk.folder.display()));
            }
        }
        if let Some(peers) = &self.peers
            && (!(1..=16).contains(&peers.owners) || peers.hot_requests == 0)
        {
            return Err(
                "peers.owners: must be 1 at least and 16 at most; peers.hot_requests: 1 at least".into()
            );
        }
        if !(1..=64).contains(&self.fill.requests) {
            return Err("fill.requests: must be 1 at least and 64 at most".into());
        }
        if !(1 << 20..=1 << 30).contains(&self.fill.part.0) {
            return Err("fill.part: must be 1MiB at least and 1GiB at most".into());
        }
        if !(1..=86_400).contains(&self.limits.idle_seconds) {
            return Err("limits.idle_seconds: must be 1 at least and 86400 (a day) at most".into());
        }
        if self.limits.body_memory.0 < 16 << 20 {
            return Err("limits.body_memory: must be 16MiB at least".into());
        }
        if self.kubernetes.is_none() {
            if self.access.from.iter().any(Rule::is_about_pods) {
                return Err("access.from: rules about pods need [kubernetes], which tells of them".into());
            }
            if self.peers.as_ref().is_some_and(|peers| peers.nodes.is_empty()) {
                return Err("peers.nodes: name them, or have [kubernetes] tell of them".into());
            }
        }
        let admin = self.admin.listen.ip();
        if !admin.is_loopback() && admin != self.node.address {
            return Err(format!(
                "admin.listen: {admin} is neither loopback nor node.address, so pods could not be kept from it"
            ));
        }
        let pods = self.access.pods.iter().map(|pod| Subject::Address(pod.address));
        let mut subjects: Vec<Subject> =
            pods.chain(self.access.allow.iter().chain(&self.access.deny).copied()).collect();
        subjects.sort_unstable();
        if let Some(twice) = subjects.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("access: {} stands there twice", twice[0]));
        }
        if self.datapath.answer_names && self.endpoint.zone.wire().len() > MAX_ZONE {
            return Err(format!(
                "endpoint.zone: longer than {} characters; set datapath.answer_names to false for it",
                MAX_ZONE - 2
            ));
        }
        if self.peer_port() == self.admin.listen.port() {
            return Err("peers.port and admin.listen: the same port for both".into());
        }
        if let Some(metrics) = self.admin.metrics_listen
            && [self.peer_port(), self.admin.listen.port()].contains(&metrics.port())
        {
            return Err(
                "admin.metrics_listen: pods reach neither the port of admin.listen nor that of peers".into(),
            );
        }
        Ok(())
    }
}
