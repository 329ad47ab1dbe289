//! MD5 hash of an upload, from its file while it is being written.
//!
//! MD5 takes more CPU time than everything else that is done with the bytes. It is computed at the lowest priority, so that uploads
//! and reads come first if the CPUs are busy.

use std::{
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, mpsc},
    thread,
};

use md5::Digest;
use tokio::sync::oneshot;

use super::file::BodyFile;

/// Lowest priority of a thread, as in `nice(1)`.
const NICENESS: i32 = 19;
/// Bytes that are read from the file at once.
const BUFFER: usize = 128 << 10;
/// Stack of the thread in bytes.
const STACK: usize = 64 << 10;

/// A thread that computes the hash. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct UploadMd5 {
    /// Ends of what is written.
    written: mpsc::Sender<u64>,
    hash: oneshot::Receiver<io::Result<Digest>>,
}

impl UploadMd5 {
    /// Begins to compute the hash of a file.
    ///
    /// # Errors
    /// If no thread can be created.
    pub(super) fn begin(file: Arc<BodyFile>) -> io::Result<Self> {
        let ((written, ends), (result, hash)) = (mpsc::channel(), oneshot::channel());
        let thread = thread::Builder::new().name("upload-md5".to_owned()).stack_size(STACK);
        thread.spawn(move || {
            // Of this thread only; without it, the hash is correct all the same.
            let _ = rustix::process::setpriority_process(None, NICENESS);
            let _ = result.send(hash_of(&file, &ends));
        })?;
        Ok(Self { written, hash })
    }

    /// Reports that the file is written up to `end`, which grows from call to call.
    pub(super) fn written(&self, end: u64) {
        // A thread that has failed reports it at the end.
        let _ = self.written.send(end);
    }

    /// Returns the hash of all that was written.
    ///
    /// # Errors
    /// If the file could not be read.
    pub(super) async fn end(self) -> io::Result<Digest> {
        drop(self.written);
        self.hash.await.map_err(io::Error::other)?
    }
}

/// Hashes a file up to the last of `ends`, which ends with the upload.
fn hash_of(file: &BodyFile, ends: &mpsc::Receiver<u64>) -> io::Result<Digest> {
    let (mut hash, mut at, mut buffer) = (md5::Context::new(), 0, vec![0; BUFFER]);
    for end in ends {
        while at < end {
            let length = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let piece = &mut buffer[..length];
            file.read_exact_at(piece, at)?;
            hash.consume(piece);
            at += length as u64;
        }
    }
    Ok(hash.finalize())
}
