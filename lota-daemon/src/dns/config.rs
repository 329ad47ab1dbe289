//! `[endpoint]` of the configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lota_datapath::WhenDown;
use lota_s3::Zone;
use serde::Deserialize;

/// Endpoint that pods connect to.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EndpointConfig {
    /// DNS zone: the host name of the endpoint. Bucket names are subdomains of it.
    pub zone: Zone,
    /// IPv4 VIP that the zone resolves to, the same on every node.
    pub vip: Ipv4Addr,
    /// IPv6 VIP that the zone resolves to. Default: no IPv6 endpoint.
    pub vip6: Option<Ipv6Addr>,
    /// Answer to DNS queries of pods with access for the zone while the daemon is down.
    pub when_down: WhenDown,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        let zone = Zone::parse("cwlota.com").unwrap_or_else(|_| unreachable!("a DNS name"));
        Self { zone, vip: Ipv4Addr::new(169, 254, 77, 80), vip6: None, when_down: WhenDown::Refuse }
    }
}

impl EndpointConfig {
    /// Returns the VIPs, IPv4 first.
    #[must_use]
    pub fn vips(&self) -> Vec<IpAddr> {
        let v6 = self.vip6.map(IpAddr::from);
        [IpAddr::from(self.vip)].into_iter().chain(v6).collect()
    }
}
