//! Rates between two reports.

use serde_json::{Value, json};

use crate::admin::node_status::{NodeReport, SentBytesCount};

/// Average rates per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Requests from pods.
    pub requests: f64,
    /// Requests that failed because of LOTA or the gateway.
    pub failed: f64,
    /// Ratio of hits among requests for objects, if there were any.
    pub hits: Option<f64>,
    /// Bytes sent to pods, by source.
    pub sent: SentBytesCount,
    /// Packets from pods that were refused.
    pub refused: f64,
}

impl Rates {
    /// Returns the rates between two reports, or `None` if the daemon was replaced.
    #[must_use]
    pub fn between(before: &NodeReport, now: &NodeReport) -> Option<Self> {
        let seconds = now.node.uptime_seconds - before.node.uptime_seconds;
        if now.node.pid != before.node.pid || seconds <= 0.0 {
            return None;
        }
        let grown = |of: &dyn Fn(&NodeReport) -> u64| of(now).saturating_sub(of(before));
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let rate = |of: &dyn Fn(&NodeReport) -> u64| grown(of) as f64 / seconds;
        let (hits, reads) = (
            grown(&|report| report.traffic.count(&["hit"])),
            grown(&|report| report.traffic.count(&["hit", "miss", "fill"])),
        );
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let hits = (reads > 0).then(|| hits as f64 / reads as f64);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "no rate is negative")]
        let bytes = |of: fn(SentBytesCount) -> u64| rate(&|report| of(report.traffic.sent)) as u64;
        Some(Self {
            requests: rate(&|report| report.traffic.count(&[])),
            failed: rate(&|report| report.traffic.failed()),
            hits,
            sent: SentBytesCount {
                local: bytes(|sent| sent.local),
                remote: bytes(|sent| sent.remote),
                fill: bytes(|sent| sent.fill),
                gateway: bytes(|sent| sent.gateway),
            },
            refused: rate(&refused),
        })
    }

    /// Returns the rates and the state of the node as JSON.
    #[must_use]
    pub fn json(&self, report: &NodeReport) -> Value {
        json!({
            "node": report.node.name,
            "level": report.level(),
            "requests_per_second": self.requests,
            "failed_per_second": self.failed,
            "hit_ratio": self.hits,
            "sent_bytes_per_second": self.sent,
            "refused_packets_per_second": self.refused,
            "cache_bytes": report.cache.bytes,
            "fills": report.cache.fills,
            "objects": report.top.objects,
            "pods": report.top.pods,
            "denied": report.access.as_ref().map(|access| &access.denied),
            "peers": report.peers,
        })
    }
}

/// Returns the number of packets refused from all addresses.
fn refused(report: &NodeReport) -> u64 {
    let verdicts = report.datapath.iter().flat_map(|status| &status.verdicts);
    let refused = verdicts.filter(|verdict| ["denied", "revoked"].contains(&verdict.verdict.as_str()));
    refused.map(|verdict| verdict.packets).sum()
}
