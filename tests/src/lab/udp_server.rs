//! A UDP server that answers each datagram by a function.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;

use super::Namespace;

/// Interval at which the server looks whether it was dropped.
const STOP_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum length of a datagram, in bytes.
const MAX_DATAGRAM: usize = 4096;

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct UdpServer {
    stop: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl UdpServer {
    /// Starts a server at an address of a namespace. `answer` returns the answer to a datagram, if there is one.
    ///
    /// # Errors
    /// If it cannot listen.
    pub fn start(
        place: &Namespace,
        address: SocketAddr,
        answer: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
    ) -> Result<Self> {
        let socket = place.run(move || UdpSocket::bind(address))??;
        socket.set_read_timeout(Some(STOP_INTERVAL))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let serving = thread::spawn(move || {
            let mut datagram = [0; MAX_DATAGRAM];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut datagram) else { continue };
                if let Some(answer) = answer(&datagram[..length]) {
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        Ok(Self { stop, serving: Some(serving) })
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.serving.take().map(JoinHandle::join);
    }
}
