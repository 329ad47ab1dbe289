//! Addresses and ports at which connections of pods are intercepted.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
};

use lota_common::{FIRST_STAND_IN, MAX_TARGETS, RawTarget};
use serde::{Deserialize, Serialize};

/// The targets: at most [`MAX_TARGETS`], each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets(BTreeSet<SocketAddrV4>);

/// A target, and the port of the VIP that is the local port of its connections at the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterceptedTarget {
    /// Address and port that pods connect to.
    pub target: SocketAddrV4,
    /// Port of the VIP.
    pub port: u16,
    /// Whether it is no target any more: only connections that a previous daemon has are still intercepted.
    pub is_former: bool,
}

impl Targets {
    /// Returns the targets, if the datapath can intercept them. `vip` is the IPv4 VIP.
    ///
    /// # Errors
    /// A message, if there are too many, or one is listed twice or not possible.
    pub fn new(targets: &[SocketAddrV4], vip: Ipv4Addr) -> Result<Self, String> {
        if targets.len() > MAX_TARGETS {
            return Err(format!("{} addresses; at most {MAX_TARGETS} are possible", targets.len()));
        }
        let mut all = BTreeSet::new();
        for target in targets {
            let ip = *target.ip();
            let is_host = !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast();
            let problem = match (is_host, target.port()) {
                (false, _) => Some("it is not the address of another host"),
                (true, 0) => Some("it has no port"),
                (true, _) if ip == vip => Some("it is LOTA's own"),
                (true, _) => None,
            };
            if let Some(problem) = problem {
                return Err(format!("`{target}` is not possible: {problem}"));
            }
            if !all.insert(*target) {
                return Err(format!("`{target}` is listed twice"));
            }
        }
        Ok(Self(all))
    }

    /// Returns whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the ports of the VIP that stand for them if nothing was intercepted before.
    pub fn stand_ins(&self) -> impl Iterator<Item = u16> {
        (FIRST_STAND_IN..=u16::MAX).take(self.0.len())
    }

    /// Assigns each target its port of the VIP. Targets keep the ports that they have, since connections may be open.
    /// After a handover, also targets of the previous daemon keep theirs, until the next start.
    pub(crate) fn assign(&self, held: &[InterceptedTarget], is_handover: bool) -> Vec<InterceptedTarget> {
        let (mut assigned, mut former): (Vec<_>, Vec<_>) =
            held.iter().copied().partition(|held| self.0.contains(&held.target));
        let is_new = |target: &&SocketAddrV4| !assigned.iter().any(|assigned| assigned.target == **target);
        let new: Vec<SocketAddrV4> = self.0.iter().filter(is_new).copied().collect();
        assigned.iter_mut().for_each(|kept| kept.is_former = false);
        former.retain(|held| is_handover && !held.is_former);
        former.truncate(MAX_TARGETS - self.0.len());
        assigned.extend(former.into_iter().map(|former| InterceptedTarget { is_former: true, ..former }));
        // Ports that were in use come last, since sockets of ended connections may remain for a while.
        let is_held = |port: &u16| held.iter().any(|held| held.port == *port);
        let mut ports: Vec<u16> = (FIRST_STAND_IN..=u16::MAX).collect();
        ports.sort_by_key(is_held);
        ports.retain(|port| !assigned.iter().any(|assigned| assigned.port == *port));
        let new = new.into_iter().zip(ports);
        assigned.extend(new.map(|(target, port)| InterceptedTarget { target, port, is_former: false }));
        assigned
    }
}

pub(crate) fn raw(target: SocketAddrV4) -> RawTarget {
    RawTarget { address: target.ip().octets(), port: target.port(), reserved: 0 }
}

pub(crate) fn from_raw(target: &RawTarget) -> SocketAddrV4 {
    SocketAddrV4::new(target.address.into(), target.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 80);

    fn target(number: usize) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, u8::try_from(number).unwrap()), 9000)
    }

    fn targets(numbers: impl IntoIterator<Item = usize>) -> Targets {
        Targets::new(&numbers.into_iter().map(target).collect::<Vec<_>>(), VIP).unwrap()
    }

    #[test]
    fn targets_are_other_hosts() {
        for wrong in ["0.0.0.0:80", "127.0.0.1:80", "224.0.0.1:80", "169.254.77.80:80", "10.0.0.1:0"] {
            let error = Targets::new(&[wrong.parse().unwrap()], VIP).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
        assert!(Targets::new(&[target(1), target(1)], VIP).unwrap_err().contains("twice"));
        let many: Vec<_> = (0..=MAX_TARGETS).map(target).collect();
        assert!(Targets::new(&many, VIP).unwrap_err().contains("at most 64"));
        assert_eq!(Targets::new(&many[1..], VIP).unwrap().stand_ins().count(), 64);
    }

    #[test]
    fn targets_keep_their_ports() {
        let first = targets([1, 2, 3]).assign(&[], false);
        assert_eq!(first.iter().map(|target| target.port).collect::<Vec<_>>(), [65_472, 65_473, 65_474]);
        assert!(targets([1, 2, 3]).stand_ins().eq([65_472, 65_473, 65_474]));
        let next = targets([0, 1, 3]).assign(&first, false);
        assert_eq!(next[..2], [first[0], first[2]]);
        // Not the port of a former target.
        assert_eq!(next[2..], [InterceptedTarget { target: target(0), port: 65_475, is_former: false }]);
        // If all are in use, one of them is taken.
        let all = targets(0..MAX_TARGETS).assign(&[], false);
        let replaced = targets(1..=MAX_TARGETS).assign(&all, true);
        let port = |number| {
            replaced.iter().find(|replaced| replaced.target == target(number)).map(|target| target.port)
        };
        assert_eq!((port(MAX_TARGETS), replaced.len()), (Some(65_472), MAX_TARGETS));
    }

    #[test]
    fn former_targets_are_kept_until_the_next_start() {
        let first = targets([1, 2]).assign(&[], false);
        let former = InterceptedTarget { is_former: true, ..first[0] };
        let next = targets([2, 3]).assign(&first, true);
        let new = InterceptedTarget { target: target(3), port: 65_474, is_former: false };
        assert_eq!(next, [first[1], former, new]);
        assert_eq!(targets([2, 3]).assign(&next, true), [first[1], new]);
        // It can become a target again, with its port.
        assert_eq!(targets([1]).assign(&next, false), [first[0]]);
        assert_eq!(targets([]).assign(&first, false), []);
    }
}
