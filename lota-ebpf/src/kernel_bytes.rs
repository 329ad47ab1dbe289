//! [`Bytes`] over the kernel's two kinds of packet.

use core::mem::MaybeUninit;

use aya_ebpf::{
    helpers::bpf_xdp_load_bytes,
    programs::{TcContext, XdpContext},
};
use lota_ebpf::packet::Bytes;

use crate::maps;

/// A packet at TC, which may lie in several pieces: read by helper.
pub(crate) struct Skb<'a>(pub(crate) &'a TcContext);

impl Bytes for Skb<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.load::<[u8; N]>(offset).ok()
    }

    #[inline(always)]
    fn opaque(&self, number: usize) -> usize {
        let Some(room) = maps::scratch() else { return number };
        // SAFETY: this CPU's own room; volatile, or the compiler would see through it.
        unsafe {
            room.cast::<u64>().write_volatile(number as u64);
            room.cast::<u64>().read_volatile() as usize
        }
    }
}

/// The first bytes of a packet, read already.
pub(crate) struct Head<'a, const LENGTH: usize>(pub(crate) &'a [u8; LENGTH]);

impl<const LENGTH: usize> Bytes for Head<'_, LENGTH> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset + N)?.try_into().ok()
    }
}

/// A packet at XDP: read by helper too (kernel 5.18). In place, the verifier takes variable offsets only from
/// those with CAP_PERFMON, which nothing else needs.
pub(crate) struct Frame<'a>(pub(crate) &'a XdpContext);

impl Bytes for Frame<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: writes the `N` bytes if it succeeds, and only then are they looked at.
        unsafe {
            let result = bpf_xdp_load_bytes(self.0.ctx, offset as u32, bytes.as_mut_ptr().cast(), N as u32);
            (result == 0).then(|| bytes.assume_init())
        }
    }
}
