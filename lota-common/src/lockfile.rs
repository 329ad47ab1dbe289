//! Lock files. The lock belongs to the open file description, so that one daemon can hand it over to the next.

use std::{
    fs::{File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
};

/// Locks a file until all its descriptors are closed. If the previous daemon handed over the lock of this file among
/// `handed_over`, uses that one; the second result is true in this case.
///
/// # Errors
/// If another daemon holds the lock, or no file descriptors are left.
pub fn lock(file: File, handed_over: &[File]) -> io::Result<(File, bool)> {
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
