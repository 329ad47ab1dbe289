//! The limit: one thread per connection, which answers every request with a file by `sendfile(2)`.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result};
use lota_tests::lab::Namespace;
use nix::sys::sendfile::sendfile;

/// Set for the process that is it: where to listen, and the folder of the files.
const SELF: &str = "LOTA_BENCH_BARE";

/// A running server.
pub(crate) struct Bare(Child);

impl Bare {
    pub(crate) fn start(namespace: &Namespace, listen: SocketAddr, files: &Path) -> Result<Self> {
        let mut command: Command = namespace.command(std::env::current_exe()?);
        command.env(SELF, format!("{listen} {}", files.display())).stdin(Stdio::null());
        let child = command.spawn().context("starting the bare loop")?;
        let up = move || {
            (0..100).any(|_| {
                thread::sleep(std::time::Duration::from_millis(50));
                TcpStream::connect(listen).is_ok()
            })
        };
        anyhow::ensure!(namespace.run(up)?, "the bare loop does not listen");
        Ok(Self(child))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves forever if this process was started as the server; returns otherwise.
pub(crate) fn serve_if_spawned() -> Result<()> {
    let Ok(spec) = std::env::var(SELF) else { return Ok(()) };
    let (listen, files) = spec.split_once(' ').context("an address and a folder")?;
    let files: Arc<Path> = PathBuf::from(files).into();
    for stream in TcpListener::bind(listen)?.incoming() {
        let (stream, files) = (stream?, files.clone());
        // A thread ends when its client closes the connection.
        thread::spawn(move || serve(stream, &files));
    }
    Ok(())
}

fn serve(mut stream: TcpStream, files: &Path) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut head = vec![0; 16 << 10];
    let mut open: Option<(String, File, u64)> = None;
    loop {
        let mut length = 0;
        while !head[..length].ends_with(b"\r\n\r\n") {
            match stream.read(&mut head[length..])? {
                0 => return Ok(()),
                read => length += read,
            }
        }
        let head = String::from_utf8_lossy(&head[..length]);
        let name = head.split([' ', '?']).nth(1).and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        if open.as_ref().is_none_or(|(opened, ..)| opened != name) {
            let file = File::open(files.join(name))?;
            let size = file.metadata()?.len();
            open = Some((name.to_owned(), file, size));
        }
        let Some((_, file, size)) = &open else { return Ok(()) };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n");
        send_more(&mut stream, head.as_bytes())?;
        let (mut offset, end) = (0, i64::try_from(*size)?);
        while offset < end {
            let left = usize::try_from(end - offset)?;
            sendfile(stream.as_fd(), file.as_fd(), Some(&mut offset), left.min(2 << 20))?;
        }
    }
}

/// Sends the head in one segment with the data that follows.
fn send_more(stream: &mut TcpStream, head: &[u8]) -> Result<()> {
    use nix::sys::socket::{MsgFlags, send};
    use std::os::fd::AsRawFd as _;
    let more = MsgFlags::from_bits_retain(nix::libc::MSG_MORE | nix::libc::MSG_NOSIGNAL);
    let sent = send(stream.as_raw_fd(), head, more)?;
    stream.write_all(&head[sent..])?;
    Ok(())
}
