//! Capabilities. One thread of the daemon keeps them for the kernel side; threads that handle requests have none.

use caps::{CapSet, CapsHashSet};

/// Drops every capability of the calling thread permanently.
///
/// # Panics
/// If the kernel refuses, which it never does.
pub fn drop_all() {
    for set in [CapSet::Ambient, CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        let cleared = match set {
            CapSet::Ambient => caps::clear(None, set),
            set => caps::set(None, set, &CapsHashSet::new()),
        };
        assert!(cleared.is_ok(), "cannot give up capabilities: {cleared:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_capabilities_affects_only_one_thread() {
        let before = caps::read(None, CapSet::Permitted).unwrap();
        let left = std::thread::spawn(|| {
            drop_all();
            [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable]
                .map(|set| caps::read(None, set).unwrap())
        });
        assert!(left.join().unwrap().iter().all(CapsHashSet::is_empty));
        assert_eq!(caps::read(None, CapSet::Permitted).unwrap(), before);
    }
}
