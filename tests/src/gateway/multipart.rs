//! Multipart uploads, except their completion.

use std::collections::BTreeMap;

use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CreateMultipartUploadInput,
    CreateMultipartUploadOutput, ListPartsInput, ListPartsOutput, Timestamp, UploadPartInput,
    UploadPartOutput,
};
use s3s::{S3Request, S3Result, s3_error};
use uuid::Uuid;

use super::blob;
use super::checksum::Checksums;
use super::head::OwnHeaders;
use super::names::{self, strong};
use super::store::{Part, Store, Upload};

const MAX_PARTS: i32 = 10_000;
const MAX_PARTS_LISTED: i32 = 1000;

pub(super) fn create(
    store: &Store,
    request: S3Request<CreateMultipartUploadInput>,
) -> S3Result<CreateMultipartUploadOutput> {
    let (bucket, key) = (request.input.bucket, request.input.key);
    let id = Uuid::new_v4().simple().to_string();
    let mut state = store.state();
    state.bucket(&bucket)?;
    let upload = Upload {
        bucket: bucket.clone(),
        key: key.clone(),
        headers: OwnHeaders::of(&request.headers),
        parts: BTreeMap::new(),
    };
    state.start_upload(id.clone(), upload);
    Ok(CreateMultipartUploadOutput {
        bucket: Some(bucket),
        key: Some(key),
        upload_id: Some(id),
        ..Default::default()
    })
}

pub(super) async fn receive_part(
    store: &Store,
    mut request: S3Request<UploadPartInput>,
) -> S3Result<UploadPartOutput> {
    let body = request.input.body.take();
    let expected = Checksums::of(&request);
    let input = request.input;
    if !(1..=MAX_PARTS).contains(&input.part_number) {
        return Err(s3_error!(
            InvalidArgument,
            "Part number must be an integer between 1 and 10000, inclusive"
        ));
    }
    store.state().upload(&input.upload_id, &input.bucket, &input.key)?;
    let received = blob::receive(store.dir(), body, expected).await?;
    let part = Part { blob: received.blob, size: received.size, md5: received.md5, modified: names::now() };
    let e_tag = strong(&hex::encode(part.md5));
    let mut state = store.state();
    let upload = state.upload(&input.upload_id, &input.bucket, &input.key)?;
    upload.parts.insert(input.part_number, part);
    Ok(UploadPartOutput { e_tag: Some(e_tag), ..Default::default() })
}

pub(super) fn abort(
    store: &Store,
    input: &AbortMultipartUploadInput,
) -> S3Result<AbortMultipartUploadOutput> {
    let mut state = store.state();
    state.upload(&input.upload_id, &input.bucket, &input.key)?;
    state.end_upload(&input.upload_id);
    Ok(AbortMultipartUploadOutput::default())
}

pub(super) fn list_parts(store: &Store, input: ListPartsInput) -> S3Result<ListPartsOutput> {
    let max_parts = input.max_parts.unwrap_or(MAX_PARTS_LISTED).clamp(0, MAX_PARTS_LISTED);
    let after = input.part_number_marker.unwrap_or(0);
    let mut state = store.state();
    let upload = state.upload(&input.upload_id, &input.bucket, &input.key)?;
    let mut rest = upload.parts.range(after.saturating_add(1)..);
    let listed = rest.by_ref().take(max_parts.unsigned_abs() as usize);
    let parts: Vec<_> = listed.map(|(number, part)| listed_part(*number, part)).collect();
    Ok(ListPartsOutput {
        bucket: Some(input.bucket),
        key: Some(input.key),
        upload_id: Some(input.upload_id),
        max_parts: Some(max_parts),
        part_number_marker: Some(after),
        next_part_number_marker: parts.last().and_then(|part| part.part_number),
        is_truncated: Some(rest.next().is_some()),
        parts: Some(parts),
        ..Default::default()
    })
}

fn listed_part(number: i32, part: &Part) -> s3s::dto::Part {
    s3s::dto::Part {
        part_number: Some(number),
        e_tag: Some(strong(&hex::encode(part.md5))),
        last_modified: Some(Timestamp::from(part.modified)),
        size: i64::try_from(part.size).ok(),
        ..Default::default()
    }
}
