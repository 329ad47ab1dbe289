//! Putting programs in their places.

use std::{fmt, fs::File};

use anyhow::{Context as _, Result, anyhow, bail};
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

use super::pins::Pins;
use crate::config;

/// LOTA's clsact filter, always at the same place so that it can be replaced exactly.
const CLSACT: NlOptions = NlOptions { priority: 1, handle: TcHandle::new(0, 0x107a), classid: None };
const BACKSTOP: &str = "backstop";
/// Followed by the interface's index.
const GUARD: &str = "guard-";

/// How the pod program is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// At the head of the tcx chain.
    Tcx,
    /// As a clsact filter.
    Clsact,
}

/// How the guard is attached to the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardMode {
    /// In the driver.
    Native,
    /// In the stack, for drivers without XDP.
    Generic,
    /// Where an earlier daemon had put it.
    Kept,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

impl fmt::Display for GuardMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native XDP",
            Self::Generic => "generic XDP",
            Self::Kept => "XDP, as before",
        })
    }
}

pub(super) fn load(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    match ebpf.program_mut(name) {
        Some(Program::SchedClassifier(program)) => program.load()?,
        Some(Program::SkLookup(program)) => program.load()?,
        Some(Program::Xdp(program)) => program.load()?,
        _ => bail!("no such program in the object"),
    }
    Ok(())
}

/// The `sk_lookup` program, on the network namespace that the daemon runs in.
pub(super) fn backstop(ebpf: &mut Ebpf, pins: &Pins) -> Result<()> {
    let program: &mut SkLookup = program_mut(ebpf, program::BACKSTOP)?;
    let id = program.attach(File::open("/proc/self/ns/net")?)?;
    // Several may be attached, and any of them can refuse: an old one does no harm until it is replaced.
    pins.replace_link(BACKSTOP, program.take_link(id)?.into())
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
    if how != config::Attach::Clsact {
        // At the head: others end the chain, and what they end we would never see.
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        match program.attach_with_options(interface, TcAttachType::Ingress, options) {
            Ok(id) => {
                let link: FdLink = program.take_link(id)?.try_into()?;
                pins.replace_link(&Pins::pod_link(index), link)?;
                // Of a daemon that was told to use clsact.
                remove_clsact(interface);
                return Ok(AttachMode::Tcx);
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
    pins.remove_links(|name| name == Pins::pod_link(index));
    Ok(AttachMode::Clsact)
}

/// Removes LOTA's clsact filter from an interface, if it has one.
pub(super) fn remove_clsact(interface: &str) {
    let NlOptions { priority, handle, classid } = CLSACT;
    let ours = SchedClassifierLink::attached(interface, TcAttachType::Ingress, priority, handle, classid);
    // None there is the usual case.
    let _ = ours.map(Link::detach);
}

/// The XDP program, on the uplink, and nowhere else.
pub(super) fn guard(ebpf: &mut Ebpf, pins: &Pins, interface: &str, index: u32) -> Result<GuardMode> {
    let program: &mut Xdp = program_mut(ebpf, program::GUARD)?;
    let name = format!("{GUARD}{index}");
    pins.remove_links(|other| other.starts_with(GUARD) && other != name);
    let path = pins.link(&name);
    if path.exists() {
        // A device takes one XDP program: an earlier daemon's is updated in place.
        let updated = PinnedLink::from_pin(&path)
            .map_err(anyhow::Error::from)
            .and_then(|pinned| Ok(XdpLink::try_from(FdLink::from(pinned))?))
            .and_then(|link| Ok(program.attach_to_link(link)?));
        if let Ok(id) = updated {
            drop(program.take_link(id)?);
            return Ok(GuardMode::Kept);
        }
        // Of an interface that is no longer there.
        std::fs::remove_file(&path)?;
    }
    let mut refusals = Vec::new();
    for (mode, flags) in [(GuardMode::Native, XdpMode::Driver), (GuardMode::Generic, XdpMode::Skb)] {
        let attached = program.attach(interface, flags).map_err(anyhow::Error::from).and_then(|id| {
            // Refused a link, aya falls back to netlink, which nothing would own: that counts as refused.
            let link: FdLink = program.take_link(id)?.try_into()?;
            pins.replace_link(&name, link)
        });
        match attached {
            Ok(()) => return Ok(mode),
            Err(error) => refusals.push(format!("{mode}: {error:#}")),
        }
    }
    Err(anyhow!("the guard cannot be put on {interface}: {}", refusals.join("; ")))
}

fn program_mut<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| anyhow!("no program {name} in the object"))?;
    program.try_into().map_err(|_| anyhow!("{name} is not of the expected type"))
}
