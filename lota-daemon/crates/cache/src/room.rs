//! Disk space of objects, counted in blocks and files.

use std::{fs::File, io, ops::Range, os::unix::fs::MetadataExt as _, path::Path};

use nix::sys::statvfs::statvfs;

use super::chunk::CHUNK;

/// Bytes per block of the file system.
const BLOCK: u64 = 4096;
/// Estimated bytes of a record without its checksums.
const RECORD: u64 = 512;
/// Maximum bytes of a checksum in a record.
const CHECKSUM: u64 = 5;
/// Maximum bytes that a file system adds to a file for its block map. Anything beyond was preallocated and is released
/// when the file is closed.
const MAP: u64 = 64 << 10;
/// One of this many inodes of a disk is left to other programs.
const FILES_LEFT: u64 = 32;
/// Bytes of memory per object in the index, with a reserve.
const INDEX_MEMORY: u64 = 256;
/// The index may use one of this many parts of the machine's memory.
const MEMORY_PART: u64 = 16;

/// Bytes and inodes that a disk lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Short {
    pub(super) bytes: u64,
    pub(super) files: u64,
}

/// Space left on a disk beyond the reserve; negative if other programs use the reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) bytes: i128,
    pub(super) files: i128,
}

impl Room {
    /// Returns the space left on the disk of a folder, of which `min_free` bytes must stay free.
    pub(super) fn of(folder: &Path, min_free: u64) -> io::Result<Self> {
        let disk = statvfs(folder)?;
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        let files = match disk.files() {
            // Some file systems create inodes on demand and report none.
            0 => i128::from(u64::MAX),
            all => i128::from(disk.files_available()) - i128::from(all / FILES_LEFT),
        };
        Ok(Self { bytes: i128::from(free) - i128::from(min_free), files })
    }

    /// Returns what must be freed until the reserve is restored.
    pub(super) fn short(self) -> Short {
        let short = |room: i128| u64::try_from(-room).unwrap_or_default();
        Short { bytes: short(self.bytes), files: short(self.files) }
    }
}

impl Short {
    pub(super) fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// Estimates the disk space of an object of `size` bytes, in bytes.
pub(super) fn estimate(size: u64) -> u64 {
    let checksums = size.div_ceil(u64::from(CHUNK)) * CHECKSUM;
    in_blocks(size.saturating_add(RECORD + checksums))
}

/// Returns the disk space of a file that contains only these ranges, which are in order and apart, in bytes.
pub(super) fn of_ranges(ranges: impl Iterator<Item = Range<u64>>) -> u64 {
    let of_range = |Range { start, end }: Range<u64>| end.next_multiple_of(BLOCK) - start / BLOCK * BLOCK;
    // One more block for the record.
    ranges.map(of_range).sum::<u64>() + BLOCK
}

/// Returns the disk space that a complete file uses, in bytes.
pub(super) fn taken(file: &File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    let (blocks, least) = (metadata.blocks().saturating_mul(512), in_blocks(metadata.len()));
    Ok(blocks.clamp(least, least.saturating_add(MAP)))
}

fn in_blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK).saturating_mul(BLOCK).max(BLOCK)
}

/// Returns the maximum number of objects in the index, which may use a sixteenth of the memory available to the
/// daemon.
#[must_use]
pub fn objects_by_memory() -> usize {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let machine = read("/proc/meminfo").lines().find_map(|line| {
        let kib: u64 = line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib << 10)
    });
    let group = read("/sys/fs/cgroup/memory.max").trim().parse().ok();
    let memory = machine.into_iter().chain(group).min().unwrap_or(u64::MAX);
    usize::try_from(memory / MEMORY_PART / INDEX_MEMORY).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn small_objects_take_a_block_each() {
        assert_eq!([0, 1, 3000].map(estimate), [BLOCK; 3]);
        assert_eq!(estimate(4096), 2 * BLOCK);
        assert_eq!(estimate(1 << 20), (1 << 20) + BLOCK);
        assert!(estimate(u64::MAX) > u64::MAX - BLOCK);
    }

    #[test]
    fn files_are_counted_by_their_blocks() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(taken(&file).unwrap(), BLOCK, "an inode at least");
        file.write_all_at(&[1; 10_000], 0).unwrap();
        file.sync_all().unwrap();
        assert!((12_288..=12_288 + MAP).contains(&taken(&file).unwrap()));
    }

    #[test]
    fn short_is_the_negative_room() {
        assert!(Room { bytes: 0, files: 1 }.short().is_none());
        assert_eq!(Room { bytes: -5, files: -2 }.short(), Short { bytes: 5, files: 2 });
    }

    #[test]
    fn the_index_is_bounded_by_memory() {
        assert!((1000..usize::MAX).contains(&objects_by_memory()));
    }
}
