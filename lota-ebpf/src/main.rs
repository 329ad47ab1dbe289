//! Entry points. Each program computes one verdict per packet, which is counted and mapped to an action here.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod access;
#[cfg(target_arch = "bpf")]
mod admission;
#[cfg(target_arch = "bpf")]
mod answer;
#[cfg(target_arch = "bpf")]
mod guard;
#[cfg(target_arch = "bpf")]
mod identity;
#[cfg(target_arch = "bpf")]
mod identity_maps;
#[cfg(target_arch = "bpf")]
mod interface;
#[cfg(target_arch = "bpf")]
mod kernel_bytes;
#[cfg(target_arch = "bpf")]
mod local;
#[cfg(target_arch = "bpf")]
mod lookup;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod message;
#[cfg(target_arch = "bpf")]
mod pod;
#[cfg(target_arch = "bpf")]
mod port;
#[cfg(target_arch = "bpf")]
mod query_packet;
#[cfg(target_arch = "bpf")]
mod redirect;
#[cfg(target_arch = "bpf")]
mod sockets;
#[cfg(target_arch = "bpf")]
mod target;

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
        local,
        lookup::{self, LookupOutcome},
        maps, pod, port, target,
    };

    /// TC ingress on a pod's interface.
    #[classifier]
    #[inline(always)]
    pub(crate) fn lota_pod(ctx: TcContext) -> i32 {
        let verdict = pod::verdict(&ctx);
        maps::count(verdict, ctx.len());
        log_refusal(&ctx, verdict);
        match verdict {
            // Continue with the next program on this interface.
            Verdict::NotOurs | Verdict::Bypassed => TC_ACT_UNSPEC,
            Verdict::Answered => TC_ACT_REDIRECT,
            Verdict::Revoked
            | Verdict::Fragment
            | Verdict::Malformed
            | Verdict::Protected
            | Verdict::Spoofed => TC_ACT_SHOT,
            // Refused packets pass, too: without an assigned socket, the stack answers with a reset.
            _ => TC_ACT_OK,
        }
    }

    /// TC egress on a pod's interface.
    #[classifier]
    pub(crate) fn lota_restore(ctx: TcContext) -> i32 {
        // At ingress, too, no further program sees packets of LOTA's connections.
        if target::restore(&ctx) { TC_ACT_OK } else { TC_ACT_UNSPEC }
    }

    /// TC ingress on a port of a bridge.
    #[classifier]
    #[inline(always)]
    pub(crate) fn lota_port(ctx: TcContext) -> i32 {
        let verdict = port::verdict(&ctx);
        match verdict {
            // The program at the bridge counts these.
            Verdict::NotOurs | Verdict::Bypassed => return TC_ACT_UNSPEC,
            _ => maps::count(verdict, ctx.len()),
        }
        if verdict == Verdict::Answered { TC_ACT_REDIRECT } else { TC_ACT_SHOT }
    }

    /// TC egress on `lo`.
    #[classifier]
    pub(crate) fn lota_local(ctx: TcContext) -> i32 {
        dropped(&ctx, local::drops(&ctx).then_some(Verdict::Revoked))
    }

    #[inline(always)]
    fn dropped(ctx: &TcContext, verdict: Option<Verdict>) -> i32 {
        let Some(verdict) = verdict else { return TC_ACT_UNSPEC };
        maps::count(verdict, ctx.len());
        TC_ACT_SHOT
    }

    /// XDP on the uplink.
    #[xdp]
    pub(crate) fn lota_guard(ctx: XdpContext) -> u32 {
        let verdict = guard::verdict(&Frame(&ctx));
        maps::count(verdict, 0);
        if guard::drops(verdict) { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
    }

    /// TC ingress on an uplink without support for XDP.
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

    /// Socket lookup with redirects.
    #[sk_lookup]
    pub(crate) fn lota_lookup(ctx: SkLookupContext) -> u32 {
        settle(lookup::redirect(&ctx))
    }

    #[inline(always)]
    fn settle(outcome: LookupOutcome) -> u32 {
        if let LookupOutcome::Counted(verdict) = outcome {
            maps::count(verdict, 0);
        }
        if outcome.passes() { sk_action::SK_PASS } else { sk_action::SK_DROP }
    }

    /// Baseline of benchmarks.
    #[classifier]
    pub(crate) fn lota_nothing(_: TcContext) -> i32 {
        TC_ACT_UNSPEC
    }

    #[cfg(feature = "log")]
    fn log_refusal(ctx: &TcContext, verdict: Verdict) {
        if !matches!(
            verdict,
            Verdict::NotOurs
                | Verdict::Redirected
                | Verdict::Established
                | Verdict::Delivered
                | Verdict::Dns
                | Verdict::Answered
                | Verdict::Bypassed
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

    // The kernel restricts helpers such as bpf_sk_assign to programs with a GPL-compatible license, so the object is
    // dual-licensed.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("lota-programs runs in the kernel: `cargo build` embeds it in the daemon `lota`");
}
