//! Object bytes in files with generated names.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use hyper::body::{Body as _, Bytes};
use s3s::dto::StreamingBlob;
use s3s::{Body, S3Error, S3Result, StdError, s3_error};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _, BufWriter};
use tokio_util::io::ReaderStream;
use uuid::Uuid;

use super::checksum::{Checksums, Digests};

const CHUNK: usize = 256 * 1024;

/// An immutable file. It is removed with the last object, part or pending read that refers to it; open readers can
/// finish.
#[derive(Debug)]
pub(super) struct Blob(PathBuf);

impl Blob {
    fn create(dir: &Path) -> Blob {
        Blob(dir.join(Uuid::new_v4().simple().to_string()))
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        // It fails if the file was never written or the directory was removed.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A received body.
pub(super) struct Received {
    pub(super) blob: Arc<Blob>,
    pub(super) size: u64,
    pub(super) md5: [u8; 16],
}

/// Writes a body to a new file of `dir` and verifies it against `expected`.
///
/// # Errors
///
/// `IncompleteBody` if the body ends early, the error of a wrong signature or checksum, or `InternalError` if the file
/// cannot be written. The file is then removed.
pub(super) async fn receive(
    dir: &Path,
    body: Option<StreamingBlob>,
    expected: Checksums,
) -> S3Result<Received> {
    let blob = Blob::create(dir);
    let file = File::create_new(&blob.0).await.map_err(S3Error::internal_error)?;
    let mut file = BufWriter::with_capacity(CHUNK, file);
    let mut digests = Digests::new(&expected);
    let mut body = body.map_or_else(Body::empty, Body::from);
    let mut size = 0;
    while let Some(chunk) = next_chunk(&mut body).await? {
        digests.update(&chunk);
        file.write_all(&chunk).await.map_err(S3Error::internal_error)?;
        size += chunk.len() as u64;
    }
    file.flush().await.map_err(S3Error::internal_error)?;
    Ok(Received { blob: Arc::new(blob), size, md5: expected.verify(digests)? })
}

async fn next_chunk(body: &mut Body) -> S3Result<Option<Bytes>> {
    loop {
        let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => return Err(broken_body(error)),
            // Other frames are trailers.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

fn broken_body(error: StdError) -> S3Error {
    // s3s does not export the types of these errors, only their texts.
    let text = format!("{error:?} {error}");
    let code = if text.contains("Sha256Mismatch") {
        s3s::S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into())
    } else if text.contains("SignatureMismatch") {
        s3s::S3ErrorCode::SignatureDoesNotMatch
    } else {
        s3s::S3ErrorCode::IncompleteBody
    };
    let mut answer = S3Error::with_source(code, error);
    if answer.status_code().is_none() {
        answer.set_status_code(hyper::StatusCode::BAD_REQUEST);
    }
    answer
}

/// Streams a range of a file.
///
/// # Errors
///
/// If the file cannot be opened.
pub(super) async fn read(blob: &Blob, range: Range<u64>) -> io::Result<Body> {
    if range.is_empty() {
        return Ok(Body::empty());
    }
    let mut file = File::open(&blob.0).await?;
    file.seek(io::SeekFrom::Start(range.start)).await?;
    let reader = file.take(range.end - range.start);
    let stream = ReaderStream::with_capacity(reader, CHUNK);
    Ok(Body::from(StreamingBlob::wrap(stream)))
}

/// Concatenates files.
///
/// # Errors
///
/// `InternalError` if a file cannot be read or written.
pub(super) async fn join(dir: &Path, parts: Vec<Arc<Blob>>) -> S3Result<Arc<Blob>> {
    if let [only] = parts.as_slice() {
        return Ok(Arc::clone(only));
    }
    let whole = Blob::create(dir);
    let copy = move || -> io::Result<Blob> {
        let mut to = std::fs::File::create_new(&whole.0)?;
        for part in &parts {
            io::copy(&mut std::fs::File::open(&part.0)?, &mut to)?;
        }
        Ok(whole)
    };
    match tokio::task::spawn_blocking(copy).await {
        Ok(joined) => Ok(Arc::new(joined.map_err(S3Error::internal_error)?)),
        Err(error) => Err(s3_error!(error, InternalError)),
    }
}
