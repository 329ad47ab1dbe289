//! Handover from one daemon to the next without refused connections. The new daemon connects; the old one stops
//! accepting and sends its listening sockets and locks (`SCM_RIGHTS`). New connections wait in the sockets, which
//! both daemons now have. Once the new daemon serves, it reports so, and the old one finishes its open requests. If
//! the new daemon fails first, the old one continues.

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

/// First message of the new daemon.
const HELLO: &[u8; 8] = b"lota-ho1";
/// Second message of the new daemon: it is ready to serve.
const SERVING: u8 = b'!';
/// Response of the old daemon to the second message. It does not resume serving afterwards.
const GO: u8 = b'.';
/// Timeout for the first message of a new connection.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout for the other daemon's next message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout for the new daemon to serve, which may have to scan a large cache first.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Maximum number of descriptors that are handed over.
const MAX_DESCRIPTORS: usize = 64;
/// Maximum size of their names, in bytes.
const MAX_NAMES_SIZE: usize = 16 << 10;

/// Descriptors that an earlier daemon has handed over, by name; empty if there was none.
#[derive(Debug, Default)]
pub struct Inherited {
    descriptors: HashMap<String, OwnedFd>,
    giver: Option<UnixStream>,
}

/// Returns the path of the handover socket, which is beside the admin socket.
#[must_use]
pub fn path(admin: &Path) -> PathBuf {
    admin.with_extension("handover")
}

/// Listens on a Unix socket that only this user can access.
///
/// # Errors
/// If the folder cannot be created, or the socket cannot be bound.
pub fn listen(path: &Path) -> Result<UnixListener> {
    let about = || format!("cannot listen on {}", path.display());
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
    /// Returns whether a daemon offers a handover.
    #[must_use]
    pub fn is_offered(admin: &Path) -> bool {
        UnixStream::connect(path(admin)).is_ok()
    }

    /// Requests the descriptors of the running daemon, if there is one.
    ///
    /// # Errors
    /// If a daemon runs and does not hand over.
    pub fn ask(admin: &Path) -> Result<Self> {
        let path = path(admin);
        let mut stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(Self::default());
            }
            Err(error) => return Err(error).with_context(|| format!("cannot connect to {}", path.display())),
        };
        stream.set_read_timeout(Some(MESSAGE_TIMEOUT))?;
        stream.write_all(HELLO)?;
        let descriptors = receive(&stream).context("the running daemon does not hand over; stop it first")?;
        Ok(Self { descriptors, giver: Some(stream) })
    }

    /// Returns whether there was a daemon.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.giver.is_some()
    }

    /// Removes and returns the descriptor with this name.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.descriptors.remove(name)
    }

    /// Removes and returns all descriptors whose names have this prefix.
    pub fn take_all(&mut self, prefix: &str) -> Vec<OwnedFd> {
        let names: Vec<_> =
            self.descriptors.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        names.iter().filter_map(|name| self.take(name)).collect()
    }

    /// Reports to the earlier daemon that this one is about to serve, and waits for its confirmation. Closes the
    /// descriptors that were not taken.
    ///
    /// # Errors
    /// If the earlier daemon has resumed serving; this one must exit then.
    pub fn serving(self) -> Result<()> {
        let Some(mut giver) = self.giver else { return Ok(()) };
        let mut reply = [0];
        let exchanged = giver.write_all(&[SERVING]).and_then(|()| giver.read_exact(&mut reply));
        match exchanged {
            Ok(()) if reply == [GO] => Ok(()),
            _ => bail!("handover timed out; the previous daemon resumed serving"),
        }
    }
}

/// A new daemon that requests a handover.
#[derive(Debug)]
pub struct Taker(UnixStream);

impl Taker {
    /// Verifies that a connection comes from a daemon of this user that requests a handover. Returns `None` if it
    /// closes without a message, as a check for a running daemon does.
    ///
    /// # Errors
    /// If the other end is not a daemon of this user.
    pub async fn greet(mut stream: tokio::net::UnixStream) -> Result<Option<Self>> {
        let who = getsockopt(&stream, PeerCredentials)?;
        if who.uid() != nix::unistd::geteuid().as_raw() {
            bail!("refused to hand over to a process of user {}", who.uid());
        }
        let mut hello = [0; HELLO.len()];
        match tokio::time::timeout(GREETING_TIMEOUT, stream.read_exact(&mut hello)).await? {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        };
        if hello != *HELLO {
            bail!("handover peer is not a compatible lota daemon");
        }
        Ok(Some(Self(stream.into_std()?)))
    }

    /// Hands over. Returns true once the new daemon serves, false if it ended instead. `before_leave` runs when the
    /// new daemon is about to serve, and completes before it does.
    ///
    /// # Errors
    /// If the descriptors cannot be handed over.
    pub async fn give(
        self,
        descriptors: &[(String, BorrowedFd<'_>)],
        before_leave: impl FnOnce(),
    ) -> Result<bool> {
        send(&self.0, descriptors)?;
        let mut stream = tokio::net::UnixStream::from_std(self.0)?;
        if let Ok(Ok(SERVING)) = tokio::time::timeout(START_TIMEOUT, stream.read_u8()).await {
            before_leave();
            if stream.write_u8(GO).await.is_ok() {
                return Ok(true);
            }
        }
        // The new daemon may still run. Without confirmation it ends, and only then may this one resume.
        stream.shutdown().await.ok();
        let _ = tokio::time::timeout(MESSAGE_TIMEOUT, stream.read_to_end(&mut Vec::new())).await;
        Ok(false)
    }
}

fn send(stream: &UnixStream, descriptors: &[(String, BorrowedFd<'_>)]) -> Result<()> {
    let names: Vec<&str> = descriptors.iter().map(|(name, _)| name.as_str()).collect();
    let names = serde_json::to_vec(&names)?;
    let raw: Vec<_> = descriptors.iter().map(|(_, descriptor)| descriptor.as_raw_fd()).collect();
    if raw.len() > MAX_DESCRIPTORS || names.len() > MAX_NAMES_SIZE {
        bail!("too many descriptors to hand over");
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
    let mut names = vec![0; MAX_NAMES_SIZE];
    let mut space = nix::cmsg_space!([i32; MAX_DESCRIPTORS]);
    let mut buffers = [IoSliceMut::new(&mut names)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just opened these descriptors for this process, and nothing else owns them.
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

    #[test]
    fn only_one_user_can_connect() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("lota/admin.sock");
        let _listener = listen(&socket).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o600, 0o700));
    }

    #[tokio::test]
    async fn descriptors_arrive_under_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let admin = folder.path().join("admin.sock");
        assert!(!Inherited::ask(&admin).unwrap().is_some(), "no daemon runs");
        let listener = listen(&path(&admin)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let new = std::thread::spawn(move || {
            let mut inherited = Inherited::ask(&admin).unwrap();
            let file = fs::File::from(inherited.take("lock/b").unwrap());
            assert!(inherited.take("lock/b").is_none() && inherited.is_some());
            let shared = inherited.take("lock/a").unwrap();
            let mut text = String::new();
            (&file).read_to_string(&mut text).unwrap();
            inherited.serving().unwrap();
            let mut now = String::new();
            let shared = fs::File::from(shared);
            (&shared).read_to_string(&mut now).unwrap();
            (text, now)
        });
        let files = ["a", "b"].map(|name| {
            fs::write(folder.path().join(name), name).unwrap();
            fs::File::open(folder.path().join(name)).unwrap()
        });
        let taker = Taker::greet(listener.accept().await.unwrap().0).await.unwrap().unwrap();
        let given = [("lock/a".to_owned(), files[0].as_fd()), ("lock/b".to_owned(), files[1].as_fd())];
        let last = || fs::write(folder.path().join("a"), "last write").unwrap();
        assert!(taker.give(&given, last).await.unwrap());
        let (text, shared) = new.join().unwrap();
        assert_eq!(
            (text.as_str(), shared.as_str()),
            ("b", "last write"),
            "written before the new daemon serves"
        );
    }

    #[tokio::test]
    async fn a_failed_daemon_hands_nothing_over() {
        let folder = tempfile::tempdir().unwrap();
        let admin = folder.path().join("admin.sock");
        let listener = listen(&path(&admin)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let new = std::thread::spawn(move || drop(Inherited::ask(&admin).unwrap()));
        let file = fs::File::open(folder.path()).unwrap();
        let taker = Taker::greet(listener.accept().await.unwrap().0).await.unwrap().unwrap();
        assert!(!taker.give(&[("lock/a".to_owned(), file.as_fd())], || {}).await.unwrap());
        new.join().unwrap();
    }
}
