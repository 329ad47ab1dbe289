//! Capabilities: one thread of the daemon keeps them, for the kernel side; those that handle requests have none.

use caps::{CapSet, CapsHashSet};

/// Gives up every capability of the calling thread, for good.
///
/// # Panics
/// If the kernel does not let go of them, which it always does.
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
    fn a_thread_without_capabilities_leaves_the_others_theirs() {
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
