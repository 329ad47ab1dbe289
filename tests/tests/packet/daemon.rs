//! Capabilities of the daemon.

use std::thread;

use anyhow::{Context as _, Result, anyhow};
use caps::{CapSet, CapsHashSet};

/// Environment variable: programs are loaded and attached with the capabilities of a hardened installation only.
const HARDENED: &str = "LOTA_HARDENED";

/// Runs `work` with the capabilities of the daemon: in a hardened installation only those that it requires, in a thread
/// of its own, since they cannot be regained.
pub(crate) fn as_daemon<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    if std::env::var_os(HARDENED).is_none() {
        return work();
    }
    thread::scope(|scope| {
        let working = scope.spawn(|| {
            let required = lota_datapath::CAPABILITIES.iter().map(|(_, name, _)| name.parse());
            let required: CapsHashSet = required.collect::<Result<_, _>>()?;
            for set in [CapSet::Effective, CapSet::Permitted] {
                caps::set(None, set, &required)
                    .with_context(|| format!("giving up capabilities: {set:?}"))?;
            }
            work()
        });
        working.join().map_err(|_| anyhow!("a thread panicked"))?
    })
}
