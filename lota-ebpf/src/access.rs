//! May this pod talk to LOTA?

use lota_common::Settings;

use crate::maps::Known;

/// Does `pod` have access, sending from this interface? An entry of its own decides, else the rule for the
/// longest prefix that it is in, else the default.
#[inline(always)]
pub(crate) fn allowed(settings: &Settings, pod: impl Known, ifindex: u32) -> bool {
    match pod.access().or_else(|| pod.rule()) {
        Some(access) => access.admits(ifindex),
        None => settings.default_allow == 1,
    }
}
