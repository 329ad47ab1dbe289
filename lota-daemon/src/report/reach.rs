//! Can a server be connected to? Asked when a report is made, so that a node without requests knows, too.

use std::time::{Duration, Instant};

use tokio::{net::TcpStream, sync::Mutex, time::timeout};

use crate::config::Origin;

/// Longest wait for a connection.
const PATIENCE: Duration = Duration::from_secs(1);
/// For how long an answer holds: several may look at once.
const HOLDS: Duration = Duration::from_secs(2);

/// A server that is looked at.
#[derive(Debug)]
pub(super) struct Reach {
    origin: Origin,
    seen: Mutex<Option<(Instant, Option<String>)>>,
}

impl Reach {
    pub(super) fn new(origin: &Origin) -> Self {
        Self { origin: origin.clone(), seen: Mutex::default() }
    }

    pub(super) fn address(&self) -> String {
        self.origin.to_string()
    }

    /// Why it cannot be connected to, if so.
    pub(super) async fn problem(&self) -> Option<String> {
        let mut seen = self.seen.lock().await;
        if let Some((when, problem)) = &*seen
            && when.elapsed() < HOLDS
        {
            return problem.clone();
        }
        let host = self.origin.authority.host().trim_matches(['[', ']']);
        let port = self.origin.authority.port_u16().unwrap_or(if self.origin.tls { 443 } else { 80 });
        let problem = match timeout(PATIENCE, TcpStream::connect((host, port))).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no connection within {} s", PATIENCE.as_secs())),
        };
        *seen = Some((Instant::now(), problem.clone()));
        problem
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_why_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let reach = || Reach::new(&Origin::parse(&format!("http://{address}")).unwrap());
        let there = reach();
        assert_eq!(there.problem().await, None);
        drop(listener);
        assert!(reach().problem().await.unwrap().contains("refused"));
        assert_eq!(there.problem().await, None, "as it was a moment ago");
    }
}
