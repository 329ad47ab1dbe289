//! Probes TCP ports.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::Namespace;

/// Limit for a refusal; well below the time after which TCP retransmits a SYN.
pub const AT_ONCE: Duration = Duration::from_millis(200);
/// Timeout after which a packet counts as dropped.
pub const LONG_ENOUGH: Duration = Duration::from_millis(400);

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
