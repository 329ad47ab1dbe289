//! The cache on disks that fail, and processes that are killed: nothing half-written is ever found, and what was complete
//! is.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Seek as _, Write as _},
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
use lota_daemon::{
    cache::{Cache, DiskPlan, Encryption, How, Join, Plan, Source, SourceError, list},
    http::BodyFile,
    s3::{ByteRange, ObjectMeta, ObjectName, ObjectVersion, Validator},
};
use lota_tests::{lab::run, suite::Suite};
use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::sendfile::sendfile,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::runtime::Runtime;

#[path = "storage/disk.rs"]
mod disk;

use disk::Disk;

/// The lab of this suite, which needs none.
const NAME: &str = "lota-storage";
/// Set for the process that is killed: the folder that it fills.
const VICTIM: &str = "LOTA_STORAGE_VICTIM";
const KILLS: usize = 100;
const CRASHES: usize = 10;
const PLAN: Plan = Plan { min_free: 0, encryption: Encryption::Off, scrub: 0, ..Plan::DEFAULT };

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
        suite.alone("kill -9 at any moment, a hundred times", killed);
        suite.alone("power fails at any moment", power_fails);
        suite.alone("a disk that fails is served around", a_disk_fails);
        suite.alone("what is only on disk is read ahead, by a thread that may wait", read_ahead);
        suite.alone("encrypted at rest, until the machine ends", encrypted);
        suite.alone("encryption that is required and cannot be", cannot_encrypt);
    })
}

/// What is cached and not in memory is known to be so, and is in memory before it is sent.
fn read_ahead() -> Result<()> {
    let folder = Folder::new("ahead")?;
    let disk = Disk::make(&folder.0, 64)?;
    let path = disk.mounted().join("file");
    fs::write(&path, vec![7; 2 << 20])?;
    for (offset, length) in [(0, 100), (1 << 20, 1 << 20), (5, 2 << 19)] {
        let file = on_disk_only(&path, offset, length)?;
        Runtime::new()?.block_on(file.warm(offset, length));
        ensure!(file.is_warm(offset, length), "{offset}+{length} should be in memory");
    }
    Ok(())
}

/// A file of which these bytes are not in memory. Being asked, the kernel may begin to read them; being read, they stay.
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
    bail!("{offset}+{length} stays in memory")
}

/// An object's bytes: up to 3 MiB, which no other object has.
fn content(key: u64) -> Bytes {
    let size = usize::try_from((key * 37_813) % (3 << 20)).unwrap_or_default();
    let mut piece = vec![0; 5003];
    StdRng::seed_from_u64(key).fill(&mut *piece);
    let mut all = piece.repeat(size.div_ceil(piece.len()));
    all.truncate(size);
    all.into()
}

fn name(key: u64) -> Result<ObjectName> {
    ObjectName::from_parts("bucket", &key.to_string(), None).context("a name")
}

fn meta(key: u64) -> Result<ObjectMeta> {
    let validator = Validator { etag: format!("\"{key}\""), last_modified: None };
    let version = ObjectVersion { name: name(key)?, validator };
    let size = content(key).len() as u64;
    Ok(ObjectMeta { version, size, headers: HeaderMap::new(), checksums_known: true })
}

fn open(folders: &[&Path], encryption: Encryption) -> std::io::Result<Arc<Cache>> {
    let disk = |folder: &&Path| DiskPlan { folder: folder.to_path_buf(), capacity: 64 << 20 };
    let disks: Vec<_> = folders.iter().map(disk).collect();
    Cache::open(&disks, "http://gateway", &Plan { encryption, ..PLAN }, &[]).map(Arc::new)
}

/// Has every object.
struct Origin(u64);

impl Source for Origin {
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

/// Brings an object; false if there is no room for it.
async fn fill(cache: &Arc<Cache>, key: u64) -> Result<bool> {
    match cache.begin_fill(&meta(key)?).await {
        Ok(Join::Lead(fill)) => fill.run(&Origin(key), How::Stream).await.map(|_| true).map_err(Into::into),
        Ok(Join::Follow(_)) => Ok(true),
        Err(_) => Ok(false),
    }
}

/// What is killed: fills, several at once, and says what is complete.
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

/// Starts a victim; and where it says what is complete, in a file that does not fail.
fn victim(cache: &Path, says: &Path) -> Result<(Child, File)> {
    let said = File::options().create(true).truncate(true).write(true).read(true).open(says)?;
    let mut child = Command::new(std::env::current_exe()?);
    child.env(VICTIM, cache).stdin(Stdio::null()).stdout(said.try_clone()?);
    Ok((child.spawn().context("starting the victim")?, said))
}

/// What it said was complete.
fn complete(mut said: File) -> Result<Vec<u64>> {
    said.rewind()?;
    BufReader::new(said).lines().map(|line| Ok(line?.parse()?)).collect()
}

/// Every file is an object with the right bytes; those of the last `keep` complete ones are there, and found.
fn look(folder: &Path, complete: &[u64], keep: usize) -> Result<()> {
    // With it ends whatever holds the cache's lock.
    Runtime::new()?.block_on(look_into(folder, complete, keep))
}

async fn look_into(folder: &Path, complete: &[u64], keep: usize) -> Result<()> {
    let cache = open(&[folder], Encryption::Off).context("opening what is left")?;
    let mut there = BTreeMap::new();
    for object in list(folder)? {
        let key: u64 = object.meta.version.name.key.as_str().parse()?;
        let bytes = fs::read(&object.file)?;
        ensure!(bytes.starts_with(&content(key)), "object {key} has other bytes");
        there.insert(key, object.file);
    }
    ensure!(cache.usage().objects == there.len(), "{} objects, {} files", cache.usage().objects, there.len());
    for key in complete.iter().rev().take(keep) {
        ensure!(there.contains_key(key), "object {key} was complete and is gone");
        ensure!(cache.find(&name(*key)?).await.is_some(), "object {key} is there and not found");
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
        // 64 MiB hold about forty of them, and what is in flight takes room, too.
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
        // What it said last may have been said when the disk had failed: then it is a lie of the test, not of the cache.
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
        // A daemon that has just started has none of them open.
        cache.close();
        drop(cache);
        let cache = open(&[&bad, &good], Encryption::Off)?;
        disk.fail()?;
        let (mut lost, mut refused) = (0, 0);
        for key in 1..=40 {
            if cache.find(&name(key)?).await.is_none() {
                lost += 1;
                // The one that finds out is not cached; every other is.
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

fn encrypted() -> Result<()> {
    let folder = Folder::new("encrypted")?;
    let disk = Disk::make(&folder.0, 192)?;
    let path = disk.mounted().join("cache");
    let (runtime, key) = (Runtime::new()?, 70);
    runtime.block_on(async {
        let cache = open(&[&path], Encryption::Required)?;
        ensure!(cache.disks().all(|disk| disk.encrypted), "it does not say that it is encrypted");
        ensure!(fill(&cache, key).await?, "no room");
        cache.close();
        drop(cache);
        // A restart of the daemon finds it.
        let cache = open(&[&path], Encryption::Required)?;
        ensure!(cache.find(&name(key)?).await.is_some(), "lost with the daemon");
        ensure!(
            sent(&only_file(&path)?, content(key).len())? == content(key),
            "sendfile sends something else"
        );
        cache.close();
        Ok(())
    })?;
    disk.unmount()?;
    let (image, needle) = (fs::read(disk.image())?, content(key));
    let needle = &needle[4096..4096 + 64];
    ensure!(
        !image.windows(needle.len()).any(|window| window == needle),
        "the bytes are on the disk in clear"
    );
    // The key went with the mount, as it does with the machine.
    disk.mount()?;
    let opens = only_file(&path).and_then(|file| Ok(File::open(file)?));
    ensure!(opens.is_err(), "it can be read without the key");
    runtime.block_on(async {
        let cache = open(&[&path], Encryption::Auto)?;
        ensure!(cache.usage().objects == 0, "found what nobody can read");
        ensure!(fill(&cache, key).await? && cache.disks().all(|disk| disk.encrypted), "not begun anew");
        cache.close();
        Ok(())
    })
}

fn cannot_encrypt() -> Result<()> {
    let folder = Folder::new("plain")?;
    // The build's file system may be one that can.
    let plain = Folder(PathBuf::from("/dev/shm").join(format!("{NAME}-{}", std::process::id())));
    fs::create_dir_all(&plain.0)?;
    match open(&[&plain.0], Encryption::Required) {
        Err(error) if error.to_string().contains("cache.encryption") => {}
        Err(error) => bail!("it says only: {error}"),
        Ok(_) => bail!("it starts"),
    }
    drop(folder);
    Runtime::new()?.block_on(async {
        for _ in 0..2 {
            let cache = open(&[&plain.0], Encryption::Auto)?;
            ensure!(
                fill(&cache, 3).await? && !cache.disks().any(|disk| disk.encrypted),
                "auto does not go on"
            );
            cache.close();
        }
        ensure!(list(&plain.0)?.len() == 1, "a restart has lost it");
        Ok(())
    })
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let listed = list(folder)?;
    ensure!(listed.len() == 1, "{} objects in {}", listed.len(), folder.display());
    Ok(listed[0].file.clone())
}

/// What `sendfile(2)` makes of a file.
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

/// A folder that goes when it is dropped.
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
