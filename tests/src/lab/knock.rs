//! Does a port answer?

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::Namespace;

/// How soon a refusal must come; long before a SYN would be sent again.
pub const AT_ONCE: Duration = Duration::from_millis(200);
/// How long a packet that is dropped is waited for.
pub const LONG_ENOUGH: Duration = Duration::from_millis(400);

/// What came of trying to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// A connection.
    Open,
    /// A reset.
    Refused,
    /// Nothing, for long enough.
    Nothing,
}

/// Tries to connect; what came, and how soon.
///
/// # Errors
/// If it fails in any other way, as without a route.
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
