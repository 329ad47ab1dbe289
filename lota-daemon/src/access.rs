//! Which pods may talk to LOTA. So far the configuration says so, pod by pod.

use std::{collections::BTreeMap, net::IpAddr};

use crate::config::Pod;

/// What the kernel's access maps must hold, exactly: each allowed address, and the index of the one interface
/// it may send from. An entry whose interface does not exist is none: it comes and goes with it.
#[must_use]
pub fn entries(pods: &[Pod], interfaces: &BTreeMap<String, u32>) -> BTreeMap<IpAddr, u32> {
    pods.iter().filter_map(|pod| Some((pod.address, *interfaces.get(&pod.interface)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_lives_and_dies_with_its_interface() {
        let address: IpAddr = "10.0.0.2".parse().unwrap();
        let pods = [Pod { address, interface: "veth1".into() }];
        assert_eq!(entries(&pods, &BTreeMap::from([("veth2".into(), 7)])), BTreeMap::new());
        assert_eq!(entries(&pods, &BTreeMap::from([("veth1".into(), 8)])), BTreeMap::from([(address, 8)]));
    }
}
