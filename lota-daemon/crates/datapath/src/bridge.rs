//! Bridges at whose ports netfilter handles packets (module `br_netfilter`), before LOTA sees them.

use std::{fs, path::Path};

/// Setting for every bridge.
const EVERY: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// Returns whether netfilter handles IPv4 packets at the ports of this bridge. Addresses may then be translated before
/// LOTA sees them, and netfilter needs the translated ones in replies.
pub(super) fn is_filtered(bridge: &str) -> bool {
    let own = Path::new("/sys/class/net").join(bridge).join("bridge/nf_call_iptables");
    is_set(Path::new(EVERY)) || is_set(&own)
}

fn is_set(setting: &Path) -> bool {
    fs::read_to_string(setting).is_ok_and(|value| value.trim() != "0")
}
