//! State of a watch. It keeps only the relevant properties of each object.

use std::{collections::BTreeMap, mem};

use kube::{Resource, runtime::watcher::Event};

/// Properties of objects, by UID.
#[derive(Debug)]
pub(super) struct ObjectStore<V> {
    now: BTreeMap<String, V>,
    /// Objects of a list that is not complete yet.
    coming: BTreeMap<String, V>,
    is_complete: bool,
}

impl<V> Default for ObjectStore<V> {
    fn default() -> Self {
        Self { now: BTreeMap::new(), coming: BTreeMap::new(), is_complete: false }
    }
}

impl<V: PartialEq> ObjectStore<V> {
    /// Applies an event. Returns true if the known state has changed. `facts` returns the relevant properties of an
    /// object, or `None` if the object is not relevant.
    pub(super) fn take<K: Resource>(&mut self, event: Event<K>, facts: impl Fn(&K) -> Option<V>) -> bool {
        let uid = |object: &K| object.meta().uid.clone().unwrap_or_default();
        match event {
            Event::Init => {
                self.coming.clear();
                false
            }
            Event::InitApply(object) => {
                self.coming.extend(facts(&object).map(|facts| (uid(&object), facts)));
                false
            }
            // Objects that are missing from the list were removed.
            Event::InitDone => {
                let before = mem::replace(&mut self.now, mem::take(&mut self.coming));
                let was_complete = mem::replace(&mut self.is_complete, true);
                !was_complete || before != self.now
            }
            Event::Apply(object) => match facts(&object) {
                Some(facts) => {
                    let changed = self.now.get(&uid(&object)) != Some(&facts);
                    if changed {
                        self.now.insert(uid(&object), facts);
                    }
                    changed && self.is_complete
                }
                None => self.now.remove(&uid(&object)).is_some() && self.is_complete,
            },
            Event::Delete(object) => self.now.remove(&uid(&object)).is_some() && self.is_complete,
        }
    }

    /// Returns all objects once the first list is complete.
    pub(super) fn all(&self) -> Option<&BTreeMap<String, V>> {
        self.is_complete.then_some(&self.now)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;
    use kube::ResourceExt as _;

    use super::*;

    fn object(uid: &str, label: &str) -> Namespace {
        let mut object = Namespace::default();
        object.metadata.uid = Some(uid.to_owned());
        object.labels_mut().insert("l".to_owned(), label.to_owned());
        object
    }

    fn label(object: &Namespace) -> Option<String> {
        object.labels().get("l").filter(|label| *label != "none").cloned()
    }

    #[test]
    fn a_list_replaces_the_known_objects() {
        let mut store = ObjectStore::default();
        assert!(!store.take(Event::Init, label) && !store.take(Event::InitApply(object("a", "1")), label));
        assert!(store.all().is_none(), "the list is not complete");
        assert!(store.take(Event::InitDone, label));
        assert!(store.take(Event::Apply(object("b", "2")), label));
        assert!(!store.take(Event::Apply(object("b", "2")), label), "nothing has changed");
        // The watch is interrupted and starts with a list.
        store.take(Event::Init, label);
        store.take(Event::InitApply(object("b", "2")), label);
        assert_eq!(store.all().unwrap().len(), 2, "the last known state holds");
        assert!(store.take(Event::InitDone, label));
        assert_eq!(store.all().unwrap().keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn objects_that_are_no_longer_relevant_are_removed() {
        let mut store = ObjectStore::default();
        store.take::<Namespace>(Event::InitDone, label);
        assert!(store.take(Event::Apply(object("a", "1")), label));
        assert!(store.take(Event::Apply(object("a", "none")), label));
        assert!(!store.take(Event::Delete(object("a", "none")), label));
        assert!(store.all().unwrap().is_empty());
    }
}
