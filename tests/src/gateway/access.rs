//! Users and their permissions, and the bucket in a host name.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{Credentials, S3Auth, SecretKey};
use s3s::dto::{CopyObjectInput, CopySource};
use s3s::host::{S3Host, VirtualHost};
use s3s::{S3Request, S3Result, s3_error};

use super::{Permission, Shared, User};

/// All users by access key.
pub(super) struct Users(RwLock<HashMap<String, User>>);

impl Users {
    pub(super) fn new(users: Vec<User>) -> Users {
        Users(RwLock::new(by_key(users)))
    }

    /// Replaces all users.
    pub(super) fn set(&self, users: Vec<User>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = by_key(users);
    }

    fn find(&self, access_key: &str) -> Option<User> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(access_key).cloned()
    }

    /// Fails with `AccessDenied` unless the signer may do `operation` on `bucket`; `None` for the list of all buckets.
    pub(super) fn check(
        &self,
        signer: Option<&Credentials>,
        operation: &str,
        bucket: Option<&str>,
    ) -> S3Result<()> {
        let user = signer.and_then(|signer| self.find(&signer.access_key));
        match user {
            Some(user) if user.may.allows(operation, bucket) => Ok(()),
            _ => Err(s3_error!(AccessDenied, "Access Denied")),
        }
    }
}

fn by_key(users: Vec<User>) -> HashMap<String, User> {
    users.into_iter().map(|user| (user.access_key.clone(), user)).collect()
}

impl Permission {
    fn allows(&self, operation: &str, bucket: Option<&str>) -> bool {
        match self {
            Permission::Everything => true,
            Permission::ReadOnly => {
                ["Get", "Head", "List"].iter().any(|reading| operation.starts_with(reading))
            }
            Permission::Nothing => false,
            Permission::Buckets(names) => bucket.is_none_or(|bucket| names.iter().any(|name| name == bucket)),
        }
    }
}

/// Implements s3s's traits for keys and permissions with the users of the gateway.
pub(super) struct AccessRules(Arc<Shared>);

impl AccessRules {
    pub(super) fn new(shared: Arc<Shared>) -> AccessRules {
        AccessRules(shared)
    }
}

#[async_trait::async_trait]
impl S3Auth for AccessRules {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        match self.0.users.find(access_key) {
            Some(user) => Ok(SecretKey::from(user.secret_key.as_str())),
            None => Err(s3_error!(
                InvalidAccessKeyId,
                "The access key ID you provided does not exist in our records."
            )),
        }
    }
}

#[async_trait::async_trait]
impl S3Access for AccessRules {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let bucket = context.s3_path().get_bucket_name();
        let operation = context.s3_op().name();
        self.0.users.check(context.credentials(), operation, bucket)
    }

    async fn copy_object(&self, request: &mut S3Request<CopyObjectInput>) -> S3Result<()> {
        let CopySource::Bucket { bucket, .. } = &request.input.copy_source else {
            return Err(s3_error!(NotImplemented));
        };
        let signer = request.credentials.as_ref();
        self.0.users.check(signer, "GetObject", Some(bucket))
    }
}

/// Parses the bucket from the `Host` header.
pub(super) struct Zone(Arc<Shared>);

impl Zone {
    pub(super) fn new(shared: Arc<Shared>) -> Zone {
        Zone(shared)
    }
}

impl S3Host for Zone {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let found = VirtualHost::new(host);
        Ok(match bucket_of_host(host, &self.0.zone) {
            Some(bucket) => found.with_bucket(bucket),
            None => found,
        })
    }
}

/// Returns the bucket in `host`, with or without a port, within `zone`; `None` for path style.
pub(super) fn bucket_of_host(host: &str, zone: &str) -> Option<String> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.to_ascii_lowercase();
    let bucket = name.strip_suffix(&zone.to_ascii_lowercase())?;
    let bucket = bucket.strip_suffix('.')?;
    (!bucket.is_empty()).then(|| bucket.to_owned())
}
