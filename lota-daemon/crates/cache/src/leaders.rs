//! Single-flight: of several requests that need the same answer of the gateway, one is sent.

use std::{collections::HashMap, sync::Arc};

use lota_s3::RangeRequest;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::ids::NameId;

/// An object, and the range of it that a request asks for if the object is partial.
type LeadKey = (NameId, Option<RangeRequest>);

/// Requests to the gateway about unknown objects, or about ranges that partial objects lack.
#[derive(Debug, Default)]
pub(super) struct Leaders {
    /// Each channel closes when its request is done.
    waiting: Mutex<HashMap<LeadKey, watch::Receiver<()>>>,
}

/// Held by the single request that is sent to the gateway about an object, or a range, unknown to this node, until other
/// requests can find the response in the cache.
#[derive(Debug)]
pub struct Lead {
    leaders: Arc<Leaders>,
    key: LeadKey,
    _waiting: watch::Sender<()>,
}

impl Leaders {
    /// Makes the caller the leader; if there is one, waits until it is done and returns `None`.
    pub(super) async fn lead(self: &Arc<Self>, name: NameId, range: Option<RangeRequest>) -> Option<Lead> {
        let key = (name, range);
        let mut leader = {
            let mut waiting = self.waiting.lock();
            match waiting.get(&key) {
                Some(leader) => leader.clone(),
                None => {
                    let (sender, receiver) = watch::channel(());
                    waiting.insert(key, receiver);
                    return Some(Lead { leaders: self.clone(), key, _waiting: sender });
                }
            }
        };
        // Nothing is ever sent: the channel closes.
        let _ = leader.changed().await;
        None
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.leaders.waiting.lock().remove(&self.key);
    }
}
