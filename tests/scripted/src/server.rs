//! The server: reads and records requests, and sends the answers of the script.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::answer::{Answer, Step};

/// Computes the answer to each request. Implemented by functions of [`SeenRequest`].
pub trait Script: Send + Sync + 'static {
    /// Returns the answer to a request.
    fn answer(&self, request: &SeenRequest) -> Answer;
}

impl<F: Fn(&SeenRequest) -> Answer + Send + Sync + 'static> Script for F {
    fn answer(&self, request: &SeenRequest) -> Answer {
        self(request)
    }
}

/// A request as it arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenRequest {
    /// The number of its connection, from 0 in the order of arrival.
    pub connection: usize,
    /// The method.
    pub method: String,
    /// The request target, byte for byte (lossy UTF-8).
    pub target: String,
    /// All headers in order, with the original spelling of names.
    pub headers: Vec<(String, String)>,
    /// The body: `Content-Length` bytes, or the raw chunks.
    pub body: Vec<u8>,
}

impl SeenRequest {
    /// Returns the first value of a header, whose name is compared without case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Returns the target up to its query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Returns the raw value of a query parameter, whose name is compared without case.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<SeenRequest>>,
    connections: AtomicUsize,
}

/// A server that answers with a script until it is dropped.
pub struct ScriptedGateway {
    address: SocketAddr,
    shared: Arc<Shared>,
    script: Arc<Mutex<Arc<dyn Script>>>,
    accepting: JoinHandle<()>,
}

impl ScriptedGateway {
    /// Starts a server on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// If there is no free port.
    pub async fn start(script: impl Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap_or_else(|error| panic!("{error}"));
        Self::serve(listener, script).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Serves a listener, for example one that was bound in a network namespace.
    ///
    /// # Errors
    /// If the listener has no address.
    pub fn serve(listener: TcpListener, script: impl Script) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::<Shared>::default();
        let script: Arc<Mutex<Arc<dyn Script>>> = Arc::new(Mutex::new(Arc::new(script)));
        let (of_task, script_of_task) = (shared.clone(), script.clone());
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let number = of_task.connections.fetch_add(1, Ordering::Relaxed);
                let (shared, script) = (of_task.clone(), script_of_task.clone());
                connections.spawn(async move {
                    let _ = converse(stream, number, &shared, &script).await;
                });
            }
        });
        Ok(Self { address, shared, script, accepting })
    }

    /// Returns its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its URL: `http://address:port`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns all requests so far.
    #[must_use]
    pub fn seen(&self) -> Vec<SeenRequest> {
        lock(&self.shared.seen).clone()
    }

    /// Returns and clears the requests so far.
    #[must_use]
    pub fn take_seen(&self) -> Vec<SeenRequest> {
        std::mem::take(&mut lock(&self.shared.seen))
    }

    /// Returns the number of accepted connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Replaces the script for all requests from now on.
    pub fn set_script(&self, script: impl Script) {
        *lock(&self.script) = Arc::new(script);
    }
}

impl Drop for ScriptedGateway {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl std::fmt::Debug for ScriptedGateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScriptedGateway").field("address", &self.address).finish_non_exhaustive()
    }
}

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn converse(
    mut stream: TcpStream,
    connection: usize,
    shared: &Shared,
    script: &Mutex<Arc<dyn Script>>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut bytes, connection).await? {
        lock(&shared.seen).push(request.clone());
        let script = lock(script).clone();
        for step in script.answer(&request).into_steps(request.method == "HEAD") {
            match step {
                Step::Send(bytes) => stream.write_all(&bytes).await?,
                Step::Delay(time) => tokio::time::sleep(time).await,
                Step::WaitFor(notify) => notify.notified().await,
                Step::Close => return stream.shutdown().await,
                Step::Reset => return stream.set_zero_linger(),
                Step::Silence => std::future::pending().await,
            }
        }
    }
    Ok(())
}

/// Reads one request; `None` at the end of the connection.
async fn read_request(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
    connection: usize,
) -> io::Result<Option<SeenRequest>> {
    let end = loop {
        if let Some(end) = find(bytes, b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(bytes).await? == 0 {
            return Ok(None);
        }
    };
    let head: Vec<u8> = bytes.drain(..end).collect();
    let head = String::from_utf8_lossy(&head);
    let mut lines = head.trim_end().split("\r\n");
    let mut words = lines.next().unwrap_or_default().splitn(2, ' ');
    let method = words.next().unwrap_or_default().to_owned();
    let rest = words.next().unwrap_or_default();
    let target = rest.rsplit_once(' ').map_or(rest, |(target, _)| target).to_owned();
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
    let mut request = SeenRequest { connection, method, target, headers, body: Vec::new() };
    if request.header("expect").is_some_and(|expect| expect.eq_ignore_ascii_case("100-continue")) {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    let is_chunked = request.header("transfer-encoding").is_some();
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0_usize);
    let end = loop {
        match is_chunked {
            true => {
                let last = if bytes.starts_with(b"0\r\n") {
                    Some(0)
                } else {
                    find(bytes, b"\r\n0\r\n").map(|at| at + 2)
                };
                let end = last.and_then(|last| find(&bytes[last..], b"\r\n\r\n").map(|end| last + end + 4));
                if let Some(end) = end {
                    break end;
                }
            }
            false if bytes.len() >= length => break length,
            false => {}
        }
        if stream.read_buf(bytes).await? == 0 {
            break bytes.len();
        }
    };
    request.body = bytes.drain(..end).collect();
    Ok(Some(request))
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}
