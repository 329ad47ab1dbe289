//! Encryption at rest by the file system (fscrypt, v2 policies), which keeps `sendfile` usable. The key is random and
//! known only to the kernel. It outlives the daemon but not a reboot: objects cached before a reboot cannot be read
//! after it.
//!
//! <https://docs.kernel.org/filesystems/fscrypt.html>

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use nix::{errno::Errno, request_code_read, request_code_readwrite};
use serde::Deserialize;

/// Encryption of cached objects by the file system (fscrypt).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// Encrypt; the daemon does not start if the file system does not support it.
    Required,
    /// Encrypt if the file system supports it.
    #[default]
    Auto,
    /// Do not encrypt.
    Off,
}

const KEY_SPEC_TYPE_IDENTIFIER: u32 = 2;
const KEY_STATUS_PRESENT: u32 = 2;
const MODE_AES_256_XTS: u8 = 1;
const MODE_AES_256_CTS: u8 = 4;
const POLICY_V2: u8 = 2;
const FLAG_PAD_32: u8 = 3;

/// `struct fscrypt_key_specifier`, of a v2 policy's key.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct KeySpecifier {
    kind: u32,
    reserved: u32,
    identifier: [u8; 16],
    rest: [u8; 16],
}

/// `struct fscrypt_add_key_arg`, and the key behind it.
#[repr(C)]
struct AddKey {
    specifier: KeySpecifier,
    raw_size: u32,
    key_id: u32,
    reserved: [u32; 8],
    raw: [u8; 64],
}

/// `struct fscrypt_policy_v2`
#[repr(C)]
#[derive(Default)]
struct Policy {
    version: u8,
    contents_mode: u8,
    names_mode: u8,
    flags: u8,
    log2_data_unit_size: u8,
    reserved: [u8; 3],
    identifier: [u8; 16],
}

/// `struct fscrypt_get_policy_ex_arg`
#[repr(C)]
#[derive(Default)]
struct GetPolicy {
    size: u64,
    policy: Policy,
}

/// `struct fscrypt_get_key_status_arg`
#[repr(C)]
#[derive(Default)]
struct KeyStatus {
    specifier: KeySpecifier,
    reserved: [u32; 6],
    status: u32,
    flags: u32,
    user_count: u32,
    out_reserved: [u32; 13],
}

// The request codes contain the sizes of the types that the kernel's header names, not of the arguments.
nix::ioctl_write_ptr_bad!(set_policy, request_code_read!(b'f', 19, 12), Policy);
nix::ioctl_readwrite_bad!(get_policy, request_code_readwrite!(b'f', 22, 9), GetPolicy);
nix::ioctl_readwrite_bad!(add_key, request_code_readwrite!(b'f', 23, 80), AddKey);
nix::ioctl_readwrite_bad!(key_status, request_code_readwrite!(b'f', 26, 128), KeyStatus);

/// Prepares `folder` for the configured encryption. A folder that does not fit is passed to `retire`, which moves it
/// away, and replaced by an empty one. Returns whether the folder is encrypted.
///
/// # Errors
/// If encryption is required and not possible.
pub(super) fn prepare(
    folder: &Path,
    encryption: Encryption,
    retire: impl Fn(&Path) -> io::Result<()>,
) -> io::Result<bool> {
    let used = key_of(folder)?;
    if let Some(identifier) = used
        && has_key(folder, identifier)?
    {
        return Ok(true);
    }
    let encrypted = match encryption {
        Encryption::Off => Err(Errno::EOPNOTSUPP.into()),
        Encryption::Auto | Encryption::Required => encrypted_beside(folder),
    };
    match encrypted {
        Ok(fresh) => {
            retire(folder)?;
            fs::rename(fresh, folder)?;
            Ok(true)
        }
        Err(error) if encryption == Encryption::Required => Err(io::Error::new(
            error.kind(),
            format!(
                "cannot encrypt it: {error}; a file system with the feature `encrypt` can (for ext4: `tune2fs -O \
                 encrypt DEVICE`), or set cache.encryption to \"auto\""
            ),
        )),
        Err(error) => {
            if encryption == Encryption::Auto {
                tracing::info!(folder = %folder.display(), %error, "cached objects are not encrypted");
            }
            // Its key is lost, so it cannot be read.
            if used.is_some() {
                retire(folder)?;
                create_private(folder)?;
            }
            Ok(false)
        }
    }
}

/// Creates an empty folder beside this one, encrypted with a new key.
fn encrypted_beside(folder: &Path) -> io::Result<PathBuf> {
    let fresh = folder.with_extension("new");
    if fresh.exists() {
        fs::remove_dir(&fresh)?;
    }
    create_private(&fresh)?;
    let encrypted = encrypt(&fresh);
    if encrypted.is_err() {
        fs::remove_dir(&fresh)?;
    }
    encrypted.map(|()| fresh)
}

fn create_private(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(folder)
}

/// Encrypts an empty folder with a new key.
fn encrypt(folder: &Path) -> io::Result<()> {
    let folder = File::open(folder)?;
    let mut key = AddKey {
        specifier: KeySpecifier { kind: KEY_SPEC_TYPE_IDENTIFIER, ..KeySpecifier::default() },
        raw_size: 64,
        key_id: 0,
        reserved: [0; 8],
        raw: [0; 64],
    };
    rand::fill(&mut key.raw);
    // SAFETY: the kernel reads the struct and the `raw_size` bytes behind it, and writes the identifier in it.
    let added = unsafe { add_key(folder.as_raw_fd(), &raw mut key) };
    key.raw = [0; 64];
    std::hint::black_box(&key.raw);
    added?;
    let policy = Policy {
        version: POLICY_V2,
        contents_mode: MODE_AES_256_XTS,
        names_mode: MODE_AES_256_CTS,
        flags: FLAG_PAD_32,
        identifier: key.specifier.identifier,
        ..Policy::default()
    };
    // SAFETY: the kernel reads a policy of the version that it names.
    unsafe { set_policy(folder.as_raw_fd(), &raw const policy) }?;
    Ok(())
}

/// Returns the identifier of the key with which a folder is encrypted, if it is.
fn key_of(folder: &Path) -> io::Result<Option<[u8; 16]>> {
    let folder = File::open(folder)?;
    let mut found = GetPolicy { size: size_of::<Policy>() as u64, policy: Policy::default() };
    // SAFETY: the kernel writes a policy of at most the given size.
    match unsafe { get_policy(folder.as_raw_fd(), &raw mut found) } {
        Ok(_) if found.policy.version == POLICY_V2 => Ok(Some(found.policy.identifier)),
        Ok(_) => Err(io::Error::other("the folder is encrypted with an fscrypt policy that is not LOTA's")),
        // Not encrypted, or the file system does not support encryption.
        Err(Errno::ENODATA | Errno::ENOTTY | Errno::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether the file system of a folder supports encryption. Changes nothing.
///
/// # Errors
/// If the folder cannot be read.
pub fn can_encrypt(folder: &Path) -> io::Result<bool> {
    let folder = File::open(folder)?;
    let mut found = GetPolicy { size: size_of::<Policy>() as u64, policy: Policy::default() };
    // SAFETY: the kernel writes a policy of at most the given size.
    match unsafe { get_policy(folder.as_raw_fd(), &raw mut found) } {
        // Only file systems that support encryption return ENODATA for a folder without a policy.
        Ok(_) | Err(Errno::ENODATA) => Ok(true),
        Err(Errno::ENOTTY | Errno::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether the kernel has this key.
fn has_key(folder: &Path, identifier: [u8; 16]) -> io::Result<bool> {
    let folder = File::open(folder)?;
    let specifier = KeySpecifier { kind: KEY_SPEC_TYPE_IDENTIFIER, identifier, ..KeySpecifier::default() };
    let mut status = KeyStatus { specifier, ..KeyStatus::default() };
    // SAFETY: the kernel reads and writes that struct.
    unsafe { key_status(folder.as_raw_fd(), &raw mut status) }?;
    Ok(status.status == KEY_STATUS_PRESENT)
}
