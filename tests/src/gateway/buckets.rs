//! Operations on buckets.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use s3s::dto::{CreateBucketInput, CreateBucketOutput, DeleteBucketOutput, ListBucketsOutput, Timestamp};
use s3s::{S3Result, s3_error};

use super::names;
use super::store::{Bucket, Store};

pub(super) fn create(store: &Store, input: CreateBucketInput) -> S3Result<CreateBucketOutput> {
    let location = format!("/{}", input.bucket);
    match store.state().buckets.entry(input.bucket) {
        Entry::Occupied(_) => Err(s3_error!(BucketAlreadyOwnedByYou)),
        Entry::Vacant(place) => {
            place.insert(Bucket { created: names::now(), objects: BTreeMap::new() });
            Ok(CreateBucketOutput { location: Some(location) })
        }
    }
}

pub(super) fn delete(store: &Store, bucket: &str) -> S3Result<DeleteBucketOutput> {
    let mut state = store.state();
    if !state.bucket(bucket)?.objects.is_empty() {
        return Err(s3_error!(BucketNotEmpty, "The bucket you tried to delete is not empty"));
    }
    state.end_uploads_to(bucket);
    state.buckets.remove(bucket);
    Ok(DeleteBucketOutput::default())
}

pub(super) fn list(store: &Store, may_see: impl Fn(&str) -> bool) -> ListBucketsOutput {
    let state = store.state();
    let seen = state.buckets.iter().filter(|(name, _)| may_see(name));
    let buckets = seen.map(|(name, bucket)| s3s::dto::Bucket {
        name: Some(name.clone()),
        creation_date: Some(Timestamp::from(bucket.created)),
        ..Default::default()
    });
    ListBucketsOutput { buckets: Some(buckets.collect()), ..Default::default() }
}
