//! The key pair of a node, from which each pair of nodes derives a key that no other node can compute.
//!
//! It is an Ed25519 key, because many tools make files of such keys. It signs nothing: X25519 with its scalar and another
//! node's public key results in a secret of the two.

use std::{
    fmt,
    fs::{self, File},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ed25519_dalek::{
    SigningKey, VerifyingKey,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, KeypairBytes, spki::der::pem::LineEnding},
};
use hkdf::Hkdf;
use serde::Deserialize;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::settings::{ConfigError, read};

/// Purpose of the derived key.
const PURPOSE: &[u8] = b"lota-peer-pair";

/// Private key of a node.
pub struct NodeKey(SigningKey);

/// Public key of a node, written as base64 of its 32 bytes. Never a point of low order, with which a derived key would not
/// be secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct NodePublicKey(VerifyingKey);

/// Key that two nodes share.
pub(super) struct PairKey(Zeroizing<[u8; 32]>);

impl NodeKey {
    /// Makes a new key.
    #[must_use]
    pub fn generate() -> Self {
        Self(SigningKey::from_bytes(&Zeroizing::new(rand::random())))
    }

    /// Returns the key of a seed.
    #[cfg(test)]
    pub(crate) fn of_seed(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// Parses a private key in PKCS#8 PEM, as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// The reason and what to do, never with the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let key = SigningKey::from_pkcs8_pem(text.trim_ascii()).map_err(|error| {
            format!("not an Ed25519 key in PKCS#8 PEM: {error}; make one with `lota node-key --create`")
        })?;
        Ok(Self(key))
    }

    /// Parses the contents of a file.
    ///
    /// # Errors
    /// [`ConfigError`], never with the key.
    pub fn of_file(path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::parse(text).map_err(|message| ConfigError::invalid(path, message))
    }

    /// Reads the key in a file.
    ///
    /// # Errors
    /// [`ConfigError`] if the file is missing or invalid, never with the key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::of_file(path, &Zeroizing::new(read(path)?))
    }

    /// Makes a key file that only its owner can read, unless there is a file already. Returns whether it has made one. Whoever
    /// reads the file sees all of it or none.
    ///
    /// # Errors
    /// If it cannot be written, for example because its folder does not exist.
    pub fn create_file(path: &Path) -> io::Result<bool> {
        if fs::symlink_metadata(path).is_ok() {
            return Ok(false);
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let draft = folder.join(format!(".node-key-{}", hex::encode(rand::random::<[u8; 8]>())));
        let made = Self::generate().write_new(&draft).and_then(|()| fs::hard_link(&draft, path));
        let removed = fs::remove_file(&draft);
        match made {
            // Another process was faster.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
            made => made.and(removed)?,
        }
        File::open(folder)?.sync_all()?;
        Ok(true)
    }

    fn write_new(&self, path: &PathBuf) -> io::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(self.pem()?.as_bytes())?;
        file.sync_all()
    }

    /// Returns the key in PKCS#8 PEM, without its public half, since some versions of OpenSSL do not read files with both.
    fn pem(&self) -> io::Result<Zeroizing<String>> {
        let private = KeypairBytes { secret_key: self.0.to_bytes(), public_key: None };
        private.to_pkcs8_pem(LineEnding::LF).map_err(io::Error::other)
    }

    /// Returns the public half.
    #[must_use]
    pub fn public(&self) -> NodePublicKey {
        NodePublicKey(self.0.verifying_key())
    }

    /// Returns the key that this node shares with the owner of `theirs`, who derives the same. `None` if it would not be secret.
    pub(super) fn pair_with(&self, theirs: &NodePublicKey) -> Option<PairKey> {
        let scalar = Zeroizing::new(self.0.to_scalar_bytes());
        let shared = Zeroizing::new(theirs.0.to_montgomery().mul_clamped(*scalar).to_bytes());
        if shared.ct_eq(&[0; 32]).into() {
            return None;
        }
        let mut keys = [self.0.verifying_key().to_bytes(), theirs.0.to_bytes()];
        keys.sort_unstable();
        let mut derived = Zeroizing::new([0; 32]);
        let info = [PURPOSE, &keys[0], &keys[1]];
        Hkdf::<Sha256>::new(None, &*shared).expand_multi_info(&info, &mut *derived).ok()?;
        Some(PairKey(derived))
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey(of {})", self.public())
    }
}

impl PairKey {
    pub(super) fn bytes(&self) -> &[u8] {
        &*self.0
    }
}

impl fmt::Debug for PairKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairKey(…)")
    }
}

impl FromStr for NodePublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |why: &str| format!("`{text}` is not a public key: {why}; `lota node-key` prints that of a node");
        let mut bytes = [0; 32];
        match BASE64.decode(text) {
            Ok(decoded) if decoded.len() == bytes.len() => bytes.copy_from_slice(&decoded),
            _ => return Err(wrong("it must be base64 of 32 bytes")),
        }
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| wrong("no private key has it"))?;
        if key.is_weak() { Err(wrong("it is of low order")) } else { Ok(Self(key)) }
    }
}

impl TryFrom<String> for NodePublicKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for NodePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0.as_bytes()))
    }
}

impl fmt::Debug for NodePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodePublicKey({self})")
    }
}

#[cfg(test)]
#[path = "node_key_tests.rs"]
mod tests;
