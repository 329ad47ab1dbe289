//! Placement within each zone, for `placement.per_zone`: every object has an owner in each zone.

use std::{collections::BTreeMap, sync::Arc};

use lota_cache::{
    Stripe,
    placement::{NodeName, Placement},
};
use lota_s3::ObjectName;

/// Placements of the objects on the nodes of each zone. None if fewer than two zones are known: all nodes then share the
/// objects.
#[derive(Debug, Default)]
pub(super) struct ZonePlacements {
    /// Nodes with their capacities and zones. Nodes without a zone are not among them.
    nodes: BTreeMap<NodeName, (u64, String)>,
    by_zone: BTreeMap<String, Arc<Placement>>,
}

impl ZonePlacements {
    /// Returns the placements on these nodes, which are `known` if nothing has changed.
    pub(super) fn of<'a>(
        nodes: impl Iterator<Item = (&'a NodeName, u64, &'a str)>,
        known: &Arc<Self>,
    ) -> Arc<Self> {
        let nodes: BTreeMap<_, _> = nodes
            .filter(|(.., zone)| !zone.is_empty())
            .map(|(name, capacity, zone)| (name.clone(), (capacity, zone.to_owned())))
            .collect();
        if nodes == known.nodes {
            return known.clone();
        }
        let mut zones: BTreeMap<String, Vec<(NodeName, u64)>> = BTreeMap::new();
        for (name, (capacity, zone)) in &nodes {
            zones.entry(zone.clone()).or_default().push((name.clone(), *capacity));
        }
        let by_zone = match zones.len() {
            0 | 1 => BTreeMap::new(),
            _ => zones.into_iter().map(|(zone, nodes)| (zone, Arc::new(Placement::new(nodes)))).collect(),
        };
        Arc::new(Self { nodes, by_zone })
    }

    /// Returns the placement on the nodes of a zone.
    pub(super) fn on(&self, zone: &str) -> Option<&Arc<Placement>> {
        self.by_zone.get(zone)
    }

    /// Returns the zones that precede `zone` in the order of an object, or of a stripe of one: that in which the zones' nodes
    /// have their first place in `all`. Every zone fills from earlier zones only, so that no two nodes wait for each other.
    pub(super) fn before(
        &self,
        zone: &str,
        all: &Placement,
        object: &ObjectName,
        stripe: Option<Stripe>,
    ) -> Vec<Arc<Placement>> {
        let mut earlier: Vec<&str> = Vec::new();
        if !self.by_zone.contains_key(zone) {
            return Vec::new();
        }
        for node in all.first_for(object, stripe, usize::MAX) {
            match self.nodes.get(node) {
                Some((_, of)) if of == zone => break,
                Some((_, of)) if !earlier.contains(&of.as_str()) => earlier.push(of),
                _ => {}
            }
        }
        earlier.into_iter().filter_map(|zone| self.on(zone).cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: [(&str, &str); 6] =
        [("n1", "a"), ("n2", "a"), ("n3", "b"), ("n4", "c"), ("n5", "c"), ("n6", "")];

    fn names() -> Vec<(NodeName, &'static str)> {
        NODES.iter().map(|(name, zone)| (NodeName((*name).to_owned()), *zone)).collect()
    }

    fn zones(nodes: &[(NodeName, &'static str)]) -> Arc<ZonePlacements> {
        ZonePlacements::of(nodes.iter().map(|(name, zone)| (name, 100, *zone)), &Arc::default())
    }

    fn object(key: u32) -> ObjectName {
        ObjectName::from_parts("http://gateway", "bucket", &key.to_string(), None).unwrap()
    }

    #[test]
    fn zones_have_the_order_of_their_first_nodes() {
        let names = names();
        let (zones, all) = (zones(&names), Placement::new(names.iter().map(|(name, _)| (name.clone(), 100))));
        let mut firsts = std::collections::BTreeSet::new();
        for object in (0..100).map(object) {
            let order = all.first(&object, usize::MAX);
            let first = order.iter().find(|node| node.0 != "n6").unwrap();
            let zone = names.iter().find(|(name, _)| name == *first).unwrap().1;
            firsts.insert(zone);
            assert!(zones.before(zone, &all, &object, None).is_empty(), "the first zone has no earlier one");
            // The first node of all is also the owner in its zone.
            assert_eq!(zones.on(zone).unwrap().first(&object, 1), [*first]);
            let counts: Vec<_> =
                ["a", "b", "c"].iter().map(|zone| zones.before(zone, &all, &object, None).len()).collect();
            assert_eq!(counts.iter().sum::<usize>(), 3, "0, 1 and 2 earlier zones: {counts:?}");
            for other in ["a", "b", "c"].into_iter().filter(|other| *other != zone) {
                let earlier = zones.before(other, &all, &object, None);
                assert_eq!(earlier[0].first(&object, 1), [*first]);
            }
            assert!(zones.before("", &all, &object, None).is_empty(), "a node without a zone");
        }
        assert_eq!(firsts.len(), 3, "each zone is the first of some objects");
    }

    #[test]
    fn one_zone_is_none() {
        let names = names();
        assert!(zones(&names[..2]).on("a").is_none());
        assert!(zones(&names[4..]).on("c").is_none(), "beside nodes without a zone");
        assert_eq!(zones(&names[..3]).on("a").map(|zone| zone.len()), Some(2));
        assert!(zones(&names).on("").is_none());
    }

    #[test]
    fn unchanged_placements_are_kept() {
        let names = names();
        let known = zones(&names);
        let same = ZonePlacements::of(names.iter().map(|(name, zone)| (name, 100, *zone)), &known);
        assert!(Arc::ptr_eq(&known, &same));
        let larger = ZonePlacements::of(names.iter().map(|(name, zone)| (name, 200, *zone)), &known);
        assert!(!Arc::ptr_eq(&known, &larger));
    }
}
