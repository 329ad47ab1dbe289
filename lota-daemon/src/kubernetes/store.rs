//! What a watch has told so far, of each object no more than is wanted.

use std::{collections::BTreeMap, mem};

use kube::{Resource, runtime::watcher::Event};

/// Facts about objects, by their UIDs.
#[derive(Debug)]
pub(super) struct Store<V> {
    now: BTreeMap<String, V>,
    /// A list that is being read.
    coming: BTreeMap<String, V>,
    is_complete: bool,
}

impl<V> Default for Store<V> {
    fn default() -> Self {
        Self { now: BTreeMap::new(), coming: BTreeMap::new(), is_complete: false }
    }
}

impl<V: PartialEq> Store<V> {
    /// Takes in an event; true if what is known is other than before. `facts` says what is wanted of an object, and
    /// `None` of one that does not count.
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
            // What is not in the list is gone.
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

    /// Everything, once everything has been told.
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
    fn a_list_replaces_what_was_known() {
        let mut store = Store::default();
        assert!(!store.take(Event::Init, label) && !store.take(Event::InitApply(object("a", "1")), label));
        assert!(store.all().is_none(), "not everything yet");
        assert!(store.take(Event::InitDone, label));
        assert!(store.take(Event::Apply(object("b", "2")), label));
        assert!(!store.take(Event::Apply(object("b", "2")), label), "nothing new");
        // The watch broke off, and begins again with a list.
        store.take(Event::Init, label);
        store.take(Event::InitApply(object("b", "2")), label);
        assert_eq!(store.all().unwrap().len(), 2, "what was told last holds");
        assert!(store.take(Event::InitDone, label));
        assert_eq!(store.all().unwrap().keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn what_does_not_count_any_more_is_gone() {
        let mut store = Store::default();
        store.take::<Namespace>(Event::InitDone, label);
        assert!(store.take(Event::Apply(object("a", "1")), label));
        assert!(store.take(Event::Apply(object("a", "none")), label));
        assert!(!store.take(Event::Delete(object("a", "none")), label));
        assert!(store.all().unwrap().is_empty());
    }
}
