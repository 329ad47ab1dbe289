//! A DNS message in the buffer of this CPU: one copy of it takes less time than a read of each label by a helper.

use aya_ebpf::{btf_maps::lpm_trie::Key, helpers::bpf_skb_load_bytes, programs::TcContext};
use lota_common::{MAX_NAME, NameKey, SCRATCH};
use lota_ebpf::{
    dns::{FoundName, MAX_LENGTH, Message, key_word},
    packet::Bytes,
};

use crate::{
    kernel_bytes::{bounded, opaque},
    maps,
};

// The buffer has, in words: what `opaque` uses; the lengths of the message and of the key, half a word each; the key; room
// for a name; room for the message and for reads at any offset in it.
const LENGTHS: usize = 1;
const KEY: usize = 2;
const NAME: usize = KEY + WORDS;
const MESSAGE: usize = NAME + WORDS;
/// Words of a key.
const WORDS: usize = MAX_NAME / WORD;
const WORD: usize = size_of::<u64>();
/// Bytes that an offset in the message is limited to.
const MESSAGE_ROOM: usize = 512;
/// The longest read.
const LONGEST_READ: usize = 16;
const _: () = assert!(MAX_LENGTH <= MESSAGE_ROOM && MESSAGE * WORD + MESSAGE_ROOM + LONGEST_READ <= SCRATCH);

/// The beginning of a DNS message, which is all that is read of one.
pub(crate) struct CopiedMessage<'a> {
    ctx: &'a TcContext,
    /// Offset of the message in the packet.
    start: usize,
    room: *mut u64,
}

impl<'a> CopiedMessage<'a> {
    /// Copies the message at `start`; `None` if it is empty.
    #[inline(always)]
    pub(crate) fn copy(ctx: &'a TcContext, start: usize) -> Option<Self> {
        let room = maps::scratch()?;
        let available = (ctx.len() as usize).checked_sub(start).filter(|length| *length > 0)?;
        let length = bounded::<MESSAGE_ROOM>(room, available.min(MAX_LENGTH));
        // SAFETY: the buffer belongs to this CPU, and has `MESSAGE_ROOM` bytes from `MESSAGE` on.
        let result = unsafe {
            room.add(LENGTHS).cast::<u32>().write_volatile(length as u32);
            bpf_skb_load_bytes(ctx.skb.skb.cast(), start as u32, room.add(MESSAGE).cast(), length as u32)
        };
        (result == 0).then_some(Self { ctx, start, room })
    }
}

impl Bytes for CopiedMessage<'_> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        const { assert!(N <= LONGEST_READ) };
        // SAFETY: the buffer belongs to this CPU, and has this much room, whatever the offset. Only bytes that were copied are
        // used. The length is read each time: after a comparison with one that it tracks, the verifier would follow each
        // exit of a loop on its own.
        unsafe {
            let length = self.room.add(LENGTHS).cast::<u32>().read_volatile() as usize;
            let at = self.room.add(MESSAGE).cast::<u8>().add(offset & (MESSAGE_ROOM - 1));
            (offset + N <= length).then(|| at.cast::<[u8; N]>().read())
        }
    }

    #[inline(always)]
    fn opaque(&self, number: usize) -> usize {
        opaque(self.room, number)
    }
}

impl Message for CopiedMessage<'_> {
    /// Looks up the name in an LPM trie of reversed names: one lookup finds the longest, however many there are.
    #[inline(always)]
    fn find(&self, end: usize, length: usize) -> Option<FoundName> {
        let room = self.room;
        // What remains of the room, known to the verifier to be less than all of it.
        let gap = opaque(room, MAX_NAME - length) & (MAX_NAME - 1);
        let length = MAX_NAME - gap;
        // SAFETY: the buffer belongs to this CPU. The name is copied to the end of its room, so that its words are aligned;
        // its words are copied to the key. Volatile, or the compiler would not know that helpers access the buffer.
        let key = unsafe {
            let (at, to) = (self.start + end - length, room.add(NAME).cast::<u8>().add(gap));
            if bpf_skb_load_bytes(self.ctx.skb.skb.cast(), at as u32, to.cast(), length as u32) != 0 {
                return None;
            }
            room.add(LENGTHS).cast::<u32>().add(1).write_volatile(8 * length as u32);
            for word in 0..WORDS {
                // The trie ignores bytes beyond the length.
                if word * WORD >= length {
                    break;
                }
                let characters = room.add(NAME + WORDS - 1 - word).read_volatile();
                room.add(KEY + word).write_volatile(key_word(characters));
            }
            &*room.add(KEY).cast::<u8>().sub(size_of::<u32>()).cast::<Key<NameKey>>()
        };
        maps::name(key)
    }
}
