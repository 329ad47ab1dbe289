//! Files of the cache. `<folder>/lota-cache/v4/ab/abcd…-<name>-<size>[-<disk>].object` contains an object's bytes,
//! followed by its record; that of a stripe ends in `.stripe`. The index is built from file names, so that a restart opens no file. A fill writes to a
//! file of its own in `<folder>/lota-cache/v4/new/`: the bytes of a complete object are never written or truncated.
//! Some of these files are created in advance.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::SystemTime,
};

use lota_common::{HAS_NEXT_FORMATS, lockfile};
use lota_s3::ObjectMeta;
use parking_lot::{Mutex, MutexGuard};

use super::{
    fscrypt::{self, Encryption},
    ids::{NameId, VersionId},
    new_file::{Allocation, DroppedFiles, KeptFile, NewFile, SpareFile, remove},
    own_folder,
    record::Record,
    room::{self, Room, Short},
    stripe::Stripe,
};
use crate::BodyFile;

/// Folder of objects in this format, inside LOTA's own folder.
const FORMAT: &str = if HAS_NEXT_FORMATS { "v5" } else { "v4" };
const OBJECT: &str = "object";
const STRIPE: &str = "stripe";
/// Folder of partial files.
const NEW: &str = "new";
/// File with the LRU order: a CRC-32C, followed by the identifiers of the versions, most recently used last. Those of pinned
/// objects come after [`VersionId::PINNED`], and are evicted last, also before the next daemon has matched them with the pins.
const ORDER: &str = "order";
/// Marker that exists while a daemon uses the folder.
const IN_USE: &str = "in-use";
/// Marker that exists while the folder has unverified objects.
const UNCHECKED: &str = "unchecked";
/// Prefix of the names of folders whose encryption key is lost.
const LOST: &str = "lost-";
/// Number of threads that read the folder at start.
const READERS: usize = 16;
/// Number of files created in advance: while another file is synced, creation may take several milliseconds, for
/// which a reader would wait.
const SPARE_FILES: usize = 8;

/// A complete object or stripe, described by its file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoreEntry {
    pub(super) version: VersionId,
    pub(super) name: NameId,
    pub(super) is_stripe: bool,
    /// Size of the object or stripe in bytes.
    pub(super) size: u64,
    /// Disk space that its file uses or is expected to use, in bytes.
    pub(super) disk: u64,
}

/// A cache folder that this process owns.
#[derive(Clone, Debug)]
pub(super) struct Store {
    folder: Arc<Path>,
    min_free: u64,
    /// Bytes of disk space that are reserved for partial files and may not be allocated yet.
    reserved: Arc<AtomicU64>,
    spare_files: Arc<Mutex<Vec<SpareFile>>>,
    /// Files of partial objects that were dropped.
    dropped: DroppedFiles,
}

/// Result of opening a folder.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) store: Store,
    pub(super) lock: File,
    /// Whether the previous daemon shut down cleanly.
    pub(super) clean: bool,
    pub(super) encrypted: bool,
}

/// A complete object or stripe in a cache folder, as `lota cache ls` shows it.
#[derive(Debug)]
pub struct ListedObject {
    /// Description of the object.
    pub meta: ObjectMeta,
    /// Stripe of the object; `None` for a whole object.
    pub stripe: Option<Stripe>,
    /// Path of its file.
    pub file: PathBuf,
    /// Time at which it was stored.
    pub stored: SystemTime,
}

impl Store {
    pub(super) fn open(
        folder: &Path,
        min_free: u64,
        encryption: Encryption,
        handed_over: &[File],
    ) -> io::Result<Opened> {
        // Other users of this machine are not authorized to read cached objects.
        let private = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        let folder = &own_folder::claim(folder)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(own_folder::LOCK))?;
        let (lock, was_handed_over) = lockfile::lock(lock, handed_over)?;
        let objects = folder.join(FORMAT);
        private(&objects)?;
        let encrypted = fscrypt::prepare(&objects, encryption, |unusable| {
            fs::rename(unusable, folder.join(format!("{LOST}{}", hex::encode(rand::random::<[u8; 8]>()))))
        })?;
        for first in 0..=u8::MAX {
            private(&objects.join(hex::encode([first])))?;
        }
        private(&objects.join(NEW))?;
        let in_use = objects.join(IN_USE);
        // After a handover, the previous daemon still runs, and its marker does not mean a crash.
        let clean = (was_handed_over || !in_use.exists()) && !objects.join(UNCHECKED).exists();
        if !clean {
            File::create(objects.join(UNCHECKED))?;
        }
        File::create(in_use)?;
        File::open(&objects)?.sync_all()?;
        let store = Self {
            folder: objects.into(),
            min_free,
            reserved: Arc::default(),
            spare_files: Arc::default(),
            dropped: Arc::default(),
        };
        Ok(Opened { store, lock, clean, encrypted })
    }

    /// Records that all objects are verified.
    pub(super) fn all_checked(&self) {
        remove(&self.folder.join(UNCHECKED));
    }

    /// Records a clean shutdown.
    pub(super) fn close(&self) {
        remove(&self.folder.join(IN_USE));
    }

    fn path(&self, entry: &StoreEntry) -> PathBuf {
        let StoreEntry { version, name, is_stripe, size, disk } = entry;
        let kind = if *is_stripe { STRIPE } else { OBJECT };
        let version = version.to_string();
        // The name contains the disk space only where it differs from the estimate.
        let disk = if *disk == room::estimate(*size) { String::new() } else { format!("-{disk:x}") };
        self.folder.join(&version[..2]).join(format!("{version}-{name}-{size:x}{disk}.{kind}"))
    }

    /// Returns the space left on the disk beyond the reserve and the reservations.
    pub(super) fn room(&self) -> io::Result<Room> {
        let Room { bytes, files } = Room::of(&self.folder, self.min_free)?;
        Ok(Room { bytes: bytes - i128::from(self.reserved.load(Ordering::Relaxed)), files })
    }

    /// Reserves disk space.
    ///
    /// # Errors
    /// `StorageFull`, if less than `cache.min_free` or too few inodes would stay free.
    pub(super) fn reserve(&self, bytes: u64) -> io::Result<Allocation> {
        let allocation = Allocation::new(bytes, &self.reserved);
        let short = self.room()?.short();
        if !short.is_none() {
            let why = match short {
                Short { bytes: 0, files } => {
                    format!("not enough free inodes: {files} short of what must stay free")
                }
                Short { bytes, .. } => {
                    format!("not enough free space: {bytes} bytes short of cache.min_free")
                }
            };
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        Ok(allocation)
    }

    /// Creates a file for `size` bytes of an object, and reserves `disk` bytes of disk space for them.
    ///
    /// # Errors
    /// The errors of [`Store::reserve`].
    pub(super) fn create(&self, size: u64, disk: u64) -> io::Result<NewFile> {
        let allocation = self.reserve(disk)?;
        let made = self.spare_files().pop();
        let spare = made.map_or_else(|| SpareFile::create(&self.folder.join(NEW)), Ok)?;
        Ok(NewFile::new(spare, allocation, size))
    }

    /// Keeps the file of a fill for a partial object.
    pub(super) fn keep(&self, file: &NewFile) -> KeptFile {
        file.keep(&self.dropped)
    }

    /// Returns the file of a partial object as that of a fill of `size` bytes, all of which it contains.
    pub(super) fn kept(&self, file: Arc<BodyFile>, kept: &KeptFile, size: u64) -> NewFile {
        NewFile::of_kept(file, kept, Allocation::new(0, &self.reserved), size)
    }

    /// Returns whether a file is available without waiting for the disk.
    pub(super) fn has_spare_file(&self) -> bool {
        !self.spare_files().is_empty()
    }

    /// Creates files in advance, up to their configured number.
    pub(super) fn make_spare_files(&self) -> io::Result<()> {
        while self.spare_files().len() < SPARE_FILES {
            let spare = SpareFile::create(&self.folder.join(NEW))?;
            self.spare_files().push(spare);
        }
        Ok(())
    }

    /// Drops the files that were created in advance, for the handover.
    pub(super) fn drop_spare_files(&self) {
        let dropped = std::mem::take(&mut *self.spare_files());
        drop(dropped);
    }

    fn spare_files(&self) -> MutexGuard<'_, Vec<SpareFile>> {
        self.spare_files.lock()
    }

    /// Turns a filled file into a complete object. Bytes and record are synced before the rename, so that a crash
    /// leaves no partial object under the final name. Returns the entry with its actual disk space.
    pub(super) fn commit(
        &self,
        entry: &StoreEntry,
        part: &NewFile,
        record: &Record,
    ) -> io::Result<StoreEntry> {
        let file = part.file();
        file.write_all_at(&record.encode()?, entry.size)?;
        file.sync_data()?;
        let entry = StoreEntry { disk: room::taken(&file)?, ..*entry };
        let finished = self.path(&entry);
        part.rename(&finished)?;
        finished.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())?;
        Ok(entry)
    }

    /// Opens a complete object.
    pub(super) fn load(&self, entry: &StoreEntry) -> io::Result<(Record, File)> {
        let file = File::open(self.path(entry))?;
        let record = read_record(&file, entry.size)?;
        if record.version() != entry.version || record.held().length() != entry.size {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the record is that of another object"));
        }
        Ok((record, file))
    }

    /// Replaces the record of a complete object. A crash during the write leaves an unreadable record, after which the
    /// object is fetched again.
    pub(super) fn rewrite(&self, entry: &StoreEntry, meta: &ObjectMeta) -> io::Result<()> {
        let (record, _) = self.load(entry)?;
        let record = Record { meta: meta.clone(), ..record }.encode()?;
        let file = File::options().write(true).open(self.path(entry))?;
        file.write_all_at(&record, entry.size)?;
        file.set_len(entry.size + record.len() as u64)
    }

    /// Removes the files of partial objects that were dropped.
    pub(super) fn remove_dropped(&self) {
        let dropped = std::mem::take(&mut *self.dropped.lock());
        drop(dropped);
    }

    /// Removes an object's file.
    pub(super) fn remove(&self, entry: &StoreEntry) {
        remove(&self.path(entry));
    }

    /// Returns every complete object, least recently used first as far as known, and removes all other files.
    pub(super) fn recover(&self) -> io::Result<Vec<StoreEntry>> {
        let (mut entries, order) = (self.entries()?, self.order());
        // Entries that the saved order lacks are newer than all ordinary ones.
        let newer = order.iter().position(|version| *version == VersionId::PINNED).unwrap_or(order.len());
        let mut used: Vec<(VersionId, usize)> = order.into_iter().zip(0..).collect();
        used.sort_unstable();
        entries.sort_unstable_by_key(|entry| entry.version);
        // Both are sorted by version, so one pass finds each entry's place.
        let mut used = used.into_iter().peekable();
        let mut placed: Vec<(usize, StoreEntry)> = Vec::with_capacity(entries.len());
        for entry in entries {
            while used.next_if(|(version, _)| *version < entry.version).is_some() {}
            let noted = used.next_if(|(version, _)| *version == entry.version);
            placed.push((noted.map_or(newer, |(_, place)| place), entry));
        }
        placed.sort_unstable_by_key(|(place, _)| *place);
        Ok(placed.into_iter().map(|(_, entry)| entry).collect())
    }

    fn entries(&self) -> io::Result<Vec<StoreEntry>> {
        let shards = (0..=u8::MAX).map(|first| hex::encode([first])).chain([NEW.to_owned()]);
        let shards: Mutex<Vec<PathBuf>> = Mutex::new(shards.map(|shard| self.folder.join(shard)).collect());
        let read = || -> io::Result<_> {
            let mut entries = Vec::new();
            loop {
                let next = shards.lock().pop();
                let Some(shard) = next else { return Ok(entries) };
                for file in fs::read_dir(shard)? {
                    let file = file?;
                    if let Some(entry) = file.file_name().to_str().and_then(StoreEntry::of_name) {
                        entries.push(entry);
                    } else {
                        tracing::debug!(file = %file.path().display(), "removing a leftover file");
                        remove(&file.path());
                    }
                }
            }
        };
        thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(read)).collect();
            readers.into_iter().try_fold(Vec::new(), |mut all, reader| {
                let panicked = |_| io::Error::other("a reader of the cache folder panicked");
                all.append(&mut reader.join().map_err(panicked)??);
                io::Result::Ok(all)
            })
        })
    }

    /// Saves the LRU order, most recently used last.
    pub(super) fn save_order(&self, order: &[VersionId]) -> io::Result<()> {
        let ids: Vec<u8> = order.iter().flat_map(|version| *version.as_bytes()).collect();
        let unfinished = self.folder.join(format!("{ORDER}.new"));
        let mut file = File::create(&unfinished)?;
        file.write_all(&crc32c::crc32c(&ids).to_le_bytes())?;
        file.write_all(&ids)?;
        file.sync_data()?;
        fs::rename(unfinished, self.folder.join(ORDER))
    }

    /// Returns the saved LRU order; empty if it is damaged, which affects only the order of evictions.
    fn order(&self) -> Vec<VersionId> {
        let bytes = fs::read(self.folder.join(ORDER)).unwrap_or_default();
        let Some((checksum, ids)) = bytes.split_first_chunk() else { return Vec::new() };
        if u32::from_le_bytes(*checksum) != crc32c::crc32c(ids) {
            return Vec::new();
        }
        ids.chunks_exact(VersionId::LENGTH)
            .filter_map(|id| Some(<[u8; VersionId::LENGTH]>::try_from(id).ok()?.into()))
            .collect()
    }

    /// Removes folders of other formats and unreadable ones in the background.
    pub(super) fn remove_others(&self) {
        let Some(Ok(found)) = self.folder.parent().map(fs::read_dir) else { return };
        let is_folder = |found: &fs::DirEntry| found.file_type().is_ok_and(|kind| kind.is_dir());
        for other in found.flatten().filter(|found| is_folder(found) && found.file_name() != FORMAT) {
            thread::spawn(move || {
                if let Err(error) = fs::remove_dir_all(other.path()) {
                    tracing::warn!(folder = %other.path().display(), %error, "cannot remove another build's cache");
                }
            });
        }
    }
}

pub(super) fn read_record(mut file: &File, size: u64) -> io::Result<Record> {
    io::Seek::seek(&mut file, io::SeekFrom::Start(size))?;
    let mut record = Vec::new();
    file.read_to_end(&mut record)?;
    Record::decode(&record)
}

/// Lists every complete object in a cache folder, which a daemon may be using.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(folder: &Path) -> io::Result<Vec<ListedObject>> {
    let mut listed = Vec::new();
    for (path, entry) in object_files(folder)? {
        // The daemon may have evicted it meanwhile.
        let Ok(file) = File::open(&path) else { continue };
        if let Ok(record) = read_record(&file, entry.size) {
            let stored = file.metadata().and_then(|metadata| metadata.modified());
            let stored = stored.unwrap_or(SystemTime::UNIX_EPOCH);
            listed.push(ListedObject { meta: record.meta, stripe: record.stripe, file: path, stored });
        }
    }
    listed.sort_by_key(|object| object.stored);
    Ok(listed)
}

/// Returns the file of each complete object in a cache folder.
pub(super) fn object_files(folder: &Path) -> io::Result<Vec<(PathBuf, StoreEntry)>> {
    let named = |path: PathBuf| {
        let entry = StoreEntry::of_name(path.file_name()?.to_str()?)?;
        Some((path, entry))
    };
    Ok(files(&own_folder::path(folder).join(FORMAT))?.into_iter().filter_map(named).collect())
}

fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for shard in fs::read_dir(folder)? {
        let shard = shard?.path();
        if shard.is_dir() {
            for file in fs::read_dir(shard)? {
                files.push(file?.path());
            }
        }
    }
    Ok(files)
}

impl StoreEntry {
    fn of_name(name: &str) -> Option<Self> {
        let (fields, kind) = name.rsplit_once('.')?;
        let is_stripe = match kind {
            OBJECT => false,
            STRIPE => true,
            _ => return None,
        };
        let mut fields = fields.split('-');
        let version = VersionId::from_hex(fields.next()?)?;
        let name = NameId::from_hex(fields.next()?)?;
        let size = u64::from_str_radix(fields.next()?, 16).ok()?;
        let disk = match fields.next() {
            Some(disk) => u64::from_str_radix(disk, 16).ok()?,
            None => room::estimate(size),
        };
        fields.next().is_none().then_some(Self { version, name, is_stripe, size, disk })
    }
}

#[cfg(test)]
pub(super) fn tests_files(folder: &Path) -> Vec<PathBuf> {
    let is_spare = |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.len() == 0);
    files(&own_folder::path(folder).join(FORMAT))
        .unwrap_or_default()
        .into_iter()
        .filter(|path| !is_spare(path))
        .collect()
}
