//! Harm to frames.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// Bound of the frames that are late: about 12 MB. A link that holds more loses further ones.
const MAX_LATE: usize = 8192;
/// Length of an Ethernet header, in bytes.
const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const IPV6_HEADER: usize = 40;
const TCP: u8 = 6;

/// Harm that a link does to frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// Each frame is late by this time.
    Delay(Duration),
    /// This percentage of the frames is late by this time, so that others overtake them.
    Reorder(u32, Duration),
    /// This percentage of the frames arrives twice.
    Duplicate(u32),
    /// A bit is flipped in this percentage of the frames with a TCP segment, header or data. TCP's checksum, a sum of 16-bit
    /// words, differs for each single bit, so that the receiver discards the segment.
    Corrupt(u32),
}

/// The time at which a frame is due, its number, its destination, and its bytes.
type LateFrame = (Instant, u64, usize, Vec<u8>);

/// Frames on their way.
#[derive(Debug)]
pub(super) struct LateFrames {
    harm: Harm,
    random: StdRng,
    /// The next one first.
    frames: BinaryHeap<Reverse<LateFrame>>,
    count: u64,
}

impl LateFrames {
    pub(super) fn new(harm: Harm, seed: u64) -> Self {
        Self { harm, random: StdRng::seed_from_u64(seed), frames: BinaryHeap::new(), count: 0 }
    }

    /// Takes a frame that was received now.
    pub(super) fn push(&mut self, to: usize, frame: &[u8], now: Instant) {
        let mut frame = frame.to_vec();
        match self.harm {
            Harm::Delay(delay) => self.add(now + delay, to, frame),
            Harm::Reorder(percent, delay) => {
                let delay = if self.is_chosen(percent) { delay } else { Duration::ZERO };
                self.add(now + delay, to, frame);
            }
            Harm::Duplicate(percent) => {
                if self.is_chosen(percent) {
                    self.add(now, to, frame.clone());
                }
                self.add(now, to, frame);
            }
            Harm::Corrupt(percent) => {
                if self.is_chosen(percent)
                    && let Some(segment) = tcp_segment(&mut frame)
                {
                    let place = self.random.random_range(0..segment.len());
                    segment[place] ^= 1 << self.random.random_range(0..8);
                }
                self.add(now, to, frame);
            }
        }
    }

    fn is_chosen(&mut self, percent: u32) -> bool {
        self.random.random_ratio(percent.min(100), 100)
    }

    fn add(&mut self, due: Instant, to: usize, frame: Vec<u8>) {
        if self.frames.len() < MAX_LATE {
            self.count += 1;
            self.frames.push(Reverse((due, self.count, to, frame)));
        }
    }

    /// Returns the time at which the next frame is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.frames.peek().map(|Reverse((due, ..))| *due)
    }

    /// Returns a frame that is due, and its destination.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<(usize, Vec<u8>)> {
        self.next_due().filter(|due| *due <= now)?;
        self.frames.pop().map(|Reverse((_, _, to, frame))| (to, frame))
    }
}

/// Returns the TCP segment of a frame, without what may pad the frame; `None` for others, and for a fragment of a packet.
fn tcp_segment(frame: &mut [u8]) -> Option<&mut [u8]> {
    let kind: [u8; 2] = frame.get(ETHERNET - 2..ETHERNET)?.try_into().ok()?;
    let packet = frame.get_mut(ETHERNET..)?;
    let number = |place: usize| -> Option<usize> {
        Some(u16::from_be_bytes(packet.get(place..place + 2)?.try_into().ok()?).into())
    };
    let (header, end, protocol, is_fragment) = match kind {
        IPV4 => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            // All of its flags and offset but "don't fragment".
            (header, number(2)?, *packet.get(9)?, number(6)? & 0xbfff != 0)
        }
        IPV6 => (IPV6_HEADER, IPV6_HEADER + number(4)?, *packet.get(6)?, false),
        _ => return None,
    };
    packet.get_mut(header..end).filter(|segment| protocol == TCP && !is_fragment && !segment.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what comes out in the end, in order, of frames whose first bytes are their numbers.
    fn harmed(harm: Harm, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let (mut late, now) = (LateFrames::new(harm, 7), Instant::now());
        for (number, frame) in frames.iter().enumerate() {
            late.push(1, frame, now + Duration::from_micros(number as u64));
        }
        let end = now + Duration::from_secs(10);
        std::iter::from_fn(|| late.pop_due(end))
            .map(|(to, frame)| (to == 1).then_some(frame).unwrap())
            .collect()
    }

    fn numbered() -> Vec<Vec<u8>> {
        (0..200).map(|number| vec![number]).collect()
    }

    /// A frame with a segment of 30 bytes, and 6 bytes of padding.
    fn segment(kind: [u8; 2]) -> Vec<u8> {
        let mut frame = [&[0xaa; 12][..], &kind].concat();
        match kind {
            IPV4 => frame.extend([0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]),
            _ => frame.extend([&[0x60, 0, 0, 0, 0, 30, TCP, 64][..], &[0xfd; 32]].concat()),
        }
        frame.extend((0..30).chain([0xee; 6]));
        frame
    }

    #[test]
    fn a_delay_keeps_the_order_and_holds_each_frame_for_its_time() {
        assert_eq!(harmed(Harm::Delay(Duration::from_millis(100)), &numbered()), numbered());
        let (mut late, now) = (LateFrames::new(Harm::Delay(Duration::from_millis(100)), 7), Instant::now());
        late.push(0, &[1], now);
        assert_eq!(late.next_due(), Some(now + Duration::from_millis(100)));
        assert_eq!(late.pop_due(now + Duration::from_millis(99)), None);
        assert_eq!(late.pop_due(now + Duration::from_millis(100)), Some((0, vec![1])));
    }

    #[test]
    fn reordering_loses_nothing() {
        let mut found = harmed(Harm::Reorder(30, Duration::from_millis(5)), &numbered());
        assert_ne!(found, numbered());
        found.sort();
        assert_eq!(found, numbered());
    }

    #[test]
    fn some_frames_are_duplicated() {
        let mut found = harmed(Harm::Duplicate(30), &numbered());
        assert!((230..290).contains(&found.len()), "{}", found.len());
        found.dedup();
        assert_eq!(found, numbered());
    }

    #[test]
    fn one_bit_of_some_segments_is_flipped_and_nothing_else() {
        for (kind, header) in [(IPV4, 34), (IPV6, 54)] {
            let before = vec![segment(kind); 1000];
            let mut flipped = 0;
            let found = harmed(Harm::Corrupt(30), &before);
            assert_eq!(found.len(), before.len());
            for frame in found {
                let changed = |range: std::ops::Range<usize>| -> u32 {
                    range.map(|place| (frame[place] ^ before[0][place]).count_ones()).sum()
                };
                assert_eq!(changed(0..header) + changed(header + 30..frame.len()), 0);
                assert!(changed(header..header + 30) <= 1);
                flipped += changed(header..header + 30);
            }
            assert!((200..400).contains(&flipped), "{flipped}");
        }
    }

    #[test]
    fn frames_without_a_whole_segment_are_left_alone() {
        let (mut udp, mut fragment, mut arp) = (segment(IPV4), segment(IPV4), segment(IPV4));
        udp[23] = 17;
        fragment[20] = 0x20;
        arp[13] = 0x06;
        for frame in [udp, fragment, arp, segment(IPV4)[..40].to_vec(), vec![0; 3], Vec::new()] {
            assert_eq!(harmed(Harm::Corrupt(100), std::slice::from_ref(&frame)), [frame]);
        }
    }

    #[test]
    fn a_link_that_holds_too_much_loses_frames() {
        let (mut late, now) = (LateFrames::new(Harm::Delay(Duration::from_secs(1)), 7), Instant::now());
        (0..MAX_LATE + 100).for_each(|_| late.push(0, &[1], now));
        assert_eq!(late.frames.len(), MAX_LATE);
    }
}
