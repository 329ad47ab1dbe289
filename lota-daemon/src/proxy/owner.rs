//! Who answers for an object: the first of its choices that lives; another, if that one has much to do, or the object is
//! wanted by a crowd.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::{Response, StatusCode};
use rand::Rng as _;
use tokio::time::timeout;

use super::{Proxy, answer, get::Get};
use crate::{
    cache::Reader,
    gateway::{Answer, FillAuthority, Grant},
    http::Body,
    metrics::Outcome,
    peer::headers::Wanted,
    placement::NodeName,
    s3::{ByteRange, CacheControl, GetObject, ObjectMeta, ObjectName, RangeRequest, S3Error},
};

/// Nodes that may be asked when the owners cannot.
const SPARE: usize = 2;
/// Longest wait for a sibling's word: who asks is waited for by others.
const SIBLING_PATIENCE: Duration = Duration::from_secs(2);
/// With more bytes to send than this, and twice as many as the next, an owner is spared.
const OVERLOADED: u64 = 256 << 20;
/// What one answer counts for at most: a client that takes a huge one slowly does not make a node busy.
const MOST_OF_ONE: u64 = 64 << 20;

/// Bytes that this node still has to send.
#[derive(Clone, Debug, Default)]
pub struct Load(Arc<AtomicU64>);

/// One answer's share of the load; gone with it.
#[derive(Debug)]
pub(super) struct Owed {
    load: Load,
    bytes: u64,
    /// Of the answer, more than it counts for.
    beyond: u64,
}

impl Load {
    pub(super) fn owe(&self, bytes: u64) -> Owed {
        let counted = bytes.min(MOST_OF_ONE);
        self.0.fetch_add(counted, Ordering::Relaxed);
        Owed { load: self.clone(), bytes: counted, beyond: bytes - counted }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Owed {
    /// So much of it has been sent.
    pub(super) fn sent(&mut self, bytes: u64) {
        let beyond = bytes.min(self.beyond);
        self.beyond -= beyond;
        let paid = (bytes - beyond).min(self.bytes);
        self.bytes -= paid;
        self.load.0.fetch_sub(paid, Ordering::Relaxed);
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.load.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Puts the node to ask first: of several owners, this node, or any that is near, or any; of one, the next if it has
/// much more to do.
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
        && load(first) > OVERLOADED.max(2 * load(second))
    {
        nodes.swap(0, 1);
    }
}

impl Proxy {
    /// The nodes to ask for an object, in this order; this one may be among them.
    pub(super) fn candidates(&self, name: &ObjectName) -> Vec<NodeName> {
        let Some(peers) = &self.peers else { return Vec::new() };
        let mut nodes = self.choices(name, self.crowds.most() + SPARE);
        let load = |node: &NodeName| if *node == self.node { self.load.bytes() } else { peers.load(node) };
        prefer(&mut nodes, self.crowds.owners(name), &self.node, |node| self.cluster.is_near(node), load);
        nodes.retain(|node| !peers.is_lost(node));
        nodes
    }

    /// Is this node the first that should have an object?
    pub(super) fn is_first(&self, name: &ObjectName) -> bool {
        self.choices(name, 1).first().is_none_or(|first| *first == self.node)
    }

    /// The first choices for an object, without the nodes that are gone.
    fn choices(&self, name: &ObjectName, most: usize) -> Vec<NodeName> {
        let gone = self.peers.as_ref().map(|peers| peers.gone()).unwrap_or_default();
        let placement = self.cluster.placement();
        let nodes = placement.first(name, most + gone.len()).into_iter();
        nodes.filter(|node| !gone.contains(node)).take(most).cloned().collect()
    }

    /// The node that has an object before this one, if it lives.
    pub(super) fn sibling(&self, name: &ObjectName) -> Option<NodeName> {
        let peers = self.peers.as_ref()?;
        let choices = self.choices(name, self.crowds.most()).into_iter();
        choices.take_while(|node| *node != self.node).find(|node| !peers.is_lost(node))
    }

    /// What a sibling knows of an object that is new here, and that it has or is getting: it has the gateway authorize
    /// this same request.
    pub(super) async fn ask_sibling(&self, get: &Get<'_>) -> Option<(NodeName, ObjectMeta)> {
        let (peers, object) = (self.peers.as_ref()?, get.object);
        let whole_checksums = object.wants_checksums && object.range == RangeRequest::Whole;
        let as_it_is = object.overrides.is_empty() && !whole_checksums;
        // Should the sibling not bring all of it, there must be another way.
        let another_way =
            self.backend.has_own_credential() || self.gateway.may_ask_for_the_whole(object.range_signed);
        if get.is_bodiless() || !as_it_is || !another_way || object.cache_control != CacheControl::Use {
            return None;
        }
        let sibling = self.sibling(&object.name)?;
        let first = Wanted::Part(ByteRange { start: 0, end: 1 });
        let asked = timeout(SIBLING_PATIENCE, peers.ask(&sibling, get.pod, get.head, first)).await;
        let answer = asked.ok()?.ok()?;
        let is_part = answer.status() == StatusCode::PARTIAL_CONTENT;
        let meta =
            ObjectMeta::of_answer(&object.name, answer.status(), answer.headers()).filter(|_| is_part)?;
        Some((sibling, meta))
    }

    /// The gateway has granted the version that a sibling has: it comes from there.
    pub(super) async fn serve_from_sibling(
        self: &Arc<Self>,
        get: Get<'_>,
        grant: Grant,
        meta: ObjectMeta,
        sibling: NodeName,
    ) -> Result<Response<Body>, S3Error> {
        let authority = match self.backend.has_own_credential() {
            true => FillAuthority::Own,
            false => FillAuthority::Client,
        };
        match self.fill_from(&get, &meta, authority, Some(sibling)).await {
            Some((object, outcome)) => self.serve_as(get, grant, object, outcome).await,
            None => self.around_the_cache(get, "no-room").await,
        }
    }

    /// Some bytes of an object for a sibling's cache, if it is here or on its way: under the gateway's grant to the
    /// client that asked the sibling.
    pub(super) async fn part(
        self: &Arc<Self>,
        get: Get<'_>,
        range: ByteRange,
    ) -> Result<Response<Body>, S3Error> {
        let not_here = || S3Error::unavailable("This node does not have the object");
        let object = self.cache.find(&get.object.name).await.ok_or_else(not_here)?;
        let asked = GetObject {
            range: RangeRequest::FromTo(range.start, range.end - 1),
            wants_checksums: false,
            overrides: Vec::new(),
            ..get.object.clone()
        };
        let validator = &object.meta().version.validator;
        let Answer::Fresh(grant) = self.gateway.authorize(get.head, &asked.name, Some(validator)).await?
        else {
            return Err(not_here());
        };
        let (meta, size) = (object.meta().clone(), object.meta().size);
        let range = asked.range.resolve(size).map_err(|_| not_here())?;
        let reader = Reader::new(&grant, object, range).ok_or_else(not_here)?;
        // Anything but these bytes would end in a cache.
        reader.ready().await.map_err(|_| not_here())?;
        let mut owed = self.load.owe(range.map_or(size, ByteRange::length));
        let body = answer::file_body(reader, get.slices.clone(), move |read| owed.sent(read));
        Ok(answer::object(grant, &meta, range, &asked, body, Outcome::Hit, &self.node))
    }
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
        assert_eq!(first(1, d, [OVERLOADED, 0]), *a, "busy, no more");
        assert_eq!(first(1, d, [OVERLOADED + 1, 0]), *b);
        assert_eq!(first(1, d, [OVERLOADED + 1, OVERLOADED]), *a, "the other is as busy");
        assert_eq!(first(1, a, [OVERLOADED + 1, 0]), *a, "no way is shorter");
        assert_eq!(first(3, c, [0, 0]), *c, "the nearest of several");
        let asked: std::collections::BTreeSet<_> = (0..200).map(|_| first(3, d, [0, 0])).collect();
        assert_eq!(asked.iter().collect::<Vec<_>>(), [a, b, c]);
        for _ in 0..50 {
            assert_eq!(first_near(3, d, b, [0, 0]), *b, "of the same zone");
            assert_eq!(first_near(3, c, b, [0, 0]), *c, "nothing is nearer than here");
        }
        assert_eq!(first(9, d, [0, 0]), *d, "no more owners than nodes");
    }

    #[test]
    fn load_is_what_is_still_to_be_sent_of_answers() {
        let load = Load::default();
        let (mut small, mut huge) = (load.owe(10), load.owe(1 << 40));
        assert_eq!(load.bytes(), 10 + MOST_OF_ONE);
        small.sent(4);
        huge.sent((1 << 40) - MOST_OF_ONE);
        assert_eq!(load.bytes(), 6 + MOST_OF_ONE);
        huge.sent(MOST_OF_ONE + 99);
        assert_eq!(load.bytes(), 6);
        drop((small, huge));
        assert_eq!(load.bytes(), 0);
    }
}
