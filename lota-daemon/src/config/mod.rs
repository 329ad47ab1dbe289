//! Parses and validates the configuration file (TOML). An unknown key is an error that suggests the closest known key.
//! Each section is a type of the module that uses it.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use serde::Deserialize;

mod check;
mod explain;
mod gateways;
mod reload;

pub use reload::{Reload, Reloaded};

use lota_cache::{CacheConfig, FillConfig};
use lota_datapath::DatapathConfig;
use lota_s3::{Endpoint, Endpoints, GatewayId};

use crate::{
    access::AccessConfig,
    admin::AdminConfig,
    cluster::{NodeConfig, PeersConfig, default_peer_port},
    dns::EndpointConfig,
    gateway::{GatewayConfig, GatewayName},
    kubernetes::KubernetesConfig,
    proxy::{LimitsConfig, PlacementConfig},
    settings::ConfigError,
    storage::BackendConfig,
};

/// The daemon's configuration; `deploy/lota.toml` shows every key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Identity of this node.
    pub node: NodeConfig,
    /// Endpoint that pods connect to.
    #[serde(default)]
    pub endpoint: EndpointConfig,
    /// eBPF programs: interfaces, redirection mode and pinning.
    #[serde(default)]
    pub datapath: DatapathConfig,
    /// S3 gateway that authorizes requests to the endpoint `endpoint.zone`.
    pub gateway: GatewayConfig,
    /// Further gateways, by name. Each authorizes requests to its own `names`.
    #[serde(default)]
    pub gateways: BTreeMap<GatewayName, GatewayConfig>,
    /// Storage that fills read directly, past the gateway, with LOTA's own credential.
    pub backend: Option<BackendConfig>,
    /// The same for further gateways, by the name of the gateway.
    #[serde(default)]
    pub backends: BTreeMap<GatewayName, BackendConfig>,
    /// Object cache on local disks.
    pub cache: CacheConfig,
    /// Fetching of objects into the cache.
    #[serde(default)]
    pub fill: FillConfig,
    /// Other nodes of the cluster.
    pub peers: Option<PeersConfig>,
    /// Placement of objects on nodes.
    #[serde(default)]
    pub placement: PlacementConfig,
    /// Kubernetes API server, which LOTA watches for pods and nodes. Without this section LOTA does not connect to
    /// it.
    pub kubernetes: Option<KubernetesConfig>,
    /// Metrics, health and administration.
    #[serde(default)]
    pub admin: AdminConfig,
    /// Resource limits of this node.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Pods and addresses that may connect to LOTA.
    #[serde(default)]
    pub access: AccessConfig,
}

/// A gateway of the configuration, with its backend.
#[derive(Clone, Debug)]
pub struct ConfiguredGateway<'a> {
    /// Name; `default` for `[gateway]`.
    pub name: GatewayName,
    /// The gateway.
    pub gateway: &'a GatewayConfig,
    /// Storage behind it, if LOTA has a credential for it.
    pub backend: Option<&'a BackendConfig>,
}

impl ConfiguredGateway<'_> {
    /// Returns the identity of the gateway.
    #[must_use]
    pub fn id(&self) -> GatewayId {
        GatewayId::from(&self.gateway.endpoint)
    }
}

impl Config {
    /// Returns every gateway; first the one of `[gateway]`.
    pub fn all_gateways(&self) -> impl Iterator<Item = ConfiguredGateway<'_>> {
        let (name, gateway, backend) = (GatewayName::default(), &self.gateway, self.backend.as_ref());
        let first = ConfiguredGateway { name, gateway, backend };
        let more = self.gateways.iter().map(|(name, gateway)| ConfiguredGateway {
            name: name.clone(),
            gateway,
            backend: self.backends.get(name),
        });
        [first].into_iter().chain(more)
    }

    /// Returns the hosts that clients may address, and the gateway behind each.
    #[must_use]
    pub fn endpoints(&self) -> Endpoints {
        let own = GatewayId::from(&self.gateway.endpoint);
        let vips = self.endpoint.vips().into_iter().map(|vip| Endpoint::of_address(vip, own.clone()));
        let zone = Endpoint::of_zone(self.endpoint.zone.clone(), own.clone());
        let addresses = self.all_gateways().flat_map(|configured| {
            let id = configured.id();
            let targets = configured.gateway.targets().collect::<Vec<_>>().into_iter();
            targets.map(move |target| Endpoint::of_gateway_address(target, id.clone()))
        });
        vips.chain([zone]).chain(self.named_endpoints()).chain(addresses).collect()
    }

    /// Returns the gateways' own names.
    pub fn named_endpoints(&self) -> impl Iterator<Item = Endpoint> {
        self.all_gateways().flat_map(|configured| {
            let id = configured.id();
            configured.gateway.names.iter().map(move |name| Endpoint::of_zone(name.clone(), id.clone()))
        })
    }

    /// Returns the timeout for a reachable owner. The owner may wait for another request's response, then for the
    /// gateway, and then for the source of a fill.
    #[must_use]
    pub fn owner_timeout(&self) -> Duration {
        let timeouts = self.all_gateways().map(|configured| configured.gateway.response_timeout());
        2 * timeouts.max().unwrap_or_default() + self.limits.idle_timeout()
    }

    /// Reads and validates a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`], with the line and, for an unknown key, the closest known key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
        Self::parse(&text).map_err(|message| ConfigError::invalid(path, message))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| explain::explain(text, &error))?;
        config.check()?;
        Ok(config)
    }

    /// Returns the peer port. It is guarded even on a node without peers.
    #[must_use]
    pub fn peer_port(&self) -> u16 {
        self.peers.as_ref().map_or_else(default_peer_port, |peers| peers.port)
    }
}

#[cfg(test)]
mod reference;

#[cfg(test)]
mod tests;
