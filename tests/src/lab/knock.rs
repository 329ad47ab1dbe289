//! Probes TCP ports.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use super::{Namespace, VIP};

/// Limit for a refusal; well below the time after which TCP retransmits a SYN.
pub const AT_ONCE: Duration = Duration::from_millis(200);
/// Timeout after which a packet counts as dropped.
pub const LONG_ENOUGH: Duration = Duration::from_millis(400);

/// Pause after one attempt from each pod.
const KNOCK_INTERVAL: Duration = Duration::from_millis(20);

/// Result of a connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Connected.
    Open,
    /// Refused with a reset.
    Refused,
    /// No response within [`LONG_ENOUGH`].
    Nothing,
}

/// Tries to connect; returns the result and its latency.
///
/// # Errors
/// If it fails in any other way, for example without a route.
pub fn knock(from: &Namespace, to: impl Into<IpAddr>, port: u16) -> Result<(Reached, Duration)> {
    let to = to.into();
    from.run(move || {
        let started = Instant::now();
        let reached = match TcpStream::connect_timeout(&SocketAddr::from((to, port)), LONG_ENOUGH) {
            Ok(_) => Reached::Open,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Reached::Refused,
            Err(error) if error.kind() == ErrorKind::TimedOut => Reached::Nothing,
            Err(error) => bail!("connecting to {to}:{port}: {error}"),
        };
        Ok((reached, started.elapsed()))
    })?
}

/// Tries to connect to the VIP again and again from pods without access, until `is_over`. Returns the number of attempts.
///
/// # Errors
/// If an attempt succeeds.
pub fn knock_in_vain(pods: &[Namespace], is_over: &AtomicBool) -> Result<u64> {
    let mut attempts = 0;
    while !is_over.load(Ordering::Relaxed) {
        for pod in pods {
            let (reached, _) = knock(pod, VIP, 80)?;
            ensure!(reached != Reached::Open, "attempt {attempts} from {} got in", pod.name());
            attempts += 1;
        }
        thread::sleep(KNOCK_INTERVAL);
    }
    Ok(attempts)
}
