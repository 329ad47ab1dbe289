//! The object stores behind LOTA: each is a gateway, which authorizes requests, with the storage that fills read from.

use std::sync::Arc;

use lota_s3::{Endpoint, Endpoints, GatewayId, S3Error};

use crate::{
    gateway::{Gateway, GatewayName},
    storage::Storage,
};

/// A gateway with the storage behind it. Stores share nothing but the cache: each has its own verification, connections
/// and credentials, and objects of different stores have different names.
pub struct S3Store {
    /// Name of the gateway in the configuration.
    pub name: GatewayName,
    /// S3 gateway that authorizes requests.
    pub gateway: Arc<Gateway>,
    /// Backend that fills read from.
    pub backend: Storage,
}

/// All object stores, by the hosts that clients address.
pub struct S3Stores {
    endpoints: Endpoints,
    stores: Vec<(GatewayId, Arc<S3Store>)>,
}

impl S3Stores {
    /// Creates the object stores behind these endpoints.
    #[must_use]
    pub fn new(endpoints: Endpoints, stores: Vec<(GatewayId, Arc<S3Store>)>) -> Self {
        Self { endpoints, stores }
    }

    /// Returns the hosts that clients may address.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// Returns the endpoint of a request's `host`, and the store behind it.
    ///
    /// # Errors
    /// [`S3Error`] for the client, if the host is none of the endpoints.
    pub fn find(&self, host: &str) -> Result<(&Endpoint, &Arc<S3Store>), S3Error> {
        let found = self.endpoints.find(host).and_then(|endpoint| {
            let (_, store) = self.stores.iter().find(|(id, _)| *id == endpoint.gateway)?;
            Some((endpoint, store))
        });
        found.ok_or_else(|| S3Error::unknown_host(host))
    }

    /// Returns the store of a request, and the endpoint of its `host`. At the address of a gateway (`target`), any other
    /// host is that gateway's, too, without an endpoint: only the gateway knows what it stands for.
    ///
    /// # Errors
    /// As for [`S3Stores::find`].
    pub fn find_at(
        &self,
        target: Option<&GatewayId>,
        host: &str,
    ) -> Result<(Option<&Endpoint>, &Arc<S3Store>), S3Error> {
        let of_target = target.and_then(|target| self.stores.iter().find(|(id, _)| id == target));
        let Some((id, store)) = of_target else {
            return self.find(host).map(|(endpoint, store)| (Some(endpoint), store));
        };
        Ok((self.endpoints.find(host).filter(|endpoint| endpoint.gateway == *id), store))
    }

    /// Returns every store, in the order of the configuration.
    pub fn each(&self) -> impl Iterator<Item = &Arc<S3Store>> {
        self.stores.iter().map(|(_, store)| store)
    }

    /// Returns the identities of all gateways.
    #[must_use]
    pub fn gateways(&self) -> Vec<GatewayId> {
        self.stores.iter().map(|(id, _)| id.clone()).collect()
    }
}

#[cfg(test)]
impl S3Store {
    /// Returns a store whose gateway never gets a request.
    pub(super) fn for_test() -> Self {
        use crate::{cluster::NodeConfig, gateway::GatewayConfig, http::upstream::Upstream};

        let gateway = GatewayConfig {
            response_timeout_seconds: 1,
            ..GatewayConfig::for_test(lota_s3::Origin::parse("http://gateway").unwrap())
        };
        let node = NodeConfig {
            name: "n1".into(),
            address: [10, 0, 0, 1].into(),
            zone: String::new(),
            region: String::new(),
        };
        let upstream = Upstream::new(false).unwrap();
        let gateway = Arc::new(Gateway::new(&gateway, &node, upstream.clone()).unwrap());
        let backend = Storage::new(None, gateway.clone(), upstream, std::time::Duration::from_secs(1));
        Self { name: GatewayName::default(), gateway, backend }
    }
}

#[cfg(test)]
mod tests {
    use lota_s3::Zone;

    use super::*;

    #[test]
    fn at_a_gateways_address_every_host_is_its_own() {
        let (one, two) = (GatewayId::from("http://one"), GatewayId::from("http://two"));
        let endpoints = [
            Endpoint::of_zone(Zone::parse("one.test").unwrap(), one.clone()),
            Endpoint::of_gateway_address("10.0.0.5:9000".parse().unwrap(), one.clone()),
            Endpoint::of_gateway_address("10.0.0.5:9001".parse().unwrap(), two.clone()),
        ];
        let [first, second] = [(); 2].map(|()| Arc::new(S3Store::for_test()));
        let stores = vec![(one.clone(), first.clone()), (two.clone(), second.clone())];
        let stores = S3Stores::new(endpoints.into_iter().collect(), stores);
        for (target, host, expected, has_endpoint) in [
            (Some(&one), "10.0.0.5:9000", &first, true),
            (Some(&one), "data.one.test", &first, true),
            (Some(&one), "elsewhere.test", &first, false),
            (Some(&two), "10.0.0.5:9001", &second, true),
            // The other gateway's.
            (Some(&two), "one.test", &second, false),
            (Some(&two), "10.0.0.5:9000", &second, false),
            (None, "one.test", &first, true),
            (None, "10.0.0.5:9001", &second, true),
        ] {
            let (endpoint, store) = stores.find_at(target, host).unwrap();
            assert!(Arc::ptr_eq(store, expected) && endpoint.is_some() == has_endpoint, "{target:?} {host}");
        }
        assert!(stores.find_at(None, "elsewhere.test").is_err());
    }
}
