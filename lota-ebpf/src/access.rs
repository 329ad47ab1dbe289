//! Access control for pods.

use lota_common::Settings;

use crate::maps::AddressMaps;

/// Returns whether `pod` has access from this interface: by its own entry, else by the rule with the longest matching
/// prefix, else by default.
#[inline(always)]
pub(crate) fn allowed(settings: &Settings, pod: impl AddressMaps, ifindex: u32) -> bool {
    match pod.access() {
        Some(access) => access.admits(ifindex),
        None => allowed_by_rule(settings, pod, ifindex),
    }
}

/// Like [`allowed`], for an address without an entry of its own.
#[inline(always)]
pub(crate) fn allowed_by_rule(settings: &Settings, pod: impl AddressMaps, ifindex: u32) -> bool {
    match pod.rule() {
        Some(access) => access.admits(ifindex),
        None => settings.default_allow == 1,
    }
}

/// Like [`allowed`], at a port of the bridge that access is bound to.
#[inline(always)]
pub(crate) fn allowed_at_port(settings: &Settings, pod: impl AddressMaps, port: u32) -> bool {
    match pod.access() {
        Some(access) => access.allow == 1 && !access.is_behind_another_port(port),
        None => allowed_by_rule(settings, pod, port),
    }
}
