//! Hands operators' access entries over to the next daemon in a memory file. A build with another layout of the maps does not
//! read them there, and would admit pods that an operator has denied.

use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};

use super::memory_file::{self, MemoryFile};
use crate::{access::OperatorEntry, daemon::sockets::OPERATORS_ENTRIES};

/// Returns a file with these entries.
pub(super) fn file_of(entries: &[OperatorEntry]) -> Result<MemoryFile> {
    let file = MemoryFile::new(OPERATORS_ENTRIES)?;
    file.write(&serde_json::to_vec(entries)?).context("cannot write to a memory file")?;
    Ok(file)
}

/// Reads the entries that the previous daemon hands over; none if it is of a build that does not.
pub(super) fn read(file: Option<OwnedFd>) -> Result<Vec<OperatorEntry>> {
    let Some(file) = file else { return Ok(Vec::new()) };
    serde_json::from_slice(&memory_file::read(file)?)
        .context("cannot read the access entries of operators that the previous daemon hands over")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_written() {
        let entry = |subject: &str, allow| OperatorEntry { subject: subject.parse().unwrap(), allow };
        let entries = vec![entry("10.0.0.2", false), entry("fd00::/64", true)];
        assert_eq!(read(Some(file_of(&entries).unwrap().into())).unwrap(), entries);
        assert_eq!(read(None).unwrap(), []);
        let newer = MemoryFile::new("test").unwrap();
        newer.write(br#"[{"subject": "10.0.0.2", "allow": false, "until": 1}]"#).unwrap();
        assert_eq!(read(Some(newer.into())).unwrap(), entries[..1]);
        let empty = MemoryFile::new("test").unwrap();
        assert!(read(Some(empty.into())).is_err());
    }
}
