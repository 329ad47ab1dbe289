//! Random changes of pods and cgroups. After each, the kernel's maps and what packets get equal a small model.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::{Context as _, Result, ensure};
use lota_common::map;
use lota_tests::{
    lab::{ApiPod, CgroupRoot, PodClass, Reached, VIP, knock},
    tour::{Tour, wait_until},
};
use nix::sys::signal::Signal;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{cgroup_cluster::Cluster, dump};

/// Steps of [`random`].
const STEPS: usize = 60;
/// UIDs of [`random`]'s pods.
const UIDS: [&str; 4] = ["aaaa-1", "bbbb-2", "cccc-3", "dddd-4"];

#[derive(Default)]
struct Model {
    /// Reported pods: label, and whether they are on the host network.
    pods: BTreeMap<&'static str, (&'static str, bool)>,
    /// Addresses of the others.
    addresses: BTreeMap<&'static str, Ipv4Addr>,
    /// Cgroups by UID.
    made: BTreeMap<&'static str, PodClass>,
}

impl Model {
    /// Returns the expected pods by UID: ID of the cgroup, access, and whether they forward.
    fn expected(&self, cgroups: &CgroupRoot) -> Result<BTreeMap<String, (u64, bool, bool)>> {
        let known =
            self.pods.iter().filter_map(|(uid, (label, _))| Some((*uid, *label, *self.made.get(uid)?)));
        known
            .map(|(uid, label, class)| {
                Ok((uid.to_owned(), (cgroups.id(uid, class)?, label == "yes", label == "forwards")))
            })
            .collect()
    }

    /// Returns whether a packet from a process in this pod's cgroup, with the address of another pod or its own, is refused.
    fn refuses(&self, sender: &str, holder: &str) -> bool {
        let forwards = self.pods.get(sender).is_some_and(|(label, _)| *label == "forwards");
        // A sender that is not reported could be a holder whose cgroup is not known.
        let may_be_holder = !self.pods.contains_key(sender) && !self.made.contains_key(holder);
        sender != holder && !forwards && !may_be_holder
    }
}

/// Pods and cgroups come and go, and the daemon restarts. After each step, the kernel's map of cgroups and what a process
/// on the host network reaches equal a small model; packets from one pod's cgroup with the address of another are refused.
pub(crate) fn random(tour: &mut Tour) -> Result<()> {
    let seed =
        std::env::var("LOTA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let access = "identity = \"cgroup+address\"\nallow = [\"10.77.13.0/24\"]";
    let mut cluster = Cluster::start(tour, access)?;
    walk(&mut cluster, seed).with_context(|| format!("with LOTA_SEED={seed}"))
}

fn walk(cluster: &mut Cluster<'_>, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut model, mut done) = (Model::default(), Vec::new());
    let place = cluster.tour.lab.node(3);
    for step in 0..STEPS {
        let uid = UIDS[random.random_range(0..UIDS.len())];
        match random.random_range(0..10) {
            0..3 => {
                let label = ["yes", "no", "forwards"][random.random_range(0..3)];
                let host_network = random.random_bool(0.5);
                done.push(format!("{uid} is {label}, host network {host_network}"));
                let address = Ipv4Addr::new(10, 77, 13, 100 + u8::try_from(step)?);
                let pod = ApiPod::new(uid, uid, Some(address), label);
                cluster.api.apply(&ApiPod { host_network, ..pod });
                model.pods.insert(uid, (label, host_network));
                model.addresses.remove(uid);
                if !host_network {
                    model.addresses.insert(uid, address);
                }
            }
            3 if model.pods.contains_key(uid) => {
                done.push(format!("{uid} ends"));
                cluster.api.remove(uid);
                model.pods.remove(uid);
                model.addresses.remove(uid);
            }
            4..6 => {
                let class = if random.random_bool(0.5) { PodClass::Burstable } else { PodClass::Guaranteed };
                done.push(format!("{uid}'s cgroup is made, {class:?}"));
                if let Some(before) = model.made.remove(uid) {
                    cluster.cgroups.remove_pod(uid, before)?;
                }
                cluster.cgroups.make_pod(uid, class)?;
                model.made.insert(uid, class);
            }
            6 if model.made.contains_key(uid) => {
                done.push(format!("{uid}'s cgroup is removed"));
                let class = model.made.remove(uid).context("a class")?;
                cluster.cgroups.remove_pod(uid, class)?;
            }
            7 => {
                done.push("the daemon is killed".to_owned());
                cluster.node_mut().stop(Signal::SIGKILL)?;
                cluster.node_mut().start()?;
            }
            8 => {
                done.push("the daemon hands over".to_owned());
                cluster.node_mut().start()?;
            }
            _ => continue,
        }
        let expected = model.expected(&cluster.cgroups)?;
        let mut held = BTreeMap::new();
        let agreed = wait_until("the map of cgroups to agree", || {
            held = dump(cluster.node(), map::CGROUPS)?
                .iter()
                .filter_map(|entry| {
                    let value = &entry["value"];
                    let pod = (entry["key"].as_u64()?, value["allow"] == 1, value["forwards"] == 1);
                    Some((value["uid"].as_str()?.to_owned(), pod))
                })
                .collect();
            let holders = dump(cluster.node(), map::HOLDERS4)?;
            let uids = holders.iter().filter_map(|entry| entry["value"]["uid"].as_str());
            let addresses: BTreeMap<_, _> =
                uids.zip(holders.iter().map(|entry| &entry["key"]["address"])).collect();
            let desired = model.addresses.iter();
            let are_held = desired.clone().all(|(uid, address)| {
                addresses.get(uid).is_some_and(|held| **held == serde_json::json!(address.octets()))
            });
            Ok(held == expected && are_held && addresses.len() == desired.len())
        });
        agreed.with_context(|| format!("after {done:?}\nexpected {expected:?}\nheld     {held:?}"))?;
        let local = model.pods.values().any(|(label, host_network)| *host_network && *label == "yes");
        for (uid, class) in &model.made {
            let allowed = local && expected.get(*uid).is_some_and(|(_, allowed, _)| *allowed);
            let desired = if allowed { Reached::Open } else { Reached::Refused };
            let reaches = || -> Result<bool> {
                Ok(cluster.cgroups.within(uid, *class, || knock(&place, VIP, 80))??.0 == desired)
            };
            wait_until("access to agree", reaches)
                .with_context(|| format!("{uid} should get {desired:?} after {done:?}"))?;
        }
        let pick = |random: &mut StdRng, count: usize| random.random_range(0..count.max(1));
        let (sender, holder) =
            (pick(&mut random, model.made.len()), pick(&mut random, model.addresses.len()));
        if let (Some((sender, class)), Some((holder, address))) =
            (model.made.iter().nth(sender), model.addresses.iter().nth(holder))
        {
            let refused = model.refuses(sender, holder);
            // Another port than before, whose connection would still be known.
            let from = SocketAddrV4::new(*address, 43_000 + u16::try_from(step)?);
            let seen = cluster.forge_once(sender, *class, from)?;
            ensure!(seen == (refused, !refused), "{sender} as {holder} got {seen:?} after {done:?}");
        }
    }
    Ok(())
}
