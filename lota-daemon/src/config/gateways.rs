//! Validates `[gateway]`, `[gateways]` and the sections of their backends.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use lota_datapath::{EndpointName, EndpointNames, EndpointPorts, Targets};
use lota_s3::endpoint::MAX_NAMES;

use super::{Config, ConfiguredGateway, check::is_header_value};
use crate::{
    gateway::{AddressingStyle, GatewayName, Protocol},
    reconciler::{DNS_PORT, HTTP_PORT},
};

/// Maximum number of ports on which pods reach LOTA.
const MAX_PORTS: usize = 8;
/// Maximum number of gateways.
const MAX_GATEWAYS: usize = 8;

impl Config {
    /// Returns the ports on which pods reach LOTA: 80, and those of gateways with names of their own.
    #[must_use]
    pub fn pod_ports(&self) -> BTreeSet<u16> {
        let of_gateways = self.all_gateways().flat_map(|configured| configured.gateway.all_ports());
        [HTTP_PORT].into_iter().chain(of_gateways).collect()
    }

    /// Returns the ports on which pods reach LOTA, for the datapath.
    ///
    /// # Errors
    /// The key and the reason, if it cannot redirect them.
    pub fn ports(&self) -> Result<EndpointPorts, String> {
        let ports: Vec<u16> = self.pod_ports().into_iter().collect();
        EndpointPorts::new(&ports, DNS_PORT).map_err(|error| format!("gateway.ports: {error}"))
    }

    /// Returns the names whose queries the datapath answers: LOTA's own, and those of the gateways.
    ///
    /// # Errors
    /// The key and the reason, if it cannot hold them.
    pub fn names(&self) -> Result<EndpointNames, String> {
        let own = EndpointName::own(self.endpoint.zone.as_str(), self.endpoint.when_down);
        let mut names = vec![own.map_err(|error| format!("endpoint.zone: {error}; shorten it"))?];
        for configured in self.all_gateways() {
            for name in &configured.gateway.names {
                let name = EndpointName::intercepted(name.as_str());
                let section = configured.name.section();
                names.push(name.map_err(|error| format!("{section}.names: {error}; shorten it"))?);
            }
        }
        EndpointNames::new(names).map_err(|error| format!("gateway.names: {error}"))
    }

    /// Returns the addresses and ports at which the datapath intercepts connections.
    ///
    /// # Errors
    /// The key and the reason, if it cannot intercept them.
    pub fn targets(&self) -> Result<Targets, String> {
        let targets: Vec<_> =
            self.all_gateways().flat_map(|configured| configured.gateway.targets()).collect();
        Targets::new(&targets, self.endpoint.vip).map_err(|error| format!("gateway.addresses: {error}"))
    }

    fn own_ports(&self) -> Vec<u16> {
        let metrics = self.admin.metrics_listen.map(|metrics| metrics.port());
        [self.peer_port(), self.admin.listen.port()].into_iter().chain(metrics).collect()
    }

    /// Validates every gateway, and that each host name belongs to one of them.
    ///
    /// # Errors
    /// The key, the reason, and what to do.
    pub(super) fn check_gateways(&self) -> Result<(), String> {
        if self.gateways.contains_key(&GatewayName::default()) {
            return Err("gateways.default: this name is the gateway of [gateway]; choose another one".into());
        }
        if self.gateways.len() + 1 > MAX_GATEWAYS {
            return Err(format!(
                "gateways: {} gateways with [gateway]; at most {MAX_GATEWAYS} are possible",
                self.gateways.len() + 1
            ));
        }
        if let Some(name) = self.backends.keys().find(|name| !self.gateways.contains_key(*name)) {
            let known: Vec<String> = self.gateways.keys().map(|name| format!("gateways.{name}")).collect();
            return Err(match known.is_empty() {
                true => {
                    format!("backends.{name}: there is no section gateways.{name}; add it, or use [backend]")
                }
                false => format!(
                    "backends.{name}: there is no section gateways.{name}; the further gateways are {}",
                    known.join(", ")
                ),
            });
        }
        self.all_gateways().try_for_each(|configured| check_one(&configured))?;
        let (mut names, mut endpoints) = (HashSet::from([self.endpoint.zone.as_str()]), HashSet::new());
        let mut targets = HashSet::new();
        for configured in self.all_gateways() {
            let section = configured.name.section();
            if !endpoints.insert(configured.id()) {
                return Err(format!(
                    "{section}.endpoint: {} is the endpoint of another gateway; list all names in that section",
                    configured.gateway.endpoint
                ));
            }
            for name in &configured.gateway.names {
                if !names.insert(name.as_str()) {
                    return Err(format!("{section}.names: duplicate name `{}`; remove one", name.as_str()));
                }
            }
        }
        for configured in self.all_gateways() {
            let section = configured.name.section();
            for target in configured.gateway.targets() {
                Targets::new(&[target], self.endpoint.vip)
                    .map_err(|error| format!("{section}.addresses: {error}"))?;
                if !targets.insert(target) {
                    return Err(format!("{section}.addresses: duplicate address `{target}`; remove one"));
                }
            }
        }
        let ports = self.pod_ports();
        if ports.len() > MAX_PORTS {
            return Err(format!(
                "gateway.ports: pods would reach LOTA on {} ports (80, 443, and those of all gateways with names); at most {MAX_PORTS} are possible: remove some",
                ports.len()
            ));
        }
        if let Some(port) = ports.iter().find(|port| self.own_ports().contains(port)) {
            return Err(format!(
                "gateway.ports: {port} is the peer port, or the port of admin.listen or admin.metrics_listen; change that one"
            ));
        }
        if names.len() > MAX_NAMES {
            return Err(format!(
                "gateway.names: {} names of all gateways; at most {} are possible beside endpoint.zone",
                names.len() - 1,
                MAX_NAMES - 1
            ));
        }
        self.names().map(drop).and(self.ports().map(drop)).and(self.targets().map(drop))
    }
}

fn check_one(ConfiguredGateway { name, gateway, backend }: &ConfiguredGateway<'_>) -> Result<(), String> {
    let section = name.section();
    if *name != GatewayName::default() && gateway.names.is_empty() && gateway.addresses.is_empty() {
        return Err(format!(
            "{section}.names: empty; list the host names that clients use for this gateway, or its {section}.addresses"
        ));
    }
    if gateway.names.is_empty() && (!gateway.ports.is_empty() || gateway.tls.is_some()) {
        return Err(format!("{section}.names: empty; {section}.ports and {section}.tls are for these names"));
    }
    if let Some(port) = gateway.all_ports().find(|port| [0, 53].contains(port)) {
        return Err(format!(
            "{section}.ports: {port} is not possible, also as the port of {section}.endpoint"
        ));
    }
    if let Some(address) = gateway.names.iter().find(|name| name.as_str().parse::<IpAddr>().is_ok()) {
        return Err(format!(
            "{section}.names: `{}` is an address; list host names, and addresses in {section}.addresses",
            address.as_str()
        ));
    }
    if !gateway.addresses.is_empty() && gateway.endpoint.tls {
        return Err(format!(
            "{section}.addresses: not possible for an https endpoint, since clients that use an address name no server; use {section}.names"
        ));
    }
    if gateway.protocol == Protocol::S3 && !gateway.direct_allow.is_empty() {
        return Err(format!(
            "{section}.direct_allow: needs `{section}.protocol = \"lota\"`; set it, or remove this key"
        ));
    }
    if !(1..=86_400).contains(&gateway.response_timeout_seconds) {
        return Err(format!("{section}.response_timeout_seconds: must be 1 to 86400 (one day)"));
    }
    if backend.is_some_and(|backend| backend.endpoints.is_empty()) {
        let backend = name.backend_section();
        return Err(format!("{backend}.endpoints: empty; list at least one server, or remove [{backend}]"));
    }
    let re_sign = gateway.re_sign.as_ref();
    for (key, region) in [
        (format!("{}.region", name.backend_section()), backend.map(|backend| &backend.region)),
        (format!("{section}.re_sign.region"), re_sign.map(|re_sign| &re_sign.region)),
    ] {
        if let Some(region) = region.filter(|region| region.is_empty() || !is_header_value(region)) {
            return Err(format!(
                "{key}: `{region}` is not valid; use one or more visible ASCII characters, without `;`"
            ));
        }
    }
    let is_address = gateway.endpoint.authority.host().trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if is_address && re_sign.is_some_and(|re_sign| re_sign.style == AddressingStyle::VirtualHost) {
        return Err(format!(
            "{section}.re_sign.style: \"virtual-host\" needs a host name in {section}.endpoint; name it, or use \"path\""
        ));
    }
    Ok(())
}
