//! A small stand-in for the API server: lists and watches of pods and namespaces, by plain HTTP. Suite `kubernetes` has a
//! real one.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{GATEWAY, Lab};

/// Port of the stand-in at [`GATEWAY`].
const PORT: u16 = 8001;
/// Duration of a watch without events.
const WATCH: Duration = Duration::from_secs(300);

/// A pod of the stand-in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiPod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Address; for a pod on the host network, that of its node.
    pub address: Option<Ipv4Addr>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether the pod is on the host network.
    pub host_network: bool,
    /// Hash of its definition, if it is a static pod.
    pub static_hash: Option<String>,
    /// Number of its start: later pods have later ones.
    pub started: u32,
}

impl ApiPod {
    /// Returns a pod in namespace `team` with this label `lota`.
    #[must_use]
    pub fn new(name: &str, uid: &str, address: Option<Ipv4Addr>, label: &str) -> Self {
        Self {
            namespace: "team".to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            address,
            labels: [("lota".to_owned(), label.to_owned())].into(),
            host_network: false,
            static_hash: None,
            started: 0,
        }
    }

    fn object(&self, version: usize) -> Value {
        let annotations = self
            .static_hash
            .as_ref()
            .map(|hash| json!({ "kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash }));
        // In the first minutes of a year that is over.
        let started = format!("2026-01-01T00:{:02}:{:02}Z", self.started / 60, self.started % 60);
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name, "namespace": self.namespace, "uid": self.uid, "labels": self.labels,
                "annotations": annotations, "resourceVersion": version.to_string(),
            },
            "spec": { "nodeName": "n1", "hostNetwork": self.host_network, "containers": [] },
            "status": {
                "phase": "Running", "startTime": started, "podIP": self.address,
                "podIPs": self.address.map(|address| json!([{ "ip": address }])),
            },
        })
    }
}

#[derive(Default)]
struct State {
    pods: BTreeMap<String, ApiPod>,
    /// Events of the pods; the number of them is the resource version.
    events: Vec<Value>,
    is_closed: bool,
}

/// The stand-in, which ends when this is dropped.
pub struct PodApi {
    state: Arc<(Mutex<State>, Condvar)>,
    address: SocketAddr,
    lab: super::Namespace,
    kubeconfig: PathBuf,
}

impl PodApi {
    /// Starts it in the lab's switch.
    ///
    /// # Errors
    /// If the port is in use.
    pub fn start(lab: &Lab) -> Result<Self> {
        let address = SocketAddr::from((GATEWAY, PORT));
        let listener = lab.switch().run(move || TcpListener::bind(address))?.context("listening")?;
        let kubeconfig = lab.folder().join("pod-api.kubeconfig");
        let cluster = json!([{ "name": "lab", "cluster": { "server": format!("http://{address}") } }]);
        let context = json!([{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }]);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "clusters": cluster, "contexts": context,
            "users": [{ "name": "lab", "user": {} }], "current-context": "lab",
        });
        std::fs::write(&kubeconfig, config.to_string())?;
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let answering = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if lock(&answering.0).is_closed {
                    break;
                }
                let (Ok(stream), state) = (stream, answering.clone()) else { continue };
                thread::spawn(move || answer(stream, &state));
            }
        });
        Ok(Self { state, address, lab: lab.switch(), kubeconfig })
    }

    /// Returns the path of its kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.clone()
    }

    /// Adds a pod, or replaces one with its UID.
    pub fn apply(&self, pod: &ApiPod) {
        self.change(|state| {
            let before = state.pods.insert(pod.uid.clone(), pod.clone());
            (if before.is_some() { "MODIFIED" } else { "ADDED" }, pod.clone())
        });
    }

    /// Removes a pod.
    pub fn remove(&self, uid: &str) {
        self.change(|state| match state.pods.remove(uid) {
            Some(pod) => ("DELETED", pod),
            None => panic!("there is no pod {uid}"),
        });
    }

    /// Removes all pods.
    pub fn clear(&self) {
        let all: Vec<String> = lock(&self.state.0).pods.keys().cloned().collect();
        all.iter().for_each(|uid| self.remove(uid));
    }

    fn change(&self, change: impl FnOnce(&mut State) -> (&'static str, ApiPod)) {
        let mut state = lock(&self.state.0);
        let (kind, pod) = change(&mut state);
        let version = state.events.len() + 1;
        state.events.push(json!({ "type": kind, "object": pod.object(version) }));
        self.state.1.notify_all();
    }
}

impl Drop for PodApi {
    fn drop(&mut self) {
        lock(&self.state.0).is_closed = true;
        self.state.1.notify_all();
        // Wakes the thread that accepts.
        let address = self.address;
        let _ = self.lab.run(move || TcpStream::connect(address).map(drop));
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers one request.
fn answer(mut stream: TcpStream, state: &(Mutex<State>, Condvar)) {
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    let _ = reader.read_line(&mut line);
    let mut header = String::from("x");
    while !header.trim().is_empty() {
        header.clear();
        if reader.read_line(&mut header).unwrap_or(0) == 0 {
            break;
        }
    }
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let parameter = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    if parameter("watch").is_some_and(|watch| watch == "true" || watch == "1") {
        let since = parameter("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        let _ = watch(&mut stream, state, path.ends_with("/pods"), since);
        return;
    }
    let (version, items) = {
        let state = lock(&state.0);
        let version = state.events.len();
        let items = match path.rsplit('/').next() {
            Some("pods") => state.pods.values().map(|pod| pod.object(version)).collect(),
            Some("namespaces") => vec![json!({ "metadata": { "name": "team", "uid": "namespace" } })],
            _ => Vec::new(),
        };
        (version, items)
    };
    let body = json!({ "metadata": { "resourceVersion": version.to_string() }, "items": items }).to_string();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
    let _ = write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
}

/// Sends events as they come.
fn watch(
    stream: &mut TcpStream,
    (state, changed): &(Mutex<State>, Condvar),
    of_pods: bool,
    since: usize,
) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    )?;
    let mut sent = since;
    loop {
        let events = {
            let waits = |state: &mut State| !state.is_closed && (!of_pods || state.events.len() <= sent);
            let waited = changed.wait_timeout_while(lock(state), WATCH, waits);
            let (state, timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.is_closed || timed_out.timed_out() {
                break;
            }
            state.events[sent..].to_vec()
        };
        sent += events.len();
        for event in events {
            let line = format!("{event}\n");
            write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
        }
    }
    write!(stream, "0\r\n\r\n")
}
