//! A thousand pods come and go on a node, and after each step the access entries equal those of a small model.

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lota_tests::{
    lab::{Mode, Namespace, Node, kubernetes::ApiServer},
    tour::Tour,
};
use nix::sys::signal::Signal;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;

use super::{
    api::{self, TestPod},
    api_server, restore,
};

const PODS: usize = 1000;
/// Maximum number of pods at once.
const MAX_PODS: usize = 60;
/// Timeout for daemon and model to agree, since a watch may have to restart.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
const RULES: &str = "
[[access.from]]
namespaceSelector = { matchLabels = { lota = 'train' } }
podSelector = { matchExpressions = [{ key = 'app', operator = 'In', values = ['train', 'infer'] }] }
[[access.from]]
podSelector = {}
[[access.from]]
ipBlock = { cidr = '10.200.0.0/16', except = ['10.200.7.0/24'] }
";
const NAMESPACES: [&str; 3] = [api::HOME, "team-a", "team-b"];

/// State of a pod.
#[derive(Clone, Debug)]
struct Pod {
    spec: TestPod,
    /// Interface of the pod; `None` once it is removed.
    interface: Option<String>,
    ended: bool,
    /// Number of the pod, in order of creation.
    number: usize,
    made: Instant,
}

#[derive(Default)]
struct Model {
    pods: BTreeMap<String, Pod>,
    /// Namespaces with the label of access.
    labelled: BTreeMap<&'static str, bool>,
    made: usize,
}

impl Model {
    /// Returns the addresses with access, and their interfaces.
    fn expected(&self) -> BTreeMap<String, String> {
        let mut holders: BTreeMap<&str, &Pod> = BTreeMap::new();
        for pod in self.pods.values().filter(|pod| !pod.ended && !pod.spec.host_network) {
            let holder = holders.entry(&pod.spec.address).or_insert(pod);
            if pod.number > holder.number {
                *holder = pod;
            }
        }
        let selected = |pod: &Pod| {
            let labelled = self.labelled.get(pod.spec.namespace).copied().unwrap_or_default();
            pod.spec.namespace == api::HOME || (labelled && pod.spec.allowed)
        };
        let entries = holders.into_iter().filter(|(_, pod)| selected(pod));
        entries.filter_map(|(address, pod)| Some((address.to_owned(), pod.interface.clone()?))).collect()
    }

    /// Returns whether no later pod has the pod's address, and the pod is old enough to be distinguished from one
    /// that gets it now. Times of the API server are whole seconds.
    fn can_lose(&self, pod: &Pod) -> bool {
        let is_later = |other: &Pod| other.spec.address == pod.spec.address && other.number > pod.number;
        !pod.spec.host_network && pod.made.elapsed() > 2 * SECOND && !self.pods.values().any(is_later)
    }

    fn any(&self, random: &mut StdRng, of: impl Fn(&Pod) -> bool) -> Option<String> {
        let names: Vec<&String> = self.pods.iter().filter(|(_, pod)| of(pod)).map(|(name, _)| name).collect();
        (!names.is_empty()).then(|| names[random.random_range(0..names.len())].clone())
    }

    /// Returns a new pod with this address, or with an unused one.
    fn pod(&mut self, random: &mut StdRng, address: Option<String>) -> Pod {
        let number = self.made;
        self.made += 1;
        let host_network = address.is_none() && random.random_bool(0.05);
        let address = match (address, host_network) {
            (Some(address), _) => address,
            (None, true) => "10.77.0.1".to_owned(),
            (None, false) => format!("10.100.{}.{}", number / 250, 1 + number % 250),
        };
        let spec = TestPod {
            name: format!("pod-{number}"),
            namespace: NAMESPACES[random.random_range(0..NAMESPACES.len())],
            allowed: random.random_bool(0.6),
            host_network,
            address,
            node: "n1",
        };
        Pod {
            spec,
            interface: (!host_network).then(|| format!("veth-k{number}")),
            ended: false,
            number,
            made: Instant::now(),
        }
    }
}

pub(crate) fn random(tour: &mut Tour) -> Result<()> {
    let seed =
        std::env::var("LOTA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    let mut server = api_server(tour)?;
    let place = tour.lab.node(1);
    let node = &mut tour.nodes[0];
    node.use_kubernetes(Some(RULES));
    node.set_environment(vec![("KUBECONFIG", server.kubeconfig("lota"))]);
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    let walked = walk(node, &place, &mut server, seed).with_context(|| format!("with LOTA_SEED={seed}"));
    restore(tour)?;
    walked
}

#[expect(clippy::too_many_lines, reason = "one arm for each thing that happens to a node")]
fn walk(node: &mut Node, place: &Namespace, server: &mut ApiServer, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut model = Model::default();
    let (mut steps, mut slowest) = (0, Duration::ZERO);
    let mut done = Vec::new();
    while model.made < PODS {
        steps += 1;
        if std::env::var_os("LOTA_TRACE").is_some() {
            eprintln!("{steps}: {:?}", done.last());
        }
        let mut calm = true;
        match random.random_range(0..21) {
            // Adds pods.
            0..8 if model.pods.len() < MAX_PODS => {
                let pods: Vec<Pod> =
                    (0..random.random_range(1..40)).map(|_| model.pod(&mut random, None)).collect();
                done.push(format!("{} come", pods.len()));
                connect(place, &pods)?;
                model.pods.extend(pods.iter().map(|pod| (pod.spec.name.clone(), pod.clone())));
                server.call(async move |client| {
                    for pod in &pods {
                        api::add(&client, &pod.spec).await?;
                    }
                    Ok(())
                })?;
            }
            // Removes pods: first their networks and then the objects, or the other way round.
            0..12 => {
                let at_once = random.random_range(1..30);
                let gone: Vec<Pod> = (0..at_once)
                    .filter_map(|_| {
                        model.any(&mut random, |_| true).and_then(|name| model.pods.remove(&name))
                    })
                    .collect();
                done.push(format!("{} go", gone.len()));
                let network_first = random.random_bool(0.5);
                if network_first {
                    disconnect(place, &gone)?;
                }
                let names: Vec<TestPod> = gone.iter().map(|pod| pod.spec.clone()).collect();
                server.call(async move |client| {
                    for pod in &names {
                        api::remove(&client, pod.namespace, &pod.name).await?;
                    }
                    Ok(())
                })?;
                if !network_first {
                    disconnect(place, &gone)?;
                }
            }
            // A pod's network is removed, and another pod gets its address, before the API server knows.
            12 | 13 => {
                let Some(name) = model.any(&mut random, |pod| model.can_lose(pod)) else { continue };
                done.push(format!("{name}'s address is reused"));
                let old = model.pods.get_mut(&name).context("a pod")?;
                disconnect(place, std::slice::from_ref(old))?;
                old.interface = None;
                let address = old.spec.address.clone();
                let next = model.pod(&mut random, Some(address));
                // The new pod is not reported yet, so it has no access.
                connect(place, std::slice::from_ref(&next))?;
                agree(node, &model).context("before the API server reports it")?;
                let spec = next.spec.clone();
                model.pods.insert(next.spec.name.clone(), next);
                server.call(async move |client| api::add(&client, &spec).await)?;
            }
            // A pod's network is made again with the same address, as kubelet does after the sandbox has died.
            14 => {
                let is_there = |pod: &Pod| !pod.ended && model.can_lose(pod);
                let Some(name) = model.any(&mut random, is_there) else { continue };
                done.push(format!("{name}'s network is made again"));
                let pod = model.pods.get_mut(&name).context("a pod")?;
                disconnect(place, std::slice::from_ref(pod))?;
                pod.interface = Some(format!("veth-a{steps}"));
                pod.made = Instant::now();
                connect(place, std::slice::from_ref(pod))?;
                let spec = pod.spec.clone();
                server.call(async move |client| api::start(&client, spec.namespace, &spec.name).await)?;
            }
            15 | 16 => {
                let Some(name) = model.any(&mut random, |_| true) else { continue };
                done.push(format!("{name} is relabelled"));
                let pod = model.pods.get_mut(&name).context("a pod")?;
                pod.spec.allowed = !pod.spec.allowed;
                let spec = pod.spec.clone();
                server.call(async move |client| {
                    api::relabel(&client, spec.namespace, &spec.name, spec.allowed).await
                })?;
            }
            17 => {
                let namespace = NAMESPACES[random.random_range(1..NAMESPACES.len())];
                let labelled = model.labelled.entry(namespace).or_default();
                *labelled = !*labelled;
                done.push(format!("{namespace} is relabelled"));
                let labelled = *labelled;
                server
                    .call(async move |client| api::relabel_namespace(&client, namespace, labelled).await)?;
            }
            18 => {
                let Some(name) = model.any(&mut random, |pod| !pod.ended) else { continue };
                done.push(format!("{name} ends"));
                let pod = model.pods.get_mut(&name).context("a pod")?;
                pod.ended = true;
                let spec = pod.spec.clone();
                server.call(async move |client| api::end(&client, spec.namespace, &spec.name).await)?;
            }
            // The API server is down. Meanwhile, interfaces are removed, or the daemon restarts.
            19 if steps % 3 == 0 => {
                calm = false;
                server.pause()?;
                done.push("the API server is down".to_owned());
                let gone = model.any(&mut random, |pod| pod.interface.is_some());
                if let Some(pod) = gone.and_then(|name| model.pods.get_mut(&name)) {
                    disconnect(place, std::slice::from_ref(pod))?;
                    pod.interface = None;
                }
                agree(node, &model).context("while the API server is down")?;
                match random.random_range(0..3) {
                    0 => {
                        done.push("the daemon is killed".to_owned());
                        node.stop(Signal::SIGKILL)?;
                        start(node)?;
                    }
                    1 => {
                        done.push("the daemon hands over".to_owned());
                        start(node)?;
                    }
                    _ => {}
                }
                agree(node, &model).context("by a daemon without the API server")?;
                if random.random_bool(0.5) {
                    done.push("and its watch history is lost".to_owned());
                    server.compact()?;
                }
                server.resume()?;
            }
            20 if steps % 3 == 0 => {
                calm = false;
                done.push("the daemon hands over".to_owned());
                start(node)?;
            }
            _ => continue,
        }
        let waited = agree(node, &model).with_context(|| format!("after {:?}", last(&done)))?;
        if calm {
            slowest = slowest.max(waited);
        }
    }
    let rules = list(node)?;
    for (prefix, allow) in [("10.200.0.0/16", true), ("10.200.7.0/24", false)] {
        let entry = rules.iter().find(|entry| entry["subject"] == prefix);
        ensure!(entry.is_some_and(|entry| entry["allow"] == allow), "{prefix}: {entry:?}");
    }
    disconnect(place, &model.pods.into_values().collect::<Vec<_>>())?;
    eprintln!("{} pods in {steps} steps; slowest to agree {slowest:?}, asking included", model.made);
    Ok(())
}

/// Starts the daemon in a later second than that of the last pod, and waits for the next second.
fn start(node: &mut Node) -> Result<()> {
    std::thread::sleep(SECOND);
    node.start()?;
    std::thread::sleep(SECOND);
    Ok(())
}

fn last(done: &[String]) -> &[String] {
    &done[done.len().saturating_sub(8)..]
}

/// Waits until the access entries equal the model. Returns how long it took.
fn agree(node: &Node, model: &Model) -> Result<Duration> {
    let (begun, expected) = (Instant::now(), model.expected());
    loop {
        let listed: BTreeMap<String, String> = list(node)?
            .iter()
            .filter(|entry| entry["source"] == "kubernetes")
            .filter_map(|entry| {
                Some((entry["subject"].as_str()?.to_owned(), entry["interface"].as_str()?.to_owned()))
            })
            .collect();
        if listed == expected {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() > SETTLE_TIMEOUT {
            let differs = |address: &str| expected.get(address) != listed.get(address);
            let about: Vec<&Pod> = model.pods.values().filter(|pod| differs(&pod.spec.address)).collect();
            bail!("expected {expected:?}\nlisted   {listed:?}\nwhere they differ: {about:#?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn list(node: &Node) -> Result<Vec<Value>> {
    let listed = node.lota(&["access", "list", "--json"])?;
    listed.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn connect(place: &Namespace, pods: &[Pod]) -> Result<()> {
    let commands = pods.iter().filter_map(|pod| {
        let (interface, address) = (pod.interface.as_ref()?, &pod.spec.address);
        let number = pod.number;
        Some(format!(
            "link add {interface} type veth peer name o{number}\nlink set {interface} up\n\
             link set o{number} up\nroute add {address}/32 dev {interface}\n"
        ))
    });
    batch(place, &commands.collect::<String>())
}

fn disconnect(place: &Namespace, pods: &[Pod]) -> Result<()> {
    let interfaces = pods.iter().filter_map(|pod| pod.interface.as_ref());
    batch(place, &interfaces.map(|interface| format!("link del {interface}\n")).collect::<String>())
}

fn batch(place: &Namespace, commands: &str) -> Result<()> {
    let mut ip = place.command("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    ip.stdin.take().context("no stdin")?.write_all(commands.as_bytes())?;
    let ended = ip.wait()?;
    ensure!(ended.success(), "ip: {ended}, of\n{commands}");
    Ok(())
}
