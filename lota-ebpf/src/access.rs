//! May this pod talk to LOTA?

use crate::maps::Known;

/// Does `pod` have access, and does it send from the interface that its entry is bound to?
#[inline(always)]
pub(crate) fn allowed(pod: impl Known, ifindex: u32) -> bool {
    pod.access().is_some_and(|access| access.ifindex == ifindex)
}
