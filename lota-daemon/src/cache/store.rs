//! Files: `<folder>/v2/ab/abcd…-<name>-<size>.object`, an object's bytes and behind them its record. The names alone make
//! the index, so that a restart opens no file. While it is filled, it is `<folder>/v2/new/…`, a file of that fill alone: no
//! file that a reader may have open is ever written or cut again. Some are made ahead.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::SystemTime,
};

use nix::{
    fcntl::{FallocateFlags, fallocate},
    sys::statvfs::statvfs,
};

use super::{
    fscrypt::{self, Encryption},
    ids::{Ids, NameId, VersionId},
    record::Record,
};
use crate::{http::BodyFile, lock, s3::ObjectMeta};

/// The folder's, in its parent.
const FORMAT: &str = "v2";
const OBJECT: &str = "object";
/// Where files are that are not objects yet.
const NEW: &str = "new";
/// Which objects were used, the most recent last: their ids, and before them a CRC-32C of all.
const ORDER: &str = "order";
/// Exists while a daemon has the folder.
const IN_USE: &str = "in-use";
/// Exists while objects are there that must be checked before they are trusted.
const UNCHECKED: &str = "unchecked";
/// Folders of before, on their way out.
const OLD: [&str; 2] = ["v1", "lost-"];
/// Threads that read the folder at start.
const READERS: usize = 16;
/// Files made ahead: while another is being made durable, making one may take several milliseconds, and a reader would wait.
const BLANKS: usize = 8;

/// A complete object, as its file's name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) version: VersionId,
    pub(super) name: NameId,
    /// Bytes.
    pub(super) size: u64,
}

/// The folder, owned by this process.
#[derive(Clone, Debug)]
pub(super) struct Store {
    folder: Arc<Path>,
    ids: Ids,
    min_free: u64,
    /// Bytes of disk that parts were promised and may not have taken yet.
    promised: Arc<AtomicU64>,
    blanks: Arc<Mutex<Vec<Blank>>>,
}

/// How a folder was found.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) store: Store,
    pub(super) lock: File,
    /// Did the daemon before come to an orderly end?
    pub(super) clean: bool,
    pub(super) encrypted: bool,
}

/// A file that is being filled; removed with its last owner, unless it has become an object.
#[derive(Clone, Debug)]
pub(super) struct Part(Arc<Unfinished>);

#[derive(Debug)]
struct Unfinished {
    blank: Blank,
    promise: Promise,
}

/// A file that is no object; removed, unless it has become one.
#[derive(Debug)]
struct Blank {
    file: Arc<BodyFile>,
    path: PathBuf,
}

/// Bytes of disk for one part, of all that are promised; gone with it.
#[derive(Debug)]
struct Promise {
    bytes: AtomicU64,
    all: Arc<AtomicU64>,
    /// Was it tried to take them?
    tried: AtomicBool,
}

impl Promise {
    fn new(bytes: u64, all: &Arc<AtomicU64>) -> Self {
        all.fetch_add(bytes, Ordering::Relaxed);
        Self { bytes: bytes.into(), all: all.clone(), tried: AtomicBool::new(false) }
    }

    fn is_kept(&self) {
        self.all.fetch_sub(self.bytes.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.is_kept();
    }
}

/// A complete object in a cache folder, as `lota cache ls` shows it.
#[derive(Debug)]
pub struct Listed {
    /// What it is.
    pub meta: ObjectMeta,
    /// The file it is in.
    pub file: PathBuf,
    /// When it came in.
    pub stored: SystemTime,
}

impl Store {
    pub(super) fn open(
        folder: &Path,
        ids: &Ids,
        min_free: u64,
        encryption: Encryption,
        handed_over: &[File],
    ) -> io::Result<Opened> {
        // Other users of this machine have no grant for what is in here.
        let private = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        private(folder)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(folder.join("lock"))?;
        let (lock, was_handed_over) = lock::lock(lock, handed_over)?;
        let objects = folder.join(FORMAT);
        private(&objects)?;
        let encrypted = fscrypt::prepare(&objects, encryption, |unusable| {
            fs::rename(unusable, folder.join(format!("{}{}", OLD[1], hex::encode(rand::random::<[u8; 8]>()))))
        })?;
        for first in 0..=u8::MAX {
            private(&objects.join(hex::encode([first])))?;
        }
        private(&objects.join(NEW))?;
        let in_use = objects.join(IN_USE);
        // The daemon before is still there, and well.
        let clean = (was_handed_over || !in_use.exists()) && !objects.join(UNCHECKED).exists();
        if !clean {
            File::create(objects.join(UNCHECKED))?;
        }
        File::create(in_use)?;
        File::open(&objects)?.sync_all()?;
        sweep_old(folder);
        let store = Self {
            folder: objects.into(),
            ids: ids.clone(),
            min_free,
            promised: Arc::default(),
            blanks: Arc::default(),
        };
        Ok(Opened { store, lock, clean, encrypted })
    }

    /// All objects are trusted.
    pub(super) fn all_checked(&self) {
        remove(&self.folder.join(UNCHECKED));
    }

    /// The folder's owner has come to an orderly end.
    pub(super) fn close(&self) {
        remove(&self.folder.join(IN_USE));
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        let Entry { version, name, size } = entry;
        let version = version.to_string();
        self.folder.join(&version[..2]).join(format!("{version}-{name}-{size:x}.{OBJECT}"))
    }

    /// Bytes that are free on the disk beyond those that must stay so or are promised; less than none, if others took
    /// them.
    pub(super) fn spare(&self) -> io::Result<i128> {
        let disk = statvfs(&*self.folder)?;
        let free = disk.blocks_available().saturating_mul(disk.fragment_size());
        Ok(i128::from(free) - i128::from(self.min_free) - i128::from(self.promised.load(Ordering::Relaxed)))
    }

    /// A file for a fill, which is promised disk for the whole object.
    ///
    /// # Errors
    /// `StorageFull`, if that would leave less than the configured rest of the disk free.
    pub(super) fn create(&self, entry: &Entry) -> io::Result<Part> {
        let promise = Promise::new(entry.size, &self.promised);
        let spare = self.spare()?;
        if spare < 0 {
            let why = format!("{} bytes less would be free on the disk than must stay so", -spare);
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        let made = self.blanks().pop();
        let blank = made.map_or_else(|| self.blank(), Ok)?;
        Ok(Part(Arc::new(Unfinished { blank, promise })))
    }

    /// Can a file be had without waiting for the disk?
    pub(super) fn has_blank(&self) -> bool {
        !self.blanks().is_empty()
    }

    /// Makes as many files ahead as there should be.
    pub(super) fn make_blanks(&self) -> io::Result<()> {
        while self.blanks().len() < BLANKS {
            let blank = self.blank()?;
            self.blanks().push(blank);
        }
        Ok(())
    }

    /// Lets go of them: another daemon sweeps the folder.
    pub(super) fn drop_blanks(&self) {
        let dropped = std::mem::take(&mut *self.blanks());
        drop(dropped);
    }

    fn blank(&self) -> io::Result<Blank> {
        let path = self.folder.join(NEW).join(hex::encode(rand::random::<[u8; 8]>()));
        let mut options = OpenOptions::new();
        let file = options.create_new(true).read(true).write(true).mode(0o600).open(&path)?;
        Ok(Blank { file: BodyFile::new(file), path })
    }

    fn blanks(&self) -> MutexGuard<'_, Vec<Blank>> {
        self.blanks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a filled file an object: on disk with its record before it gets its name, so that no crash leaves half of
    /// one under it.
    pub(super) fn commit(&self, entry: &Entry, part: &Part, record: &Record) -> io::Result<()> {
        let Blank { file, path } = &part.0.blank;
        file.write_all_at(&record.encode()?, entry.size)?;
        file.sync_data()?;
        let finished = self.path(entry);
        fs::rename(path, &finished)?;
        finished.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }

    /// Opens a complete object.
    pub(super) fn load(&self, entry: &Entry) -> io::Result<(Record, File)> {
        let file = File::open(self.path(entry))?;
        let record = read_record(&file, entry.size)?;
        if self.ids.version(&record.meta.version) != entry.version || record.meta.size != entry.size {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the record is another object's"));
        }
        Ok((record, file))
    }

    /// Removes an object's file.
    pub(super) fn remove(&self, entry: &Entry) {
        remove(&self.path(entry));
    }

    /// Every complete object, least recently used first as far as is known; removes whatever is not one.
    pub(super) fn recover(&self) -> io::Result<Vec<Entry>> {
        let (mut entries, order) = (self.entries()?, self.order());
        let mut used: Vec<(VersionId, usize)> = order.into_iter().zip(0..).collect();
        used.sort_unstable();
        entries.sort_unstable_by_key(|entry| entry.version);
        // Both by version now: one pass finds each entry's place. What was not noted came after.
        let mut used = used.into_iter().peekable();
        let mut placed: Vec<(usize, Entry)> = Vec::with_capacity(entries.len());
        for entry in entries {
            while used.next_if(|(version, _)| *version < entry.version).is_some() {}
            let noted = used.next_if(|(version, _)| *version == entry.version);
            placed.push((noted.map_or(usize::MAX, |(_, place)| place), entry));
        }
        placed.sort_unstable_by_key(|(place, _)| *place);
        Ok(placed.into_iter().map(|(_, entry)| entry).collect())
    }

    fn entries(&self) -> io::Result<Vec<Entry>> {
        let shards = (0..=u8::MAX).map(|first| hex::encode([first])).chain([NEW.to_owned()]);
        let shards: Mutex<Vec<PathBuf>> = Mutex::new(shards.map(|shard| self.folder.join(shard)).collect());
        let read = || -> io::Result<_> {
            let mut entries = Vec::new();
            loop {
                let next = shards.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let Some(shard) = next else { return Ok(entries) };
                for file in fs::read_dir(shard)? {
                    let file = file?;
                    if let Some(entry) = file.file_name().to_str().and_then(Entry::of_name) {
                        entries.push(entry);
                    } else {
                        tracing::debug!(file = %file.path().display(), "removing a left-over");
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

    /// Notes which objects were used, the most recent last.
    pub(super) fn save_order(&self, order: &[VersionId]) -> io::Result<()> {
        let ids: Vec<u8> = order.iter().flat_map(|version| *version.as_bytes()).collect();
        let unfinished = self.folder.join(format!("{ORDER}.new"));
        let mut file = File::create(&unfinished)?;
        file.write_all(&crc32c::crc32c(&ids).to_le_bytes())?;
        file.write_all(&ids)?;
        file.sync_data()?;
        fs::rename(unfinished, self.folder.join(ORDER))
    }

    /// What was noted, if it is sound: without it, objects leave in another order, that is all.
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
}

pub(super) fn read_record(mut file: &File, size: u64) -> io::Result<Record> {
    io::Seek::seek(&mut file, io::SeekFrom::Start(size))?;
    let mut record = Vec::new();
    file.read_to_end(&mut record)?;
    Record::decode(&record)
}

/// Removes folders that no daemon will use again, meanwhile.
fn sweep_old(folder: &Path) {
    let Ok(found) = fs::read_dir(folder) else { return };
    for old in found.flatten().filter(|found| {
        OLD.iter().any(|old| found.file_name().as_encoded_bytes().starts_with(old.as_bytes()))
    }) {
        thread::spawn(move || {
            if let Err(error) = fs::remove_dir_all(old.path()) {
                tracing::warn!(folder = %old.path().display(), %error, "cannot remove an old cache");
            }
        });
    }
}

/// Removes a file that may be gone already.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(file = %path.display(), %error, "cannot remove a cached file");
    }
}

/// Every complete object in a cache folder, without disturbing a daemon that uses it.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(folder: &Path) -> io::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    for (path, entry) in object_files(folder)? {
        // Evicted meanwhile, perhaps.
        let Ok(file) = File::open(&path) else { continue };
        if let Ok(record) = read_record(&file, entry.size) {
            let stored = file.metadata().and_then(|metadata| metadata.modified());
            let stored = stored.unwrap_or(SystemTime::UNIX_EPOCH);
            listed.push(Listed { meta: record.meta, file: path, stored });
        }
    }
    listed.sort_by_key(|object| object.stored);
    Ok(listed)
}

/// The file of each complete object in a cache folder.
pub(super) fn object_files(folder: &Path) -> io::Result<Vec<(PathBuf, Entry)>> {
    let named = |path: PathBuf| {
        let entry = Entry::of_name(path.file_name()?.to_str()?)?;
        Some((path, entry))
    };
    Ok(files(&folder.join(FORMAT))?.into_iter().filter_map(named).collect())
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

impl Part {
    pub(super) fn file(&self) -> Arc<BodyFile> {
        self.0.blank.file.clone()
    }

    /// Takes the disk that it was promised, in one piece if there is one. That may have to wait for what others write,
    /// and not every file system can: should the disk be full, those who write will be told.
    pub(super) fn allocate(&self) {
        let length = i64::try_from(self.0.promise.bytes.load(Ordering::Relaxed)).unwrap_or_default();
        if length > 0 && fallocate(&**self.0.blank.file, FallocateFlags::empty(), 0, length).is_ok() {
            self.0.promise.is_kept();
        }
    }

    /// Is it for the caller to have it do so? Of all who ask, for one.
    pub(super) fn is_to_allocate(&self) -> bool {
        !self.0.promise.tried.swap(true, Ordering::Relaxed)
    }
}

impl Drop for Blank {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

impl Entry {
    fn of_name(name: &str) -> Option<Self> {
        let mut fields = name.strip_suffix(".object")?.split('-');
        let version = VersionId::from_hex(fields.next()?)?;
        let name = NameId::from_hex(fields.next()?)?;
        let size = u64::from_str_radix(fields.next()?, 16).ok()?;
        fields.next().is_none().then_some(Self { version, name, size })
    }
}

#[cfg(test)]
pub(super) fn tests_files(folder: &Path) -> Vec<PathBuf> {
    let is_blank = |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.len() == 0);
    files(&folder.join(FORMAT)).unwrap_or_default().into_iter().filter(|path| !is_blank(path)).collect()
}
