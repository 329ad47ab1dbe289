//! Files in memory that a daemon hands over to the next one.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result};
use rustix::fs::{MemfdFlags, memfd_create};

/// A file in memory with its handover name.
pub(super) struct MemoryFile {
    name: &'static str,
    file: File,
}

impl MemoryFile {
    /// Returns an empty file.
    pub(super) fn new(name: &'static str) -> Result<Self> {
        let file = memfd_create(name, MemfdFlags::CLOEXEC).context("cannot create a memory file")?;
        Ok(Self { name, file: file.into() })
    }

    /// Appends bytes.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.file).write_all(bytes)
    }

    /// Returns the descriptor with its handover name.
    pub(super) fn named(&self) -> (String, BorrowedFd<'_>) {
        (self.name.to_owned(), self.file.as_fd())
    }
}

#[cfg(test)]
impl From<MemoryFile> for OwnedFd {
    fn from(memory: MemoryFile) -> Self {
        memory.file.into()
    }
}

/// Returns the contents of a file that the previous daemon hands over.
pub(super) fn read(file: OwnedFd) -> io::Result<Vec<u8>> {
    let (mut file, mut bytes) = (File::from(file), Vec::new());
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}
