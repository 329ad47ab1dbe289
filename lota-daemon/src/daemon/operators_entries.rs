//! Hands operators' access entries over to the next daemon in a memory file. A build with another layout of the maps does not
//! read them there, and would admit pods that an operator has denied.

use std::{
    fs::File,
    io::{BufReader, Seek as _, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::{access::OperatorEntry, daemon::sockets::OPERATORS_ENTRIES};

/// The memory file.
pub(super) struct EntriesFile(File);

impl EntriesFile {
    /// Returns a file with these entries.
    pub(super) fn new(entries: &[OperatorEntry]) -> Result<Self> {
        let file =
            memfd_create(OPERATORS_ENTRIES, MemfdFlags::CLOEXEC).context("cannot create a memory file")?;
        let file = File::from(file);
        (&file).write_all(&serde_json::to_vec(entries)?).context("cannot write to a memory file")?;
        Ok(Self(file))
    }

    /// Returns the descriptor with its handover name.
    pub(super) fn named(&self) -> (String, BorrowedFd<'_>) {
        (OPERATORS_ENTRIES.to_owned(), self.0.as_fd())
    }
}

/// Reads the entries that the previous daemon hands over; none if it is of a build that does not.
pub(super) fn read(file: Option<OwnedFd>) -> Result<Vec<OperatorEntry>> {
    let Some(file) = file else { return Ok(Vec::new()) };
    let mut file = File::from(file);
    file.rewind()?;
    serde_json::from_reader(BufReader::new(file))
        .context("cannot read the access entries of operators that the previous daemon hands over")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_written() {
        let entry = |subject: &str, allow| OperatorEntry { subject: subject.parse().unwrap(), allow };
        let entries = vec![entry("10.0.0.2", false), entry("fd00::/64", true)];
        let EntriesFile(file) = EntriesFile::new(&entries).unwrap();
        assert_eq!(read(Some(file.into())).unwrap(), entries);
        assert_eq!(read(None).unwrap(), []);
        let mut newer = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        newer.write_all(br#"[{"subject": "10.0.0.2", "allow": false, "until": 1}]"#).unwrap();
        assert_eq!(read(Some(newer.into())).unwrap(), entries[..1]);
        let empty = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        assert!(read(Some(empty)).is_err());
    }
}
