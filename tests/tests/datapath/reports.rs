//! The kernel's reports of changed interfaces: some are lost, or no more can be received. A pod that is connected meanwhile gets
//! access.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use lota_tests::{
    lab::{Namespace, Pod, Reached, VIP, knock, run_with_input},
    strace::Strace,
    tour::{Tour, wait_until},
};
use nix::sys::signal::Signal;

/// Pod whose interface is replaced.
const POD: Pod = Pod(1, 1);
/// Multicast groups of the daemon's socket for these reports: links, and addresses of both families.
const GROUPS: &str = "00000111";
/// Changes of an address at a time.
const BURST: usize = 1000;
/// Time in which the daemon reacts to a report that it has read.
const FOLLOWED: Duration = Duration::from_secs(1);

/// A socket for reports, as in `/proc/net/netlink`.
struct ReportSocket {
    /// Bytes of reports that wait to be read.
    unread: u64,
    /// Reports that the kernel has dropped.
    drops: u64,
    inode: String,
}

impl ReportSocket {
    /// Returns the one of the daemon in this network namespace.
    fn of_daemon(place: &Namespace) -> Result<Self> {
        let list = place.run(|| fs::read_to_string("/proc/thread-self/net/netlink"))??;
        let sockets = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut found = sockets.filter(|columns| columns.get(3) == Some(&GROUPS));
        let socket = found.next().with_context(|| format!("no such socket in:\n{list}"))?;
        ensure!(found.next().is_none(), "several such sockets in:\n{list}");
        let [_, _, _, _, unread, .., drops, inode] = *socket else { bail!("unexpected columns: {socket:?}") };
        Ok(Self { unread: unread.parse()?, drops: drops.parse()?, inode: inode.to_owned() })
    }
}

/// An interface whose address changes often.
struct BusyInterface(Namespace);

impl BusyInterface {
    fn make(place: Namespace) -> Result<Self> {
        place.ip("link add busy type veth peer name unused")?;
        let made = Self(place);
        wait_until("its report to be read", || Ok(ReportSocket::of_daemon(&made.0)?.unread == 0))?;
        thread::sleep(FOLLOWED);
        Ok(made)
    }

    /// Changes the address until a report is lost. The daemon reacts to no report of such a change.
    fn overrun(&self) -> Result<()> {
        let change = "addr replace 198.18.0.1/32 dev busy valid_lft 1000 preferred_lft 1000\n";
        let before = ReportSocket::of_daemon(&self.0)?.drops;
        wait_until("a report to be lost", || {
            run_with_input(self.0.command("ip").args(["-batch", "-"]), &change.repeat(BURST))?;
            Ok(ReportSocket::of_daemon(&self.0)?.drops > before)
        })
    }
}

impl Drop for BusyInterface {
    fn drop(&mut self) {
        if let Err(error) = self.0.ip("link del busy") {
            eprintln!("cannot remove an interface: {error:#}");
        }
    }
}

/// The socket for reports is full while a pod is connected.
pub(crate) fn lost(tour: &mut Tour) -> Result<()> {
    let (node, place) = (&tour.nodes[0], tour.lab.node(1));
    let busy = BusyInterface::make(place.clone())?;
    node.signal(Signal::SIGSTOP)?;
    let replaced = busy.overrun().and_then(|()| {
        let before = ReportSocket::of_daemon(&place)?.drops;
        replace(tour)?;
        let after = ReportSocket::of_daemon(&place)?.drops;
        ensure!(before < after, "the pod's interface was reported, so the test is void");
        Ok(())
    });
    node.signal(Signal::SIGCONT)?;
    replaced?;
    // Before the busy interface is removed, which is reported again.
    has_access(tour)
}

/// The socket for reports fails when a pod is connected. The daemon ends, and is started again, as it is by systemd and kubelet.
pub(crate) fn ended(tour: &mut Tour) -> Result<()> {
    let place = tour.lab.node(1);
    let socket = format!("socket:[{}]", ReportSocket::of_daemon(&place)?.inode);
    let output = tour.lab.folder().join("strace-reports").display().to_string();
    let fail = ["-P", &socket, "-e", "trace=recvfrom", "-e", "inject=recvfrom:error=ENOTCONN", "-o", &output];
    let strace = Strace::attach(&tour.nodes[0], fail)?;
    let replaced = replace(tour);
    let ended = tour.nodes[0].wait_ended();
    drop(strace);
    let started = tour.nodes[0].start();
    replaced?;
    let status = ended.context("its reports have ended")?;
    started?;
    let injected = fs::read_to_string(output)?.contains("INJECTED");
    ensure!(injected, "no call failed, so the test is void");
    ensure!(status.code() == Some(1), "the daemon ended with {status}");
    let log = fs::read_to_string(tour.nodes[0].log())?;
    ensure!(log.contains("the netlink socket was closed"), "the daemon's log does not say why it ended");
    has_access(tour)
}

/// Replaces the pod's interface by another one.
fn replace(tour: &Tour) -> Result<()> {
    tour.lab.node(POD.0).ip(&format!("link del {}", POD.interface()))?;
    tour.lab.connect_pod(POD)
}

fn has_access(tour: &Tour) -> Result<()> {
    let mut reached = Reached::Nothing;
    let waited = wait_until("the pod to have access", || {
        reached = knock(&tour.lab.pod(POD), VIP, 80)?.0;
        Ok(reached == Reached::Open)
    });
    waited.with_context(|| format!("it gets {reached:?}"))
}
