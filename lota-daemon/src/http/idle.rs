//! Idle TCP connections whose last response switched protocols, for further requests: hyper's pool does not get them back.

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::fd::AsRawFd as _,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::process::workers;

/// Time after which an idle connection is closed; shorter than a peer's own timeouts.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of idle connections of a worker to one server.
const MAX_PER_SERVER: usize = 16;
/// Maximum number of all idle connections.
pub const MAX_IDLE: usize = 256;

/// Idle connections by worker, whose runtime they belong to, and by server.
#[derive(Clone, Debug, Default)]
pub(super) struct IdleConnections(Arc<Mutex<IdleTable>>);

#[derive(Debug, Default)]
struct IdleTable {
    by_server: HashMap<(usize, SocketAddr), Vec<IdleConnection>>,
    /// Number of all connections.
    count: usize,
}

#[derive(Debug)]
struct IdleConnection {
    stream: TcpStream,
    since: Instant,
}

/// The right to return a connection when all bytes of its response have been read.
#[derive(Debug)]
pub struct Reuse {
    idle: IdleConnections,
    server: SocketAddr,
}

impl IdleConnections {
    /// Returns the right to return a connection to `server`.
    pub(super) fn reuse(&self, server: SocketAddr) -> Reuse {
        Reuse { idle: self.clone(), server }
    }

    /// Takes the connection to `server` that was used last and still works.
    pub(super) fn take(&self, server: SocketAddr) -> Option<TcpStream> {
        let mut table = self.0.lock();
        let idle = table.by_server.get_mut(&(workers::current(), server))?;
        let before = idle.len();
        let found = std::iter::from_fn(|| idle.pop()).find(IdleConnection::is_usable);
        let taken = before - idle.len();
        table.count -= taken;
        found.map(|found| found.stream)
    }

    /// Keeps a connection, and closes it if nothing takes it within [`IDLE_TIMEOUT`].
    fn put(&self, server: SocketAddr, stream: TcpStream) {
        let (key, mut table) = ((workers::current(), server), self.0.lock());
        let has_enough = |idle: &Vec<_>| idle.len() >= MAX_PER_SERVER;
        if table.count >= MAX_IDLE || table.by_server.get(&key).is_some_and(has_enough) {
            return;
        }
        let idle = table.by_server.entry(key).or_insert_with(|| {
            tokio::spawn(self.clone().close_later(key));
            Vec::new()
        });
        idle.push(IdleConnection { stream, since: Instant::now() });
        table.count += 1;
    }

    /// Closes connections that have been idle for too long, until none is left.
    async fn close_later(self, key: (usize, SocketAddr)) {
        loop {
            tokio::time::sleep(IDLE_TIMEOUT).await;
            let mut table = self.0.lock();
            let Some(idle) = table.by_server.get_mut(&key) else { return };
            let before = idle.len();
            idle.retain(|connection| connection.since.elapsed() < IDLE_TIMEOUT);
            let left = idle.len();
            table.count -= before - left;
            if left == 0 {
                table.by_server.remove(&key);
                return;
            }
        }
    }
}

impl IdleConnection {
    /// Returns whether the server has neither closed the connection nor sent something.
    fn is_usable(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        self.since.elapsed() < IDLE_TIMEOUT
            && recv(self.stream.as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN)
    }
}

impl Reuse {
    /// Returns the connection, from which all bytes of its response have been read.
    pub(super) fn put(self, stream: TcpStream) {
        self.idle.put(self.server, stream);
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    async fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn only_connections_that_can_be_used_are_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (idle, server) = (IdleConnections::default(), listener.local_addr().unwrap());
        assert!(idle.take(server).is_none());
        let (kept, _open) = pair(&listener).await;
        let port = kept.local_addr().unwrap();
        idle.reuse(server).put(kept);
        let (closed, other_end) = pair(&listener).await;
        drop(other_end);
        closed.readable().await.unwrap();
        idle.reuse(server).put(closed);
        let (spoken, mut other_end) = pair(&listener).await;
        other_end.write_all(b"!").await.unwrap();
        spoken.readable().await.unwrap();
        idle.reuse(server).put(spoken);
        assert_eq!(idle.take(server).unwrap().local_addr().unwrap(), port);
        assert!(idle.take(server).is_none());
    }

    #[tokio::test]
    async fn few_connections_are_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (idle, server) = (IdleConnections::default(), listener.local_addr().unwrap());
        let mut ends = Vec::new();
        for _ in 0..MAX_PER_SERVER + 2 {
            let (client, end) = pair(&listener).await;
            ends.push(end);
            idle.reuse(server).put(client);
        }
        assert_eq!(std::iter::from_fn(|| idle.take(server)).count(), MAX_PER_SERVER);
    }
}
