//! A Kubernetes API server beside the gateway: etcd and kube-apiserver. Pods run only with [kubelets](kubelet).

pub mod dns;
pub mod images;
pub mod kubelet;
pub mod network;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{GATEWAY, Lab, Namespace};

/// Port of the API server at [`GATEWAY`].
const PORT: u16 = 443;
/// Timeout for a server to start or stop.
const SERVER_TIMEOUT: Duration = Duration::from_secs(60);
/// Tokens of an administrator, of a user without permissions, and of LOTA's service account.
const TOKENS: &str = "\
admin-of-the-lab,admin,1,\"system:masters\"
nobody-of-the-lab,nobody,3
lota-of-the-lab,system:serviceaccount:cw-object-storage:lota,2,\"system:serviceaccounts,system:authenticated\"
";

/// Paths of the programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `kube-apiserver`.
    pub apiserver: PathBuf,
    /// `etcd`.
    pub etcd: PathBuf,
}

/// A lab's API server.
#[derive(Debug)]
pub struct ApiServer {
    programs: Programs,
    place: Namespace,
    folder: PathBuf,
    /// Whether controllers create tokens of service accounts.
    accounts: bool,
    etcd: Child,
    apiserver: Option<Child>,
}

impl ApiServer {
    /// Starts the API server in the lab's switch.
    ///
    /// # Errors
    /// If one of the servers does not start.
    pub fn start(lab: &Lab, programs: &Programs) -> Result<Self> {
        Self::launch(lab, programs, false)
    }

    /// Starts the API server for a cluster with [`kubelet::Controllers`]: pods get tokens of their service accounts.
    ///
    /// # Errors
    /// If one of the servers does not start.
    pub fn start_with_accounts(lab: &Lab, programs: &Programs) -> Result<Self> {
        Self::launch(lab, programs, true)
    }

    fn launch(lab: &Lab, programs: &Programs, accounts: bool) -> Result<Self> {
        let folder = lab.folder().join("kubernetes");
        // Left by another test.
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("tokens.csv"), TOKENS)?;
        let key = folder.join("service-account.key");
        super::run(Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048"))?;
        for name in ["admin", "lota", "nobody"] {
            let token = format!("{name}-of-the-lab");
            fs::write(folder.join(format!("{name}.kubeconfig")), kubeconfig(&token))?;
        }
        let place = lab.switch();
        let etcd = place
            .command(&programs.etcd)
            .args([
                "--listen-client-urls=http://127.0.0.1:2379",
                "--advertise-client-urls=http://127.0.0.1:2379",
            ])
            .args(["--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync"])
            .arg(format!("--data-dir={}", folder.join("etcd").display()))
            .stdout(log(&folder, "etcd")?)
            .stderr(log(&folder, "etcd")?)
            .spawn()
            .context("starting etcd")?;
        let mut server = Self { programs: programs.clone(), place, folder, etcd, accounts, apiserver: None };
        server.resume()?;
        Ok(server)
    }

    /// Starts kube-apiserver with its previous state.
    ///
    /// # Errors
    /// If it is not ready after [`SERVER_TIMEOUT`].
    pub fn resume(&mut self) -> Result<()> {
        let key = self.folder.join("service-account.key");
        let in_folder = |option: &str, name: &str| format!("--{option}={}", self.folder.join(name).display());
        let process = self
            .place
            .command(&self.programs.apiserver)
            .args(["--etcd-servers=http://127.0.0.1:2379", "--authorization-mode=RBAC"])
            .args(["--bind-address=0.0.0.0".into(), format!("--secure-port={PORT}")])
            .args([
                format!("--advertise-address={GATEWAY}"),
                "--service-cluster-ip-range=10.96.0.0/16".into(),
            ])
            .args([in_folder("cert-dir", "certificates"), in_folder("token-auth-file", "tokens.csv")])
            // Without controllers, there are no tokens of service accounts.
            .args((!self.accounts).then_some("--disable-admission-plugins=ServiceAccount"))
            .args(["--service-account-issuer=https://lab", "--allow-privileged=true"])
            // The lab has no DNS for node names.
            .arg("--kubelet-preferred-address-types=InternalIP")
            .arg(format!("--service-account-key-file={}", key.display()))
            .arg(format!("--service-account-signing-key-file={}", key.display()))
            .stdout(log(&self.folder, "apiserver")?)
            .stderr(log(&self.folder, "apiserver")?)
            .spawn()
            .context("starting kube-apiserver")?;
        self.apiserver = Some(process);
        let deadline = Instant::now() + SERVER_TIMEOUT;
        while let Err(error) = self.call(async |client| Ok(client.list_core_api_versions().await?)) {
            if let Some(ended) = self.apiserver.as_mut().and_then(|process| process.try_wait().ok()?) {
                bail!("kube-apiserver ended: {ended}; see {}", self.folder.display());
            }
            if Instant::now() > deadline {
                return Err(error).context("kube-apiserver is not ready");
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Kills kube-apiserver; its state is kept.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn pause(&mut self) -> Result<()> {
        match &mut self.apiserver.take() {
            Some(process) => end(process, Signal::SIGKILL),
            None => Ok(()),
        }
    }

    /// Compacts etcd, so that a watch from an older revision gets 410 Gone.
    ///
    /// # Errors
    /// If etcd refuses.
    pub fn compact(&self) -> Result<()> {
        let status = "curl -sf -X POST http://127.0.0.1:2379/v3/kv/range -d '{\"key\":\"AA==\"}'";
        let answer = super::run(self.place.command("sh").args(["-c", status]))?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        let revision = answer["header"]["revision"].as_str().context("etcd returned no revision")?.to_owned();
        let compact = format!(
            "curl -sf -X POST http://127.0.0.1:2379/v3/kv/compaction -d '{{\"revision\":\"{revision}\",\"physical\":true}}'"
        );
        super::run(self.place.command("sh").args(["-c", &compact])).map(|_| ())
    }

    /// Returns the path of the kubeconfig of `admin`, `lota` or `nobody`.
    #[must_use]
    pub fn kubeconfig(&self, who: &str) -> PathBuf {
        self.folder.join(format!("{who}.kubeconfig"))
    }

    /// Calls a function with an administrator's client.
    ///
    /// # Errors
    /// The error of the function.
    pub fn call<T, F>(&self, with: F) -> Result<T>
    where
        T: Send + 'static,
        F: AsyncFnOnce(Client) -> Result<T> + Send + 'static,
    {
        let path = self.kubeconfig("admin");
        self.place.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let kubeconfig = Kubeconfig::read_from(path)?;
                let config =
                    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
                with(Client::try_from(config)?).await
            })
        })?
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        let _ = self.pause();
        let _ = end(&mut self.etcd, Signal::SIGKILL);
    }
}

fn end(process: &mut Child, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(process.id().cast_signed()), signal)?;
    process.wait()?;
    Ok(())
}

fn log(folder: &Path, name: &str) -> Result<File> {
    Ok(File::options().create(true).append(true).open(folder.join(format!("{name}.log")))?)
}

fn kubeconfig(token: &str) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster:
    server: https://{GATEWAY}:{PORT}
    insecure-skip-tls-verify: true
users:
- name: lab
  user:
    token: {token}
contexts:
- name: lab
  context:
    cluster: lab
    user: lab
current-context: lab
"
    )
}
