//! Host names under which clients reach gateways.

use std::{
    net::{IpAddr, SocketAddrV4},
    sync::Arc,
};

use crate::{
    GatewayId,
    address::{Bucket, Resource, Zone, without_port},
};

/// Maximum number of host names of all gateways.
pub const MAX_NAMES: usize = 64;
/// Port of a host without one, since endpoints at addresses have no TLS.
const HTTP_PORT: u16 = 80;

/// A host name or address that clients send in `Host`, and the gateway behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    host: EndpointHost,
    /// The gateway that answers requests to this host.
    pub gateway: GatewayId,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum EndpointHost {
    Zone(Zone),
    /// LOTA's own address. Gateways differ in how they parse a path under a host name that they do not know, so requests
    /// to it are not parsed.
    Address(IpAddr),
    /// An address of the gateway itself, in text form, and its port.
    GatewayAddress(Zone, u16),
}

impl Endpoint {
    /// Creates the endpoint of a host name and its subdomains.
    #[must_use]
    pub fn of_zone(zone: Zone, gateway: GatewayId) -> Self {
        Self { host: EndpointHost::Zone(zone), gateway }
    }

    /// Creates the endpoint of one of LOTA's own addresses.
    #[must_use]
    pub fn of_address(address: IpAddr, gateway: GatewayId) -> Self {
        Self { host: EndpointHost::Address(address), gateway }
    }

    /// Creates the endpoint of an address of the gateway itself. Unlike under LOTA's own, requests are parsed: the gateway
    /// knows its address, and takes the bucket from the path.
    #[must_use]
    pub fn of_gateway_address(address: SocketAddrV4, gateway: GatewayId) -> Self {
        let host = Zone::parse(&address.ip().to_string());
        let host = host.unwrap_or_else(|_| unreachable!("an address consists of digits and dots"));
        Self { host: EndpointHost::GatewayAddress(host, address.port()), gateway }
    }

    /// Returns the resource for the `host` (with or without port) and the raw `path` of a request.
    #[must_use]
    pub fn resource(&self, host: &str, path: &str) -> Resource {
        match &self.host {
            EndpointHost::Zone(zone) | EndpointHost::GatewayAddress(zone, _) => zone.resource(host, path),
            EndpointHost::Address(_) => Resource::Unknown,
        }
    }

    /// Returns the part of `host` before this endpoint's name, which is the bucket in virtual-host style. It is not
    /// validated.
    #[must_use]
    pub fn bucket_of(&self, host: &str) -> Option<String> {
        match &self.host {
            EndpointHost::Zone(zone) => zone.bucket_of(host),
            EndpointHost::Address(_) | EndpointHost::GatewayAddress(..) => None,
        }
    }

    fn is_at(&self, host: &str) -> bool {
        match &self.host {
            EndpointHost::Zone(zone) => zone.is_apex(host) || zone.bucket_of(host).is_some(),
            EndpointHost::GatewayAddress(address, port) => {
                let given = host.strip_prefix(without_port(host)).and_then(|port| port.strip_prefix(':'));
                let given = given.map_or(Some(HTTP_PORT), |port| port.parse().ok());
                address.is_apex(host) && given == Some(*port)
            }
            EndpointHost::Address(address) => {
                let host = without_port(host);
                host.trim_start_matches('[').trim_end_matches(']').parse() == Ok(*address)
            }
        }
    }

    fn length(&self) -> usize {
        match &self.host {
            EndpointHost::Zone(zone) => zone.as_str().len(),
            EndpointHost::Address(_) | EndpointHost::GatewayAddress(..) => 0,
        }
    }
}

/// All hosts that clients may address.
///
/// ```
/// use lota_s3::{Endpoint, Endpoints, Zone};
///
/// let endpoint = |name: &str, gateway: &str| Endpoint::of_zone(Zone::parse(name).unwrap(), gateway.into());
/// let endpoints: Endpoints =
///     [endpoint("cwlota.com", "http://local:9000"), endpoint("s3.example", "https://s3.example")].into_iter().collect();
/// let gateway = |host| endpoints.find(host).map(|endpoint| endpoint.gateway.as_str());
/// assert_eq!(gateway("models.cwlota.com:80"), Some("http://local:9000"));
/// assert_eq!(gateway("s3.example"), Some("https://s3.example"));
/// assert_eq!(gateway("elsewhere.example"), None);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    /// Longest name first, so that the first match is the most specific.
    all: Arc<[Endpoint]>,
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<T: IntoIterator<Item = Endpoint>>(endpoints: T) -> Self {
        let mut all: Vec<Endpoint> = endpoints.into_iter().collect();
        all.sort_by_key(|endpoint| std::cmp::Reverse(endpoint.length()));
        Self { all: all.into() }
    }
}

impl Endpoints {
    /// Returns the endpoint for the `host` of a request, with or without port: of several names that match, the longest.
    #[must_use]
    pub fn find(&self, host: &str) -> Option<&Endpoint> {
        let found = self.all.iter().find(|endpoint| endpoint.is_at(host))?;
        // A malformed part before the longest name is no reason to try a shorter one.
        let is_sound = found.bucket_of(host).is_none_or(|bucket| Bucket::is_sound(&bucket));
        is_sound.then_some(found)
    }

    /// Returns the resource that a request names; [`Resource::Unknown`] for an unknown host.
    #[must_use]
    pub fn resource(&self, host: &str, path: &str) -> Resource {
        self.find(host).map_or(Resource::Unknown, |endpoint| endpoint.resource(host, path))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoints() -> Endpoints {
        let zone =
            |name: &str, gateway| Endpoint::of_zone(Zone::parse(name).unwrap(), GatewayId::from(gateway));
        let vip = |address: &str| Endpoint::of_address(address.parse().unwrap(), GatewayId::from("own"));
        [
            vip("169.254.77.80"),
            vip("fd00::1"),
            zone("internal", "one"),
            zone("s3.internal", "two"),
            zone("cwlota.com", "own"),
            Endpoint::of_gateway_address("10.0.0.5:9000".parse().unwrap(), GatewayId::from("three")),
            Endpoint::of_gateway_address("10.0.0.5:9001".parse().unwrap(), GatewayId::from("four")),
            Endpoint::of_gateway_address("10.0.0.6:80".parse().unwrap(), GatewayId::from("five")),
        ]
        .into_iter()
        .collect()
    }

    #[test]
    fn the_longest_name_wins() {
        for (host, gateway) in [
            ("cwlota.com", Some("own")),
            ("CWLOTA.com.:80", Some("own")),
            ("data.cwlota.com", Some("own")),
            ("169.254.77.80:80", Some("own")),
            ("[fd00::1]:80", Some("own")),
            ("[fd00::1]", Some("own")),
            ("internal", Some("one")),
            ("data.internal:9000", Some("one")),
            ("s3.internal", Some("two")),
            ("data.s3.internal", Some("two")),
            ("a.b.s3.internal", Some("two")),
            ("xs3.internal", Some("one")),
            ("notcwlota.com", None),
            (".cwlota.com", None),
            (".s3.internal", None),
            ("..s3.internal", None),
            ("a/b.s3.internal", None),
            ("a/b.cwlota.com", None),
            ("169.254.77.81", None),
            ("10.0.0.5:9000", Some("three")),
            ("10.0.0.5:9001", Some("four")),
            ("10.0.0.5", None),
            ("10.0.0.5:9002", None),
            ("10.0.0.5:", None),
            ("10.0.0.6", Some("five")),
            ("10.0.0.6:80", Some("five")),
            ("data.10.0.0.5", None),
            ("110.0.0.5", None),
            ("cwlota.com.evil", None),
            ("", None),
        ] {
            let found = endpoints().find(host).map(|endpoint| endpoint.gateway.as_str().to_owned());
            assert_eq!(found.as_deref(), gateway, "{host}");
        }
    }

    #[test]
    fn a_bucket_is_the_part_before_the_matching_name() {
        let bucket = |host: &str| endpoints().find(host).and_then(|endpoint| endpoint.bucket_of(host));
        assert_eq!(bucket("data.s3.internal:80").as_deref(), Some("data"));
        assert_eq!(bucket("s3.internal"), None);
        assert_eq!(bucket("169.254.77.80"), None);
        assert_eq!(bucket("10.0.0.5:9000"), None);
        assert!(matches!(endpoints().resource("10.0.0.5:9000", "/b/k"), Resource::Object(..)));
        assert_eq!(endpoints().resource("169.254.77.80", "/b/k"), Resource::Unknown);
        assert_eq!(endpoints().resource("elsewhere", "/b/k"), Resource::Unknown);
        assert!(matches!(endpoints().resource("b.s3.internal", "/k"), Resource::Object(..)));
    }

    proptest! {
        #[test]
        fn any_host_is_found_or_not_without_panic(host in ".*") {
            let _ = endpoints().find(&host);
        }

        /// Equal to a search that tries every suffix at a label boundary, the longest first.
        #[test]
        fn found_as_by_suffixes(labels in prop::collection::vec("(s3|internal|cwlota|com|b)", 1..5)) {
            let names = ["internal", "s3.internal", "cwlota.com"];
            let expected = (0..labels.len())
                .map(|from| labels[from..].join("."))
                .find(|suffix| names.contains(&suffix.as_str()));
            let host = labels.join(".");
            let found = endpoints().find(&host).map(|endpoint| endpoint.host.clone());
            prop_assert_eq!(found, expected.map(|name| EndpointHost::Zone(Zone::parse(&name).unwrap())));
        }
    }
}
