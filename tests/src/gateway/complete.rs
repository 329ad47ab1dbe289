//! Completes multipart uploads.

use std::sync::Arc;

use s3s::dto::{CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CompletedPart, ETag};
use s3s::{S3Result, s3_error};

use super::names::{self, strong};
use super::store::{Object, Part, Store, Upload};
use super::{blob, conditions};

/// Minimum size of all parts but the last, in bytes.
const LEAST_PART_SIZE: u64 = 5 << 20;

pub(super) async fn complete(
    store: &Store,
    input: CompleteMultipartUploadInput,
) -> S3Result<CompleteMultipartUploadOutput> {
    let (id, bucket, key) = (input.upload_id, input.bucket, input.key);
    let named = input.multipart_upload.and_then(|upload| upload.parts);
    let named = named.unwrap_or_default();
    let (headers, parts) = {
        let mut state = store.state();
        let upload = state.upload(&id, &bucket, &key)?;
        (upload.headers.clone(), choose_parts(upload, &named)?)
    };
    let mut digests = md5::Context::new();
    for part in &parts {
        digests.consume(part.md5);
    }
    let digest = digests.finalize().0;
    let size = parts.iter().map(|part| part.size).sum();
    let etag = format!("{}-{}", hex::encode(digest), parts.len());
    let blobs = parts.into_iter().map(|part| part.blob).collect();
    let object = Object {
        blob: blob::join(store.dir(), blobs).await?,
        size,
        etag: etag.clone(),
        modified: names::now(),
        headers,
    };
    let mut state = store.state();
    // It may have been aborted or completed meanwhile.
    state.upload(&id, &bucket, &key)?;
    let objects = &mut state.bucket_mut(&bucket)?.objects;
    let current = objects.get(&key).map(Arc::as_ref);
    conditions::check_write(input.if_match.as_ref(), input.if_none_match.as_ref(), current)?;
    objects.insert(key.clone(), Arc::new(object));
    state.end_upload(&id);
    Ok(CompleteMultipartUploadOutput {
        location: Some(format!("/{bucket}/{}", names::encode_key(&key))),
        bucket: Some(bucket),
        key: Some(key),
        e_tag: Some(strong(&etag)),
        ..Default::default()
    })
}

/// Returns the parts that the client lists, if they match the uploaded ones.
fn choose_parts(upload: &Upload, named: &[CompletedPart]) -> S3Result<Vec<Part>> {
    if named.is_empty() {
        return Err(s3_error!(MalformedXML, "You must specify at least one part"));
    }
    if !named.is_sorted_by(|a, b| a.part_number < b.part_number) {
        return Err(s3_error!(InvalidPartOrder, "The list of parts was not in ascending order."));
    }
    let mut parts = Vec::with_capacity(named.len());
    for (index, name) in named.iter().enumerate() {
        let part = name.part_number.and_then(|number| upload.parts.get(&number));
        let tag = name.e_tag.as_ref().map(ETag::value);
        let part = part.filter(|part| tag == Some(hex::encode(part.md5).as_str()));
        let part = part.ok_or_else(|| {
            s3_error!(InvalidPart, "One or more of the specified parts could not be found.")
        })?;
        if part.size < LEAST_PART_SIZE && index + 1 < named.len() {
            return Err(s3_error!(
                EntityTooSmall,
                "Your proposed upload is smaller than the minimum allowed size"
            ));
        }
        parts.push(part.clone());
    }
    Ok(parts)
}
