//! Operations that write or delete objects.

use std::sync::Arc;

use s3s::dto::{
    CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, DeleteObjectsInput, DeleteObjectsOutput,
    DeletedObject, MetadataDirective, PutObjectInput, PutObjectOutput, Timestamp,
};
use s3s::{S3Request, S3Result, s3_error};

use super::checksum::Checksums;
use super::head::OwnHeaders;
use super::names::{self, strong};
use super::store::{Object, Store};
use super::{blob, conditions};

pub(super) async fn put(store: &Store, mut request: S3Request<PutObjectInput>) -> S3Result<PutObjectOutput> {
    let body = request.input.body.take();
    let expected = Checksums::of(&request);
    let headers = OwnHeaders::of(&request.headers);
    let input = request.input;
    let check = |current: Option<&Object>| {
        conditions::check_write(input.if_match.as_ref(), input.if_none_match.as_ref(), current)
    };
    // Checked before the body is read, to refuse early, and again before the write.
    let current = store.state().bucket(&input.bucket)?.objects.get(&input.key).cloned();
    check(current.as_deref())?;
    drop(current);
    let received = blob::receive(store.dir(), body, expected).await?;
    let object = Object::new(received, headers);
    let e_tag = strong(&object.etag);
    let mut state = store.state();
    let objects = &mut state.bucket_mut(&input.bucket)?.objects;
    check(objects.get(&input.key).map(Arc::as_ref))?;
    objects.insert(input.key, Arc::new(object));
    Ok(PutObjectOutput { e_tag: Some(e_tag), ..Default::default() })
}

/// Copies an object; both share a blob.
pub(super) fn copy(store: &Store, request: &S3Request<CopyObjectInput>) -> S3Result<CopyObjectOutput> {
    let input = &request.input;
    let CopySource::Bucket { bucket, key, .. } = &input.copy_source else {
        return Err(s3_error!(NotImplemented));
    };
    let source = store.object(bucket, key)?;
    conditions::check_copy(input, &source)?;
    let replace = input
        .metadata_directive
        .as_ref()
        .is_some_and(|directive| directive.as_str() == MetadataDirective::REPLACE);
    if !replace && **bucket == *input.bucket && **key == *input.key {
        return Err(s3_error!(
            InvalidRequest,
            "This copy request is illegal because it is trying to copy an object to itself \
             without changing the object's metadata."
        ));
    }
    let object = Object {
        blob: Arc::clone(&source.blob),
        size: source.size,
        etag: source.etag.clone(),
        modified: names::now(),
        headers: if replace { OwnHeaders::of(&request.headers) } else { source.headers.clone() },
    };
    let result = CopyObjectResult {
        e_tag: Some(strong(&object.etag)),
        last_modified: Some(Timestamp::from(object.modified)),
        ..Default::default()
    };
    let mut state = store.state();
    let objects = &mut state.bucket_mut(&input.bucket)?.objects;
    objects.insert(input.key.clone(), Arc::new(object));
    Ok(CopyObjectOutput { copy_object_result: Some(result), ..Default::default() })
}

pub(super) fn delete_many(store: &Store, input: DeleteObjectsInput) -> S3Result<DeleteObjectsOutput> {
    let mut state = store.state();
    let objects = &mut state.bucket_mut(&input.bucket)?.objects;
    let mut deleted = Vec::new();
    for named in input.delete.objects {
        objects.remove(&named.key);
        deleted.push(DeletedObject { key: Some(named.key), ..Default::default() });
    }
    let quiet = input.delete.quiet == Some(true);
    Ok(DeleteObjectsOutput { deleted: (!quiet).then_some(deleted), ..Default::default() })
}
