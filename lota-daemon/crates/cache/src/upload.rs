//! Stores the bytes of an upload in a file that nothing else can see, until the storage states that they are the object.
//!
//! A client can begin an upload that the storage then refuses. Therefore, an upload evicts nothing: it takes only space that is
//! free below the high watermark, and all uploads together half of what an eviction frees.

use std::{io, net::IpAddr, os::unix::fs::FileExt as _, sync::Arc};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use lota_s3::{NormalEtag, ObjectMeta, ObjectName};
use tokio::task::JoinHandle;

use super::{
    FillError, NoRoom, Object,
    chunk::CHUNK,
    chunker::{ChunkError, Chunker},
    disk::Disk,
    fill::Fill,
    ids::{NameId, VersionId},
    new_file::NewFile,
    progress::Progress,
    room,
    shares::Share,
    store::StoreEntry,
    upload_hash::UploadMd5,
};

/// Maximum size of an upload in bytes: that of a `PutObject`.
const MAX_SIZE: u64 = 5 << 30;

/// An upload in progress. If it is dropped, its file is removed.
#[derive(Debug)]
pub struct Upload {
    room: UploadRoom,
    name: ObjectName,
    size: u64,
    pod: IpAddr,
    part: NewFile,
}

/// An upload of which all bytes are stored. If it is dropped, its file is removed.
#[derive(Debug)]
pub struct StoredUpload {
    upload: Upload,
    md5: UploadMd5,
    /// CRC-32C of each chunk.
    chunks: Vec<u32>,
}

/// Result of comparing an upload with the storage's description of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadEnd {
    /// It is the object, and durable on disk.
    Kept,
    /// The object is cached, or being filled, already.
    Present,
    /// Its bytes are not those of the object, or this cannot be seen.
    Differs,
}

/// Space that is reserved for an upload; released when it is dropped.
#[derive(Debug)]
struct UploadRoom {
    disk: Arc<Disk>,
    bytes: u64,
    /// Whether the index has taken over the reservation.
    is_taken: bool,
    /// Part of the bytes that uploads may reserve.
    _share: Share,
}

impl UploadRoom {
    fn reserve(disk: Arc<Disk>, name: &ObjectName, bytes: u64, pod: IpAddr) -> Result<Self, NoRoom> {
        let share = disk.take_upload_share(pod, bytes)?;
        let high = disk.plan.high;
        disk.index().reserve_free(name, bytes, high)?;
        Ok(Self { disk, bytes, is_taken: false, _share: share })
    }
}

impl Drop for UploadRoom {
    fn drop(&mut self) {
        if !self.is_taken {
            self.disk.index().release(self.bytes);
        }
    }
}

/// Writes a chunk, and returns its CRC-32C.
fn write(part: &NewFile, mut offset: u64, pieces: Vec<Bytes>, is_last: bool) -> io::Result<u32> {
    let (file, mut checksum) = (part.file(), 0);
    for piece in pieces {
        file.write_all_at(&piece, offset)?;
        offset += piece.len() as u64;
        checksum = crc32c::crc32c_append(checksum, &piece);
    }
    if !is_last && part.is_to_allocate() {
        part.allocate();
    }
    Ok(checksum)
}

/// Waits until a chunk is written, and returns its checksum.
async fn written(writing: JoinHandle<io::Result<u32>>) -> io::Result<u32> {
    writing.await.map_err(io::Error::other)?
}

impl Upload {
    /// Creates the file of an upload of `size` bytes; blocks.
    pub(super) fn begin(disk: Arc<Disk>, name: ObjectName, size: u64, pod: IpAddr) -> Result<Self, NoRoom> {
        if size > MAX_SIZE {
            return Err(NoRoom::new(format!("no PutObject has {size} bytes")));
        }
        let room = UploadRoom::reserve(disk, &name, room::estimate(size), pod)?;
        let store = &room.disk.store;
        let part = store.create(size, room.bytes).and_then(|part| store.make_spare_files().map(|()| part));
        let part = part.map_err(|error| {
            room.disk.notice(&error);
            NoRoom::new(format!("cannot create a file for {size} bytes: {error}"))
        })?;
        Ok(Self { room, name, size, pod, part })
    }

    /// Stores the bytes of the upload from a body, to its end.
    ///
    /// # Errors
    /// [`FillError`], also if the body has another length; the file is then removed.
    pub async fn store(
        self,
        body: BoxStream<'static, Result<Bytes, String>>,
    ) -> Result<StoredUpload, FillError> {
        let (size, disk) = (self.size, self.room.disk.clone());
        let mut chunker = Chunker::new(body, size, disk.plan.silence);
        let failed = |chunker: &Chunker, error| match error {
            ChunkError::Source(reason) => FillError::SourceFailed { after: chunker.received(), size, reason },
            ChunkError::TooLong => FillError::TooLong(size),
        };
        let mut md5 = UploadMd5::begin(self.part.file())?;
        let (mut start, mut chunks) = (0, Vec::new());
        let mut writing: Option<JoinHandle<io::Result<u32>>> = None;
        while start < size {
            let end = size.min(start + u64::from(CHUNK));
            let pieces = chunker.next(end - start, |_, _| ()).await;
            let pieces = pieces.map_err(|error| failed(&chunker, error))?;
            // One chunk is written while the next one arrives.
            if let Some(writing) = writing.take() {
                chunks.push(written(writing).await.inspect_err(|error| disk.notice(error))?);
                md5.written(start).await;
            }
            let (part, is_last) = (self.part.clone(), end == size);
            writing = Some(tokio::task::spawn_blocking(move || write(&part, start, pieces, is_last)));
            start = end;
        }
        chunker.end().await.map_err(|error| failed(&chunker, error))?;
        if let Some(writing) = writing {
            chunks.push(written(writing).await.inspect_err(|error| disk.notice(error))?);
            md5.written(size).await;
        }
        Ok(StoredUpload { upload: self, md5, chunks })
    }
}

impl StoredUpload {
    /// Makes the upload the object that the storage describes, if it has these bytes: the ETag is their MD5 hash, and the size
    /// is theirs. Otherwise removes the file.
    ///
    /// # Errors
    /// [`FillError`] if the file cannot be completed, or its bytes contradict a checksum of the description.
    pub async fn admit(self, meta: &ObjectMeta) -> Result<UploadEnd, FillError> {
        let Self { upload, md5, chunks } = self;
        let Upload { mut room, name, size, pod, part } = upload;
        let md5 = md5.end().await.inspect_err(|error| room.disk.notice(error))?;
        let md5 = NormalEtag::parse(&format!("{md5:x}"));
        let is_object = meta.version.name == name
            && meta.size == size
            && md5.is_some()
            && NormalEtag::parse(&meta.version.validator.etag) == md5;
        if !is_object {
            return Ok(UploadEnd::Differs);
        }
        let version = VersionId::of(&meta.version, None);
        let entry =
            StoreEntry { version, name: NameId::of(&name, None), is_stripe: false, size, disk: room.bytes };
        let progress = Arc::new(Progress::new(size));
        (0..).zip(chunks).for_each(|(chunk, checksum)| progress.arrived(chunk, checksum));
        let object = Arc::new(Object::filling(meta.clone(), None, part.file(), progress.clone()));
        let disk = room.disk.clone();
        room.is_taken = true;
        if !disk.index().register_upload(&entry, &object) {
            return Ok(UploadEnd::Present);
        }
        // The MD5 hash has been compared.
        Fill::new(disk, (entry, pod), object, progress, (part, None)).commit(0).await?;
        Ok(UploadEnd::Kept)
    }
}

#[cfg(test)]
#[path = "upload_tests.rs"]
mod tests;
