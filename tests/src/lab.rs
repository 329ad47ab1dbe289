//! The lab: a cluster on one machine. Nodes and pods are network namespaces, a bridge connects the nodes, and counting
//! relays lead to the gateway. The machine's own network is not touched.

mod bad_link;
mod boto3;
mod cgroup;
pub mod chunked;
mod claim;
mod client;
mod knock;
mod kubelet_cgroups;
pub mod kubernetes;
mod namespace;
mod node;
mod origin;
mod pod_api;
pub mod raw;
mod relay;
mod rgw;
mod signals;
mod udp_server;

use std::{
    fs,
    io::Write as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

pub use lota_scripted as scripted;

pub use bad_link::{BadLink, Harm};
pub use cgroup::{CgroupRoot, PodClass};
pub use claim::claim;
pub use client::{Client, Credential, Got, Style};
pub use knock::{AT_ONCE, LONG_ENOUGH, Reached, knock, knock_in_vain};
pub use namespace::Namespace;
pub use node::{ADMIN_PORT, Mode, Node, PEER_PORT, Program};
pub use origin::{ADMIN, NOBODY, Origin, POD_ONLY, READER};
pub use pod_api::{ApiPod, PodApi};
pub use relay::Relay;
pub use signals::still_wanted;
pub use udp_server::UdpServer;

/// Number of nodes.
pub const NODES: u8 = 3;
/// Number of pods on each node. The last pod of the last node has no access.
pub const PODS: u8 = 2;
/// The IPv4 VIP of the endpoint.
pub const VIP: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 80);
/// The IPv6 VIP of the endpoint.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0xface, 0, 0, 0, 0, 0, 0x80);
/// Address of the gateway and its backend, as seen by the nodes.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
/// MAC address of the bridge, which has [`GATEWAY`].
const SWITCH_MAC: &str = "02:00:00:4d:00:64";
/// Port of the gateway at [`GATEWAY`].
pub const GATEWAY_PORT: u16 = 9000;
/// Port of the backend at [`GATEWAY`].
pub const BACKEND_PORT: u16 = 9001;

/// A pod, by the number of its node and its own number, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pod(pub u8, pub u8);

/// The pod without an access entry.
pub const DENIED: Pod = Pod(NODES, PODS);

/// A namespace of a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Switch,
    Node(u8),
    Pod(Pod),
}

impl Place {
    fn namespace(self, lab: &str) -> Namespace {
        Namespace::named(&match self {
            Self::Switch => format!("{lab}-switch"),
            Self::Node(node) => format!("{lab}-n{node}"),
            Self::Pod(Pod(node, pod)) => format!("{lab}-n{node}p{pod}"),
        })
    }
}

/// The namespaces and the folder of a lab.
#[derive(Debug)]
pub struct Lab {
    name: String,
    folder: PathBuf,
}

impl Pod {
    /// Returns every pod of the lab.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=NODES).flat_map(|node| (1..=PODS).map(move |pod| Self(node, pod)))
    }

    /// Returns its IPv4 address.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 10 + self.0, 10 + self.1)
    }

    /// Returns its IPv6 address.
    #[must_use]
    pub fn address6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 10 + u16::from(self.0), 0, 0, 0, 0, 0, 10 + u16::from(self.1))
    }

    /// Returns the name of its interface on the node.
    #[must_use]
    pub fn interface(self) -> String {
        format!("veth-p{}", self.1)
    }
}

/// Returns a node's IPv4 address on the bridge.
#[must_use]
pub fn node_address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, node)
}

/// Returns a node's IPv6 address on the bridge.
#[must_use]
pub fn node_address6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(node))
}

impl Lab {
    /// Creates the lab; removes an existing one of the same name first.
    ///
    /// # Errors
    /// If the kernel or `ip` refuses, for example without root.
    pub fn up(name: &str) -> Result<Self> {
        let lab = Self::up_without_pods(name)?;
        for pod in Pod::all() {
            lab.make_pod(pod).with_context(|| format!("making pod {} of node {}", pod.1, pod.0))?;
        }
        Ok(lab)
    }

    /// Creates a lab whose pods are made by others; removes an existing one of the same name first.
    ///
    /// # Errors
    /// If the kernel or `ip` refuses, for example without root.
    pub fn up_without_pods(name: &str) -> Result<Self> {
        // During the removal of a lab on a signal, no further test may create another.
        still_wanted();
        Self::down(name)?;
        let lab = Self { name: name.to_owned(), folder: folder(name) };
        fs::create_dir_all(&lab.folder).with_context(|| format!("creating {}", lab.folder.display()))?;
        lab.make_switch().context("making the switch")?;
        for node in 1..=NODES {
            lab.make_node(node).with_context(|| format!("making node {node}"))?;
        }
        Ok(lab)
    }

    /// Removes all processes, namespaces, cgroups, pins and files of a lab.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn down(name: &str) -> Result<()> {
        for namespace in Self::namespaces(name) {
            namespace.delete()?;
        }
        for node in 1..=NODES {
            remove_folder(&pins(name, node))?;
        }
        kubelet_cgroups::remove(name)?;
        remove_folder(&folder(name))
    }

    /// Returns the remaining processes and files of a lab; empty once it is removed.
    #[must_use]
    pub fn leftovers(name: &str) -> Vec<String> {
        let namespaces = Self::namespaces(name).into_iter().flat_map(|namespace| namespace.traces());
        let folders = (1..=NODES).map(|node| pins(name, node)).chain([folder(name)]);
        let cgroups = kubelet_cgroups::paths(name);
        let mut left: Vec<PathBuf> =
            namespaces.chain(folders).chain(cgroups).filter(|path| path.exists()).collect();
        // Daemons are found by their command line, which contains the path of their configuration.
        let folder = folder(name).display().to_string();
        left.extend(
            fs::read_dir("/proc").into_iter().flatten().flatten().map(|process| process.path()).filter(
                |process| {
                    fs::read_to_string(process.join("cmdline")).is_ok_and(|line| line.contains(&folder))
                },
            ),
        );
        left.into_iter().map(|path| path.display().to_string()).collect()
    }

    /// Returns every namespace that a lab of this name may have.
    fn namespaces(name: &str) -> Vec<Namespace> {
        let nodes = (1..=NODES).map(Place::Node);
        let pods = Pod::all().map(Place::Pod);
        nodes.chain(pods).chain([Place::Switch]).map(|place| place.namespace(name)).collect()
    }

    /// Returns the name of the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the folder of the lab, on disk.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the namespace of the switch, which has the gateway's address.
    #[must_use]
    pub fn switch(&self) -> Namespace {
        Place::Switch.namespace(&self.name)
    }

    /// Lets the gateway's host send packets to the pods of a node directly.
    ///
    /// # Errors
    /// If the route cannot be added.
    pub fn route_to_pods(&self, node: u8) -> Result<()> {
        self.switch().ip(&format!("route replace 10.77.{}.0/24 via {}", 10 + node, node_address(node)))
    }

    /// Returns a node's namespace.
    #[must_use]
    pub fn node(&self, node: u8) -> Namespace {
        Place::Node(node).namespace(&self.name)
    }

    /// Returns a pod's namespace.
    #[must_use]
    pub fn pod(&self, pod: Pod) -> Namespace {
        Place::Pod(pod).namespace(&self.name)
    }

    /// Returns the folder in which a node's daemon pins its maps.
    #[must_use]
    pub fn pins(&self, node: u8) -> PathBuf {
        pins(&self.name, node)
    }

    /// Starts a counting relay from a port of [`GATEWAY`] to `target`, which is connected to from this process's own
    /// network namespace.
    ///
    /// # Errors
    /// If the port is in use.
    pub fn relay(&self, port: u16, target: SocketAddr) -> Result<Relay> {
        let listener = self.switch().run(move || std::net::TcpListener::bind((GATEWAY, port)))??;
        Relay::start(listener, target)
    }

    fn make_switch(&self) -> Result<()> {
        let switch = self.switch();
        switch.create()?;
        // By default, it would be that of a port, and change when that port leaves.
        switch.ip(&format!("link add br0 address {SWITCH_MAC} type bridge"))?;
        switch.ip(&format!("addr add {GATEWAY}/24 dev br0"))?;
        switch.ip("link set br0 up")
    }

    fn make_node(&self, number: u8) -> Result<()> {
        let (node, switch) = (self.node(number), self.switch());
        node.create()?;
        switch.ip(&format!("link add to-n{number} type veth peer name uplink netns {}", node.name()))?;
        switch.ip(&format!("link set to-n{number} master br0 up"))?;
        node.ip(&format!("addr add {}/24 dev uplink", node_address(number)))?;
        node.ip(&format!("addr add {}/64 dev uplink nodad", node_address6(number)))?;
        node.ip("link set uplink up")?;
        for other in (1..=NODES).filter(|other| *other != number) {
            node.ip(&format!("route add 10.77.{}.0/24 via {}", 10 + other, node_address(other)))?;
            node.ip(&format!("route add fd77:{:x}::/32 via {}", 10 + other, node_address6(other)))?;
        }
        node.write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        node.write("/proc/sys/net/ipv4/ip_forward", "1")
    }

    fn make_pod(&self, pod: Pod) -> Result<()> {
        let namespace = self.pod(pod);
        namespace.create()?;
        namespace.set_resolver(VIP, "")?;
        self.connect_pod(pod)
    }

    /// Gives a pod its interface, address and routes.
    ///
    /// # Errors
    /// If `ip` refuses, for example because the pod has them already.
    pub fn connect_pod(&self, pod: Pod) -> Result<()> {
        self.connect_pod_at(pod, "type veth")
    }

    /// Replaces a pod by another one with its address, whose interface has the same name and index.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn replace_pod(&self, pod: Pod) -> Result<()> {
        let (node, interface) = (self.node(pod.0), pod.interface());
        let shown = run(node.command("ip").args(["-o", "link", "show", "dev", &interface]))?;
        let index = shown.split(':').next().unwrap_or_default();
        node.ip(&format!("link del {interface}"))?;
        let namespace = self.pod(pod);
        namespace.delete()?;
        namespace.create()?;
        namespace.set_resolver(VIP, "")?;
        self.connect_pod_at(pod, &format!("index {index} type veth"))
    }

    /// Like [`Lab::connect_pod`], with these arguments of `ip link add`.
    fn connect_pod_at(&self, pod: Pod, link: &str) -> Result<()> {
        let (namespace, node) = (self.pod(pod), self.node(pod.0));
        let (address, interface) = (pod.address(), pod.interface());
        let router = Ipv4Addr::new(10, 77, 10 + pod.0, 1);
        node.ip(&format!("link add {interface} {link} peer name eth0 netns {}", namespace.name()))?;
        node.ip(&format!("addr add {router}/32 dev {interface}"))?;
        node.ip(&format!("link set {interface} up"))?;
        node.ip(&format!("route add {address}/32 dev {interface}"))?;
        namespace.ip(&format!("addr add {address}/32 dev eth0"))?;
        namespace.ip("link set eth0 up")?;
        namespace.ip(&format!("route add {router} dev eth0"))?;
        namespace.ip(&format!("route add default via {router}"))?;
        let (address, router) =
            (pod.address6(), Ipv6Addr::new(0xfd77, 10 + u16::from(pod.0), 0, 0, 0, 0, 0, 1));
        node.ip(&format!("addr add {router}/128 dev {interface} nodad"))?;
        node.ip(&format!("route add {address}/128 dev {interface}"))?;
        namespace.ip(&format!("addr add {address}/128 dev eth0 nodad"))?;
        namespace.ip(&format!("route add {router} dev eth0"))?;
        namespace.ip(&format!("route add default via {router} dev eth0"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = Self::down(&self.name) {
            eprintln!("cannot remove the lab {}: {error:#}", self.name);
        }
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new("/var/tmp").join(format!("lota-lab-{name}"))
}

fn pins(name: &str, node: u8) -> PathBuf {
    Path::new("/sys/fs/bpf").join(format!("lota-{name}-n{node}"))
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Sends SIGINT to a process and waits for its end.
///
/// # Errors
/// If the signal cannot be sent.
pub fn interrupt(process: &mut Child) -> Result<()> {
    kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGINT)?;
    process.wait()?;
    Ok(())
}

/// Runs a command; returns its standard output.
///
/// # Errors
/// If it fails, with its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    output_of(command, &output)
}

/// Returns the entries of a pinned map as `bpftool` formats them by the map's types.
///
/// # Errors
/// If `bpftool` fails or prints something else.
pub fn dump_map(path: &Path) -> Result<Vec<Value>> {
    let dump = run(Command::new("bpftool").args(["--json", "map", "dump", "pinned"]).arg(path))?;
    let entries: Vec<Value> =
        serde_json::from_str(&dump).with_context(|| format!("unexpected output of bpftool: {dump}"))?;
    Ok(entries.into_iter().map(|mut entry| entry["formatted"].take()).collect())
}

/// Runs a command with this standard input; returns its standard output.
///
/// # Errors
/// If it fails, with its standard error.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().with_context(|| format!("running {command:?}"))?;
    process.stdin.take().context("no input")?.write_all(input.as_bytes())?;
    output_of(command, &process.wait_with_output()?)
}

fn output_of(command: &Command, output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
