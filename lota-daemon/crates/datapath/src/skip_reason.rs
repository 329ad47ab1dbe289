//! Reasons for which the datapath does not redirect connections from an interface.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Reason for which an interface that `datapath.pod_interfaces` matches is not redirected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum SkipReason {
    /// The interface is a port of a bridge. LOTA's program runs on the bridge instead, where it sees the same packets.
    BridgePort {
        /// Name of the bridge.
        bridge: String,
    },
    /// The interface is a port of something else, where an assigned socket is lost.
    OtherPort {
        /// Name of the controller.
        controller: String,
        /// Kind of the controller, as `ip -d link` shows it.
        kind: String,
    },
    /// The interface is the uplink, or a port of it.
    Uplink,
    /// The interface is a VLAN that is matched by a pattern only. On EKS, `vlan*` are the veths of pods, and beside them
    /// are the VLANs that they leave by.
    Vlan,
    /// netkit loses assigned sockets, and `datapath.mode` is `tc` (cilium/cilium#44068).
    Netkit,
    /// The kernel refused the program.
    NotAttached {
        /// The kernel's error.
        error: String,
    },
}

impl SkipReason {
    /// Whether pods behind the interface reach LOTA nevertheless, or no pod is expected there.
    #[must_use]
    pub fn is_expected(&self) -> bool {
        matches!(self, Self::BridgePort { .. } | Self::Uplink)
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BridgePort { bridge } => write!(f, "port of the bridge {bridge}, where LOTA is attached"),
            Self::OtherPort { controller, kind } => {
                write!(f, "port of {controller} ({kind}), which is not a bridge")
            }
            Self::Uplink => f.write_str("uplink of the node: no pods are behind it"),
            Self::Vlan => f.write_str(
                "VLAN of the node: to attach to it, list its full name in datapath.pod_interfaces",
            ),
            Self::Netkit => {
                f.write_str("netkit loses assigned sockets: set datapath.mode to \"auto\" or \"sk_lookup\"")
            }
            Self::NotAttached { error } => f.write_str(error),
        }
    }
}
