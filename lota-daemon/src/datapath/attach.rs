//! Putting programs in their places.

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

use super::pins::Pins;
use crate::config;

/// LOTA's clsact filter, always at the same place so that it can be replaced exactly.
const CLSACT: NlOptions = NlOptions { priority: 1, handle: TcHandle::new(0, 0x107a), classid: None };
const BACKSTOP: &str = "backstop";
/// Followed by how it is attached and the interface's index.
const GUARD: &str = "guard-";

/// How packets from an interface are steered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// By a program at the head of its tcx chain.
    Tcx,
    /// By a program that is its clsact filter.
    Clsact,
    /// At socket lookup.
    SkLookup,
}

/// How the guard is attached to the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuardMode {
    /// XDP, in the driver.
    Native,
    /// XDP, in the stack: for drivers without.
    Generic,
    /// At the head of the tcx chain: for devices whose XDP is taken.
    Tcx,
    /// As a clsact filter: likewise, before tcx.
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

/// Loads what is always needed, so that it is only attached later.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<()> {
    let pod: &mut SchedClassifier = program_mut(ebpf, program::POD)?;
    pod.load()?;
    // Older kernels may refuse this one; what is done then is decided when it is attached.
    let _ = load_lookup(ebpf, program::LOOKUP);
    Ok(())
}

/// An `sk_lookup` program on the network namespace that the daemon runs in: the one that steers, or where the kernel
/// is too old for it (5.17), the one that only refuses. True if it steers.
pub(super) fn lookup(ebpf: &mut Ebpf, pins: &Pins) -> Result<bool> {
    let (name, steers) = match load_lookup(ebpf, program::LOOKUP) {
        Ok(()) => (program::LOOKUP, true),
        Err(error) => {
            tracing::info!(
                error = format!("{error:#}"),
                "socket lookup does not steer here (kernel < 5.17?)"
            );
            load_lookup(ebpf, program::BACKSTOP).context("loading the backstop")?;
            (program::BACKSTOP, false)
        }
    };
    let program: &mut SkLookup = program_mut(ebpf, name)?;
    // The thread's, which differs from the process' in tests.
    let id = program.attach(File::open("/proc/thread-self/ns/net")?)?;
    // Several may be attached, and any of them can refuse: an old one does no harm until it is replaced.
    pins.replace_link(BACKSTOP, program.take_link(id)?.into())?;
    Ok(steers)
}

fn load_lookup(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let program: &mut SkLookup = program_mut(ebpf, name)?;
    if program.fd().is_err() {
        program.load()?;
    }
    Ok(())
}

/// The pod program, on one interface.
pub(super) fn pod(
    ebpf: &mut Ebpf,
    pins: &Pins,
    interface: &str,
    index: u32,
    how: config::Attach,
) -> Result<AttachMode> {
    let program: &mut SchedClassifier = program_mut(ebpf, program::POD)?;
    let pin = Pins::pod_link(index);
    Ok(match tc_program(program, pins, interface, &pin, how)? {
        Tc::Tcx => AttachMode::Tcx,
        Tc::Clsact => AttachMode::Clsact,
    })
}

/// The pod program once more, ahead of whatever has gone before it. A program can be on a hook only once, so this
/// is another instance of it; the first one stays in force until this one is.
pub(super) fn pod_again(ebpf: &mut Ebpf, pins: &Pins, interface: &str, index: u32) -> Result<()> {
    let program: &mut SchedClassifier = program_mut(ebpf, program::POD)?;
    renew(program)?;
    tc_program(program, pins, interface, &Pins::pod_link(index), config::Attach::Tcx).map(|_| ())
}

/// Has the TC programs be other instances from now on than those that may be attached.
pub(super) fn renew_all(ebpf: &mut Ebpf) -> Result<()> {
    renew(program_mut(ebpf, program::POD)?)?;
    let guard: &mut SchedClassifier = program_mut(ebpf, program::GUARD_TC)?;
    if guard.fd().is_ok() { renew(guard) } else { Ok(()) }
}

fn renew(program: &mut SchedClassifier) -> Result<()> {
    // Not loaded, if the last attempt failed between the two.
    if program.fd().is_ok() {
        program.unload()?;
    }
    Ok(program.load()?)
}

/// The kernel's number of the loaded program.
pub(super) fn id(ebpf: &mut Ebpf, name: &str) -> Result<u32> {
    let program: &mut SchedClassifier = program_mut(ebpf, name)?;
    Ok(program.info()?.id())
}

enum Tc {
    Tcx,
    Clsact,
}

fn tc_program(
    program: &mut SchedClassifier,
    pins: &Pins,
    interface: &str,
    pin: &str,
    how: config::Attach,
) -> Result<Tc> {
    if how != config::Attach::Clsact {
        // At the head: others end the chain, and what they end we would never see.
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        match program.attach_with_options(interface, TcAttachType::Ingress, options) {
            Ok(id) => {
                let link: FdLink = program.take_link(id)?.try_into()?;
                pins.replace_link(pin, link)?;
                // Of a daemon that was told to use clsact.
                remove_clsact(interface);
                return Ok(Tc::Tcx);
            }
            Err(error) if how == config::Attach::Tcx => return Err(error.into()),
            Err(error) => tracing::info!(interface, %error, "no tcx here (kernel < 6.6?); using clsact"),
        }
    }
    // An error here is mostly "exists"; any other one shows again below.
    let _ = tc::qdisc_add_clsact(interface);
    let options = TcAttachOptions::Netlink(CLSACT);
    let id = match program.attach_with_options(interface, TcAttachType::Ingress, options) {
        Ok(id) => id,
        Err(_) => {
            let NlOptions { priority, handle, classid } = CLSACT;
            let old =
                SchedClassifierLink::attached(interface, TcAttachType::Ingress, priority, handle, classid)?;
            program.attach_to_link(old).context("replacing the clsact filter")?
        }
    };
    // The filter stays when the daemon goes: like a pinned link, it outlives us.
    std::mem::forget(program.take_link(id)?);
    // Of a daemon that used tcx: two programs would decide.
    pins.remove_links(|name| name == pin);
    Ok(Tc::Clsact)
}

/// Removes LOTA's clsact filter from an interface, if it has one.
pub(super) fn remove_clsact(interface: &str) {
    let NlOptions { priority, handle, classid } = CLSACT;
    let ours = SchedClassifierLink::attached(interface, TcAttachType::Ingress, priority, handle, classid);
    // None there is the usual case.
    let _ = ours.map(Link::detach);
}

/// The guard, on the uplink and nowhere else: by XDP in the driver, else in the stack, else by TC.
pub(super) fn guard(
    ebpf: &mut Ebpf,
    pins: &Pins,
    interface: &str,
    index: u32,
    how: config::Attach,
) -> Result<GuardMode> {
    let name = |mode: GuardMode| format!("{GUARD}{mode}-{index}");
    // A device takes one XDP program: another layout's would be in the way.
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
    let by_tc = by_tc.and_then(|()| tc_program(program, pins, interface, &name(GuardMode::Tcx), how));
    match by_tc {
        Ok(mode) => {
            tracing::info!(interface, why = refusals.join("; "), "the guard is at TC, not at XDP");
            Ok(if matches!(mode, Tc::Tcx) { GuardMode::Tcx } else { GuardMode::Clsact })
        }
        Err(error) => {
            refusals.push(format!("TC: {error:#}"));
            Err(anyhow!("the guard cannot be put on {interface}: {}", refusals.join("; ")))
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
        // An earlier daemon's is updated in place.
        let updated = PinnedLink::from_pin(&path)
            .map_err(anyhow::Error::from)
            .and_then(|pinned| Ok(XdpLink::try_from(FdLink::from(pinned))?))
            .and_then(|link| Ok(program.attach_to_link(link)?));
        if let Ok(id) = updated {
            drop(program.take_link(id)?);
            return Ok(());
        }
        // Of an interface that is no longer there.
        std::fs::remove_file(&path)?;
    }
    let id = program.attach(interface, flags)?;
    // Refused a link, aya falls back to netlink, which nothing would own: that counts as refused.
    let link: FdLink = program.take_link(id)?.try_into()?;
    pins.replace_link(name, link)
}

fn program_mut<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| anyhow!("no program {name} in the object"))?;
    program.try_into().map_err(|_| anyhow!("{name} is not of the expected type"))
}
