//! The backstop: whatever reaches the VIP without having been steered is refused, so that a foreign listener
//! on `0.0.0.0:80` never sees a pod's signed request, daemon up or down.

use aya_ebpf::programs::SkLookupContext;
use lota_common::Verdict;

use crate::maps;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// The verdict if this lookup must be refused, else `None`.
#[inline(always)]
pub(crate) fn verdict(ctx: &SkLookupContext) -> Option<Verdict> {
    let settings = maps::settings()?;
    // SAFETY: the kernel hands the program a valid `bpf_sk_lookup`; addresses in it are in network order, so
    // native-endian bytes are the wire's, while the local port is in host order.
    let (family, local4, local6, port) = unsafe {
        let lookup = ctx.lookup;
        ((*lookup).family, (*lookup).local_ip4, (*lookup).local_ip6, (*lookup).local_port)
    };
    let to_vip = match family {
        AF_INET => {
            let address = local4.to_ne_bytes();
            address == settings.vip4 && address != [0; 4]
        }
        AF_INET6 => {
            let [a, b, c, d] = settings.vip6.as_chunks::<4>().0 else { return None };
            local6 != [0; 4]
                && local6[0].to_ne_bytes() == *a
                && local6[1].to_ne_bytes() == *b
                && local6[2].to_ne_bytes() == *c
                && local6[3].to_ne_bytes() == *d
        }
        _ => false,
    };
    let to_dns = port == u32::from(u16::from_be_bytes(settings.dns_port));
    (to_vip && !to_dns).then_some(Verdict::Backstop)
}
