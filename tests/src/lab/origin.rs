//! Gateways, with storage behind them: the embedded one, SeaweedFS, or the user's own.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _},
    path::Path,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use tokio::runtime::Runtime;

use super::{BACKEND_PORT, Credential, GATEWAY};
use crate::gateway::{Direct, Gateway, Permission, Settings, User};

/// May do everything.
pub const ADMIN: Credential = Credential::fixed("LOTALABADMIN00000001", "admin-secret-of-the-lab");
/// LOTA's own: may read.
pub const READER: Credential = Credential::fixed("LOTALABREADER0000001", "reader-secret-of-the-lab");
/// A right secret, but no permission on anything.
pub const NOBODY: Credential = Credential::fixed("LOTALABNOBODY0000001", "nobody-secret-of-the-lab");
/// No gateway knows it: LOTA signs anew for it, as [`ADMIN`].
pub const POD_ONLY: Credential = Credential::fixed("LOTALABPODONLY000001", "secret-between-the-pod-and-lota");

/// Longest wait for a server to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway that runs.
#[derive(Debug)]
pub enum Origin {
    /// The project's own, in this process.
    Embedded(Box<Gateway>, Runtime),
    /// SeaweedFS.
    Seaweed(Seaweed),
    /// Whatever the user has.
    Given(SocketAddr),
}

/// A SeaweedFS process.
#[derive(Debug)]
pub struct Seaweed {
    process: Child,
    address: SocketAddr,
    ports: [u16; 5],
}

impl Origin {
    /// Starts the embedded gateway; its objects are kept in `folder`.
    ///
    /// # Errors
    /// If it cannot listen.
    pub fn embedded(folder: &Path) -> Result<Self> {
        let runtime = Runtime::new()?;
        let user = |credential: Credential, may| User {
            access_key: credential.access_key.into_owned(),
            secret_key: credential.secret_key.into_owned(),
            may,
        };
        let settings = Settings {
            zone: "cwlota.com".into(),
            users: vec![
                user(ADMIN, Permission::Everything),
                user(READER, Permission::ReadOnly),
                user(NOBODY, Permission::Nothing),
            ],
            direct: Some(Direct {
                backend: format!("http://{GATEWAY}:{BACKEND_PORT}"),
                access_key: READER.access_key.into_owned(),
                secret_key: READER.secret_key.into_owned(),
                expires: Duration::from_secs(300),
            }),
            data_dir: folder.join("objects"),
        };
        let gateway = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            Gateway::serve(listener, settings).await
        })?;
        Ok(Self::Embedded(Box::new(gateway), runtime))
    }

    /// Starts SeaweedFS from its PyPI package; its files are kept in `folder`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn seaweed(weed: &Path, folder: &Path) -> Result<Self> {
        Seaweed::start(weed, &folder.join("seaweed")).map(Self::Seaweed)
    }

    /// The user's own, by its URL.
    ///
    /// # Errors
    /// If the URL names no reachable address.
    pub fn given(url: &str) -> Result<Self> {
        let authority = url.strip_prefix("http://").context("the lab's relay speaks http:// only")?;
        let authority = authority.trim_end_matches('/');
        let with_port =
            if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
        let address = with_port.to_socket_addrs().with_context(|| format!("resolving {with_port}"))?.next();
        Ok(Self::Given(address.with_context(|| format!("{with_port} has no address"))?))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Embedded(gateway, _) => gateway.address(),
            Self::Seaweed(seaweed) => seaweed.address,
            Self::Given(address) => *address,
        }
    }

    /// Does it speak LOTA's gateway protocol?
    #[must_use]
    pub fn speaks_lota(&self) -> bool {
        matches!(self, Self::Embedded(..))
    }

    /// Does it know the lab's own users?
    #[must_use]
    pub fn has_users(&self) -> bool {
        !matches!(self, Self::Given(_))
    }

    /// The last `Lota-Node` it was told, if it is the embedded one.
    #[must_use]
    pub fn last_node(&self) -> Option<String> {
        match self {
            Self::Embedded(gateway, _) => gateway.last_seen_node(),
            _ => None,
        }
    }
}

impl Seaweed {
    fn start(weed: &Path, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let identity = |name: &str, credential: &Credential, actions: &[&str]| {
            json!({
                "name": name,
                "credentials": [{"accessKey": credential.access_key, "secretKey": credential.secret_key}],
                "actions": actions,
            })
        };
        let users = json!({"identities": [
            identity("admin", &ADMIN, &["Admin", "Read", "Write", "List", "Tagging"]),
            identity("reader", &READER, &["Read", "List"]),
            identity("nobody", &NOBODY, &["Read:another-bucket"]),
        ]});
        let config = folder.join("s3.json");
        fs::write(&config, users.to_string())?;
        let ports = free_ports::<5>()?;
        let log = File::create(folder.join("log"))?;
        // It must not outlive whoever started it, however that ends.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(weed)
            .args([
                "-logtostderr",
                "server",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-s3",
                "-master.telemetry=false",
            ])
            .arg(format!("-dir={}", folder.display()))
            .arg(format!("-master.port={}", ports[0]))
            .arg(format!("-volume.port={}", ports[1]))
            .arg(format!("-filer.port={}", ports[2]))
            .arg(format!("-s3.port={}", ports[3]))
            .arg("-s3.domainName=cwlota.com")
            .arg(format!("-s3.config={}", config.display()))
            .arg("-master.volumeSizeLimitMB=1024")
            // Each bucket takes some, and with none left writes are answered 500.
            .arg("-volume.max=100")
            .stderr(log.try_clone()?)
            .stdout(log)
            .spawn()
            .with_context(|| format!("running {}", weed.display()))?;
        let seaweed = Self { process, address: SocketAddr::from(([127, 0, 0, 1], ports[3])), ports };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(seaweed.address).is_err() {
            if Instant::now() > deadline {
                let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
                let tail: String = log.lines().rev().take(10).collect::<Vec<_>>().join("\n");
                bail!("SeaweedFS does not listen after {PATIENCE:?}:\n{tail}");
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(seaweed)
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        // It takes its time over SIGTERM, and its files go with the lab.
        let _ = kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGKILL);
        let _ = self.process.wait();
        self.remove_sockets();
    }
}

impl Seaweed {
    /// Those it leaves in `/tmp`, where it always makes them: `seaweedfs-s3-8333.sock`, `seaweedfs-s3-grpc-18333.sock`.
    fn remove_sockets(&self) {
        for port in self.ports {
            for kind in ["s3", "filer", "master", "volume"] {
                let _ = fs::remove_file(format!("/tmp/seaweedfs-{kind}-{port}.sock"));
                let _ = fs::remove_file(format!("/tmp/seaweedfs-{kind}-grpc-{}.sock", port + GRPC));
            }
        }
    }
}

/// What SeaweedFS adds to a port for its gRPC.
const GRPC: u16 = 10_000;

/// Ports that are free, each with the neighbour that SeaweedFS takes for gRPC.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let found = (0..1000).find_map(|_| {
            let listener = TcpListener::bind("127.0.0.1:0").ok()?;
            let number = listener.local_addr().ok()?.port();
            let grpc = number.checked_add(GRPC)?;
            let neighbour = TcpListener::bind(("127.0.0.1", grpc)).ok()?;
            Some((number, [listener, neighbour]))
        });
        let (number, listeners) = found.context("no two free ports 10,000 apart")?;
        *port = number;
        held.push(listeners);
    }
    Ok(ports)
}
