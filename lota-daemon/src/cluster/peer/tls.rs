//! TLS between nodes: what this node sends and accepts, and the state of its own certificate.

use std::{net::IpAddr, time::SystemTime};

use crate::{cluster::PeerTlsMode, http::MutualTls, settings::Reloadable};

/// TLS between nodes. The certificates change with their files.
#[derive(Clone, Debug)]
pub struct PeerTls {
    mode: PeerTlsMode,
    current: Reloadable<MutualTls>,
    address: IpAddr,
}

/// State of this node's own certificate.
#[derive(Clone, Debug)]
pub struct OwnCertificate {
    /// Time from which on and time until which it is valid, if they can be read.
    pub validity: Option<(SystemTime, SystemTime)>,
    /// Reason why other nodes with the same files refuse it, if they do.
    pub problem: Option<String>,
}

impl PeerTls {
    /// Returns TLS with these certificates for the node at `address`.
    #[must_use]
    pub fn new(mode: PeerTlsMode, current: Reloadable<MutualTls>, address: IpAddr) -> Self {
        Self { mode, current, address }
    }

    /// Returns the certificates, which are taken for each connection anew.
    #[must_use]
    pub fn current(&self) -> &Reloadable<MutualTls> {
        &self.current
    }

    /// Returns the use of TLS.
    #[must_use]
    pub fn mode(&self) -> PeerTlsMode {
        self.mode
    }

    /// Returns whether this node connects to others by TLS.
    #[must_use]
    pub fn is_sent(&self) -> bool {
        self.mode != PeerTlsMode::Accept
    }

    /// Returns whether this node accepts TLS only.
    #[must_use]
    pub fn is_required(&self) -> bool {
        self.mode == PeerTlsMode::Require
    }

    /// Returns the state of the own certificate now.
    #[must_use]
    pub fn own_certificate(&self) -> OwnCertificate {
        let current = self.current.get();
        let problem = current.own_problem(self.address).map(|refusal| refusal.to_string());
        OwnCertificate { validity: current.validity(), problem }
    }
}
