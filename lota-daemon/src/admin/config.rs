//! `[admin]` of the configuration.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use serde::Deserialize;

/// Metrics, health and administration.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Listen address of the admin server: a loopback address or the node's address. Pods are denied this port on every
    /// node, so use the same port on all of them.
    pub listen: SocketAddr,
    /// Second listen address that serves only `/metrics`, `/healthz` and `/readyz`. Pods can reach it; use it for a
    /// Prometheus server that runs in a pod.
    pub metrics_listen: Option<SocketAddr>,
    /// Unix socket for `lota access` and `lota datapath status`, accessible to root only. The socket for the handover
    /// to a new daemon is in the same folder.
    pub socket: PathBuf,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7481)),
            metrics_listen: None,
            socket: PathBuf::from("/run/lota/admin.sock"),
        }
    }
}
