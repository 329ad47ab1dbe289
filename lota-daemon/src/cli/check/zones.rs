//! Checks that the zones of the nodes are known if every object is to have an owner in each.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kube::Client;
use tokio::time::timeout;

use super::CheckReport;
use crate::{config::Config, kubernetes::listed_nodes};

/// Timeout for the nodes that the API server lists.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of nodes that a finding names.
const MAX_NAMED: usize = 5;

pub(super) async fn check(report: &mut CheckReport<'_>, config: &Config) {
    let Some(peers) = config.peers.as_ref().filter(|_| config.placement.per_zone) else { return };
    let listed = peers.nodes.iter().map(|node| (node.name.clone(), node.zone.clone()));
    let mut zones: BTreeMap<String, String> = listed.collect();
    if zones.is_empty() {
        // An API server that does not answer is reported by its own check; without nodes, no daemon runs yet.
        let Some(found) = of_api_server(config).await.filter(|found| !found.is_empty()) else { return };
        zones = found;
    }
    judge(report, &config.node.name, &config.node.zone, zones);
}

async fn of_api_server(config: &Config) -> Option<BTreeMap<String, String>> {
    let kubernetes = config.kubernetes.as_ref()?;
    let client = Client::try_default().await.ok()?;
    let listed = timeout(LIST_TIMEOUT, listed_nodes(client, kubernetes, config.node.address));
    let members = listed.await.ok()?.ok()?;
    Some(members.into_iter().map(|(name, member)| (name.0, member.zone)).collect())
}

/// Reports what is wrong with the zones of the nodes, as all nodes see them. `own` is that in this node's configuration.
fn judge(report: &mut CheckReport<'_>, me: &str, own: &str, mut zones: BTreeMap<String, String>) {
    let listed = zones.entry(me.to_owned()).or_default();
    if !own.is_empty() && listed.as_str() != own {
        if !listed.is_empty() {
            report.warn(
                "zones",
                format!("node.zone is `{own}`, but the other nodes see this one in zone `{listed}`"),
                "state the same zone everywhere; until then, nodes look for objects where they are not",
            );
        }
        own.clone_into(listed);
    }
    let without: Vec<&str> =
        zones.iter().filter(|(_, zone)| zone.is_empty()).map(|(name, _)| name.as_str()).collect();
    let known: BTreeSet<&str> = zones.values().map(String::as_str).filter(|zone| !zone.is_empty()).collect();
    if known.len() < 2 {
        report.warn(
            "zones",
            format!("placement.per_zone has no effect: {} zone is known", known.len()),
            "state the zone of each node in peers.nodes, or label the Kubernetes nodes; or leave out placement.per_zone",
        );
    } else if without.is_empty() {
        report.ok("zones", format!("every object has an owner in each of {} zones", known.len()));
    }
    if !without.is_empty() {
        let named = without[..without.len().min(MAX_NAMED)].join(", ");
        report.warn(
            "zones",
            format!("{} of {} nodes have no zone, and read from all zones: {named}", without.len(), zones.len()),
            "state their zones in peers.nodes, or label the Kubernetes nodes with topology.kubernetes.io/zone",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::node_status::{Finding, Level};

    fn findings(own: &str, zones: &[(&str, &str)]) -> Vec<(Level, String)> {
        let mut found = Vec::new();
        let mut say = |finding: &Finding| found.push((finding.level, finding.what.clone()));
        let mut report = CheckReport { say: &mut say, failures: 0 };
        let zones = zones.iter().map(|(name, zone)| ((*name).to_owned(), (*zone).to_owned())).collect();
        judge(&mut report, "n1", own, zones);
        found
    }

    #[test]
    fn zones_that_are_missing_or_differ_are_reported() {
        let all = [("n1", "a"), ("n2", "b")];
        let expected = [(Level::Ok, "every object has an owner in each of 2 zones".to_owned())];
        for (own, zones) in [("a", &all[..]), ("", &all), ("a", &all[1..])] {
            assert_eq!(findings(own, zones), expected, "`{own}` {zones:?}");
        }
        let of = |own: &str, zones: &[(&str, &str)], text: &str| {
            let found = findings(own, zones);
            assert!(found.iter().all(|(level, _)| *level == Level::Warn), "{found:?}");
            assert!(found.iter().any(|(_, what)| what.contains(text)), "{text}: {found:?}");
        };
        of("", &[("n1", "a"), ("n2", "a")], "no effect: 1 zone");
        of("a", &[("n2", ""), ("n3", "")], "2 of 3 nodes have no zone, and read from all zones: n2, n3");
        of("", &all[1..], "1 of 2 nodes have no zone, and read from all zones: n1");
        let found = findings("c", &all);
        assert_eq!((found.len(), found[0].0), (2, Level::Warn));
        assert!(found[0].1.contains("node.zone is `c`, but the other nodes see this one in zone `a`"));
    }
}
