//! `ListObjects` and `ListObjectsV2`.

use s3s::dto::{
    CommonPrefix, EncodingType, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output,
    Object as Listed, ObjectStorageClass, Timestamp,
};
use s3s::{S3Result, s3_error};

use super::listing::{self, Page, PageQuery};
use super::names::{encode_key, strong};
use super::store::Store;

const MAX_KEYS: i32 = 1000;

pub(super) fn list_objects(store: &Store, input: ListObjectsInput) -> S3Result<ListObjectsOutput> {
    let spelling = Spelling::of(input.encoding_type.as_ref());
    let max_keys = max_keys(input.max_keys)?;
    let page = listing::list(
        &store.state().bucket(&input.bucket)?.objects,
        &PageQuery {
            prefix: input.prefix.as_deref().unwrap_or_default(),
            delimiter: input.delimiter.as_deref(),
            after: input.marker.as_deref(),
            max_keys: max_keys.unsigned_abs() as usize,
        },
    );
    Ok(ListObjectsOutput {
        name: Some(input.bucket),
        max_keys: Some(max_keys),
        is_truncated: Some(page.last_of_more.is_some()),
        contents: Some(spelling.contents(&page)),
        common_prefixes: Some(spelling.prefixes(&page)),
        next_marker: spelling.optional(page.last_of_more),
        prefix: spelling.optional(Some(input.prefix.unwrap_or_default())),
        marker: spelling.optional(Some(input.marker.unwrap_or_default())),
        delimiter: spelling.optional(input.delimiter),
        encoding_type: input.encoding_type,
        ..Default::default()
    })
}

pub(super) fn list_objects_v2(store: &Store, input: ListObjectsV2Input) -> S3Result<ListObjectsV2Output> {
    let spelling = Spelling::of(input.encoding_type.as_ref());
    let max_keys = max_keys(input.max_keys)?;
    let token = input.continuation_token.as_deref().map(from_token);
    let after = token.transpose()?.or_else(|| input.start_after.clone());
    let page = listing::list(
        &store.state().bucket(&input.bucket)?.objects,
        &PageQuery {
            prefix: input.prefix.as_deref().unwrap_or_default(),
            delimiter: input.delimiter.as_deref(),
            after: after.as_deref(),
            max_keys: max_keys.unsigned_abs() as usize,
        },
    );
    let contents = spelling.contents(&page);
    let prefixes = spelling.prefixes(&page);
    Ok(ListObjectsV2Output {
        name: Some(input.bucket),
        max_keys: Some(max_keys),
        key_count: i32::try_from(contents.len() + prefixes.len()).ok(),
        is_truncated: Some(page.last_of_more.is_some()),
        contents: Some(contents),
        common_prefixes: Some(prefixes),
        next_continuation_token: page.last_of_more.map(hex::encode),
        continuation_token: input.continuation_token,
        prefix: spelling.optional(Some(input.prefix.unwrap_or_default())),
        start_after: spelling.optional(input.start_after),
        delimiter: spelling.optional(input.delimiter),
        encoding_type: input.encoding_type,
        ..Default::default()
    })
}

fn max_keys(requested: Option<i32>) -> S3Result<i32> {
    match requested.unwrap_or(MAX_KEYS) {
        ..0 => Err(s3_error!(InvalidArgument, "max-keys must not be negative")),
        keys => Ok(keys.min(MAX_KEYS)),
    }
}

fn from_token(token: &str) -> S3Result<String> {
    let key = hex::decode(token).ok();
    let key = key.and_then(|key| String::from_utf8(key).ok());
    key.ok_or_else(|| s3_error!(InvalidArgument, "The continuation token is not valid"))
}

/// Encoding of keys in a list: plain, or percent-encoded on request, since XML cannot represent every character.
#[derive(Clone, Copy)]
enum Spelling {
    Plain,
    Encoded,
}

impl Spelling {
    fn of(requested: Option<&EncodingType>) -> Spelling {
        match requested {
            Some(encoding) if encoding.as_str() == EncodingType::URL => Spelling::Encoded,
            _ => Spelling::Plain,
        }
    }

    fn text(self, key: &str) -> String {
        match self {
            Spelling::Plain => key.to_owned(),
            Spelling::Encoded => encode_key(key),
        }
    }

    fn optional(self, key: Option<String>) -> Option<String> {
        key.map(|key| self.text(&key))
    }

    fn contents(self, page: &Page) -> Vec<Listed> {
        let listed = page.objects.iter().map(|(key, object)| Listed {
            key: Some(self.text(key)),
            e_tag: Some(strong(&object.etag)),
            last_modified: Some(Timestamp::from(object.modified)),
            size: i64::try_from(object.size).ok(),
            storage_class: Some(ObjectStorageClass::from_static(ObjectStorageClass::STANDARD)),
            ..Default::default()
        });
        listed.collect()
    }

    fn prefixes(self, page: &Page) -> Vec<CommonPrefix> {
        let listed = page.prefixes.iter().map(|prefix| CommonPrefix { prefix: Some(self.text(prefix)) });
        listed.collect()
    }
}
