//! The entry points. Each program has one verdict per packet, counted and turned into an action here.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod access;
#[cfg(target_arch = "bpf")]
mod answer;
#[cfg(target_arch = "bpf")]
mod guard;
#[cfg(target_arch = "bpf")]
mod kernel_bytes;
#[cfg(target_arch = "bpf")]
mod lookup;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod steer;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::{TC_ACT_OK, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, sk_action, xdp_action},
        macros::{classifier, sk_lookup, xdp},
        programs::{SkLookupContext, TcContext, XdpContext},
    };
    use lota_common::Verdict;

    use crate::{
        guard,
        kernel_bytes::{Frame, Skb},
        lookup, maps, steer,
    };

    /// TC ingress on a pod's interface.
    #[classifier]
    pub(crate) fn lota_pod(ctx: TcContext) -> i32 {
        let verdict = steer::verdict(&ctx);
        maps::count(verdict, ctx.len());
        log_refusal(&ctx, verdict);
        match verdict {
            // "Next": other programs on this interface keep seeing what is not ours.
            Verdict::NotOurs => TC_ACT_UNSPEC,
            Verdict::Answered => TC_ACT_REDIRECT,
            Verdict::Revoked | Verdict::Fragment | Verdict::Malformed | Verdict::Protected => TC_ACT_SHOT,
            // Refusals pass too: without an assigned socket the stack itself answers with a reset.
            _ => TC_ACT_OK,
        }
    }

    /// XDP on the uplink.
    #[xdp]
    pub(crate) fn lota_guard(ctx: XdpContext) -> u32 {
        let verdict = guard::verdict(&Frame(&ctx));
        maps::count(verdict, 0);
        if guard::drops(verdict) { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
    }

    /// TC ingress on an uplink that takes no XDP.
    #[classifier]
    pub(crate) fn lota_guard_tc(ctx: TcContext) -> i32 {
        let verdict = guard::verdict(&Skb(&ctx));
        maps::count(verdict, ctx.len());
        if guard::drops(verdict) { TC_ACT_SHOT } else { TC_ACT_UNSPEC }
    }

    /// Socket lookup in the node's network namespace.
    #[sk_lookup]
    pub(crate) fn lota_backstop(ctx: SkLookupContext) -> u32 {
        settle(lookup::backstop(&ctx))
    }

    /// Socket lookup that steers, too.
    #[sk_lookup]
    pub(crate) fn lota_lookup(ctx: SkLookupContext) -> u32 {
        settle(lookup::steer(&ctx))
    }

    #[inline(always)]
    fn settle(verdict: Option<Verdict>) -> u32 {
        if let Some(verdict) = verdict {
            maps::count(verdict, 0);
        }
        if lookup::passes(verdict) { sk_action::SK_PASS } else { sk_action::SK_DROP }
    }

    /// What benchmarks compare with.
    #[classifier]
    pub(crate) fn lota_nothing(_: TcContext) -> i32 {
        TC_ACT_UNSPEC
    }

    #[cfg(feature = "log")]
    fn log_refusal(ctx: &TcContext, verdict: Verdict) {
        if !matches!(
            verdict,
            Verdict::NotOurs
                | Verdict::Steered
                | Verdict::Established
                | Verdict::Passed
                | Verdict::Dns
                | Verdict::Answered
        ) {
            aya_log_ebpf::debug!(ctx, "refused: verdict {}", verdict as u32);
        }
    }

    #[cfg(not(feature = "log"))]
    #[inline(always)]
    fn log_refusal(_: &TcContext, _: Verdict) {}

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    // The kernel only lends bpf_sk_assign and friends to GPL-compatible programs; Apache-2.0 users get the
    // object under either licence.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("lota-programs runs in the kernel: `cargo build` embeds it in the daemon `lota`");
}
