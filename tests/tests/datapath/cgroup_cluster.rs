//! A node whose pods have cgroups, named as kubelet names them, and come from a stand-in for the API server.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lota_common::{Verdict, map};
use lota_datapath::LOOPBACK_INDEX;
use lota_tests::{
    lab::{
        ApiPod, CgroupRoot, DENIED, Mode, Namespace, Node, PODS, Pod, PodApi, PodClass, Reached, VIP, knock,
        run,
    },
    tool,
    tour::{Tour, wait_until},
};

use super::{dump, forge, lota_json};

pub(super) const CGROUP: &str = "lotapath";
pub(super) const CLASS: PodClass = PodClass::Burstable;
/// Pods of the third node, and their UIDs.
pub(super) const ONE: (Pod, &str) = (Pod(3, 1), "3f2c9a1e-0b6d-4a57-9f55-2d1f0c7b8a90");
pub(super) const TWO: (Pod, &str) = (DENIED, "77c0f4c2-5d5c-4a25-8a1b-0a4d0c6f2e11");
/// Rules that select pods by their label, and those that forward.
pub(super) const RULES: &str = "
[[access.from]]
namespaceSelector = {}
podSelector = { matchLabels = { lota = 'yes' } }
[[access.forwarders]]
namespaceSelector = {}
podSelector = { matchLabels = { lota = 'forwards' } }
";

/// The third node with pods from a stand-in for the API server. Everything is restored at the end.
pub(crate) struct Cluster<'a> {
    pub(crate) tour: &'a mut Tour,
    pub(crate) api: PodApi,
    pub(crate) cgroups: CgroupRoot,
    /// Pattern of the interfaces of pods.
    interfaces: &'static str,
}

impl<'a> Cluster<'a> {
    pub(crate) fn start(tour: &'a mut Tour, access: &str) -> Result<Self> {
        Self::start_at(tour, "veth-*", access)
    }

    pub(super) fn start_at(tour: &'a mut Tour, interfaces: &'static str, access: &str) -> Result<Self> {
        let (api, cgroups) = (PodApi::start(&tour.lab)?, CgroupRoot::make(CGROUP)?);
        for (_, uid) in [ONE, TWO] {
            cgroups.make_pod(uid, CLASS)?;
        }
        let mut cluster = Self { tour, api, cgroups, interfaces };
        cluster.configure(access)?;
        cluster.node_mut().start()?;
        Ok(cluster)
    }

    pub(crate) fn node(&self) -> &Node {
        &self.tour.nodes[2]
    }

    pub(crate) fn node_mut(&mut self) -> &mut Node {
        &mut self.tour.nodes[2]
    }

    /// Configures these further keys of `[access]`. Only the API server says which pods there are.
    pub(super) fn configure(&mut self, access: &str) -> Result<()> {
        let (folder, kubeconfig) = (self.cgroups.folder().display().to_string(), self.api.kubeconfig());
        let interfaces = format!("pod_interfaces = [\"{}\"]", self.interfaces);
        let node = self.node_mut();
        node.forget_edits();
        node.use_kubernetes(Some(RULES));
        node.set_environment(vec![("KUBECONFIG", kubeconfig)]);
        node.edit("pod_interfaces = [\"veth-*\"]", &interfaces);
        let path = if access.contains("cgroup_path") {
            String::new()
        } else {
            format!("cgroup_path = \"{folder}\"\n")
        };
        node.edit("[access]\n", &format!("[access]\n{path}{access}\n"));
        for address in [ONE.0.address().to_string(), ONE.0.address6().to_string()] {
            let interface = ONE.0.interface();
            node.edit(&format!("    {{ address = \"{address}\", interface = \"{interface}\" }},\n"), "");
        }
        node.configure(Mode::OwnCredential)
    }

    /// Applies another configuration to the running daemon.
    pub(super) fn reload(&mut self, access: &str) -> Result<()> {
        self.configure(access)?;
        self.node().lota(&["reload"]).map(drop)
    }

    /// Reports the two pods with these labels, and waits until the kernel knows them.
    pub(super) fn report(&self, one: &str, two: &str) -> Result<()> {
        for ((pod, uid), label) in [(ONE, one), (TWO, two)] {
            self.api.apply(&ApiPod::new(uid, uid, Some(pod.address()), label));
        }
        self.wait_for_cgroups(2)
    }

    /// Waits until the kernel knows the cgroups of so many pods, and which pods have addresses.
    pub(super) fn wait_for_cgroups(&self, count: usize) -> Result<()> {
        wait_until("the cgroups of pods to be known", || {
            let holders = dump(self.node(), map::HOLDERS4)?;
            let is_known = holders.iter().all(|holder| holder["value"]["cgroup"] != 0);
            Ok(is_known && dump(self.node(), map::CGROUPS)?.len() == count)
        })
    }

    pub(super) fn packets(&self, verdict: Verdict) -> Result<u64> {
        let status = &lota_json(self.node(), &["datapath", "status"])?[0];
        let verdicts = status["verdicts"].as_array().context("no verdicts")?;
        let count = verdicts.iter().find(|count| count["verdict"] == verdict.label());
        count.and_then(|count| count["packets"].as_u64()).context("no count")
    }

    /// Connects from a namespace as a process of a pod.
    pub(super) fn knock(
        &self,
        uid: &str,
        place: &Namespace,
        vip: impl Into<std::net::IpAddr>,
    ) -> Result<(Reached, Duration)> {
        let vip = vip.into();
        self.cgroups.within(uid, CLASS, || knock(place, vip, 80))?
    }

    /// Sends a SYN from the second pod's namespace as another address, in each way in which the packet keeps its socket.
    /// Returns for each whether it was refused as spoofed, and whether it was redirected.
    pub(super) fn forge(&self, as_uid: &str, source: Ipv4Addr, router: &str) -> Result<Vec<(bool, bool)>> {
        self.forge_by(&["raw", "packet", "bypass"], as_uid, source, router)
    }

    /// Sends a SYN from the second pod's namespace by a raw socket. Returns as [`Self::forge`].
    pub(crate) fn forge_once(
        &self,
        as_uid: &str,
        class: PodClass,
        from: SocketAddrV4,
    ) -> Result<(bool, bool)> {
        let before = (self.packets(Verdict::Spoofed)?, self.packets(Verdict::Redirected)?);
        let vip = SocketAddrV4::new(VIP, 80);
        let place = self.tour.lab.pod(TWO.0);
        self.cgroups.within(as_uid, class, || place.run(move || forge::send_syn(from, vip)))???;
        std::thread::sleep(Duration::from_millis(100));
        let after = (self.packets(Verdict::Spoofed)?, self.packets(Verdict::Redirected)?);
        Ok((after.0 > before.0, after.1 > before.1))
    }

    pub(super) fn forge_by(
        &self,
        ways: &[&str],
        as_uid: &str,
        source: Ipv4Addr,
        router: &str,
    ) -> Result<Vec<(bool, bool)>> {
        let mut seen = Vec::new();
        for (number, way) in ways.iter().copied().enumerate() {
            let port = 40_000 + u16::try_from(number)?;
            let before = (self.packets(Verdict::Spoofed)?, self.packets(Verdict::Redirected)?);
            let (from, vip) = (SocketAddrV4::new(source, port), SocketAddrV4::new(VIP, 80));
            let place = self.tour.lab.pod(TWO.0);
            if way == "raw" {
                self.cgroups.within(as_uid, CLASS, || place.run(move || forge::send_syn(from, vip)))???;
            } else if way == "lo" {
                // The pod's namespace receives the packet, and forwards it without its socket.
                let send = move || forge::send_at(LOOPBACK_INDEX, &forge::syn(from, vip));
                self.cgroups.within(as_uid, CLASS, || place.run(send))???;
            } else {
                self.cgroups.within(as_uid, CLASS, || {
                    send_packet(&place, "eth0", &forge::syn(from, vip), router, way)
                })??;
            }
            std::thread::sleep(Duration::from_millis(100));
            let after = (self.packets(Verdict::Spoofed)?, self.packets(Verdict::Redirected)?);
            seen.push((after.0 > before.0, after.1 > before.1));
        }
        Ok(seen)
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        let node = &mut self.tour.nodes[2];
        node.use_kubernetes(None);
        node.forget_edits();
        node.set_environment(Vec::new());
        if let Err(error) = node.configure(Mode::OwnCredential).and_then(|()| node.start()) {
            eprintln!("cannot restore {}: {error:#}", node.name());
        }
    }
}

/// Sends a packet by a packet socket, which the routing does not see.
pub(super) fn send_packet(
    place: &Namespace,
    interface: &str,
    packet: &[u8],
    router: &str,
    way: &str,
) -> Result<()> {
    const SCRIPT: &str = "\
import socket, sys
interface, packet, mac, way = sys.argv[1:]
sender = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
if way == 'bypass':
    sender.setsockopt(263, 20, 1)  # SOL_PACKET, PACKET_QDISC_BYPASS
sender.sendto(bytes.fromhex(packet), (interface, 0x0800, 0, 0, bytes.fromhex(mac.replace(':', ''))))
";
    let bytes = packet.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    run(place.command(tool("LOTA_PYTHON")?).args(["-c", SCRIPT, interface, &bytes, router, way])).map(drop)
}

/// Returns the link layer address of an interface.
pub(super) fn mac(place: &Namespace, interface: &str) -> Result<String> {
    let shown = run(place.command("ip").args(["-json", "link", "show", "dev", interface]))?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    Ok(shown[0]["address"].as_str().context("no address")?.to_owned())
}

/// Pods of the third node behind a bridge.
pub(super) struct Bridge(Namespace);

impl Bridge {
    pub(super) fn make(tour: &Tour) -> Result<Self> {
        let made = Self(tour.lab.node(3));
        let node = &made.0;
        node.ip("link add cni0 type bridge")?;
        node.ip("addr add 10.77.13.1/24 dev cni0")?;
        node.ip("link set cni0 up")?;
        for pod in (1..=PODS).map(|pod| Pod(3, pod)) {
            node.ip(&format!("link set {} master cni0", pod.interface()))?;
            // As with a CNI plugin, the bridge has the only route to its pods.
            node.ip(&format!("route del {}/32 dev {}", pod.address(), pod.interface()))?;
            tour.lab.pod(pod).ip("neigh flush dev eth0")?;
        }
        Ok(made)
    }

    pub(super) fn remove(self, tour: &Tour) -> Result<()> {
        self.0.ip("link del cni0")?;
        for pod in (1..=PODS).map(|pod| Pod(3, pod)) {
            self.0.ip(&format!("route replace {}/32 dev {}", pod.address(), pod.interface()))?;
            tour.lab.pod(pod).ip("neigh flush dev eth0")?;
        }
        Ok(())
    }
}
