//! Decides which interface an address is behind, from what the kernel says. Performs no I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Interfaces that may lead to addresses, by index.
///
/// An interface claims an address if its other end, in a pod's network namespace, has that address. A pod with
/// `CAP_NET_ADMIN` can add any address to its own interface, so a claim alone proves nothing if there are several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressClaims {
    claims: BTreeMap<IpAddr, Claimants>,
    /// Interfaces whose claims are not known. Another one may be the only claimant by mistake.
    unknown: BTreeSet<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Claimants {
    interfaces: Vec<u32>,
    route: AddressRoute,
}

/// Evidence in the node's route to an address about the pod that has it. Pods cannot change the node's routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressRoute {
    /// Nothing.
    #[default]
    None,
    /// The route is to this address alone, and leads to this interface.
    Host(u32),
    /// The route is to a wider prefix, and leads to this bridge.
    Bridge(u32),
    /// The address is the node's own.
    Local,
    /// The kernel did not say.
    Unknown,
}

impl AddressClaims {
    /// Adds the claims of an interface.
    pub fn add(&mut self, interface: u32, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            self.claims.entry(address).or_default().interfaces.push(interface);
        }
    }

    /// Sets the route to an address.
    pub fn set_route(&mut self, address: IpAddr, route: AddressRoute) {
        self.claims.entry(address).or_default().route = route;
    }

    /// Marks that the claims of an interface are not known.
    pub fn set_unknown(&mut self, interface: u32) {
        self.unknown.insert(interface);
    }

    /// Keeps only the claims of these interfaces.
    pub fn retain(&mut self, keeps: impl Fn(u32) -> bool) {
        for claims in self.claims.values_mut() {
            claims.interfaces.retain(|interface| keeps(*interface));
        }
    }

    /// Returns the interface that the address is behind, or `None` if that is not certain. It is one of those that
    /// `may_have` the address: the one of a route to it alone if that claims it, or if none does (a sandbox such as
    /// gVisor removes the address from the namespace); without such a route, the only claimant, or the bridge.
    #[must_use]
    pub fn locate(&self, address: IpAddr, may_have: impl Fn(u32) -> bool) -> Option<u32> {
        let claims = self.claims.get(&address)?;
        let claimants: Vec<u32> =
            claims.interfaces.iter().copied().filter(|interface| may_have(*interface)).collect();
        match (&*claimants, claims.route) {
            (_, AddressRoute::Local | AddressRoute::Unknown) => None,
            ([], AddressRoute::Host(route)) => may_have(route).then_some(route),
            (claimants, AddressRoute::Host(route)) => claimants.contains(&route).then_some(route),
            _ if self.unknown.iter().any(|interface| may_have(*interface)) => None,
            ([only], AddressRoute::None | AddressRoute::Bridge(_)) => Some(*only),
            ([], AddressRoute::Bridge(bridge)) if claims.interfaces.is_empty() => Some(bridge),
            (_, AddressRoute::None | AddressRoute::Bridge(_)) => None,
        }
    }

    /// Returns the interfaces that claim the address.
    #[must_use]
    pub fn claimants(&self, address: IpAddr) -> &[u32] {
        self.claims.get(&address).map_or(&[], |claims| &claims.interfaces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_behind_its_only_claimant_or_its_route() {
        let address = IpAddr::from([10, 0, 0, 2]);
        for (claimants, route, expected) in [
            (&[][..], AddressRoute::None, None),
            (&[], AddressRoute::Host(5), Some(5)),
            (&[], AddressRoute::Bridge(4), Some(4)),
            (&[], AddressRoute::Local, None),
            (&[7], AddressRoute::Unknown, None),
            (&[7], AddressRoute::None, Some(7)),
            (&[7], AddressRoute::Bridge(4), Some(7)),
            (&[7], AddressRoute::Host(7), Some(7)),
            (&[7], AddressRoute::Host(5), None),
            (&[7], AddressRoute::Local, None),
            (&[7, 8], AddressRoute::None, None),
            (&[7, 8], AddressRoute::Bridge(4), None),
            (&[7, 8], AddressRoute::Host(8), Some(8)),
            (&[7, 8], AddressRoute::Host(5), None),
        ] {
            let mut claims = AddressClaims::default();
            claimants.iter().for_each(|interface| claims.add(*interface, [address]));
            claims.set_route(address, route);
            assert_eq!(claims.locate(address, |_| true), expected, "{claimants:?} {route:?}");
            claims.set_unknown(9);
            let by_route = expected.filter(|_| matches!(route, AddressRoute::Host(_)));
            assert_eq!(claims.locate(address, |_| true), by_route, "incomplete: {claimants:?} {route:?}");
        }
    }

    #[test]
    fn claimants_that_cannot_have_it_do_not_count() {
        let address = IpAddr::from([10, 0, 0, 2]);
        let mut claims = AddressClaims::default();
        claims.add(7, [address]);
        claims.add(8, [address]);
        assert_eq!(claims.locate(address, |interface| interface != 7), Some(8));
        claims.set_unknown(7);
        assert_eq!(claims.locate(address, |interface| interface != 7), Some(8));
        assert_eq!(claims.locate(address, |_| false), None);
        claims.set_route(address, AddressRoute::Bridge(4));
        assert_eq!(claims.locate(address, |_| false), None, "a pod that claims it is behind the bridge");
        claims.set_route(address, AddressRoute::Host(7));
        assert_eq!(claims.locate(address, |interface| interface != 7), None);
        claims.retain(|interface| interface == 8);
        assert_eq!(claims.claimants(address), [8]);
    }
}
