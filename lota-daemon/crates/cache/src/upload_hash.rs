//! MD5 hash of an upload, from its file while it is being written.
//!
//! MD5 takes more CPU time than everything else that is done with the bytes. It is computed at the lowest priority, so that uploads
//! and reads come first if the CPUs are busy. The owner takes no more of an upload whose hash is far behind.

use std::{
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, mpsc},
    thread,
};

use md5::Digest;
use tokio::sync::watch;

use super::file::BodyFile;

/// Lowest priority of a thread, as in `nice(1)`.
const NICENESS: i32 = 19;
/// Bytes that are read from the file at once.
const BUFFER: usize = 128 << 10;
/// Stack of the thread in bytes.
const STACK: usize = 64 << 10;

/// Maximum number of bytes by which the hash may be behind.
const MAX_BEHIND: u64 = 64 << 20;

/// A thread that computes the hash. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct UploadMd5 {
    /// Ends of what is written.
    written: mpsc::Sender<u64>,
    state: watch::Receiver<HashState>,
}

/// State of a hash.
#[derive(Debug)]
enum HashState {
    /// The number of bytes that are hashed.
    At(u64),
    End(io::Result<Digest>),
}

impl UploadMd5 {
    /// Begins to compute the hash of a file.
    ///
    /// # Errors
    /// If no thread can be created.
    pub(super) fn begin(file: Arc<BodyFile>) -> io::Result<Self> {
        let ((written, ends), (state, received)) = (mpsc::channel(), watch::channel(HashState::At(0)));
        let thread = thread::Builder::new().name("upload-md5".to_owned()).stack_size(STACK);
        thread.spawn(move || {
            // Of this thread only; without it, the hash is correct all the same.
            let _ = rustix::process::setpriority_process(None, NICENESS);
            if let Some(end) = hash_of(&file, &ends, &state).transpose() {
                state.send_replace(HashState::End(end));
            }
        })?;
        Ok(Self { written, state: received })
    }

    /// Reports that the file is written up to `end`, which grows from call to call. Waits if the hash is far behind.
    pub(super) async fn written(&mut self, end: u64) {
        // A thread that has failed reports it at the end.
        let _ = self.written.send(end);
        let is_near = |state: &HashState| match state {
            HashState::At(at) => end.saturating_sub(*at) <= MAX_BEHIND,
            HashState::End(_) => true,
        };
        let _ = self.state.wait_for(is_near).await;
    }

    /// Returns the hash of all that was written.
    ///
    /// # Errors
    /// If the file could not be read.
    pub(super) async fn end(self) -> io::Result<Digest> {
        let Self { written, mut state } = self;
        drop(written);
        let ended = state.wait_for(|state| matches!(state, HashState::End(_))).await;
        match &*ended.map_err(io::Error::other)? {
            HashState::End(Ok(hash)) => Ok(*hash),
            HashState::End(Err(error)) => Err(io::Error::new(error.kind(), error.to_string())),
            HashState::At(_) => unreachable!("waited for the end"),
        }
    }
}

/// Hashes a file up to the last of `ends`, which ends with the upload. Returns `None` once nobody wants the hash.
fn hash_of(
    file: &BodyFile,
    ends: &mpsc::Receiver<u64>,
    state: &watch::Sender<HashState>,
) -> io::Result<Option<Digest>> {
    let (mut hash, mut at, mut buffer) = (md5::Context::new(), 0, vec![0; BUFFER]);
    for end in ends {
        while at < end {
            if state.is_closed() {
                return Ok(None);
            }
            let length = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let piece = &mut buffer[..length];
            file.read_exact_at(piece, at)?;
            hash.consume(piece);
            at += length as u64;
            state.send_replace(HashState::At(at));
        }
    }
    Ok(Some(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn sparse(size: u64) -> Arc<BodyFile> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        BodyFile::new(file)
    }

    #[tokio::test]
    async fn an_upload_waits_for_a_hash_that_is_far_behind() {
        let size = MAX_BEHIND + 16 * MIB;
        let mut hash = UploadMd5::begin(sparse(size)).unwrap();
        hash.written(size).await;
        assert!(matches!(&*hash.state.borrow(), HashState::At(at) if *at >= 16 * MIB));
        assert_eq!(hash.end().await.unwrap(), md5::compute(vec![0; usize::try_from(size).unwrap()]));
    }

    #[tokio::test]
    async fn the_thread_ends_with_the_upload() {
        let file = sparse(1 << 40);
        let hash = UploadMd5::begin(file.clone()).unwrap();
        hash.written.send(1 << 40).unwrap();
        drop(hash);
        let began = Instant::now();
        while Arc::strong_count(&file) > 1 {
            assert!(began.elapsed() < Duration::from_secs(30), "it still reads");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
