//! The interface that a program runs at.

use aya_ebpf::programs::TcContext;

/// `lo`, in every network namespace (`LOOPBACK_IFINDEX`, `include/net/flow.h`).
pub(crate) const LOOPBACK: u32 = 1;

/// Returns the index of the interface that the packet came from.
#[inline(always)]
pub(crate) fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context the kernel called us with.
    unsafe { (*ctx.skb.skb).ifindex }
}
