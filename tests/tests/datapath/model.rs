//! Random changes of access, interfaces and the daemon. After each, the output of `lota access list`, the content of
//! the kernel's maps and the expectation of a small model must be equal.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::{Context as _, Result, ensure};
use lota_common::{Source, map};
use lota_tests::{
    lab::{Mode, Node},
    tour::{Tour, wait_until},
};
use nix::sys::signal::Signal;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use super::{dump, lota_json};

const STEPS: usize = 60;
const INTERFACES: [&str; 3] = ["veth-x0", "veth-x1", "veth-x2"];
const ADDRESSES: [&str; 4] = ["10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.4"];
const PREFIXES: [&str; 2] = ["10.9.0.0/16", "10.9.0.0/30"];

/// Expected entry of a subject: access, name of the interface (`None` for any), and source.
type Entry = (bool, Option<&'static str>, &'static str);

#[derive(Default)]
struct Model {
    there: BTreeSet<&'static str>,
    /// Entries of operators: access and interface.
    entries: BTreeMap<&'static str, (bool, Option<&'static str>)>,
}

impl Model {
    /// Returns the expected entries. The configuration allows the first address at the first interface and denies the
    /// last.
    fn expected(&self) -> BTreeMap<String, Entry> {
        let mut expected = BTreeMap::new();
        if self.there.contains(INTERFACES[0]) {
            expected.insert(ADDRESSES[0].to_owned(), (true, Some(INTERFACES[0]), "config"));
        }
        expected.insert(ADDRESSES[3].to_owned(), (false, None, "config"));
        for (subject, (allow, interface)) in &self.entries {
            expected.insert((*subject).to_owned(), (*allow, *interface, "command"));
        }
        expected
    }

    /// Removes an interface and the entries that are bound to it.
    fn gone(&mut self, interface: &str) {
        self.there.remove(interface);
        self.entries.retain(|_, (_, at)| at.is_none_or(|at| at != interface));
    }
}

pub(crate) fn random(tour: &mut Tour) -> Result<()> {
    let seed =
        std::env::var("LOTA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let node = &mut tour.nodes[1];
    let place = tour.lab.node(2);
    let pods = format!(
        "deny = [\"{}\"]\npods = [\n    {{ address = \"{}\", interface = \"{}\" }},",
        ADDRESSES[3], ADDRESSES[0], INTERFACES[0]
    );
    node.edit("[access]\npods = [", &format!("[access]\n{pods}"));
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    let walked = walk(node, &place, seed).with_context(|| format!("with LOTA_SEED={seed}"));
    for interface in INTERFACES {
        let _ = place.ip(&format!("link del {interface}"));
    }
    for subject in ADDRESSES.iter().chain(&PREFIXES) {
        let _ = node.lota(&["access", "forget", subject]);
    }
    node.forget_edits();
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    walked
}

fn walk(node: &mut Node, place: &lota_tests::lab::Namespace, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut model = Model::default();
    let mut done = Vec::new();
    for _ in 0..STEPS {
        let interface = INTERFACES[random.random_range(0..INTERFACES.len())];
        let address = ADDRESSES[random.random_range(0..ADDRESSES.len())];
        let prefix = PREFIXES[random.random_range(0..PREFIXES.len())];
        let subject = if random.random_bool(0.3) { prefix } else { address };
        match random.random_range(0..10) {
            0 | 1 if model.there.contains(interface) => {
                done.push(format!("del {interface}"));
                place.ip(&format!("link del {interface}"))?;
                model.gone(interface);
            }
            0 | 1 => {
                done.push(format!("add {interface}"));
                place.ip(&format!("link add {interface} type veth peer name o{interface}"))?;
                model.there.insert(interface);
            }
            // Deleted and created again at once: another interface of the same name.
            2 if model.there.contains(interface) => {
                done.push(format!("flap {interface}"));
                place.ip(&format!("link del {interface}"))?;
                place.ip(&format!("link add {interface} type veth peer name o{interface}"))?;
                model.gone(interface);
                model.there.insert(interface);
            }
            3 | 4 if model.there.contains(interface) => {
                done.push(format!("allow {address} {interface}"));
                // The daemon may not have seen a new interface yet.
                wait_until("the command to be taken", || {
                    Ok(node.lota(&["access", "allow", address, "--interface", interface]).is_ok())
                })?;
                model.entries.insert(address, (true, Some(interface)));
            }
            5 => {
                done.push(format!("allow {prefix}"));
                node.lota(&["access", "allow", prefix])?;
                model.entries.insert(prefix, (true, None));
            }
            6 => {
                done.push(format!("deny {subject}"));
                node.lota(&["access", "deny", subject])?;
                model.entries.insert(subject, (false, None));
            }
            7 => {
                done.push(format!("forget {subject}"));
                let forgot = node.lota(&["access", "forget", subject]).is_ok();
                let known = model.entries.remove(subject).is_some();
                ensure!(forgot == known, "{done:?}: forgotten {forgot}, entries {known}");
            }
            8 => {
                done.push("kill".to_owned());
                node.stop(Signal::SIGKILL)?;
                node.start()?;
            }
            9 => {
                done.push("hand over".to_owned());
                node.start()?;
            }
            _ => continue,
        }
        let expected = model.expected();
        let mut seen = (BTreeMap::new(), BTreeMap::new());
        let agreed = wait_until("all to agree", || {
            let indices = indices(place)?;
            seen = (listed(node)?, held(node, &indices)?);
            Ok(seen.0 == expected && seen.1 == expected)
        });
        agreed.with_context(|| {
            format!("after {done:?}\nexpected {expected:?}\nlisted   {:?}\nheld     {:?}", seen.0, seen.1)
        })?;
    }
    Ok(())
}

fn ours(subject: &str) -> bool {
    subject.starts_with("10.9.")
}

fn known(name: &str) -> Option<&'static str> {
    INTERFACES.iter().copied().find(|interface| *interface == name)
}

/// Returns the entries of `lota access list`.
fn listed(node: &Node) -> Result<BTreeMap<String, Entry>> {
    let entries = lota_json(node, &["access", "list"])?;
    let entries = entries.iter().filter_map(|entry| {
        let subject = entry["subject"].as_str().filter(|subject| ours(subject))?;
        let source = if entry["source"] == "command" { "command" } else { "config" };
        let interface = entry["interface"].as_str().and_then(known);
        Some((subject.to_owned(), (entry["allow"].as_bool()?, interface, source)))
    });
    Ok(entries.collect())
}

/// Returns the entries of the kernel's maps, from `bpftool`.
fn held(node: &Node, indices: &BTreeMap<u64, &'static str>) -> Result<BTreeMap<String, Entry>> {
    let mut held = BTreeMap::new();
    for map in [map::ACCESS4, map::RULES4] {
        for entry in dump(node, map)? {
            let key = &entry["key"];
            let address = if map == map::ACCESS4 { &key["address"] } else { &key["data"]["address"] };
            let octets: [u8; 4] =
                serde_json::from_value(address.clone()).with_context(|| entry.to_string())?;
            let mut subject = Ipv4Addr::from(octets).to_string();
            if let Some(length) = key["prefix_len"].as_u64() {
                subject = format!("{subject}/{length}");
            }
            if !ours(&subject) {
                continue;
            }
            let value = |field: &str| entry["value"][field].as_u64().with_context(|| entry.to_string());
            let source =
                if value("source")? == u64::from(Source::Command as u32) { "command" } else { "config" };
            let interface = match value("ifindex")? {
                0 => None,
                index => Some(indices.get(&index).copied().unwrap_or("(gone)")),
            };
            held.insert(subject, (value("allow")? == 1, interface, source));
        }
    }
    Ok(held)
}

/// Returns the names of the test's interfaces by index.
fn indices(place: &lota_tests::lab::Namespace) -> Result<BTreeMap<u64, &'static str>> {
    let list = lota_tests::lab::run(place.command("ip").args(["-json", "link"]))?;
    let list: Vec<Value> = serde_json::from_str(&list)?;
    Ok(list
        .iter()
        .filter_map(|link| Some((link["ifindex"].as_u64()?, known(link["ifname"].as_str()?)?)))
        .collect())
}
