//! From one daemon to the next, without a refused connection: the new one asks, the old one stops accepting and
//! hands over its listening sockets and locks (`SCM_RIGHTS`), and what connects meanwhile waits in the sockets
//! that both now have. Once the new one serves it says so, and the old one finishes what it has begun. If the new
//! one fails first, the old one goes on.

use std::{
    collections::HashMap,
    fs,
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, PermissionsExt as _},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt::PeerCredentials,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What the new daemon says first, and once it serves.
const HELLO: &[u8; 8] = b"lota-ho1";
const SERVING: u8 = b'!';
/// What the old one answers to that: from then on it does not go back.
const GO: u8 = b'.';
/// Longest wait for whoever connects to say that it is a daemon.
const GREETING: Duration = Duration::from_secs(1);
/// Longest wait for the other daemon's next word.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for the new daemon to serve: it may have a large cache to look through.
const START: Duration = Duration::from_secs(120);
/// Most descriptors that are handed over, and bytes of their names.
const MOST: usize = 64;
const NAMES: usize = 16 << 10;

/// What an earlier daemon has handed over, by name; empty if there was none.
#[derive(Debug, Default)]
pub struct Inherited {
    descriptors: HashMap<String, OwnedFd>,
    giver: Option<UnixStream>,
}

/// The socket for handing over, beside the admin socket.
#[must_use]
pub fn path(admin: &Path) -> PathBuf {
    admin.with_extension("handover")
}

/// Listens on a UNIX socket, for this user alone.
///
/// # Errors
/// If its folder cannot be made, or the socket not be bound.
pub fn listen(path: &Path) -> Result<UnixListener> {
    let about = || format!("listening on {}", path.display());
    if let Some(folder) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(about)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).with_context(about)?,
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(about)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(about)?;
    Ok(listener)
}

impl Inherited {
    /// Is there a daemon to ask?
    #[must_use]
    pub fn is_offered(admin: &Path) -> bool {
        UnixStream::connect(path(admin)).is_ok()
    }

    /// Asks the daemon that runs, if one does, for what it has.
    ///
    /// # Errors
    /// If one runs and does not hand over.
    pub fn ask(admin: &Path) -> Result<Self> {
        let path = path(admin);
        let mut stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(Self::default());
            }
            Err(error) => return Err(error).with_context(|| format!("connecting to {}", path.display())),
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(HELLO)?;
        let descriptors =
            receive(&stream).context("the daemon that runs does not hand over; stop it first")?;
        Ok(Self { descriptors, giver: Some(stream) })
    }

    /// Was there a daemon?
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.giver.is_some()
    }

    /// What was handed over under this name, once.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.descriptors.remove(name)
    }

    /// Everything that was handed over under names that begin so, once.
    pub fn take_all(&mut self, prefix: &str) -> Vec<OwnedFd> {
        let names: Vec<_> =
            self.descriptors.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        names.iter().filter_map(|name| self.take(name)).collect()
    }

    /// Tells the earlier daemon that this one is about to serve, and waits for its leave. What was handed over and not
    /// taken is closed.
    ///
    /// # Errors
    /// If that one has gone back to serving itself: then this one must not.
    pub fn serving(self) -> Result<()> {
        let Some(mut giver) = self.giver else { return Ok(()) };
        let mut word = [0];
        let told = giver.write_all(&[SERVING]).and_then(|()| giver.read_exact(&mut word));
        match told {
            Ok(()) if word == [GO] => Ok(()),
            _ => bail!("the daemon that ran serves again: this one took too long"),
        }
    }
}

/// A new daemon that wants to take over.
#[derive(Debug)]
pub struct Taker(UnixStream);

impl Taker {
    /// Whoever has connected, if it is another daemon of this user that wants to take over now; one may only look
    /// whether somebody is there.
    ///
    /// # Errors
    /// If it is someone else.
    pub async fn greet(mut stream: tokio::net::UnixStream) -> Result<Option<Self>> {
        let who = getsockopt(&stream, PeerCredentials)?;
        if who.uid() != nix::unistd::geteuid().as_raw() {
            bail!("user {} asked to take over", who.uid());
        }
        let mut hello = [0; HELLO.len()];
        match tokio::time::timeout(GREETING, stream.read_exact(&mut hello)).await? {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        };
        if hello != *HELLO {
            bail!("whoever asked to take over is not a daemon of this kind");
        }
        Ok(Some(Self(stream.into_std()?)))
    }

    /// Hands over; true once the new daemon serves, false if it ended instead.
    ///
    /// # Errors
    /// If nothing could be handed over.
    pub async fn give(self, descriptors: &[(String, BorrowedFd<'_>)]) -> Result<bool> {
        send(&self.0, descriptors)?;
        let mut stream = tokio::net::UnixStream::from_std(self.0)?;
        if let Ok(Ok(SERVING)) = tokio::time::timeout(START, stream.read_u8()).await
            && stream.write_u8(GO).await.is_ok()
        {
            return Ok(true);
        }
        // It may be alive still: without leave it ends, and only then may this one go on.
        stream.shutdown().await.ok();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
        Ok(false)
    }
}

fn send(stream: &UnixStream, descriptors: &[(String, BorrowedFd<'_>)]) -> Result<()> {
    let names: Vec<&str> = descriptors.iter().map(|(name, _)| name.as_str()).collect();
    let names = serde_json::to_vec(&names)?;
    let raw: Vec<_> = descriptors.iter().map(|(_, descriptor)| descriptor.as_raw_fd()).collect();
    if raw.len() > MOST || names.len() > NAMES {
        bail!("too much to hand over");
    }
    let sent = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(&names)],
        &[ControlMessage::ScmRights(&raw)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    if sent != names.len() {
        bail!("the socket took {sent} of {} bytes", names.len());
    }
    Ok(())
}

fn receive(stream: &UnixStream) -> Result<HashMap<String, OwnedFd>> {
    let mut names = vec![0; NAMES];
    let mut space = nix::cmsg_space!([i32; MOST]);
    let mut buffers = [IoSliceMut::new(&mut names)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just opened these for us, and nobody else knows of them.
            descriptors.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
        }
    }
    let length = message.bytes;
    let names: Vec<String> = serde_json::from_slice(&names[..length])?;
    if names.len() != descriptors.len() {
        bail!("{} descriptors came with {} names", descriptors.len(), names.len());
    }
    Ok(names.into_iter().zip(descriptors).collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[tokio::test]
    async fn descriptors_arrive_under_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let admin = folder.path().join("admin.sock");
        assert!(!Inherited::ask(&admin).unwrap().is_some(), "nobody is there");
        let listener = listen(&path(&admin)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let new = std::thread::spawn(move || {
            let mut inherited = Inherited::ask(&admin).unwrap();
            let file = fs::File::from(inherited.take("lock/b").unwrap());
            assert!(inherited.take("lock/b").is_none() && inherited.is_some());
            let mut text = String::new();
            (&file).read_to_string(&mut text).unwrap();
            inherited.serving().unwrap();
            text
        });
        let files = ["a", "b"].map(|name| {
            fs::write(folder.path().join(name), name).unwrap();
            fs::File::open(folder.path().join(name)).unwrap()
        });
        let taker = Taker::greet(listener.accept().await.unwrap().0).await.unwrap().unwrap();
        let given = [("lock/a".to_owned(), files[0].as_fd()), ("lock/b".to_owned(), files[1].as_fd())];
        assert!(taker.give(&given).await.unwrap());
        assert_eq!(new.join().unwrap(), "b");
    }

    #[tokio::test]
    async fn one_that_fails_hands_nothing_on() {
        let folder = tempfile::tempdir().unwrap();
        let admin = folder.path().join("admin.sock");
        let listener = listen(&path(&admin)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let new = std::thread::spawn(move || drop(Inherited::ask(&admin).unwrap()));
        let file = fs::File::open(folder.path()).unwrap();
        let taker = Taker::greet(listener.accept().await.unwrap().0).await.unwrap().unwrap();
        assert!(!taker.give(&[("lock/a".to_owned(), file.as_fd())]).await.unwrap());
        new.join().unwrap();
    }
}
