//! Probes whether a server accepts connections. Status reports use it, so that they are correct on nodes without requests.

use std::time::{Duration, Instant};

use lota_s3::Origin;
use tokio::{net::TcpStream, sync::Mutex, time::timeout};

/// Timeout for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for which a result is cached, for concurrent reports.
const RESULT_TTL: Duration = Duration::from_secs(2);

/// Probe of one server.
#[derive(Debug)]
pub(crate) struct ReachabilityProbe {
    origin: Origin,
    seen: Mutex<Option<(Instant, Option<String>)>>,
}

impl ReachabilityProbe {
    pub(crate) fn new(origin: &Origin) -> Self {
        Self { origin: origin.clone(), seen: Mutex::default() }
    }

    pub(crate) fn address(&self) -> String {
        self.origin.to_string()
    }

    /// Returns the reason why no connection can be made, if there is one.
    pub(crate) async fn problem(&self) -> Option<String> {
        let mut seen = self.seen.lock().await;
        if let Some((when, problem)) = &*seen
            && when.elapsed() < RESULT_TTL
        {
            return problem.clone();
        }
        let host = self.origin.authority.host().trim_matches(['[', ']']);
        let port = self.origin.authority.port_u16().unwrap_or(if self.origin.tls { 443 } else { 80 });
        let problem = match timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port))).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())),
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
        let reach = || ReachabilityProbe::new(&Origin::parse(&format!("http://{address}")).unwrap());
        let there = reach();
        assert_eq!(there.problem().await, None);
        drop(listener);
        assert!(reach().problem().await.unwrap().contains("refused"));
        assert_eq!(there.problem().await, None, "the recent result is reused");
    }
}
