//! What is active where, and why not elsewhere; for operators and scripts.

use std::fmt;

use anyhow::Result;
use lota_common::Verdict;
use serde::{Deserialize, Serialize};

use super::{AttachMode, Datapath, GuardMode, Interfaces};

/// The state of the kernel side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Where maps and links are pinned.
    pub pins: String,
    /// The version of the map layouts.
    pub layout: u32,
    /// The interfaces that were asked for, and those steered in their place.
    pub interfaces: Vec<InterfaceStatus>,
    /// The uplink's guard.
    pub guard: Option<GuardStatus>,
    /// Why there is none, though one is configured.
    pub guard_problem: Option<String>,
    /// Why address translation, a host port's say, may lead packets to the virtual address elsewhere.
    pub translation_problem: Option<String>,
    /// Addresses with an entry of their own.
    pub addresses: usize,
    /// Prefixes with a rule.
    pub prefixes: usize,
    /// Have all others access?
    pub default_allow: bool,
    /// How often each verdict was given.
    pub verdicts: Vec<VerdictStatus>,
}

/// One interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its index, as access entries name it.
    pub index: u32,
    /// How packets from it are steered.
    pub steered: Option<AttachMode>,
    /// How many other programs see its packets before ours; at tcx only.
    pub position: Option<usize>,
    /// Why it is not steered.
    pub skipped: Option<String>,
}

/// The guard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuardStatus {
    /// The uplink.
    pub interface: String,
    /// How it is attached there.
    pub mode: GuardMode,
}

/// One verdict.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerdictStatus {
    /// Its name.
    pub verdict: String,
    /// Packets.
    pub packets: u64,
    /// Bytes, where they are counted.
    pub bytes: u64,
}

impl Datapath {
    /// The state of everything.
    ///
    /// # Errors
    /// If the access maps cannot be read.
    pub fn status(&self, interfaces: &Interfaces) -> Result<Status> {
        let name = |index: u32| interfaces.name(index).unwrap_or("(gone)").to_owned();
        let steered = self.steered.iter().map(|(index, attached)| InterfaceStatus {
            name: name(*index),
            index: *index,
            steered: Some(attached.mode),
            position: self.position(*index),
            skipped: None,
        });
        let unsteered = self.unsteered.iter().map(|(index, reason)| InterfaceStatus {
            name: name(*index),
            index: *index,
            steered: None,
            position: None,
            skipped: Some(reason.clone()),
        });
        let mut all: Vec<_> = steered.chain(unsteered).collect();
        all.sort_by_key(|interface| interface.index);
        let table = self.access()?;
        let counts = self.verdicts();
        let verdicts = Verdict::ALL.iter().map(|verdict| {
            let count = counts[*verdict as usize];
            let verdict = verdict.label().to_owned();
            VerdictStatus { verdict, packets: count.packets, bytes: count.bytes }
        });
        Ok(Status {
            pins: self.pins().display().to_string(),
            layout: lota_common::LAYOUT,
            interfaces: all,
            guard_problem: self.guard_problem.clone(),
            translation_problem: self.translation_problem.clone(),
            guard: self.guard.map(|(index, mode)| GuardStatus { interface: name(index), mode }),
            addresses: table.addresses.len(),
            prefixes: table.prefixes.len(),
            default_allow: table.default_allow,
            verdicts: verdicts.collect(),
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pins     {} (layout {})", self.pins, self.layout)?;
        match (&self.guard, &self.guard_problem) {
            (Some(guard), _) => writeln!(f, "guard    {} at {}", guard.mode, guard.interface)?,
            (None, Some(problem)) => writeln!(f, "guard    NONE: {problem}")?,
            (None, None) => {
                writeln!(f, "guard    none: the peer port is kept by the cluster's secret alone")?;
            }
        }
        match &self.translation_problem {
            None => writeln!(f, "nat      kept away from the virtual address (nft list table inet lota)")?,
            Some(problem) => writeln!(f, "nat      NOT kept away, host port 80 is not safe: {problem}")?,
        }
        let others = if self.default_allow { "allowed" } else { "denied" };
        writeln!(f, "access   {} addresses, {} prefixes, others {others}", self.addresses, self.prefixes)?;
        writeln!(f, "\n{:<16} {:>6}  {:<10} why", "INTERFACE", "INDEX", "STEERED")?;
        for InterfaceStatus { name, index, steered, position, skipped } in &self.interfaces {
            let how = steered.map_or("no".to_owned(), |mode| mode.to_string());
            let why = match (position, skipped) {
                (Some(0), _) => "at the head",
                (Some(_), _) => "NOT at the head: another program sees its packets first",
                (None, Some(skipped)) => skipped,
                (None, None) => "",
            };
            writeln!(f, "{name:<16} {index:>6}  {how:<10} {why}")?;
        }
        writeln!(f, "\n{:<16} {:>14} {:>18}", "VERDICT", "PACKETS", "BYTES")?;
        for VerdictStatus { verdict, packets, bytes } in &self.verdicts {
            writeln!(f, "{verdict:<16} {packets:>14} {bytes:>18}")?;
        }
        Ok(())
    }
}
