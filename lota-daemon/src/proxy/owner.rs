//! Selects the owner that serves an object: the first reachable node of its placement, or another one if that node is
//! overloaded or the object is hot. Fills of the other owners of a hot object read from the first, and those of other zones'
//! owners from an earlier zone's (`zones.rs`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::{
    HeaderMap, Response, StatusCode,
    header::{self, HeaderValue},
};
use lota_cache::{
    Reader, Stripe,
    placement::{NodeName, Placement},
};
use lota_s3::{ByteRange, CacheControl, GetObject, ObjectMeta, ObjectName, RangeRequest, S3Error};
use rand::Rng as _;
use tokio::time::timeout;

use super::{Proxy, get::Get, response};
use crate::{
    cluster::peer::{
        Peers,
        headers::{self, PeerMethod},
    },
    gateway::{Authorization, FillAuthority, Grant},
    http::Body,
    metrics::Outcome,
};

/// Copy of an object at another owner, from which this node can fill.
pub(super) struct OwnerCopy {
    node: NodeName,
    pub(super) meta: Arc<ObjectMeta>,
    /// Authority with which the fill continues at the source if that owner fails.
    authority: FillAuthority,
}

/// Number of nodes to ask if the owners fail.
pub(super) const SPARE_NODES: usize = 2;
/// Timeout for a replica; kept short because other requests wait on the caller.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout for the owner in an earlier zone, which may have to wait for the gateway and the storage first.
pub(super) const ZONE_TIMEOUT: Duration = Duration::from_secs(10);
/// Load in bytes above which the next node is used instead, if it has less than half of that load.
const OVERLOAD_BYTES: u64 = 256 << 20;
/// Maximum bytes that one response counts toward the load, so that a slow client with a huge object does not make a node
/// look overloaded.
const MAX_LOAD_PER_RESPONSE: u64 = 64 << 20;

/// Bytes that this node still has to send.
#[derive(Clone, Debug, Default)]
pub struct Load(Arc<AtomicU64>);

/// Share of one response in the load; removed when it is dropped.
#[derive(Debug)]
pub(super) struct QueuedBytes {
    load: Load,
    bytes: u64,
    /// Bytes of the response that do not count toward the load.
    beyond: u64,
}

impl Load {
    /// Adds a response of `bytes` to the load.
    pub(super) fn queue(&self, bytes: u64) -> QueuedBytes {
        let counted = bytes.min(MAX_LOAD_PER_RESPONSE);
        self.0.fetch_add(counted, Ordering::Relaxed);
        QueuedBytes { load: self.clone(), bytes: counted, beyond: bytes - counted }
    }

    /// Returns the load in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl QueuedBytes {
    /// Removes bytes that have been sent from the load.
    pub(super) fn sent(&mut self, bytes: u64) {
        let beyond = bytes.min(self.beyond);
        self.beyond -= beyond;
        let counted = (bytes - beyond).min(self.bytes);
        self.bytes -= counted;
        self.load.0.fetch_sub(counted, Ordering::Relaxed);
    }
}

impl Drop for QueuedBytes {
    fn drop(&mut self) {
        self.load.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Moves the node to ask to the front. Of several owners: this node, otherwise a random one of this zone, otherwise a
/// random one. Of a single owner: the next node if the owner is overloaded.
fn prefer(
    nodes: &mut [NodeName],
    owners: usize,
    here: &NodeName,
    is_near: impl Fn(&NodeName) -> bool,
    load: impl Fn(&NodeName) -> u64,
) {
    let owners = owners.min(nodes.len());
    if owners > 1 {
        let nodes = &mut nodes[..owners];
        if let Some(place) = nodes.iter().position(|node| node == here) {
            return nodes.rotate_left(place);
        }
        let near: Vec<usize> = (0..owners).filter(|place| is_near(&nodes[*place])).collect();
        let any = rand::rng().random_range(0..if near.is_empty() { owners } else { near.len() });
        nodes.rotate_left(near.get(any).copied().unwrap_or(any));
    } else if let [first, second, ..] = nodes
        && first != here
        && load(first) > OVERLOAD_BYTES.max(2 * load(second))
    {
        nodes.swap(0, 1);
    }
}

/// Returns the request headers that affect another owner's response: only `Range`, since its cache holds the same bytes for
/// every client.
pub(super) fn part_headers(range: ByteRange) -> HeaderMap {
    let value = HeaderValue::from_str(&range.to_string()).ok();
    value.map(|range| (header::RANGE, range)).into_iter().collect()
}

impl Proxy {
    /// Returns the nodes to ask for an object, in order. This node can be among them.
    pub(super) fn candidates(&self, get: &Get<'_>) -> Vec<NodeName> {
        let Some(peers) = &self.peers else { return Vec::new() };
        let name = &get.object.name;
        let owners = if self.can_replicate(get) { self.hot_objects.owners(name) } else { 1 };
        let placement = self.cluster.placement_near();
        let mut nodes = self.choices(&placement, name, self.hot_objects.max_owners() + SPARE_NODES);
        let load = |node: &NodeName| if *node == self.node { self.load.bytes() } else { peers.load(node) };
        prefer(&mut nodes, owners, &self.node, |node| self.cluster.is_near(node), load);
        nodes.retain(|node| !peers.is_lost(node));
        nodes
    }

    /// Returns the nodes to ask for a stripe of an object of `size` bytes, in order. This node can be among them.
    pub(super) fn stripe_candidates(&self, name: &ObjectName, stripe: Stripe, size: u64) -> Vec<NodeName> {
        let Some(peers) = &self.peers else { return Vec::new() };
        let (gone, placement) = (peers.gone(), self.cluster.placement_near());
        let nodes = placement.first_of_stripe(name, stripe, size, 1 + SPARE_NODES + gone.len()).into_iter();
        let mut nodes: Vec<NodeName> = nodes.filter(|node| !gone.contains(node)).cloned().collect();
        let load = |node: &NodeName| if *node == self.node { self.load.bytes() } else { peers.load(node) };
        prefer(&mut nodes, 1, &self.node, |_| false, load);
        nodes.retain(|node| !peers.is_lost(node));
        nodes
    }

    /// Returns whether this node is the first owner of an object, of those that it asks itself.
    pub(super) fn is_first(&self, name: &ObjectName) -> bool {
        self.choices(&self.cluster.placement_near(), name, 1).first().is_none_or(|first| *first == self.node)
    }

    /// Returns the first reachable owner of an object in any zone; `None` if that is this node.
    pub(super) fn first_owner(&self, name: &ObjectName) -> Option<NodeName> {
        let peers = self.peers.as_ref()?;
        let choices = self.choices(&self.cluster.placement(), name, 1 + SPARE_NODES).into_iter();
        let mut reachable = choices.filter(|node| *node == self.node || !peers.is_lost(node));
        reachable.next().filter(|node| *node != self.node)
    }

    /// Returns whether further owners of a hot object could fetch it: they have an authority, or direct paths. Ranges that
    /// clients read are kept by one owner only, since each would request them from the gateway.
    pub(super) fn can_replicate(&self, get: &Get<'_>) -> bool {
        get.store.gateway.gives_direct_paths() || FillAuthority::choose(get).is_some()
    }

    /// Returns the first nodes of an object in a placement, without those that have no share of the objects because they have
    /// been lost for long.
    fn choices(&self, placement: &Placement, name: &ObjectName, limit: usize) -> Vec<NodeName> {
        let gone = self.peers.as_ref().map(|peers| peers.gone()).unwrap_or_default();
        let nodes = placement.first(name, limit + gone.len()).into_iter();
        nodes.filter(|node| !gone.contains(node)).take(limit).cloned().collect()
    }

    /// Returns the owners from which this node fills an object, in the order in which it asks them: the first reachable owner
    /// that precedes this node, and the owner in an earlier zone.
    fn earlier_owners(&self, peers: &Peers, name: &ObjectName) -> impl Iterator<Item = NodeName> {
        let placement = self.cluster.placement_near();
        let choices = self.choices(&placement, name, self.hot_objects.max_owners()).into_iter();
        let earlier = choices.take_while(|node| *node != self.node).find(|node| !peers.is_lost(node));
        earlier.into_iter().chain(self.owner_in_earlier_zone(name, None))
    }

    /// Asks another owner for the metadata of an object that is new on this node. That owner has or is filling the object,
    /// and has the gateway authorize this same request.
    pub(super) async fn ask_earlier_owner(&self, get: &Get<'_>) -> Option<OwnerCopy> {
        let (peers, object) = (self.peers.as_ref()?, get.object);
        if get.is_bodiless()
            || get.stripe().is_some()
            || !object.overrides.is_empty()
            || object.cache_control != CacheControl::Use
            // Without owners per zone, an owner that may not know them is not worth a request.
            || (!self.cluster.has_owners_per_zone() && object.wants_checksums && object.range == RangeRequest::Whole)
        {
            return None;
        }
        let authority = FillAuthority::choose(get)?;
        for owner in self.earlier_owners(peers, &object.name) {
            let meta = self.ask_for_metadata(peers, &owner, get).await;
            if let Some(meta) = meta.filter(|meta| !get.lacks_checksums(meta)) {
                return Some(OwnerCopy { node: owner, meta: Arc::new(meta), authority });
            }
        }
        None
    }

    /// Asks another owner for one byte of an object, and returns the metadata in its response.
    async fn ask_for_metadata(&self, peers: &Peers, owner: &NodeName, get: &Get<'_>) -> Option<ObjectMeta> {
        let per_zone = self.cluster.has_owners_per_zone();
        // An owner in another zone may have to fetch the object first, beginning with the byte that the client waits for.
        let (limit, start) = match (self.cluster.is_near(owner), get.object.range) {
            (false, RangeRequest::From(start) | RangeRequest::FromTo(start, _)) if per_zone => {
                (ZONE_TIMEOUT, start)
            }
            (false, _) if per_zone => (ZONE_TIMEOUT, 0),
            _ => (REPLICA_TIMEOUT, 0),
        };
        let byte = ByteRange { start, end: start.checked_add(1)? };
        let method = PeerMethod::Part(byte, get.scope);
        let answer = timeout(limit, peers.ask(owner, get.pod, get.head, method)).await.ok()?.ok()?;
        let (status, stated) = (answer.status(), answer.headers());
        let meta = ObjectMeta::of_answer(&get.object.name, &part_headers(byte), status, stated).ok()?;
        let meta = meta.learned_when(headers::learned(stated));
        (status == StatusCode::PARTIAL_CONTENT).then(|| headers::with_checksums(meta, stated))
    }

    /// Serves a granted version from a fill that reads the other owner's copy.
    pub(super) async fn serve_from_copy(
        self: &Arc<Self>,
        get: Get<'_>,
        grant: Grant,
        OwnerCopy { node, meta, authority }: OwnerCopy,
    ) -> Result<Response<Body>, S3Error> {
        match self.fill_from(&get, &meta, authority, Some(node)).await {
            Some((object, outcome)) => self.serve_as(get, grant, object, outcome).await,
            None => self.around_the_cache(get, "no-room").await,
        }
    }

    /// Serves bytes of an object or a stripe to another owner's cache if they are cached here or being filled, under the
    /// gateway's grant for the client's request that the other owner forwards. With owners per zone, fetches them first.
    pub(super) async fn part(
        self: &Arc<Self>,
        get: Get<'_>,
        range: ByteRange,
    ) -> Result<Response<Body>, S3Error> {
        let mut answer = self.cached_part(&get, range).await?;
        if answer.is_none() && self.cluster.has_owners_per_zone() {
            self.fill_for_other_zone(&get).await;
            answer = self.cached_part(&get, range).await?;
        }
        answer.ok_or_else(not_here)
    }

    /// Serves bytes like `part`. Returns `None` if this version is not cached here.
    async fn cached_part(&self, get: &Get<'_>, range: ByteRange) -> Result<Option<Response<Body>>, S3Error> {
        let range = RangeRequest::FromTo(range.start, range.end - 1);
        let object = self.cache.find(&get.object.name, get.stripe()).await;
        let Some(object) = object.filter(|object| object.serves(range)) else { return Ok(None) };
        let part = GetObject { range, wants_checksums: false, overrides: Vec::new(), ..get.object.clone() };
        let held = object.meta();
        let grant = match get.store.gateway.authorize(get.head, &part.name, Some(&held)).await? {
            Authorization::Fresh(grant) => {
                self.cache.learn(&object, grant.meta());
                grant
            }
            // The response's headers are not the object's.
            Authorization::Arriving(..) | Authorization::Direct(..) if !get.object.overrides.is_empty() => {
                return Err(not_here());
            }
            Authorization::Arriving(grant, metadata, _) | Authorization::Direct(grant, metadata, _) => {
                self.cache.learn(&object, &metadata);
                grant
            }
            Authorization::Relay(_) | Authorization::Unstorable(..) => return Err(not_here()),
        };
        let (learned, size) = (grant.meta().learned(), held.size);
        let range = part.range.resolve(size).map_err(|_| not_here())?;
        let Some(reader) = Reader::new(&grant, object.clone(), range) else { return Ok(None) };
        // Whatever this node sends is stored, so an error must be a response of its own.
        reader.ready().await.map_err(|_| not_here())?;
        let mut load = self.load.queue(range.map_or(size, ByteRange::length));
        // The other owner's fill is charged to the pod's quota there.
        let meter = self.fill_quota.refund_meter(get.pod);
        let body = response::file_body(reader, get.slices.clone(), Some(meter), move |read| load.sent(read));
        let mut answer = response::object(grant, range, &part, body, Outcome::Hit, &self.node);
        headers::set_learned(answer.headers_mut(), learned);
        if get.object.wants_checksums {
            headers::set_checksums(answer.headers_mut(), &object.meta());
        }
        Ok(Some(answer))
    }
}

/// Returns the error of an owner that does not have the bytes that another owner asks for.
fn not_here() -> S3Error {
    S3Error::unavailable("This node does not have the object")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_asked_unless_another_should_be() {
        let names = ["a", "b", "c", "d"].map(|name| NodeName(name.into()));
        let [a, b, c, d] = &names;
        let first_near = |owners, here, near: &NodeName, loads: [u64; 2]| {
            let mut nodes = names.to_vec();
            prefer(&mut nodes, owners, here, |node| node == near, |node| loads[usize::from(node != a)]);
            assert_eq!(nodes.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
            nodes[0].clone()
        };
        let first = |owners, here, loads| first_near(owners, here, here, loads);
        assert_eq!(first(1, d, [0, 0]), *a);
        assert_eq!(first(1, d, [OVERLOAD_BYTES, 0]), *a, "busy, no more");
        assert_eq!(first(1, d, [OVERLOAD_BYTES + 1, 0]), *b);
        assert_eq!(first(1, d, [OVERLOAD_BYTES + 1, OVERLOAD_BYTES]), *a, "the other is as busy");
        assert_eq!(first(1, a, [OVERLOAD_BYTES + 1, 0]), *a, "no way is shorter");
        assert_eq!(first(3, c, [0, 0]), *c, "the nearest of several");
        let preferred: std::collections::BTreeSet<_> = (0..200).map(|_| first(3, d, [0, 0])).collect();
        assert_eq!(preferred.iter().collect::<Vec<_>>(), [a, b, c]);
        for _ in 0..50 {
            assert_eq!(first_near(3, d, b, [0, 0]), *b, "of the same zone");
            assert_eq!(first_near(3, c, b, [0, 0]), *c, "nothing is nearer than here");
        }
        assert_eq!(first(9, d, [0, 0]), *d, "no more owners than nodes");
    }

    #[test]
    fn load_is_what_is_still_to_be_sent_of_answers() {
        let load = Load::default();
        let (mut small, mut huge) = (load.queue(10), load.queue(1 << 40));
        assert_eq!(load.bytes(), 10 + MAX_LOAD_PER_RESPONSE);
        small.sent(4);
        huge.sent((1 << 40) - MAX_LOAD_PER_RESPONSE);
        assert_eq!(load.bytes(), 6 + MAX_LOAD_PER_RESPONSE);
        huge.sent(MAX_LOAD_PER_RESPONSE + 99);
        assert_eq!(load.bytes(), 6);
        drop((small, huge));
        assert_eq!(load.bytes(), 0);
    }
}
