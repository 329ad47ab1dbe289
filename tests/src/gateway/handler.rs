//! Dispatches S3 operations. Reads of objects are in `reads`.

use std::sync::Arc;

use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result};

use super::{Shared, buckets, complete, lists, multipart, objects};

/// The operations of one gateway.
pub(super) struct Handler(Arc<Shared>);

impl Handler {
    pub(super) fn new(shared: Arc<Shared>) -> Handler {
        Handler(shared)
    }
}

type Answer<T> = S3Result<S3Response<T>>;

#[async_trait::async_trait]
impl S3 for Handler {
    async fn create_bucket(&self, r: S3Request<CreateBucketInput>) -> Answer<CreateBucketOutput> {
        buckets::create(&self.0.store, r.input).map(S3Response::new)
    }

    async fn head_bucket(&self, r: S3Request<HeadBucketInput>) -> Answer<HeadBucketOutput> {
        self.0.store.state().bucket(&r.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn delete_bucket(&self, r: S3Request<DeleteBucketInput>) -> Answer<DeleteBucketOutput> {
        buckets::delete(&self.0.store, &r.input.bucket).map(S3Response::new)
    }

    async fn list_buckets(&self, r: S3Request<ListBucketsInput>) -> Answer<ListBucketsOutput> {
        let may_see = |name: &str| {
            let signer = r.credentials.as_ref();
            self.0.users.check(signer, "ListBuckets", Some(name)).is_ok()
        };
        Ok(S3Response::new(buckets::list(&self.0.store, may_see)))
    }

    async fn get_bucket_location(
        &self,
        r: S3Request<GetBucketLocationInput>,
    ) -> Answer<GetBucketLocationOutput> {
        self.0.store.state().bucket(&r.input.bucket)?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn list_objects(&self, r: S3Request<ListObjectsInput>) -> Answer<ListObjectsOutput> {
        lists::list_objects(&self.0.store, r.input).map(S3Response::new)
    }

    async fn list_objects_v2(&self, r: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        lists::list_objects_v2(&self.0.store, r.input).map(S3Response::new)
    }

    async fn put_object(&self, r: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        objects::put(&self.0.store, r).await.map(S3Response::new)
    }

    async fn copy_object(&self, r: S3Request<CopyObjectInput>) -> Answer<CopyObjectOutput> {
        objects::copy(&self.0.store, &r).map(S3Response::new)
    }

    async fn delete_object(&self, r: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        let bucket = &r.input.bucket;
        self.0.store.state().bucket_mut(bucket)?.objects.remove(&r.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, r: S3Request<DeleteObjectsInput>) -> Answer<DeleteObjectsOutput> {
        objects::delete_many(&self.0.store, r.input).map(S3Response::new)
    }

    async fn create_multipart_upload(
        &self,
        r: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        multipart::create(&self.0.store, r).map(S3Response::new)
    }

    async fn upload_part(&self, r: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        multipart::receive_part(&self.0.store, r).await.map(S3Response::new)
    }

    async fn complete_multipart_upload(
        &self,
        r: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        complete::complete(&self.0.store, r.input).await.map(S3Response::new)
    }

    async fn abort_multipart_upload(
        &self,
        r: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        multipart::abort(&self.0.store, &r.input).map(S3Response::new)
    }

    async fn list_parts(&self, r: S3Request<ListPartsInput>) -> Answer<ListPartsOutput> {
        multipart::list_parts(&self.0.store, r.input).map(S3Response::new)
    }
}
