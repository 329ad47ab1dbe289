//! The embedded gateway: a small S3 server for the demo and the end-to-end tests.
//!
//! It verifies every signature (`SigV4`), checks permissions, keeps object bytes in files and
//! everything else in memory. With [`Direct`] set it also speaks LOTA's gateway protocol: an
//! authorized `GetObject` that carries `Lota-Accept: direct` is answered by a redirect to a
//! presigned URL of the backend.

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

/// What a gateway serves, and to whom.
#[derive(Clone)]
pub struct Settings {
    /// The domain of virtual-host requests, such as `cwlota.com`: a request for
    /// `bucket.<zone>` names its bucket in the host. Any other host means path style.
    pub zone: String,
    /// Everyone who may sign a request.
    pub users: Vec<User>,
    /// Where authorized reads of LOTA are sent; `None` makes this a plain S3 server.
    pub direct: Option<Direct>,
    /// Where object bytes are kept, in files with generated names. Created if missing; the
    /// files go away with the gateway, as the metadata does.
    pub data_dir: PathBuf,
}

/// One pair of keys and what it opens.
#[derive(Clone)]
pub struct User {
    /// The public half, sent with each request.
    pub access_key: String,
    /// The secret half, which signs.
    pub secret_key: String,
    /// What a request signed by this user may do.
    pub may: Permission,
}

/// What a user may do. All that is not permitted is answered by 403 `AccessDenied`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Every operation on every bucket.
    Everything,
    /// Get, head and list on every bucket.
    ReadOnly,
    /// No operation at all, although the signature is accepted.
    Nothing,
    /// Every operation on these buckets only; listing all buckets shows these only.
    Buckets(Vec<String>),
}

/// The backend to which LOTA is redirected, and how its URLs are signed.
#[derive(Clone)]
pub struct Direct {
    /// Scheme and authority, such as `http://10.77.0.100:9001`.
    pub backend: String,
    /// The access key that signs. The backend must know it: if the backend is this very
    /// gateway, it has to be one of [`Settings::users`].
    pub access_key: String,
    /// Its secret key.
    pub secret_key: String,
    /// How long a URL stays valid, in whole seconds from 1 second to 7 days.
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

    /// The address the gateway listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The value of the last `Lota-Node` header seen in any request, authorized or not.
    #[must_use]
    pub fn last_seen_node(&self) -> Option<String> {
        let last = self.shared.last_node.lock();
        last.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets where reads of LOTA are sent from now on; `None` turns redirects off.
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

/// All that the requests of one gateway share.
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
