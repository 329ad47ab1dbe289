//! One daemon at a time: a lock that is an open file's, whichever process has it, so that it can be handed over.

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
};

/// Locks a file for as long as it is open anywhere, unless the daemon before has handed over that very lock, among
/// others. Returns whether it has.
///
/// # Errors
/// If another daemon has it, or there are no descriptors left.
pub(crate) fn lock(file: File, handed_over: &[File]) -> io::Result<(File, bool)> {
    for lock in handed_over {
        if is_same(lock, &file)? {
            return Ok((lock.try_clone()?, true));
        }
    }
    match file.try_lock() {
        Ok(()) => Ok((file, false)),
        Err(TryLockError::WouldBlock) => Err(io::Error::other("another daemon uses it")),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn is_same(a: &File, b: &File) -> io::Result<bool> {
    let (a, b) = (a.metadata()?, b.metadata()?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}
