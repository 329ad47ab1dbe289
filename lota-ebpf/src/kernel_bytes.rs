//! [`Bytes`] over the kernel's two kinds of packet.

use aya_ebpf::programs::{TcContext, XdpContext};
use lota_ebpf::packet::Bytes;

/// A packet at TC, which may lie in several pieces: read by helper.
pub(crate) struct Skb<'a>(pub(crate) &'a TcContext);

impl Bytes for Skb<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.load::<[u8; N]>(offset).ok()
    }
}

/// A packet at XDP: read in place.
pub(crate) struct Frame<'a>(pub(crate) &'a XdpContext);

impl Bytes for Frame<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.0.data() + offset;
        if start + N > self.0.data_end() {
            return None;
        }
        // SAFETY: the comparison above bounds the read, which is how the verifier wants it said; a byte
        // array has no alignment.
        Some(unsafe { *(start as *const [u8; N]) })
    }
}
