//! What happened between two looks.

use serde_json::{Value, json};

use crate::report::{Report, Sent};

/// What happened in a second, on average.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Requests of pods.
    pub requests: f64,
    /// Those that failed, by LOTA's doing or the gateway's.
    pub failed: f64,
    /// The share of hits among those for objects, if there were any.
    pub hits: Option<f64>,
    /// Bytes that went to pods, by where they came from.
    pub sent: Sent,
    /// Packets of pods that were refused.
    pub refused: f64,
}

impl Rates {
    /// Between two looks at one daemon; `None` if it was not the same.
    #[must_use]
    pub fn between(before: &Report, now: &Report) -> Option<Self> {
        let seconds = now.node.uptime_seconds - before.node.uptime_seconds;
        if now.node.pid != before.node.pid || seconds <= 0.0 {
            return None;
        }
        let grown = |of: &dyn Fn(&Report) -> u64| of(now).saturating_sub(of(before));
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let rate = |of: &dyn Fn(&Report) -> u64| grown(of) as f64 / seconds;
        let (hits, asked) = (
            grown(&|report| report.traffic.count(&["hit"])),
            grown(&|report| report.traffic.count(&["hit", "miss", "fill"])),
        );
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let hits = (asked > 0).then(|| hits as f64 / asked as f64);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "no rate is negative")]
        let bytes = |of: fn(Sent) -> u64| rate(&|report| of(report.traffic.sent)) as u64;
        Some(Self {
            requests: rate(&|report| report.traffic.count(&[])),
            failed: rate(&|report| report.traffic.failed()),
            hits,
            sent: Sent {
                local: bytes(|sent| sent.local),
                remote: bytes(|sent| sent.remote),
                fill: bytes(|sent| sent.fill),
                gateway: bytes(|sent| sent.gateway),
            },
            refused: rate(&refused),
        })
    }

    /// For scripts.
    #[must_use]
    pub fn json(&self, report: &Report) -> Value {
        json!({
            "node": report.node.name,
            "state": report.mark(),
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

/// Packets that were refused, whosever.
fn refused(report: &Report) -> u64 {
    let verdicts = report.datapath.iter().flat_map(|status| &status.verdicts);
    let refused = verdicts.filter(|verdict| ["denied", "revoked"].contains(&verdict.verdict.as_str()));
    refused.map(|verdict| verdict.packets).sum()
}
