//! The cache of this node, on all of its disks.

use std::{
    fs::File,
    io,
    net::IpAddr,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use futures_util::future::join_all;
use lota_s3::{ByteRange, ObjectMeta, ObjectName, ObjectVersion, RangeRequest};

use super::{
    begin::{FillPriority, Join},
    disk::{self, Disk},
    ids::{NameId, VersionId},
    leaders::{Lead, Leaders},
    no_room::NoRoom,
    object::Object,
    placement::{NodeName, Placement},
    plan::{Admission, CachePlan, DiskPlan},
    range_fill::RangeFill,
    room,
    shares::Shares,
    status::{DiskStatus, Usage},
    store::StoreEntry,
    stripe::{self, Stripe},
    upkeep,
    upload::Upload,
};

/// This node's cache: one disk or several, each with its share of the objects.
#[derive(Debug)]
pub struct Cache {
    pub(super) disks: Vec<Arc<Disk>>,
    /// Disks that failed at start.
    failed: Vec<DiskPlan>,
    /// Placement of objects on disks, by the same rule as their placement on nodes.
    shares: Placement,
    leaders: Arc<Leaders>,
}

impl Cache {
    /// Opens the cache on these disks, removes partial files of a crashed daemon, and indexes complete objects.
    /// `locks` are the locks of the previous daemon, if it has handed over.
    ///
    /// # Errors
    /// If a folder cannot be used, or another daemon uses it that has not handed over its lock.
    pub fn open(disks: &[DiskPlan], plan: &CachePlan, locks: &[File]) -> io::Result<Self> {
        let lanes = Shares::new(plan.fills as u64);
        // The limit is divided among the disks.
        let plan = CachePlan { fills: plan.fills.div_ceil(disks.len().max(1)), ..*plan };
        let all: u128 = disks.iter().map(|disk| u128::from(disk.capacity)).sum();
        let (mut opened, mut failed) = (Vec::new(), Vec::new());
        for disk in disks {
            let share = plan.objects as u128 * u128::from(disk.capacity) / all.max(1);
            let plan = CachePlan { objects: usize::try_from(share).unwrap_or(usize::MAX).max(1), ..plan };
            match Disk::open(disk, &plan, &lanes, locks) {
                Ok(disk) => opened.push(Arc::new(disk)),
                // Handled like a disk that fails later: the others serve, if there is any.
                Err(error) if disk::is_broken(&error) && failed.len() + 1 < disks.len() => {
                    tracing::error!(folder = %disk.folder.display(), %error, "disk failed; continuing without it");
                    failed.push(disk.clone());
                }
                Err(error) => {
                    let what = format!("the cache in {}: {error}", disk.folder.display());
                    return Err(io::Error::new(error.kind(), what));
                }
            }
        }
        let shares =
            disks.iter().map(|disk| (NodeName(disk.folder.to_string_lossy().into_owned()), disk.capacity));
        Ok(Self { shares: Placement::new(shares), disks: opened, failed, leaders: Arc::default() })
    }

    /// Returns the disk for an object or stripe: the first working one in placement order.
    fn disk(&self, name: &ObjectName, stripe: Option<Stripe>) -> Option<&Arc<Disk>> {
        if let [only] = &*self.disks {
            return Some(only).filter(|disk| !disk.has_failed());
        }
        let in_order = self.shares.first_for(name, stripe, usize::MAX).into_iter();
        in_order
            .filter_map(|folder| self.disks.iter().find(|disk| disk.path() == Path::new(&folder.0)))
            .find(|disk| !disk.has_failed())
    }

    /// Returns the version of an object or stripe that the gateway named last, if it is cached or being filled.
    pub async fn find(&self, name: &ObjectName, stripe: Option<Stripe>) -> Option<Arc<Object>> {
        self.disk(name, stripe)?.find(NameId::of(name, stripe)).await
    }

    /// Returns a version that the gateway has just named, or a stripe of it, if it is cached or being filled.
    pub async fn get(&self, version: &ObjectVersion, stripe: Option<Stripe>) -> Option<Arc<Object>> {
        let (disk, id) = (self.disk(&version.name, stripe)?, VersionId::of(version, stripe));
        let object = disk.get(id).await?;
        disk.named(NameId::of(&version.name, stripe), id);
        Some(object)
    }

    /// Merges the gateway's newer description into a cached object: in memory, and on disk if the object is complete.
    pub fn learn(&self, object: &Object, later: &ObjectMeta) {
        if !object.learn(later) {
            return;
        }
        let (meta, stripe) = (object.meta(), object.stripe());
        let Some(disk) = self.disk(&later.version.name, stripe) else { return };
        let version = VersionId::of(&meta.version, stripe);
        if !object.is_complete() {
            disk.index().keep_partial_meta(version, &meta);
        } else if meta.is_settled() {
            disk.keep_meta(version, meta);
        }
    }

    /// Counts a read of an object or stripe for admission by frequency.
    pub fn count_read(&self, name: &ObjectName, stripe: Option<Stripe>) {
        if let Some(disk) = self.disk(name, stripe)
            && disk.plan.admission == Admission::Frequent
        {
            disk.index().count_read(NameId::of(name, stripe));
        }
    }

    /// Single-flight for objects and stripes unknown to this node, or for one range of a partial object. Makes the caller the leader,
    /// which sends the request to the gateway; if there is a leader, waits until it is done and returns `None`.
    pub async fn lead(
        &self,
        name: &ObjectName,
        stripe: Option<Stripe>,
        range: Option<RangeRequest>,
    ) -> Option<Lead> {
        self.leaders.lead(NameId::of(name, stripe), range).await
    }

    /// Starts a fill of an object or stripe for a pod and evicts objects to make room for it, or joins the running fill of
    /// this version.
    ///
    /// # Errors
    /// [`NoRoom`]: the object cannot be cached; the caller relays it.
    pub async fn begin_fill(
        &self,
        meta: &ObjectMeta,
        stripe: Option<Stripe>,
        pod: IpAddr,
    ) -> Result<Join, NoRoom> {
        self.begin(meta, stripe, pod, FillPriority::Client).await
    }

    /// Starts or joins a fill like [`Cache::begin_fill`], but one that no client waits for. It does not count toward
    /// [`CachePlan::fills`], so that it takes no permit from clients' fills; the caller bounds the number of such fills.
    ///
    /// # Errors
    /// [`NoRoom`]: the object cannot be cached.
    pub async fn begin_background_fill(&self, meta: &ObjectMeta, pod: IpAddr) -> Result<Join, NoRoom> {
        self.begin(meta, None, pod, FillPriority::Background).await
    }

    async fn begin(
        &self,
        meta: &ObjectMeta,
        stripe: Option<Stripe>,
        pod: IpAddr,
        priority: FillPriority,
    ) -> Result<Join, NoRoom> {
        let (disk, entry) = self.new_entry(meta, stripe)?;
        let described = (meta.clone(), stripe);
        // In a task of its own: its reservation must be released even if the client disconnects.
        let begun = tokio::spawn(async move { disk.begin_or_join(entry, described, pod, priority).await });
        begun.await.unwrap_or_else(|error| Err(NoRoom::new(error.to_string())))
    }

    /// Prepares to store an upload of `size` bytes, for a pod that writes the object. Evicts nothing for it. The caller bounds the
    /// number of uploads.
    ///
    /// # Errors
    /// [`NoRoom`]: the upload cannot be kept.
    pub async fn begin_upload(&self, name: &ObjectName, size: u64, pod: IpAddr) -> Result<Upload, NoRoom> {
        let disk = self.disk(name, None).cloned().ok_or_else(|| NoRoom::new("no disk works"))?;
        let name = name.clone();
        let begun = tokio::task::spawn_blocking(move || Upload::begin(disk, name, size, pod));
        begun.await.unwrap_or_else(|error| Err(NoRoom::new(error.to_string())))
    }

    /// Returns whether ranges are kept of objects that cannot be fetched as a whole.
    #[must_use]
    pub fn keeps_ranges(&self) -> bool {
        self.disks.iter().any(|disk| disk.plan.partial)
    }

    /// Prepares to store a range of an object from the response to a pod's request.
    ///
    /// # Errors
    /// [`NoRoom`]: the range cannot be cached; the caller relays the response.
    pub async fn keep_range(
        &self,
        meta: &ObjectMeta,
        range: ByteRange,
        pod: IpAddr,
    ) -> Result<RangeFill, NoRoom> {
        let (disk, entry) = self.new_entry(meta, None)?;
        let meta = meta.clone();
        // In a task of its own: its reservation must be released even if the client disconnects.
        let begun = tokio::spawn(async move { disk.keep_range(entry, meta, range, pod).await });
        begun.await.unwrap_or_else(|error| Err(NoRoom::new(error.to_string())))
    }

    /// Returns the disk for an object or stripe that the gateway has described, and its entry there.
    fn new_entry(
        &self,
        meta: &ObjectMeta,
        stripe: Option<Stripe>,
    ) -> Result<(Arc<Disk>, StoreEntry), NoRoom> {
        let (version, size) = (&meta.version, stripe::held(stripe, meta.size).length());
        let disk = self.disk(&version.name, stripe).cloned();
        let entry = StoreEntry {
            version: VersionId::of(version, stripe),
            name: NameId::of(&version.name, stripe),
            is_stripe: stripe.is_some(),
            size,
            disk: room::estimate(size),
        };
        Ok((disk.ok_or_else(|| NoRoom::new("no disk works"))?, entry))
    }

    /// Runs background work on the disks for as long as it is polled: eviction to the low watermark, and verification
    /// of stored objects against their checksums.
    pub async fn run_upkeep(&self) {
        join_all(self.disks.iter().map(|disk| upkeep::run(disk.clone()))).await;
    }

    /// Leaves the folders to another daemon, or takes them back. After the handover, this daemon still reads cached
    /// objects, and running fills still serve their readers, but it changes nothing in the folders.
    pub fn set_handed_over(&self, handed_over: bool) {
        self.disks.iter().for_each(|disk| disk.set_handed_over(handed_over));
    }

    /// Returns whether another daemon owns a folder.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        self.disks.iter().any(|disk| disk.is_handed_over())
    }

    /// Removes what builds with other formats have left in the folders, in the background. Until the daemon before has ended,
    /// it may need its files.
    pub fn remove_other_formats(&self) {
        self.disks.iter().for_each(|disk| disk.store.remove_others());
    }

    /// Marks a clean shutdown, so that the next daemon trusts the cached objects.
    pub fn close(&self) {
        self.disks.iter().for_each(|disk| disk.close());
    }

    /// Returns the locks by which this process owns the folders, for the handover.
    ///
    /// # Errors
    /// If no file descriptors are left, or the locks were released.
    pub fn locks(&self) -> io::Result<Vec<File>> {
        self.disks.iter().map(|disk| disk.lock()).collect()
    }

    /// Releases the locks on the folders, which the new daemon holds.
    pub fn release_locks(&self) {
        self.disks.iter().for_each(|disk| disk.release_lock());
    }

    /// Returns the current contents of the cache.
    pub fn usage(&self) -> Usage {
        self.disks.iter().filter(|disk| !disk.has_failed()).fold(Usage::default(), |all, disk| {
            let Usage { objects, stripes, partial, bytes, fills, pinned } = disk.usage();
            Usage {
                objects: all.objects + objects,
                stripes: all.stripes + stripes,
                partial: all.partial + partial,
                bytes: all.bytes + bytes,
                fills: all.fills + fills,
                pinned: all.pinned + pinned,
            }
        })
    }

    /// Returns the status of each disk.
    pub fn disks(&self) -> impl Iterator<Item = DiskStatus> {
        let failed = self.failed.iter().map(|disk| DiskStatus {
            folder: disk.folder.clone(),
            capacity: disk.capacity,
            usage: Usage::default(),
            encrypted: false,
            works: false,
            evictions: 0,
            corrupt: 0,
            verified: 0,
        });
        failed.chain(self.disks.iter().map(|disk| DiskStatus {
            folder: disk.folder.clone(),
            capacity: disk.capacity,
            usage: disk.usage(),
            encrypted: disk.encrypted,
            works: !disk.has_failed(),
            evictions: disk.evictions.load(Ordering::Relaxed),
            corrupt: disk.corrupt.load(Ordering::Relaxed),
            verified: disk.verified.load(Ordering::Relaxed),
        }))
    }
}
