//! The budget of file descriptors: each port gets a share, so that no port can exhaust the others'.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::peer_port::STRANGERS;
use crate::{admin, dns, http::MAX_IDLE, proxy::LimitsConfig};

/// Descriptors that are not connections: listeners, maps, programs, disks, runtimes, the log, clients of the admin
/// socket.
const FIXED: usize = 256;
/// Maximum number of connections from other nodes.
const PEERS: usize = 10_000;
/// Minimum number of connections from pods and from nodes, however few descriptors there are.
const LEAST: usize = 16;

/// Number of connections that each port may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DescriptorBudget {
    /// Maximum number of connections from pods.
    pub(super) pods: usize,
    /// Maximum number of connections from one pod.
    pub(super) of_one_pod: usize,
    /// Maximum number of connections from other nodes.
    pub(super) peers: usize,
}

impl DescriptorBudget {
    /// Raises the limit of open files as far as the system allows, and divides it.
    pub(super) fn claim(limits: &LimitsConfig, turned_away: usize) -> Self {
        let raised = getrlimit(Resource::RLIMIT_NOFILE)
            .and_then(|(_, limit)| setrlimit(Resource::RLIMIT_NOFILE, limit, limit));
        if let Err(error) = raised {
            tracing::warn!(%error, "cannot raise the open file limit");
        }
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let budget = Self::of(usize::try_from(limit).unwrap_or(usize::MAX), limits, turned_away);
        if budget.pods < limits.connections {
            tracing::warn!(
                descriptors = limit,
                connections = budget.pods,
                configured = limits.connections,
                "too few file descriptors for limits.connections; raise the open file limit (LimitNOFILE)"
            );
        }
        budget
    }

    /// Divides `descriptors`. A connection of a pod or peer needs up to three more: a connection to the gateway or
    /// another node, a file, or both ends of a pipe.
    fn of(descriptors: usize, limits: &LimitsConfig, turned_away: usize) -> Self {
        let others =
            FIXED + MAX_IDLE + STRANGERS + 2 * admin::CONNECTIONS + 2 * dns::TCP_CLIENTS + turned_away;
        let connections = descriptors.saturating_sub(others) / 4;
        let pods = limits.connections.min((connections * 3 / 4).max(LEAST));
        let peers = PEERS.min((connections / 4).max(LEAST));
        let of_one_pod = match pods < limits.connections {
            true => (limits.connections_per_pod.saturating_mul(pods) / limits.connections).max(1),
            false => limits.connections_per_pod,
        };
        Self { pods, of_one_pod, peers }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_keep_their_share_of_few_descriptors() {
        let limits = LimitsConfig::default();
        let all = DescriptorBudget { pods: 10_000, of_one_pod: 2_500, peers: 10_000 };
        assert_eq!(DescriptorBudget::of(1 << 20, &limits, 256), all);
        let budget = DescriptorBudget::of(3_000, &limits, 256);
        assert!((200..600).contains(&budget.pods) && budget.of_one_pod <= budget.pods / 4, "{budget:?}");
        let others = FIXED + MAX_IDLE + STRANGERS + 2 * admin::CONNECTIONS + 2 * dns::TCP_CLIENTS + 256;
        assert!(4 * (budget.pods + budget.peers) + others <= 3_000, "{budget:?}");
        assert_eq!(DescriptorBudget::of(64, &limits, 256).pods, LEAST);
        let few = LimitsConfig { connections: 6, connections_per_pod: 3, ..limits };
        let as_configured = DescriptorBudget { pods: 6, of_one_pod: 3, peers: PEERS };
        assert_eq!(
            DescriptorBudget::of(1 << 20, &few, 256),
            as_configured,
            "the configured limit is not exceeded"
        );
    }
}
