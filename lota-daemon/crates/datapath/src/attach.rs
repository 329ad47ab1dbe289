//! Attaches the eBPF programs.

use std::{fmt, fs::File};

use anyhow::{Context as _, Result, anyhow};
use aya::{
    Ebpf,
    programs::{
        LinkOrder, Program, SchedClassifier, SkLookup, TcAttachType, Xdp, XdpMode,
        links::{FdLink, Link, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
        xdp::XdpLink,
    },
};
use lota_common::program;
use serde::{Deserialize, Serialize};

use super::{netlink::Netlink, pins::Pins, query};
use crate::AttachConfig;

/// LOTA's clsact filter, with fixed priority and handle, so that it can be replaced exactly.
const CLSACT: NlOptions = NlOptions { priority: 1, handle: TcHandle::new(0, 0x107a), classid: None };
const BACKSTOP: &str = "backstop";
/// Prefix of the guard's link names, followed by the mode and the index of the interface.
const GUARD: &str = "guard-";

/// Method by which packets from an interface are redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// A program at the head of the interface's tcx chain.
    Tcx,
    /// A program as the interface's clsact filter.
    Clsact,
    /// A program at socket lookup.
    SkLookup,
}

/// Place at which a TC program decides about packets of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hook {
    /// Ingress of an interface that pods are behind: access and redirection.
    Pod,
    /// Its egress: restores the addresses of replies that come from a target.
    Restore,
    /// Ingress of a bridge's port: whether the sender may use its address, and answers to queries.
    Port,
    /// Egress of `lo`: access of processes in the node's own network namespace.
    Local,
}

impl Hook {
    /// Every hook.
    pub(super) const ALL: [Self; 4] = [Self::Pod, Self::Restore, Self::Port, Self::Local];

    fn program(self) -> &'static str {
        match self {
            Self::Pod => program::POD,
            Self::Restore => program::RESTORE,
            Self::Port => program::PORT,
            Self::Local => program::LOCAL,
        }
    }

    /// Returns the direction of the packets.
    pub(super) fn direction(self) -> TcAttachType {
        match self {
            Self::Pod | Self::Port => TcAttachType::Ingress,
            Self::Restore | Self::Local => TcAttachType::Egress,
        }
    }

    /// Returns the prefix of the names of its links. The index of the interface follows, since names of interfaces may
    /// have dots, which bpffs does not allow.
    fn prefix(self) -> &'static str {
        match self {
            Self::Pod => "pod-",
            Self::Restore => "restore-",
            Self::Port => "port-",
            Self::Local => "local-",
        }
    }

    fn link(self, index: u32) -> String {
        format!("{}{index}", self.prefix())
    }

    /// Removes the links of all interfaces but these.
    pub(super) fn keep_only_links(self, pins: &Pins, keep: impl Iterator<Item = u32>) {
        let keep: Vec<String> = keep.map(|index| self.link(index)).collect();
        pins.remove_links(|name| name.starts_with(self.prefix()) && !keep.iter().any(|kept| kept == name));
    }
}

/// Method by which the guard is attached to the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardMode {
    /// XDP in the driver.
    Native,
    /// XDP in the network stack, for drivers without XDP.
    Generic,
    /// The head of the tcx chain, for devices whose XDP hook is in use.
    Tcx,
    /// A clsact filter, for the same devices on kernels without tcx.
    Clsact,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::SkLookup => "sk_lookup",
        })
    }
}

impl fmt::Display for GuardMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// Loads the programs that are always needed, so that attaching them is fast.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<()> {
    let pod: &mut SchedClassifier = program_mut(ebpf, program::POD)?;
    pod.load()?;
    // Older kernels may refuse this one; attaching it handles that.
    let _ = load_lookup(ebpf, program::LOOKUP);
    Ok(())
}

/// Attaches an `sk_lookup` program to the network namespace of the daemon: the one that redirects or, on kernels
/// before 5.17, the one that only refuses. Returns true if it redirects.
pub(super) fn lookup(ebpf: &mut Ebpf, pins: &Pins) -> Result<bool> {
    let (name, redirects) = match load_lookup(ebpf, program::LOOKUP) {
        Ok(()) => (program::LOOKUP, true),
        Err(error) => {
            tracing::info!(
                error = format!("{error:#}"),
                "socket lookup cannot redirect on this kernel (5.17 needed?)"
            );
            load_lookup(ebpf, program::BACKSTOP).context("cannot load the backstop")?;
            (program::BACKSTOP, false)
        }
    };
    let program: &mut SkLookup = program_mut(ebpf, name)?;
    // The network namespace of the thread, which differs from the process' in tests.
    let id = program.attach(File::open("/proc/thread-self/ns/net")?)?;
    // Several programs may be attached, and any of them can refuse: an old one is harmless until it is replaced.
    pins.replace_link(BACKSTOP, program.take_link(id)?.into())?;
    Ok(redirects)
}

fn load_lookup(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let program: &mut SkLookup = program_mut(ebpf, name)?;
    if program.fd().is_err() {
        program.load()?;
    }
    Ok(())
}

/// Attaches the program of a hook to one interface. Returns also the program's ID.
pub(super) fn hook(
    ebpf: &mut Ebpf,
    pins: &Pins,
    hook: Hook,
    interface: &str,
    index: u32,
    how: AttachConfig,
) -> Result<(AttachMode, u32)> {
    let program: &mut SchedClassifier = program_mut(ebpf, hook.program())?;
    if program.fd().is_err() {
        program.load()?;
    }
    let mode = match tc_program(program, pins, interface, hook.direction(), &hook.link(index), how)? {
        Tc::Tcx => AttachMode::Tcx,
        Tc::Clsact => AttachMode::Clsact,
    };
    Ok((mode, program.info()?.id()))
}

/// Attaches the program of a hook again, ahead of programs that were inserted before it. A program can be on a hook only
/// once, so this is another instance; the first one stays attached until it is replaced. Returns its ID.
pub(super) fn rehook(ebpf: &mut Ebpf, pins: &Pins, hook: Hook, interface: &str, index: u32) -> Result<u32> {
    let program: &mut SchedClassifier = program_mut(ebpf, hook.program())?;
    renew(program)?;
    tc_program(program, pins, interface, hook.direction(), &hook.link(index), AttachConfig::Tcx)?;
    Ok(program.info()?.id())
}

/// Reloads the TC programs, so that they are other instances than those that are attached.
pub(super) fn renew_all(ebpf: &mut Ebpf) -> Result<()> {
    for name in [program::POD, program::RESTORE, program::PORT, program::LOCAL, program::GUARD_TC] {
        let program: &mut SchedClassifier = program_mut(ebpf, name)?;
        if name == program::POD || program.fd().is_ok() {
            renew(program)?;
        }
    }
    Ok(())
}

fn renew(program: &mut SchedClassifier) -> Result<()> {
    // The program is not loaded if the last attempt failed between the two steps.
    if program.fd().is_ok() {
        program.unload()?;
    }
    Ok(program.load()?)
}

enum Tc {
    Tcx,
    Clsact,
}

fn tc_program(
    program: &mut SchedClassifier,
    pins: &Pins,
    interface: &str,
    direction: TcAttachType,
    pin: &str,
    how: AttachConfig,
) -> Result<Tc> {
    if how != AttachConfig::Clsact {
        // At the head, since programs before it may end the chain and hide packets from LOTA.
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        match program.attach_with_options(interface, direction, options) {
            Ok(id) => {
                let link: FdLink = program.take_link(id)?.try_into()?;
                pins.replace_link(pin, link)?;
                // Left by a daemon that was configured to use clsact.
                remove_clsact(interface, direction);
                return Ok(Tc::Tcx);
            }
            Err(error) if how == AttachConfig::Tcx => return Err(error.into()),
            Err(error) => {
                tracing::info!(interface, %error, "tcx is not available (kernel 6.6 needed?); using clsact");
            }
        }
    }
    // The error is usually "exists"; any other one also fails the attachment below.
    let _ = tc::qdisc_add_clsact(interface);
    let options = TcAttachOptions::Netlink(CLSACT);
    let id = match program.attach_with_options(interface, direction, options) {
        Ok(id) => id,
        Err(_) => {
            let NlOptions { priority, handle, classid } = CLSACT;
            let old = SchedClassifierLink::attached(interface, direction, priority, handle, classid)?;
            program.attach_to_link(old).context("cannot replace the clsact filter")?
        }
    };
    // The filter must outlive the daemon, like a pinned link.
    std::mem::forget(program.take_link(id)?);
    // Left by a daemon that used tcx: two programs would decide.
    pins.remove_links(|name| name == pin);
    Ok(Tc::Clsact)
}

/// Returns the number of filters that run before LOTA's clsact filter at an interface; `None` if LOTA's is not there.
///
/// # Errors
/// If the kernel does not answer.
pub(super) async fn filters_ahead(
    netlink: &Netlink,
    index: u32,
    direction: TcAttachType,
) -> Result<Option<usize>> {
    netlink.filters_ahead(index, direction, CLSACT.priority, CLSACT.handle.into()).await
}

/// Returns whether the program of a pinned TC link is on its interface, or `None` if no such link is pinned. It is not
/// if the interface was replaced by another one with its index.
pub(super) fn is_linked(pins: &Pins, hook: Hook, index: u32) -> Option<bool> {
    let path = pins.link(&hook.link(index));
    if !path.exists() {
        return None;
    }
    // What cannot be read proves nothing.
    let Ok(pinned) = PinnedLink::from_pin(path) else { return Some(true) };
    let Ok(info) = FdLink::from(pinned).info() else { return Some(true) };
    Some(query::tcx(index, hook.direction()).is_ok_and(|ids| ids.contains(&info.program_id())))
}

/// Removes LOTA's clsact filter from an interface, if it has one.
pub(super) fn remove_clsact(interface: &str, direction: TcAttachType) {
    let NlOptions { priority, handle, classid } = CLSACT;
    let ours = SchedClassifierLink::attached(interface, direction, priority, handle, classid);
    // Usually there is none.
    let _ = ours.map(Link::detach);
}

/// Attaches the guard to the uplink only: by XDP in the driver, else XDP in the stack, else TC.
pub(super) fn guard(
    ebpf: &mut Ebpf,
    pins: &Pins,
    interface: &str,
    index: u32,
    how: AttachConfig,
) -> Result<GuardMode> {
    let name = |mode: GuardMode| format!("{GUARD}{mode}-{index}");
    // A device takes only one XDP program, so that of another layout must be removed.
    pins.remove_others_links(GUARD);
    pins.remove_links(|other| other.starts_with(GUARD) && !other.ends_with(&format!("-{index}")));
    let mut refusals = Vec::new();
    for (mode, flags) in [(GuardMode::Native, XdpMode::Driver), (GuardMode::Generic, XdpMode::Skb)] {
        match xdp(ebpf, pins, interface, &name(mode), flags) {
            Ok(()) => {
                pins.remove_links(|other| other.starts_with(GUARD) && other != name(mode));
                return Ok(mode);
            }
            Err(error) => refusals.push(format!("{mode} XDP: {error:#}")),
        }
    }
    let program: &mut SchedClassifier = program_mut(ebpf, program::GUARD_TC)?;
    let loaded = if program.fd().is_err() { program.load() } else { Ok(()) };
    let by_tc = loaded.map_err(anyhow::Error::from);
    let by_tc = by_tc.and_then(|()| {
        tc_program(program, pins, interface, TcAttachType::Ingress, &name(GuardMode::Tcx), how)
    });
    match by_tc {
        Ok(mode) => {
            tracing::info!(interface, why = refusals.join("; "), "the guard is attached to TC, not XDP");
            Ok(if matches!(mode, Tc::Tcx) { GuardMode::Tcx } else { GuardMode::Clsact })
        }
        Err(error) => {
            refusals.push(format!("TC: {error:#}"));
            Err(anyhow!("cannot attach the guard to {interface}: {}", refusals.join("; ")))
        }
    }
}

fn xdp(ebpf: &mut Ebpf, pins: &Pins, interface: &str, name: &str, flags: XdpMode) -> Result<()> {
    let program: &mut Xdp = program_mut(ebpf, program::GUARD)?;
    if program.fd().is_err() {
        program.load()?;
    }
    let path = pins.link(name);
    if path.exists() {
        // The program of an earlier daemon is updated in place.
        let updated = PinnedLink::from_pin(&path)
            .map_err(anyhow::Error::from)
            .and_then(|pinned| Ok(XdpLink::try_from(FdLink::from(pinned))?))
            .and_then(|link| Ok(program.attach_to_link(link)?));
        if let Ok(id) = updated {
            drop(program.take_link(id)?);
            return Ok(());
        }
        // The link belongs to an interface that does not exist any more.
        std::fs::remove_file(&path)?;
    }
    let id = program.attach(interface, flags)?;
    // If the kernel refuses a link, aya falls back to netlink. Nothing would own that attachment, so it counts as
    // refused.
    let link: FdLink = program.take_link(id)?.try_into()?;
    pins.replace_link(name, link)
}

fn program_mut<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
    program.try_into().map_err(|_| anyhow!("{name} is not of the expected type"))
}
