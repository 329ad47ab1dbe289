//! Owners per zone: where a zone's owner fills from, and how the owner in an earlier zone fetches what another zone needs.
//!
//! The zones have an order for each object and each stripe. The owner in the first zone reads the storage; that of any other
//! zone asks the owner in the first zone before its own that has a reachable node.

use std::sync::Arc;

use lota_cache::{Stripe, placement::NodeName};
use lota_s3::{ObjectMeta, ObjectName};

use super::{Proxy, get::Get, owner::SPARE_NODES};

impl Proxy {
    /// Returns the owner in an earlier zone from which this node fills what a request reads of a version.
    pub(super) fn owner_to_fill_from(&self, get: &Get<'_>, meta: &ObjectMeta) -> Option<NodeName> {
        self.owner_in_earlier_zone(&get.object.name, get.stripe().map(|stripe| (stripe, meta.size)))
    }

    /// Returns the owner in an earlier zone from which this node fills an object, or a stripe of an object of this size.
    pub(super) fn owner_in_earlier_zone(
        &self,
        name: &ObjectName,
        stripe: Option<(Stripe, u64)>,
    ) -> Option<NodeName> {
        let peers = self.peers.as_ref()?;
        let zones = self.cluster.earlier_zones(name, stripe.map(|(stripe, _)| stripe));
        zones.iter().find_map(|zone| {
            let most = 1 + SPARE_NODES + peers.gone().len();
            let nodes = match stripe {
                Some((stripe, size)) => zone.first_of_stripe(name, stripe, size, most),
                None => zone.first(name, most),
            };
            nodes.into_iter().find(|node| !peers.is_lost(node)).cloned()
        })
    }

    /// Brings an object or a stripe into this node's cache, for the owner in another zone, as if a client of this zone had sent the
    /// request. The fill continues without its response.
    pub(super) async fn fill_for_other_zone(self: &Arc<Self>, get: &Get<'_>) {
        if let Err(error) = self.authorize_and_serve(get.again().of(get.scope)).await {
            tracing::debug!(object = %get.object.name, %error, "cannot fetch an object for another zone");
        }
    }
}
