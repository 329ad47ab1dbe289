//! Ceph RGW with one monitor and one OSD that keeps its objects in memory.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{
    Credential,
    origin::{ADMIN, NOBODY, READER, free_ports, wait_until_listening},
    raw::{Request, Signing, Wire},
    run,
};

/// Arbitrary identifier of the cluster.
const FSID: &str = "9c3f8a1e-5f0b-4e6e-9a39-0d1e5e6c1f11";

/// Maximum number of attempts to start a cluster.
const ATTEMPTS: u32 = 3;
/// Timeout for the OSD to become active.
const OSD_TIMEOUT: Duration = Duration::from_secs(10);
/// Log line of the OSD when it becomes active.
const OSD_ACTIVE: &str = "state: booting -> active";
/// Timeout for the gateway to listen.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(30);

/// Policy that allows reads of every bucket.
const READ_ONLY: &str = r#"{"Version":"2012-10-17","Statement":[
    {"Effect":"Allow","Action":["s3:Get*","s3:List*"],"Resource":["arn:aws:s3:::*"]}]}"#;

/// The processes of a Ceph cluster with a gateway.
#[derive(Debug)]
pub struct Rgw {
    processes: Vec<Child>,
    address: SocketAddr,
}

/// Ceph's programs below `prefix`, and the cluster's folder.
struct Ceph<'a> {
    prefix: &'a Path,
    folder: PathBuf,
}

impl Rgw {
    /// Starts a cluster in `folder` from Debian's packages that are unpacked below `prefix`, and creates the lab's
    /// users. On a busy machine, the OSD of a new cluster sometimes never becomes active; then it starts another
    /// cluster.
    pub(super) fn start(prefix: &Path, folder: &Path) -> Result<Self> {
        let mut failed = None;
        for attempt in 1..=ATTEMPTS {
            match Self::start_once(prefix, &folder.join(attempt.to_string())) {
                Ok(rgw) => return Ok(rgw),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.context("no attempt")?)
    }

    fn start_once(prefix: &Path, folder: &Path) -> Result<Self> {
        let ceph = Ceph { prefix, folder: folder.to_owned() };
        fs::create_dir_all(folder.join("mon"))?;
        fs::create_dir_all(folder.join("osd"))?;
        let [monitor, gateway] = free_ports::<2>()?;
        fs::write(ceph.file("ceph.conf"), ceph.configuration(monitor, gateway))?;
        let monitors = format!("[v1:127.0.0.1:{monitor}]");
        let (monmap, osdmap) = (ceph.text("monmap"), ceph.text("osdmap"));
        ceph.run("monmaptool", &["--create", "--addv", "a", &monitors, "--fsid", FSID, &monmap])?;
        // With an OSD in the first map, the monitor need not create one.
        ceph.run("osdmaptool", &["--createsimple", "1", "--pg-bits", "1", &osdmap])?;
        ceph.run("ceph-mon", &["--mkfs", "-i", "a", "--monmap", &monmap, "--osdmap", &osdmap])?;
        let address = SocketAddr::from(([127, 0, 0, 1], gateway));
        let mut rgw = Self { processes: Vec::new(), address };
        rgw.processes.push(ceph.spawn("ceph-mon", &["-f", "-i", "a"])?);
        // This requires the running monitor.
        ceph.run("ceph-osd", &["--mkfs", "-i", "0"])?;
        rgw.processes.push(ceph.spawn("ceph-osd", &["-f", "-i", "0"])?);
        // Without an active OSD, the gateway retries its first requests only after 5 s.
        ceph.wait_for_osd()?;
        rgw.processes.push(ceph.spawn("radosgw", &["-f", "-n", "client.rgw"])?);
        wait_until_listening(address, "Ceph RGW", &ceph.file("osd.0.log"), GATEWAY_TIMEOUT)?;
        for (user, credential) in [("admin", ADMIN), ("reader", READER), ("nobody", NOBODY)] {
            ceph.create_user(user, &credential)?;
        }
        rgw.allow_reads()?;
        Ok(rgw)
    }

    /// Returns the gateway's address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Attaches a read-only policy to the user `reader`.
    fn allow_reads(&self) -> Result<()> {
        let policy = utf8_percent_encode(READ_ONLY, NON_ALPHANUMERIC);
        let body = format!(
            "Action=PutUserPolicy&Version=2010-05-08&UserName=reader&PolicyName=read&PolicyDocument={policy}"
        );
        let request = Request::new(Method::POST, "cwlota.com", "/")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body)
            .sign(&ADMIN, Signing::Header)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let reply = runtime.block_on(Wire::to(self.address).send(&request))?;
        ensure!(
            reply.status.is_success(),
            "PutUserPolicy was answered {} {}",
            reply.status,
            String::from_utf8_lossy(&reply.body)
        );
        Ok(())
    }
}

impl Drop for Rgw {
    fn drop(&mut self) {
        // All state is in memory or in the lab's folder.
        for process in &mut self.processes {
            let _ = kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGKILL);
            let _ = process.wait();
        }
    }
}

impl Ceph<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    fn libraries(&self) -> PathBuf {
        self.prefix.join("usr/lib/x86_64-linux-gnu")
    }

    /// Returns the command line of a program, which ends with the process that started it.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let libraries = self.libraries();
        let path = [libraries.clone(), libraries.join("ceph"), self.prefix.join("lib/x86_64-linux-gnu")];
        let path = path.map(|folder| folder.display().to_string()).join(":");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(self.prefix.join("usr/bin").join(program));
        command.args(["-c", &self.text("ceph.conf")]).args(arguments).env("LD_LIBRARY_PATH", path);
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        run(&mut self.command(program, arguments)).map(|_| ())
    }

    fn spawn(&self, program: &str, arguments: &[&str]) -> Result<Child> {
        let log = fs::File::create(self.file(&format!("{program}.out")))?;
        let mut command = self.command(program, arguments);
        command.stderr(log.try_clone()?).stdout(log).spawn().with_context(|| format!("running {program}"))
    }

    fn wait_for_osd(&self) -> Result<()> {
        let (log, deadline) = (self.file("osd.0.log"), Instant::now() + OSD_TIMEOUT);
        while !fs::read_to_string(&log).is_ok_and(|log| log.contains(OSD_ACTIVE)) {
            ensure!(
                Instant::now() < deadline,
                "Ceph's OSD is not active after {OSD_TIMEOUT:?}: {}",
                log.display()
            );
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn create_user(&self, name: &str, credential: &Credential) -> Result<()> {
        let (access_key, secret_key) = (&*credential.access_key, &*credential.secret_key);
        let mut arguments = vec!["-n", "client.rgw", "user", "create", "--uid", name, "--display-name", name];
        arguments.extend(["--access-key", access_key, "--secret-key", secret_key]);
        if name == "admin" {
            // Needed for the policy of `reader`.
            arguments.extend(["--caps", "user-policy=*"]);
        }
        self.run("radosgw-admin", &arguments)
    }

    /// Returns the cluster's configuration: no authentication between its parts, one copy of each object, and no delay
    /// before the monitor commits, which makes the start ten times as fast.
    fn configuration(&self, monitor: u16, gateway: u16) -> String {
        let (folder, libraries) = (self.folder.display(), self.libraries());
        let libraries = libraries.display();
        format!(
            "[global]
fsid = {FSID}
mon host = v1:127.0.0.1:{monitor}
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = true
ms bind msgr2 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = {folder}
admin socket =
keyring = {folder}/keyring
log file = {folder}/$name.log
log to stderr = false
mon cluster log file = {folder}/cluster.log
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
erasure code dir = {libraries}/ceph/erasure-code
plugin dir = {libraries}/ceph
osd class dir = {libraries}/rados-classes
osd objectstore = memstore
memstore device bytes = 4G
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 0
paxos propose interval = 0.02
paxos min wait = 0.01
rgw dns name = cwlota.com
rgw frontends = beast endpoint=127.0.0.1:{gateway} tcp_nodelay=1
rgw enable quota threads = false
rgw run sync thread = false
"
        )
    }
}
