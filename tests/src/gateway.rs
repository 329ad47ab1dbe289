//! The embedded gateway: a small S3 server for the demo and the end-to-end tests.
//!
//! It verifies every signature (`SigV4`), checks permissions, and keeps object bytes in files and everything else in
//! memory. With [`Direct`], it also implements LOTA's gateway protocol: the response to an authorized `GetObject` with
//! `Lota-Accept: direct` is a redirect to a presigned URL of the backend.

mod access;
mod blob;
mod buckets;
mod checksum;
mod complete;
mod conditions;
mod handler;
mod head;
mod listing;
mod lists;
mod multipart;
mod names;
mod objects;
mod range;
mod reads;
mod redirect;
mod server;
mod store;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use access::Users;
use anyhow::Context as _;
use store::Store;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Settings of a gateway.
#[derive(Clone)]
pub struct Settings {
    /// Domain of virtual-host requests, such as `cwlota.com`: a request for `bucket.<zone>` has its bucket in the
    /// host. Any other host means path style.
    pub zone: String,
    /// Users that may sign requests.
    pub users: Vec<User>,
    /// Backend for authorized reads of LOTA; `None` for a plain S3 server.
    pub direct: Option<Direct>,
    /// Folder for object bytes, in files with generated names. Created if missing; the files are removed with the
    /// gateway.
    pub data_dir: PathBuf,
}

/// A credential with its permissions.
#[derive(Clone)]
pub struct User {
    /// Access key.
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    /// Permissions of the user.
    pub may: Permission,
}

/// Permissions of a user. Anything else fails with 403 `AccessDenied`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Every operation on every bucket.
    Everything,
    /// Get, head and list on every bucket.
    ReadOnly,
    /// No operation at all, although the signature is accepted.
    Nothing,
    /// Every operation on these buckets; the list of buckets contains only these.
    Buckets(Vec<String>),
}

/// The backend to which LOTA is redirected, and the credential for its URLs.
#[derive(Clone)]
pub struct Direct {
    /// Scheme and authority, such as `http://10.77.0.100:9001`.
    pub backend: String,
    /// Access key that signs. The backend must know it: if the backend is this gateway, it must be one of
    /// [`Settings::users`].
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    /// Validity of a URL, in whole seconds from 1 second to 7 days.
    pub expires: Duration,
}

/// A running gateway. Dropping it stops accepting and closes the open connections.
pub struct Gateway {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Gateway {
    /// Starts serving on `listener`, in tasks of the current Tokio runtime.
    ///
    /// # Errors
    ///
    /// If the listener has no local address or the data directory cannot be created.
    pub async fn serve(listener: TcpListener, settings: Settings) -> anyhow::Result<Gateway> {
        let address = listener.local_addr().context("listener without address")?;
        tokio::fs::create_dir_all(&settings.data_dir)
            .await
            .with_context(|| format!("cannot create {}", settings.data_dir.display()))?;
        let shared = Arc::new(Shared {
            zone: settings.zone,
            users: Users::new(settings.users),
            store: Store::new(settings.data_dir),
            direct: RwLock::new(settings.direct),
            last_node: Mutex::new(None),
        });
        let accepting = tokio::spawn(server::run(listener, Arc::clone(&shared)));
        Ok(Gateway { address, shared, accepting })
    }

    /// Returns the address on which the gateway listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the last `Lota-Node` header of any request, authorized or not.
    #[must_use]
    pub fn last_seen_node(&self) -> Option<String> {
        let last = self.shared.last_node.lock();
        last.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces all users. Those that are left out cannot sign requests any more.
    pub fn set_users(&self, users: Vec<User>) {
        self.shared.users.set(users);
    }

    /// Sets the backend for reads of LOTA; `None` turns redirects off.
    pub fn set_direct(&self, direct: Option<Direct>) {
        let current = self.shared.direct.write();
        *current.unwrap_or_else(PoisonError::into_inner) = direct;
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = &self.address;
        f.debug_struct("Gateway").field("address", address).finish_non_exhaustive()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// State that all requests of a gateway share.
struct Shared {
    zone: String,
    users: Users,
    store: Store,
    direct: RwLock<Option<Direct>>,
    last_node: Mutex<Option<String>>,
}

impl Shared {
    fn direct(&self) -> Option<Direct> {
        let current = self.direct.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn saw_node(&self, name: &str) {
        let last = self.last_node.lock();
        *last.unwrap_or_else(PoisonError::into_inner) = Some(name.to_owned());
    }
}
