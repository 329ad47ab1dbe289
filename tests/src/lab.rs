//! A cluster in a box: nodes and pods as network namespaces, a bridge between the nodes, and a counted way to
//! the gateway. Nothing of it touches the machine's own network.

pub mod chunked;
mod client;
mod knock;
pub mod kubernetes;
mod namespace;
mod node;
mod origin;
pub mod raw;
mod relay;
mod signals;

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub use client::{Client, Credential, Got, Style};
pub use knock::{AT_ONCE, LONG_ENOUGH, Reached, knock};
pub use namespace::Namespace;
pub use node::{ADMIN_PORT, Mode, Node, PEER_PORT, Program};
pub use origin::{ADMIN, NOBODY, Origin, POD_ONLY, READER};
pub use relay::Relay;
pub use signals::{clean_up_on_signal, still_wanted};

/// Nodes in the lab.
pub const NODES: u8 = 3;
/// Pods on each node. The last pod of the last node has no access.
pub const PODS: u8 = 2;
/// The virtual address of the endpoint.
pub const VIP: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 80);
/// The same for IPv6.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0xface, 0, 0, 0, 0, 0, 0x80);
/// Where nodes find the gateway, and the backend behind it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
/// The gateway's port at [`GATEWAY`].
pub const GATEWAY_PORT: u16 = 9000;
/// The backend's port at [`GATEWAY`].
pub const BACKEND_PORT: u16 = 9001;

/// A pod, by its node's number and its own, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pod(pub u8, pub u8);

/// The pod that no access entry names.
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

/// The namespaces, and the folder that goes with them.
#[derive(Debug)]
pub struct Lab {
    name: String,
    folder: PathBuf,
}

impl Pod {
    /// Every pod of the lab.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=NODES).flat_map(|node| (1..=PODS).map(move |pod| Self(node, pod)))
    }

    /// Its address.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 10 + self.0, 10 + self.1)
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn address6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 10 + u16::from(self.0), 0, 0, 0, 0, 0, 10 + u16::from(self.1))
    }

    /// The node's interface it is behind.
    #[must_use]
    pub fn interface(self) -> String {
        format!("veth-p{}", self.1)
    }
}

/// A node's address on the bridge.
#[must_use]
pub fn node_address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, node)
}

/// A node's IPv6 address on the bridge.
#[must_use]
pub fn node_address6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(node))
}

impl Lab {
    /// Makes the lab; one of the same name is taken down first.
    ///
    /// # Errors
    /// If the kernel or `ip` refuses, as it does without root.
    pub fn up(name: &str) -> Result<Self> {
        Self::down(name)?;
        let lab = Self { name: name.to_owned(), folder: folder(name) };
        fs::create_dir_all(&lab.folder).with_context(|| format!("creating {}", lab.folder.display()))?;
        lab.make_switch().context("making the switch")?;
        for node in 1..=NODES {
            lab.make_node(node).with_context(|| format!("making node {node}"))?;
            for pod in 1..=PODS {
                lab.make_pod(Pod(node, pod)).with_context(|| format!("making pod {pod} of node {node}"))?;
            }
        }
        Ok(lab)
    }

    /// Takes down whatever there is of a lab of this name: processes, namespaces, pins, files.
    ///
    /// # Errors
    /// If something of it cannot be removed.
    pub fn down(name: &str) -> Result<()> {
        for namespace in Self::namespaces(name) {
            namespace.delete()?;
        }
        for node in 1..=NODES {
            remove_folder(&pins(name, node))?;
        }
        remove_folder(&folder(name))
    }

    /// What is left of a lab; empty once it is down.
    #[must_use]
    pub fn leftovers(name: &str) -> Vec<String> {
        let namespaces = Self::namespaces(name).into_iter().flat_map(|namespace| namespace.traces());
        let folders = (1..=NODES).map(|node| pins(name, node)).chain([folder(name)]);
        let mut left: Vec<PathBuf> = namespaces.chain(folders).filter(|path| path.exists()).collect();
        // A daemon's command line names its configuration, which is in the folder.
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

    /// Every namespace that a lab of this name may have, and no other's.
    fn namespaces(name: &str) -> Vec<Namespace> {
        let nodes = (1..=NODES).map(Place::Node);
        let pods = Pod::all().map(Place::Pod);
        nodes.chain(pods).chain([Place::Switch]).map(|place| place.namespace(name)).collect()
    }

    /// The lab's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A folder of its own, on disk.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The namespace of the switch, where the gateway's address is.
    #[must_use]
    pub fn switch(&self) -> Namespace {
        Place::Switch.namespace(&self.name)
    }

    /// A node's namespace.
    #[must_use]
    pub fn node(&self, node: u8) -> Namespace {
        Place::Node(node).namespace(&self.name)
    }

    /// A pod's namespace.
    #[must_use]
    pub fn pod(&self, pod: Pod) -> Namespace {
        Place::Pod(pod).namespace(&self.name)
    }

    /// Where a node's daemon pins its maps.
    #[must_use]
    pub fn pins(&self, node: u8) -> PathBuf {
        pins(&self.name, node)
    }

    /// A counting relay from an address of the switch to `target`, which is reached from this process' own
    /// namespace.
    ///
    /// # Errors
    /// If the address is taken.
    pub fn relay(&self, port: u16, target: SocketAddr) -> Result<Relay> {
        let listener = self.switch().run(move || std::net::TcpListener::bind((GATEWAY, port)))??;
        Relay::start(listener, target)
    }

    fn make_switch(&self) -> Result<()> {
        let switch = self.switch();
        switch.create()?;
        switch.ip("link add br0 type bridge")?;
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
    /// If `ip` refuses, as it does when the pod has them.
    pub fn connect_pod(&self, pod: Pod) -> Result<()> {
        let (namespace, node) = (self.pod(pod), self.node(pod.0));
        let (address, interface) = (pod.address(), pod.interface());
        let router = Ipv4Addr::new(10, 77, 10 + pod.0, 1);
        node.ip(&format!("link add {interface} type veth peer name eth0 netns {}", namespace.name()))?;
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
            eprintln!("the lab {} is not all gone: {error:#}", self.name);
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

/// Ends a process as Ctrl-C does, and waits for it.
///
/// # Errors
/// If it cannot be signalled.
pub fn interrupt(process: &mut Child) -> Result<()> {
    kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGINT)?;
    process.wait()?;
    Ok(())
}

/// Runs a command to its end; what it printed.
///
/// # Errors
/// If it fails, with what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
