//! The cache with failing disks and killed processes: partial objects are never found, and complete ones are.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Seek as _, Write as _},
    net::Ipv4Addr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream, stream::BoxStream};
use hyper::HeaderMap;
use lota_cache::{
    BodyFile, Cache, CachePlan, DiskPlan, Encryption, FillOptions, FillSource, Join, SourceError, list,
};
use lota_s3::{ByteRange, Learned, ObjectMeta, ObjectName, ObjectVersion, Validator};
use lota_tests::{lab::run, suite::Suite};
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::{sendfile::sendfile, statvfs::statvfs},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::runtime::Runtime;

#[path = "storage/disk.rs"]
mod disk;
#[path = "storage/pins.rs"]
mod pins;

use disk::Disk;

/// Name of the suite, which has no lab.
const NAME: &str = "lota-storage";
/// Environment variable for the process that is killed: the folder that it fills.
const VICTIM: &str = "LOTA_STORAGE_VICTIM";
const KILLS: usize = 100;
const CRASHES: usize = 10;
const PLAN: CachePlan =
    CachePlan { min_free: 0, encryption: Encryption::Off, scrub: 0, ..CachePlan::DEFAULT };

fn main() -> ExitCode {
    if let Some(folder) = std::env::var_os(VICTIM) {
        return match fill_forever(Path::new(&folder)) {
            Ok(never) => never,
            Err(error) => {
                eprintln!("the victim: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    Suite::run(NAME, |suite| {
        suite.alone("a hundred kills at random times", killed);
        suite.alone("power failures at random times", power_fails);
        suite.alone("other disks replace a failed disk", a_disk_fails);
        suite.alone("small objects leave inodes of the disk free", few_inodes);
        suite.alone("bytes on disk are read ahead on a blocking thread", read_ahead);
        suite.alone("pinned objects outlive scans and restarts", pins::outlive_scans);
        suite.alone("encryption at rest, with a key that does not survive a reboot", encrypted);
        suite.alone("required encryption without support of the file system", cannot_encrypt);
    })
}

/// Bytes that are not in the page cache are detected, and read into it before they are sent.
fn read_ahead() -> Result<()> {
    let folder = Folder::new("ahead")?;
    let disk = Disk::make(&folder.0, 64)?;
    let path = disk.mounted().join("file");
    fs::write(&path, vec![7; 2 << 20])?;
    for (offset, length) in [(0, 100), (1 << 20, 1 << 20), (5, 2 << 19)] {
        let file = on_disk_only(&path, offset, length)?;
        Runtime::new()?.block_on(file.warm(offset, length));
        ensure!(file.is_warm(offset, length), "{offset}+{length} is not in the page cache");
    }
    Ok(())
}

/// Opens a file whose bytes are not in the page cache. The check may start a read by the kernel, so it retries.
fn on_disk_only(path: &Path, offset: u64, length: u64) -> Result<Arc<BodyFile>> {
    for _ in 0..100 {
        let file = File::open(path)?;
        file.sync_all()?;
        posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        let file = BodyFile::new(file);
        if !file.is_warm(offset, length) {
            return Ok(file);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("{offset}+{length} stays in the page cache")
}

/// Returns the size of an object: up to 3 MiB, different for each key.
fn size(key: u64) -> usize {
    usize::try_from((key * 37_813) % (3 << 20)).unwrap_or_default()
}

/// Returns the content of an object.
fn content(key: u64) -> Bytes {
    let size = size(key);
    let mut piece = vec![0; 5003];
    StdRng::seed_from_u64(key).fill(&mut *piece);
    let mut all = piece.repeat(size.div_ceil(piece.len()));
    all.truncate(size);
    all.into()
}

fn name(key: u64) -> Result<ObjectName> {
    ObjectName::from_parts("http://gateway", "bucket", &key.to_string(), None).context("a name")
}

fn meta(key: u64) -> Result<ObjectMeta> {
    let validator = Validator { etag: format!("\"{key}\""), last_modified: None };
    let version = ObjectVersion { name: name(key)?, validator };
    let size = content(key).len() as u64;
    Ok(ObjectMeta::restored(version, size, HeaderMap::new(), true, Learned::default()))
}

fn open(folders: &[&Path], encryption: Encryption) -> std::io::Result<Arc<Cache>> {
    let disk = |folder: &&Path| DiskPlan { folder: folder.to_path_buf(), capacity: 64 << 20 };
    let disks: Vec<_> = folders.iter().map(disk).collect();
    Cache::open(&disks, &CachePlan { encryption, ..PLAN }, &[]).map(Arc::new)
}

/// A source with every object.
struct Origin(u64);

impl FillSource for Origin {
    async fn fetch(
        &self,
        range: Option<ByteRange>,
    ) -> Result<BoxStream<'static, Result<Bytes, String>>, SourceError> {
        let all = content(self.0);
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = range.map_or(all.clone(), |range| all.slice(at(range.start)..at(range.end)));
        let pieces: Vec<_> = bytes.chunks(100_000).map(Bytes::copy_from_slice).map(Ok).collect();
        Ok(stream::iter(pieces).boxed())
    }
}

/// Fills an object; returns false if there is no room for it.
async fn fill(cache: &Arc<Cache>, key: u64) -> Result<bool> {
    match cache.begin_fill(&meta(key)?, None, Ipv4Addr::LOCALHOST.into()).await {
        Ok(Join::Lead(fill)) => {
            fill.run(&Origin(key), FillOptions::Stream).await.map(|_| true).map_err(Into::into)
        }
        Ok(Join::Follow(_)) => Ok(true),
        Err(_) => Ok(false),
    }
}

/// Main function of the process that is killed: fills objects concurrently and prints the keys of complete ones.
fn fill_forever(folder: &Path) -> Result<ExitCode> {
    Runtime::new()?.block_on(async {
        let cache = open(&[folder], Encryption::Off)?;
        let first: u64 = rand::rng().random_range(0..1 << 40);
        stream::iter(first..)
            .map(|key| {
                let cache = cache.clone();
                async move { (key, fill(&cache, key).await) }
            })
            .buffer_unordered(4)
            .for_each(async |(key, filled)| {
                if let Ok(true) = filled {
                    println!("{key}");
                }
            })
            .await;
        Ok(ExitCode::SUCCESS)
    })
}

/// Starts a victim; returns it and the file with its output, which is on another disk.
fn victim(cache: &Path, says: &Path) -> Result<(Child, File)> {
    let said = File::options().create(true).truncate(true).write(true).read(true).open(says)?;
    let mut child = Command::new(std::env::current_exe()?);
    child.env(VICTIM, cache).stdin(Stdio::null()).stdout(said.try_clone()?);
    Ok((child.spawn().context("starting the victim")?, said))
}

/// Returns the keys that the victim reported as complete.
fn complete(mut said: File) -> Result<Vec<u64>> {
    said.rewind()?;
    BufReader::new(said).lines().map(|line| Ok(line?.parse()?)).collect()
}

/// Verifies that every file is an object with the expected bytes, and that the last `keep` complete objects are found.
fn look(folder: &Path, complete: &[u64], keep: usize) -> Result<()> {
    // The end of the runtime ends all tasks that hold the cache's lock.
    Runtime::new()?.block_on(look_into(folder, complete, keep))
}

async fn look_into(folder: &Path, complete: &[u64], keep: usize) -> Result<()> {
    let cache = open(&[folder], Encryption::Off).context("opening the remaining cache")?;
    let mut there = BTreeMap::new();
    for object in list(folder)? {
        let key: u64 = object.meta.version.name.key.as_str().parse()?;
        let bytes = fs::read(&object.file)?;
        ensure!(bytes.starts_with(&content(key)), "object {key} has wrong bytes");
        there.insert(key, object.file);
    }
    ensure!(cache.usage().objects == there.len(), "{} objects, {} files", cache.usage().objects, there.len());
    for key in complete.iter().rev().take(keep) {
        ensure!(there.contains_key(key), "object {key} was complete and is lost");
        ensure!(cache.find(&name(*key)?, None).await.is_some(), "object {key} exists and is not found");
    }
    cache.close();
    Ok(())
}

fn killed() -> Result<()> {
    let folder = Folder::new("killed")?;
    let mut seen = 0;
    for _ in 0..KILLS {
        let cache = folder.0.join("cache");
        let (mut victim, said) = victim(&cache, &folder.0.join("said"))?;
        std::thread::sleep(Duration::from_millis(rand::rng().random_range(20..200)));
        victim.kill()?;
        victim.wait()?;
        let complete = complete(said)?;
        seen += complete.len();
        // 64 MiB hold about forty objects, including those in flight.
        look(&cache, &complete, 20)?;
    }
    ensure!(seen > KILLS / 5, "only {seen} objects were ever complete");
    Ok(())
}

fn power_fails() -> Result<()> {
    let folder = Folder::new("power")?;
    let disk = Disk::make(&folder.0, 192)?;
    let cache = disk.mounted().join("cache");
    let mut seen = 0;
    for _ in 0..CRASHES {
        let (mut victim, said) = victim(&cache, &folder.0.join("said"))?;
        std::thread::sleep(Duration::from_millis(rand::rng().random_range(200..800)));
        disk.fail()?;
        let copy = folder.0.join("copy");
        run(Command::new("cp").arg("--sparse=always").args([&disk.image(), &copy]))?;
        victim.kill()?;
        victim.wait()?;
        disk.become_the_copy(&copy)?;
        let complete = complete(said)?;
        seen += complete.len();
        // The last keys may have been reported after the failure of the disk, so only 20 are required.
        look(&cache, &complete, 20)?;
    }
    ensure!(seen > CRASHES, "only {seen} objects were ever complete");
    Ok(())
}

fn a_disk_fails() -> Result<()> {
    let folder = Folder::new("fails")?;
    let disk = Disk::make(&folder.0, 192)?;
    let (bad, good) = (disk.mounted().join("cache"), folder.0.join("good"));
    Runtime::new()?.block_on(async {
        let cache = open(&[&bad, &good], Encryption::Off)?;
        for key in 1..=40 {
            ensure!(fill(&cache, key).await?, "no room for object {key}");
        }
        // After a restart, no object is open.
        cache.close();
        drop(cache);
        let cache = open(&[&bad, &good], Encryption::Off)?;
        disk.fail()?;
        let (mut lost, mut refused) = (0, 0);
        for key in 1..=40 {
            if cache.find(&name(key)?, None).await.is_none() {
                lost += 1;
                // Only the fill that detects the failure may be refused.
                refused += usize::from(!fill(&cache, key).await.unwrap_or(false));
            }
        }
        let works: Vec<bool> = cache.disks().map(|disk| disk.works).collect();
        ensure!(works == [false, true], "works: {works:?}");
        ensure!(
            (5..40).contains(&lost) && refused <= 1,
            "{lost} were lost, {refused} could not be fetched again"
        );
        Ok(())
    })
}

/// A disk that has bytes for all objects, but not inodes. Objects are evicted for others, and for other programs' files.
fn few_inodes() -> Result<()> {
    const INODES: u32 = 1024;
    let folder = Folder::new("inodes")?;
    let disk = Disk::with_inodes(&folder.0, 64, INODES)?;
    let path = disk.mounted().join("cache");
    let free = || Ok::<_, anyhow::Error>(statvfs(&disk.mounted())?.files_available());
    Runtime::new()?.block_on(async {
        let cache = open(&[&path], Encryption::Off)?;
        let mut keys = (1..).filter(|key| size(*key) < 4096);
        let mut fill_some = async |count: usize| -> Result<Vec<u64>> {
            let keys: Vec<u64> = keys.by_ref().take(count).collect();
            for key in &keys {
                ensure!(fill(&cache, *key).await?, "no room for object {key}, with {} inodes free", free()?);
            }
            Ok(keys)
        };
        let found = async |keys: &[u64]| -> Result<usize> {
            let mut found = 0;
            for key in keys {
                found += usize::from(cache.find(&name(*key)?, None).await.is_some());
            }
            Ok(found)
        };
        let filled = fill_some(INODES as usize + 256).await?;
        let (objects, left) = (cache.usage().objects, free()?);
        // One of 32 inodes is left to others, beside files that are created in advance or not removed yet.
        let reserve = u64::from(INODES / 32);
        ensure!(left >= reserve / 2, "{left} inodes are free with {objects} objects");
        ensure!((INODES as usize / 4..INODES as usize).contains(&objects), "{objects} objects");
        ensure!(found(&filled[filled.len() - 100..]).await? == 100, "recent objects were evicted");

        // Other programs take all inodes.
        let others = disk.mounted().join("others");
        fs::create_dir(&others)?;
        let taken = (0..).take_while(|number| File::create(others.join(number.to_string())).is_ok()).count();
        ensure!(taken > 0 && free()? == 0, "{taken} files, {} inodes are free", free()?);
        ensure!(cache.disks().all(|disk| disk.works), "the disk counts as failed");
        let filled = fill_some(100).await?;
        ensure!(found(&filled).await? == 100, "recent objects were evicted");
        ensure!(cache.disks().all(|disk| disk.works), "the disk counts as failed");
        ensure!(free()? > 0, "the reserve is not restored");
        cache.close();
        Ok(())
    })
}

fn encrypted() -> Result<()> {
    let folder = Folder::new("encrypted")?;
    let disk = Disk::make(&folder.0, 192)?;
    let path = disk.mounted().join("cache");
    let (runtime, key) = (Runtime::new()?, 70);
    runtime.block_on(async {
        let cache = open(&[&path], Encryption::Required)?;
        ensure!(cache.disks().all(|disk| disk.encrypted), "the disk is not reported as encrypted");
        ensure!(fill(&cache, key).await?, "no room");
        cache.close();
        drop(cache);
        // A restart of the daemon finds the object.
        let cache = open(&[&path], Encryption::Required)?;
        ensure!(cache.find(&name(key)?, None).await.is_some(), "lost with the daemon");
        ensure!(sent(&only_file(&path)?, content(key).len())? == content(key), "sendfile sends other bytes");
        cache.close();
        Ok(())
    })?;
    disk.unmount()?;
    let (image, needle) = (fs::read(disk.image())?, content(key));
    let needle = &needle[4096..4096 + 64];
    ensure!(
        !image.windows(needle.len()).any(|window| window == needle),
        "the disk contains the bytes in plain text"
    );
    // The key is lost with the mount, as with a reboot.
    disk.mount()?;
    let opens = only_file(&path).and_then(|file| Ok(File::open(file)?));
    ensure!(opens.is_err(), "it can be read without the key");
    runtime.block_on(async {
        let cache = open(&[&path], Encryption::Auto)?;
        ensure!(cache.usage().objects == 0, "found an unreadable object");
        ensure!(
            fill(&cache, key).await? && cache.disks().all(|disk| disk.encrypted),
            "no new encrypted cache"
        );
        cache.close();
        Ok(())
    })
}

fn cannot_encrypt() -> Result<()> {
    let folder = Folder::new("plain")?;
    // The file system of the build may support encryption; that of /dev/shm does not.
    let plain = Folder(PathBuf::from("/dev/shm").join(format!("{NAME}-{}", std::process::id())));
    fs::create_dir_all(&plain.0)?;
    match open(&[&plain.0], Encryption::Required) {
        Err(error) if error.to_string().contains("cache.encryption") => {}
        Err(error) => bail!("the error does not name the setting: {error}"),
        Ok(_) => bail!("the cache opens without encryption"),
    }
    drop(folder);
    Runtime::new()?.block_on(async {
        for _ in 0..2 {
            let cache = open(&[&plain.0], Encryption::Auto)?;
            ensure!(
                fill(&cache, 3).await? && !cache.disks().any(|disk| disk.encrypted),
                "auto does not continue without encryption"
            );
            cache.close();
        }
        ensure!(list(&plain.0)?.len() == 1, "a restart has lost the object");
        Ok(())
    })
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let listed = list(folder)?;
    ensure!(listed.len() == 1, "{} objects in {}", listed.len(), folder.display());
    Ok(listed[0].file.clone())
}

/// Returns the bytes that `sendfile(2)` sends of a file.
fn sent(file: &Path, length: usize) -> Result<Bytes> {
    use std::{io::Read as _, os::unix::net::UnixStream};
    let (mut from, to) = (UnixStream::pair()?, File::open(file)?);
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; length];
        from.1.read_exact(&mut all).map(|()| all)
    });
    let (mut offset, end) = (0, i64::try_from(length)?);
    while offset < end {
        let left = usize::try_from(end - offset)?;
        ensure!(sendfile(from.0.as_fd(), to.as_fd(), Some(&mut offset), left)? > 0, "it is shorter");
    }
    from.0.flush()?;
    Ok(reader.join().map_err(|_| anyhow!("the reader panicked"))??.into())
}

/// A folder that is removed when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let path = PathBuf::from("/var/tmp").join(format!("{NAME}-{}-{name}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
