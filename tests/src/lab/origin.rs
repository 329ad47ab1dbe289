//! Gateways with storage: the embedded one, SeaweedFS, Ceph RGW, or an external one.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _},
    ops::Range,
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

use super::{BACKEND_PORT, Credential, GATEWAY, rgw::Rgw};
use crate::gateway::{Direct, Gateway, Permission, Settings, User};

/// User with all permissions.
pub const ADMIN: Credential = Credential::fixed("LOTALABADMIN00000001", "admin-secret-of-the-lab");
/// LOTA's own user, which may read.
pub const READER: Credential = Credential::fixed("LOTALABREADER0000001", "reader-secret-of-the-lab");
/// User without permissions.
pub const NOBODY: Credential = Credential::fixed("LOTALABNOBODY0000001", "nobody-secret-of-the-lab");
/// User that no gateway knows; LOTA re-signs its requests as [`ADMIN`].
pub const POD_ONLY: Credential = Credential::fixed("LOTALABPODONLY000001", "secret-between-the-pod-and-lota");

impl Credential {
    /// Returns the user with this credential.
    #[must_use]
    pub fn user(&self, may: Permission) -> User {
        let Self { access_key, secret_key } = self;
        User { access_key: access_key.to_string(), secret_key: secret_key.to_string(), may }
    }
}

/// Timeout for a server to start.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running gateway.
#[derive(Debug)]
pub enum Origin {
    /// The embedded gateway, in this process.
    Embedded(Box<Gateway>, Runtime),
    /// SeaweedFS.
    Seaweed(Seaweed),
    /// Ceph RGW.
    Rgw(Rgw),
    /// An external gateway.
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
    /// Starts the embedded gateway, with its objects in `folder`.
    ///
    /// # Errors
    /// If it cannot listen.
    pub fn embedded(folder: &Path) -> Result<Self> {
        let runtime = Runtime::new()?;
        let settings = Settings {
            zone: "cwlota.com".into(),
            users: users(&READER),
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

    /// Starts SeaweedFS from its PyPI package, with its files in `folder`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn seaweed(weed: &Path, folder: &Path) -> Result<Self> {
        Seaweed::start(weed, &folder.join("seaweed")).map(Self::Seaweed)
    }

    /// Starts Ceph RGW from Debian's packages, which are unpacked below `prefix`, with its files in `folder`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn rgw(prefix: &Path, folder: &Path) -> Result<Self> {
        Rgw::start(prefix, &folder.join("rgw")).map(Self::Rgw)
    }

    /// Returns an external gateway by its URL.
    ///
    /// # Errors
    /// If the URL cannot be resolved.
    pub fn given(url: &str) -> Result<Self> {
        let authority = url.strip_prefix("http://").context("the lab's relay supports only http://")?;
        let authority = authority.trim_end_matches('/');
        let with_port =
            if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
        let address = with_port.to_socket_addrs().with_context(|| format!("resolving {with_port}"))?.next();
        Ok(Self::Given(address.with_context(|| format!("{with_port} has no address"))?))
    }

    /// Returns its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Embedded(gateway, _) => gateway.address(),
            Self::Seaweed(seaweed) => seaweed.address,
            Self::Rgw(rgw) => rgw.address(),
            Self::Given(address) => *address,
        }
    }

    /// Returns whether it implements LOTA's gateway protocol.
    #[must_use]
    pub fn speaks_lota(&self) -> bool {
        matches!(self, Self::Embedded(..))
    }

    /// Returns whether it has the lab's users.
    #[must_use]
    pub fn has_users(&self) -> bool {
        !matches!(self, Self::Given(_))
    }

    /// Replaces LOTA's own user of the embedded gateway, [`READER`] at first, by one with another credential.
    ///
    /// # Errors
    /// If it is another gateway.
    pub fn replace_reader(&self, reader: &Credential) -> Result<()> {
        match self {
            Self::Embedded(gateway, _) => gateway.set_users(users(reader)),
            _ => bail!("only the embedded gateway can replace a user"),
        }
        Ok(())
    }

    /// Returns the last `Lota-Node` header that the embedded gateway received.
    #[must_use]
    pub fn last_node(&self) -> Option<String> {
        match self {
            Self::Embedded(gateway, _) => gateway.last_seen_node(),
            _ => None,
        }
    }
}

/// Returns the users of the embedded gateway, with this credential of LOTA's own user.
fn users(reader: &Credential) -> Vec<User> {
    vec![
        ADMIN.user(Permission::Everything),
        reader.user(Permission::ReadOnly),
        NOBODY.user(Permission::Nothing),
    ]
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
        // The server must end with the process that started it.
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
            // Their default ports are fixed, and SeaweedFS ends if one is in use.
            .args(["-s3.port.iceberg=0", "-s3.port.lance=0"])
            .arg(format!("-s3.config={}", config.display()))
            .arg("-master.volumeSizeLimitMB=1024")
            // Each bucket uses some volumes; without free volumes, writes fail with 500.
            .arg("-volume.max=1000")
            .stderr(log.try_clone()?)
            .stdout(log)
            .spawn()
            .with_context(|| format!("running {}", weed.display()))?;
        let seaweed = Self { process, address: SocketAddr::from(([127, 0, 0, 1], ports[3])), ports };
        wait_until_listening(seaweed.address, "SeaweedFS", &folder.join("log"), START_TIMEOUT)?;
        Ok(seaweed)
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        // SIGTERM is slow, and the lab removes its files.
        let _ = kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGKILL);
        let _ = self.process.wait();
        self.remove_sockets();
    }
}

impl Seaweed {
    /// Removes the sockets that it leaves in `/tmp`: `seaweedfs-s3-8333.sock`, `seaweedfs-s3-grpc-18333.sock`.
    fn remove_sockets(&self) {
        for port in self.ports {
            for kind in ["s3", "filer", "master", "volume"] {
                let _ = fs::remove_file(format!("/tmp/seaweedfs-{kind}-{port}.sock"));
                let _ = fs::remove_file(format!("/tmp/seaweedfs-{kind}-grpc-{}.sock", port + GRPC));
            }
        }
    }
}

/// Waits until a server accepts connections.
///
/// # Errors
/// After `limit`, with the end of its log.
pub(super) fn wait_until_listening(
    address: SocketAddr,
    server: &str,
    log: &Path,
    limit: Duration,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while TcpStream::connect(address).is_err() {
        if Instant::now() > deadline {
            let log = fs::read_to_string(log).unwrap_or_default();
            let tail: String = log.lines().rev().take(10).collect::<Vec<_>>().join("\n");
            bail!("{server} does not listen on {address} after {limit:?}; the end of its log:\n{tail}");
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Offset of SeaweedFS's gRPC ports.
const GRPC: u16 = 10_000;

/// Range of [`free_ports`]. These ports and their gRPC ports are below Linux's range of ephemeral ports, so that no
/// connection takes one before the server listens.
const SERVER_PORTS: Range<u16> = 10_240..22_000;

/// Returns free ports whose gRPC ports of SeaweedFS are free, too.
pub(super) fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let found = (0..1000).find_map(|_| {
            let number = rand::random_range(SERVER_PORTS);
            let listener = TcpListener::bind(("127.0.0.1", number)).ok()?;
            let neighbour = TcpListener::bind(("127.0.0.1", number + GRPC)).ok()?;
            Some((number, [listener, neighbour]))
        });
        let (number, listeners) = found.context("no two free ports 10,000 apart")?;
        *port = number;
        held.push(listeners);
    }
    Ok(ports)
}
