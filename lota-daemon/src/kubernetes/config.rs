//! `[kubernetes]` of the configuration.

use serde::Deserialize;

/// Kubernetes API server, located by the pod's service account or else by `KUBECONFIG`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesConfig {
    /// Namespace of LOTA: contains its service. A rule with only a `podSelector` selects pods of this namespace.
    pub namespace: String,
    /// Headless service whose endpoints are the nodes of the cluster.
    pub service: String,
    /// Taint that keeps pods off a new node until LOTA serves there. LOTA removes it from its node once it is ready.
    /// Default: no taint is removed.
    pub taint: Option<String>,
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        Self { namespace: "cw-object-storage".into(), service: "lota".into(), taint: None }
    }
}
