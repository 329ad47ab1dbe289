//! Tracks which access keys see the same bucket under the same name.
//!
//! Gateways with tenants (Ceph RGW) may have one bucket for each tenant under a name. Objects with the same bytes,
//! written within the same second, have the same `ETag` and date in both; their metadata may differ. A 304 for one
//! access key therefore proves nothing about headers that were learned with another, until a full response has shown
//! that both see the same object.

use std::collections::HashMap;

use hyper::header;
use lota_s3::{ObjectName, signature_location::access_key};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::http::RequestHead;

/// Maximum number of remembered pairs of access key and bucket. Beyond it, all groups are forgotten and learned
/// again.
const MAX_KEYS: usize = 1 << 16;

/// Groups of access keys, per bucket, that see the same objects.
#[derive(Debug, Default)]
pub(super) struct KeyGroups {
    /// Parent of each entry in its group (union-find).
    joined: Mutex<HashMap<u64, u64>>,
}

impl KeyGroups {
    pub(super) fn see_the_same(&self, one: u64, other: u64) -> bool {
        if one == other {
            return true;
        }
        let mut joined = self.joined.lock();
        root(&mut joined, one) == root(&mut joined, other)
    }

    pub(super) fn join(&self, one: u64, other: u64) {
        let mut joined = self.joined.lock();
        if joined.len() >= MAX_KEYS {
            joined.clear();
        }
        let (one, other) = (root(&mut joined, one), root(&mut joined, other));
        if one != other {
            joined.insert(one, other);
        }
    }
}

/// Returns the representative of an entry's group, and compresses the path to it, since joining thousands of access
/// keys one after the other would make a long chain.
fn root(joined: &mut HashMap<u64, u64>, asker: u64) -> u64 {
    let mut root = asker;
    // Only roots are joined, and only to roots, so the loop ends.
    while let Some(next) = joined.get(&root) {
        root = *next;
    }
    let mut at = asker;
    while let Some(next) = joined.get_mut(&at).filter(|next| **next != root) {
        at = std::mem::replace(next, root);
    }
    root
}

/// Returns a hash of the access key and the bucket of a request. `at_gateway` returns the access key that the gateway sees
/// instead, if the request is signed again.
pub(super) fn asker(
    head: &RequestHead,
    name: &ObjectName,
    at_gateway: impl FnOnce(&str) -> Option<String>,
) -> u64 {
    let mut hash = Sha256::new();
    hash.update(name.bucket.as_str());
    let access_key = access_key(&head.target, &head.headers);
    if !access_key.is_empty() {
        let access_key = at_gateway(&access_key).unwrap_or(access_key);
        hash.update(b"\0");
        hash.update(access_key);
    } else if let Some(authorization) = head.headers.get(header::AUTHORIZATION) {
        // Another scheme.
        hash.update(b"\0");
        hash.update(authorization);
    }
    let digest = hash.finalize();
    u64::from_le_bytes(std::array::from_fn(|at| digest[at]))
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn of(bucket: &str, query: &str, authorization: Option<&str>) -> u64 {
        at_gateway(bucket, query, authorization, None)
    }

    fn at_gateway(bucket: &str, query: &str, authorization: Option<&str>, access_key: Option<&str>) -> u64 {
        let mut request = Request::builder().uri(format!("/{bucket}/k?{query}")).header("host", "h");
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let head = RequestHead::of(request.body(()).unwrap().into_parts().0).unwrap();
        let name = ObjectName::from_parts("http://gateway", bucket, "k", None).unwrap();
        asker(&head, &name, |_| access_key.map(str::to_owned))
    }

    #[test]
    fn a_request_that_is_signed_again_counts_for_the_access_key_at_the_gateway() {
        let alice = |access_key| at_gateway("bkt", "", Some("AWS alice:abcd"), access_key);
        assert_ne!(alice(Some("tenant-1")), alice(Some("tenant-2")), "alice has moved to another tenant");
        assert_eq!(alice(Some("tenant-1")), at_gateway("bkt", "", Some("AWS bob:abcd"), Some("tenant-1")));
        assert_eq!(at_gateway("bkt", "", None, Some("tenant-1")), of("bkt", "", None), "no signature");
    }

    #[test]
    fn an_access_key_is_recognized_in_every_form_of_signature() {
        let alice =
            of("bkt", "", Some("AWS4-HMAC-SHA256 Credential=alice/20260101/r/s3/aws4_request, Signature=1"));
        assert_eq!(alice, of("bkt", "", Some("AWS alice:abcd")));
        assert_eq!(alice, of("bkt", "X-Amz-Credential=alice%2F20260101&X-Amz-Signature=0", None));
        assert_eq!(alice, of("bkt", "AWSAccessKeyId=alice&Signature=0", None));
        for other in [
            of("bkt", "", None),
            of("bkt", "", Some("AWS bob:abcd")),
            of("other", "", Some("AWS alice:abcd")),
            of("bkt", "AWSAccessKeyId=bob&Signature=0", None),
            of("bkt", "X%2DAmz-Credential=bob%2F20260101&X-Amz-Signature=0", None),
            of("bkt", "", Some("Bearer alice")),
        ] {
            assert_ne!(alice, other);
        }
    }

    #[test]
    fn keys_that_see_the_same_are_joined() {
        let key_groups = KeyGroups::default();
        key_groups.join(1, 2);
        key_groups.join(3, 4);
        assert!(key_groups.see_the_same(1, 2) && key_groups.see_the_same(5, 5));
        assert!(!key_groups.see_the_same(1, 3));
        key_groups.join(4, 1);
        assert!(key_groups.see_the_same(2, 3));
        key_groups.join(2, 3);
        assert!(!key_groups.see_the_same(2, 5));
    }

    #[test]
    fn paths_are_compressed() {
        let key_groups = KeyGroups::default();
        for asker in 1..10_000 {
            key_groups.join(0, asker);
        }
        assert!((0..10_000).all(|asker| key_groups.see_the_same(asker, 9_999)));
        let joined = key_groups.joined.lock();
        let longest = |mut at| std::iter::from_fn(|| joined.get(&at).map(|next| at = *next)).count();
        assert!((0..10_000).all(|asker| longest(asker) <= 1), "a chain is left");
    }
}
