//! Implementations of [`Bytes`] for the packets of TC and XDP.

use core::mem::MaybeUninit;

use aya_ebpf::{
    helpers::bpf_xdp_load_bytes,
    programs::{TcContext, XdpContext},
};
use lota_ebpf::packet::{Bytes, PLAIN};

/// A packet at TC. It may be non-linear, so it is read by a helper.
pub(crate) struct Skb<'a>(pub(crate) &'a TcContext);

impl Bytes for Skb<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.load::<[u8; N]>(offset).ok()
    }
}

/// Returns the same number as one of which the verifier knows nothing: it does not track values in maps. `room` is the
/// buffer of this CPU.
#[inline(always)]
pub(crate) fn opaque(room: *mut u64, number: usize) -> usize {
    // SAFETY: the buffer belongs to this CPU, and nothing else is kept in its first word. Volatile, or the compiler would
    // remove the round trip.
    unsafe {
        room.write_volatile(number as u64);
        room.read_volatile() as usize
    }
}

/// Returns the same number, of at least 1 and at most `MAX` (a power of two), as one that the verifier knows to be in this
/// range. Expressed with a mask, since older verifiers (6.1) lose the bounds of a comparison.
#[inline(always)]
pub(crate) fn bounded<const MAX: usize>(room: *mut u64, number: usize) -> usize {
    const { assert!(MAX.is_power_of_two()) };
    (opaque(room, number - 1) & (MAX - 1)) + 1
}

/// The first bytes of a packet that has them in one piece, read where they are.
pub(crate) struct HeadBytes<'a>(&'a [u8; PLAIN]);

impl<'a> HeadBytes<'a> {
    /// Returns the first bytes; `None` if the packet is shorter, or in several pieces.
    #[inline(always)]
    pub(crate) fn of(ctx: &'a TcContext) -> Option<Self> {
        let (start, end) = (ctx.data(), ctx.data_end());
        if start + PLAIN > end {
            return None;
        }
        // SAFETY: the verifier has seen that the bytes are before the end of the packet, which does not move as long as the
        // program does not change the packet.
        Some(Self(unsafe { &*(start as *const [u8; PLAIN]) }))
    }
}

impl Bytes for HeadBytes<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset + N)?.try_into().ok()
    }
}

/// A packet at XDP, read by a helper (kernel 5.18): the compiler moves the checks of direct access to where the verifier
/// does not follow them.
pub(crate) struct Frame<'a>(pub(crate) &'a XdpContext);

impl Bytes for Frame<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper initializes all `N` bytes if it succeeds, and only then are they read.
        unsafe {
            let result = bpf_xdp_load_bytes(self.0.ctx, offset as u32, bytes.as_mut_ptr().cast(), N as u32);
            (result == 0).then(|| bytes.assume_init())
        }
    }
}
