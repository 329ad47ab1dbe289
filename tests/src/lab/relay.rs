//! A TCP relay that counts the bytes received from a gateway or backend.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, tcp},
    runtime::{Builder, Runtime},
    sync::{Notify, mpsc},
    time::Instant,
};

/// Maximum number of buffered pieces with a delay: 8 MiB, which is more than a connection's window. A larger buffer
/// would let a fast sender take CPU time from readers that wait for their first byte.
const ON_THE_WAY: usize = 128;

/// A relay that runs until it is dropped.
#[derive(Debug)]
pub struct Relay {
    received: Arc<AtomicU64>,
    /// Rate limit per connection from the target, in bytes per second; 0 for unlimited.
    rate: Arc<AtomicU64>,
    /// Delay of bytes from the target, in milliseconds.
    delay: Arc<AtomicU64>,
    cut: Arc<Notify>,
    _runtime: Runtime,
}

impl Relay {
    pub(super) fn start(listener: TcpListener, target: SocketAddr) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (received, rate, delay): (Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
        let cut = Arc::new(Notify::new());
        let (bytes, pace, late, end) = (received.clone(), rate.clone(), delay.clone(), cut.clone());
        listener.set_nonblocking(true)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let relayed =
                    relay(client, target, bytes.clone(), pace.clone(), late.load(Ordering::Relaxed));
                let end = end.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = relayed => {}
                        () = end.notified() => {}
                    }
                });
            }
        });
        Ok(Self { received, rate, delay, cut, _runtime: runtime })
    }

    /// Sets the rate limit per connection; 0 for unlimited.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Sets the delay of bytes for new connections.
    pub fn set_delay(&self, delay: Duration) {
        self.delay.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Closes all connections.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// Returns the bytes received from the target so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

async fn relay(
    client: TcpStream,
    target: SocketAddr,
    received: Arc<AtomicU64>,
    rate: Arc<AtomicU64>,
    delay: u64,
) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let up = tokio::spawn(copy(from_client, to_server, Arc::default(), Arc::default()));
    match delay {
        0 => copy(from_server, to_client, received, rate).await,
        delay => copy_late(from_server, to_client, Duration::from_millis(delay)).await,
    }
    up.abort();
}

async fn copy(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    count: Arc<AtomicU64>,
    rate: Arc<AtomicU64>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        count.fetch_add(length as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
        let rate = rate.load(Ordering::Relaxed);
        if rate > 0 {
            tokio::time::sleep(Duration::from_secs_f64(length as f64 / rate as f64)).await;
        }
    }
    let _ = to.shutdown().await;
}

/// Copies with a delay but without a limit on the rate.
async fn copy_late(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, delay: Duration) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    let reading = tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            if sender.send((Instant::now() + delay, buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    });
    while let Some((due, piece)) = pieces.recv().await {
        tokio::time::sleep_until(due).await;
        if to.write_all(&piece).await.is_err() {
            break;
        }
    }
    reading.abort();
    let _ = to.shutdown().await;
}
