//! Hands the recently verified peer messages over to the next daemon in a memory file, so that it detects replays.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::{cluster::peer::Peers, daemon::sockets::SEEN_MESSAGES};

/// The memory file, which is empty until this daemon hands over.
pub(super) struct SeenFile(File);

impl SeenFile {
    /// Returns an empty file.
    pub(super) fn new() -> Result<Self> {
        let file = memfd_create(SEEN_MESSAGES, MemfdFlags::CLOEXEC).context("cannot create a memory file")?;
        Ok(Self(file.into()))
    }

    /// Returns the descriptor with its handover name.
    pub(super) fn named(&self) -> (String, BorrowedFd<'_>) {
        (SEEN_MESSAGES.to_owned(), self.0.as_fd())
    }

    /// Stops `peers` from verifying further messages, and writes the recently verified ones to the file.
    pub(super) fn seal(&self, peers: &Peers) {
        let written = peers.seal().map_err(io::Error::other).and_then(|seen| (&self.0).write_all(&seen));
        if let Err(error) = written {
            tracing::error!(%error, "cannot pass on seen peer messages; the next daemon may accept a replay");
        }
    }
}

/// Makes `peers` refuse messages that the previous daemon has verified.
pub(super) fn adopt(peers: &Peers, seen: OwnedFd) -> Result<()> {
    let (mut seen, mut bytes) = (File::from(seen), Vec::new());
    seen.rewind()?;
    seen.read_to_end(&mut bytes)?;
    // The file is empty if the previous daemon had no peers.
    if !bytes.is_empty() {
        peers
            .adopt_seen(&bytes)
            .context("cannot read the peer messages that the previous daemon verified")?;
    }
    Ok(())
}
