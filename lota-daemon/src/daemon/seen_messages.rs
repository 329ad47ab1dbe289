//! Hands the recently verified peer messages over to the next daemon in a memory file, so that it detects replays.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result};

use super::memory_file::{self, MemoryFile};
use crate::{cluster::peer::Peers, daemon::sockets::SEEN_MESSAGES};

/// The memory file, which is empty until this daemon hands over.
pub(super) struct SeenFile(MemoryFile);

impl SeenFile {
    /// Returns an empty file.
    pub(super) fn new() -> Result<Self> {
        MemoryFile::new(SEEN_MESSAGES).map(Self)
    }

    /// Returns the descriptor with its handover name.
    pub(super) fn named(&self) -> (String, BorrowedFd<'_>) {
        self.0.named()
    }

    /// Stops `peers` from verifying further messages, and writes the recently verified ones to the file.
    pub(super) fn seal(&self, peers: &Peers) {
        let written = peers.seal().map_err(io::Error::other).and_then(|seen| self.0.write(&seen));
        if let Err(error) = written {
            tracing::error!(%error, "cannot pass on seen peer messages; the next daemon may accept a replay");
        }
    }
}

/// Makes `peers` refuse messages that the previous daemon has verified.
pub(super) fn adopt(peers: &Peers, seen: OwnedFd) -> Result<()> {
    let bytes = memory_file::read(seen)?;
    // The file is empty if the previous daemon had no peers.
    if !bytes.is_empty() {
        peers
            .adopt_seen(&bytes)
            .context("cannot read the peer messages that the previous daemon verified")?;
    }
    Ok(())
}
