//! Buckets, objects and uploads, with metadata in memory and bytes in blobs.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use s3s::{S3Result, s3_error};

use super::blob::{Blob, Received};
use super::head::OwnHeaders;
use super::names;

/// Storage of a gateway.
#[derive(Debug)]
pub(super) struct Store {
    dir: PathBuf,
    state: Mutex<State>,
}

impl Store {
    pub(super) fn new(dir: PathBuf) -> Store {
        Store { dir, state: Mutex::default() }
    }

    /// Returns the folder of the blobs.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the locked metadata; not to be held across an await.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current object of a key; later writes do not change it.
    ///
    /// # Errors
    ///
    /// `NoSuchBucket` or `NoSuchKey`.
    pub(super) fn object(&self, bucket: &str, key: &str) -> S3Result<Arc<Object>> {
        let state = self.state();
        let object = state.bucket(bucket)?.objects.get(key);
        object.cloned().ok_or_else(|| s3_error!(NoSuchKey, "The specified key does not exist."))
    }
}

/// Metadata of buckets and uploads.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) buckets: BTreeMap<String, Bucket>,
    uploads: HashMap<String, Upload>,
}

impl State {
    /// # Errors
    ///
    /// `NoSuchBucket`.
    pub(super) fn bucket(&self, name: &str) -> S3Result<&Bucket> {
        self.buckets.get(name).ok_or_else(no_such_bucket)
    }

    /// # Errors
    ///
    /// `NoSuchBucket`.
    pub(super) fn bucket_mut(&mut self, name: &str) -> S3Result<&mut Bucket> {
        self.buckets.get_mut(name).ok_or_else(no_such_bucket)
    }

    pub(super) fn start_upload(&mut self, id: String, upload: Upload) {
        self.uploads.insert(id, upload);
    }

    /// Returns the upload with this id, if it is for this key.
    ///
    /// # Errors
    ///
    /// `NoSuchUpload`.
    pub(super) fn upload(&mut self, id: &str, bucket: &str, key: &str) -> S3Result<&mut Upload> {
        let upload = self.uploads.get_mut(id);
        let upload = upload.filter(|upload| upload.bucket == bucket && upload.key == key);
        upload.ok_or_else(|| s3_error!(NoSuchUpload, "The specified upload does not exist."))
    }

    pub(super) fn end_upload(&mut self, id: &str) {
        self.uploads.remove(id);
    }

    pub(super) fn end_uploads_to(&mut self, bucket: &str) {
        self.uploads.retain(|_, upload| upload.bucket != bucket);
    }
}

#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) created: SystemTime,
    pub(super) objects: BTreeMap<String, Arc<Object>>,
}

/// A version of an object.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) blob: Arc<Blob>,
    pub(super) size: u64,
    /// ETag without quotes.
    pub(super) etag: String,
    /// Modification time, in whole seconds.
    pub(super) modified: SystemTime,
    pub(super) headers: OwnHeaders,
}

impl Object {
    pub(super) fn new(received: Received, headers: OwnHeaders) -> Object {
        Object {
            blob: received.blob,
            size: received.size,
            etag: hex::encode(received.md5),
            modified: names::now(),
            headers,
        }
    }
}

/// A multipart upload in progress.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) headers: OwnHeaders,
    pub(super) parts: BTreeMap<i32, Part>,
}

#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) blob: Arc<Blob>,
    pub(super) size: u64,
    pub(super) md5: [u8; 16],
    pub(super) modified: SystemTime,
}

fn no_such_bucket() -> s3s::S3Error {
    s3_error!(NoSuchBucket, "The specified bucket does not exist")
}
