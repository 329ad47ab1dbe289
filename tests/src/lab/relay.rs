//! A TCP relay that counts, so that a test can say what a backend was asked for.

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
    sync::Notify,
};

/// Relays until dropped.
#[derive(Debug)]
pub struct Relay {
    received: Arc<AtomicU64>,
    /// Bytes a second that each connection brings from the target; as many as come, if 0.
    rate: Arc<AtomicU64>,
    cut: Arc<Notify>,
    _runtime: Runtime,
}

impl Relay {
    pub(super) fn start(listener: TcpListener, target: SocketAddr) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (received, rate) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let cut = Arc::new(Notify::new());
        let (bytes, pace, end) = (received.clone(), rate.clone(), cut.clone());
        listener.set_nonblocking(true)?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let relayed = relay(client, target, bytes.clone(), pace.clone());
                let end = end.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        () = relayed => {}
                        () = end.notified() => {}
                    }
                });
            }
        });
        Ok(Self { received, rate, cut, _runtime: runtime })
    }

    /// Has each connection bring this many bytes a second at most; 0: as many as come.
    pub fn set_rate(&self, bytes_per_second: u64) {
        self.rate.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Ends every connection there is.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// Bytes that came from the target since the relay began.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

async fn relay(client: TcpStream, target: SocketAddr, received: Arc<AtomicU64>, rate: Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let up = tokio::spawn(copy(from_client, to_server, Arc::default(), Arc::default()));
    copy(from_server, to_client, received, rate).await;
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
