//! Reports which programs are attached where, and why not elsewhere.

use std::{fmt, net::IpAddr};

use anyhow::Result;
use lota_common::Verdict;
use serde::{Deserialize, Serialize};

use super::{
    AttachMode, Datapath, EndpointName, GuardMode, IdentityStatus, InterceptedTarget, Interfaces, NameKind,
    NatExemption, SkipReason, WhenDown, attach::Hook,
};

/// State of the kernel side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DatapathStatus {
    /// Folder in which maps and links are pinned.
    pub bpffs_path: String,
    /// Version of the map layouts.
    pub layout: u32,
    /// Configured interfaces, and those that are used in their place.
    pub interfaces: Vec<InterfaceStatus>,
    /// Guard of the uplink.
    pub guard: Option<GuardStatus>,
    /// Reason why the configured guard is not attached.
    pub guard_problem: Option<String>,
    /// Exemption of the VIPs from address translation.
    pub nat_exemption: Option<NatExemption>,
    /// Reason why they are not, so that address translation (such as a hostPort) may redirect packets to the VIP.
    pub nat_exemption_problem: Option<String>,
    /// Names of the endpoint.
    #[serde(default)]
    pub names: Vec<EndpointName>,
    /// TCP ports of the VIP that are redirected.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Addresses and ports at which connections of pods are intercepted.
    #[serde(default)]
    pub targets: Vec<InterceptedTarget>,
    /// Age of the daemon's last heartbeat, in milliseconds.
    #[serde(default)]
    pub heartbeat_age_ms: Option<u64>,
    /// Number of addresses with an entry.
    pub addresses: usize,
    /// Number of prefixes with a rule.
    pub prefixes: usize,
    /// Whether all other addresses have access.
    pub default_allow: bool,
    /// Evidence by which pods are identified.
    pub identity: IdentityStatus,
    /// Number of packets with each verdict.
    pub verdicts: Vec<VerdictStatus>,
    /// Connections of pods that do not arrive.
    pub connections: ConnectionsStatus,
}

/// Connections of pods that do not arrive at the daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionsStatus {
    /// Pods whose last attempts to connect were all in vain.
    pub hanging: Vec<HangingPod>,
    /// Causes on the node that keep connections from the daemon.
    pub problems: Vec<NodeProblem>,
}

/// A pod whose last attempts to connect were all in vain, although it has access.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HangingPod {
    /// Its address.
    pub address: IpAddr,
    /// Interface of the node that its packets came from.
    pub interface: Option<String>,
    /// Number of its SYNs since a connection of it last arrived.
    pub attempts: u64,
    /// Time in seconds since the last one.
    pub seconds_ago: f64,
}

/// Something on the node that keeps connections from the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeProblem {
    /// The problem.
    pub what: String,
    /// Action that fixes it.
    pub fix: String,
}

/// State of one interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// Name of the interface.
    pub name: String,
    /// Index of the interface, as in access entries.
    pub index: u32,
    /// Method by which its packets are redirected.
    pub mode: Option<AttachMode>,
    /// Number of other programs that process its packets before LOTA's; with tcx only.
    pub programs_ahead: Option<usize>,
    /// Reason for which connections from it are not redirected.
    pub skipped: Option<SkipReason>,
    /// Whether another program checks the senders of its packets: at bridge ports, and at `lo`.
    pub checked: bool,
    /// Whether connections from it to targets are intercepted; `None` if there are no targets.
    #[serde(default)]
    pub intercepts: Option<bool>,
}

/// State of the guard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuardStatus {
    /// The uplink.
    pub interface: String,
    /// Method by which the guard is attached.
    pub mode: GuardMode,
}

/// Counters of one verdict.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerdictStatus {
    /// Name of the verdict.
    pub verdict: String,
    /// Number of packets.
    pub packets: u64,
    /// Number of bytes, where they are counted.
    pub bytes: u64,
}

impl Datapath {
    /// Returns the state of the kernel side.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn status(&self, interfaces: &Interfaces, identity: IdentityStatus) -> Result<DatapathStatus> {
        let name = |index: u32| interfaces.name(index).unwrap_or("(gone)").to_owned();
        let is_checked = |index: u32| {
            [Hook::Port, Hook::Local].iter().any(|hook| self.beside.contains_key(&(*hook, index)))
        };
        let redirected = self.redirected.iter().map(|(index, attached)| InterfaceStatus {
            name: name(*index),
            index: *index,
            mode: Some(attached.mode),
            programs_ahead: self.programs_ahead(*index),
            skipped: None,
            checked: is_checked(*index),
            intercepts: (!self.targets.is_empty())
                .then(|| self.beside.contains_key(&(Hook::Restore, *index))),
        });
        let skipped = self.skipped.iter().map(|(index, reason)| InterfaceStatus {
            name: name(*index),
            index: *index,
            mode: None,
            programs_ahead: None,
            skipped: Some(reason.clone()),
            checked: is_checked(*index),
            intercepts: None,
        });
        let mut all: Vec<_> = redirected.chain(skipped).collect();
        all.sort_by_key(|interface| interface.index);
        let table = self.access()?;
        let counts = self.verdicts();
        let verdicts = Verdict::ALL.iter().map(|verdict| {
            let count = counts[*verdict as usize];
            let verdict = verdict.label().to_owned();
            VerdictStatus { verdict, packets: count.packets, bytes: count.bytes }
        });
        Ok(DatapathStatus {
            bpffs_path: self.pins().display().to_string(),
            layout: lota_common::LAYOUT,
            interfaces: all,
            guard_problem: self.guard_problem.clone(),
            nat_exemption: self.nat_exemption.as_ref().ok().copied(),
            nat_exemption_problem: self.nat_exemption.as_ref().err().cloned(),
            guard: self.guard.map(|(index, mode)| GuardStatus { interface: name(index), mode }),
            names: self.maps.names()?,
            ports: self.maps.settings()?.ports.into_iter().filter(|port| *port != 0).collect(),
            targets: self.targets.clone(),
            heartbeat_age_ms: self.maps.heartbeat_age()?.and_then(|age| u64::try_from(age.as_millis()).ok()),
            addresses: table.addresses.len(),
            prefixes: table.prefixes.len(),
            default_allow: table.default_allow,
            identity,
            verdicts: verdicts.collect(),
            connections: ConnectionsStatus::default(),
        })
    }
}

impl fmt::Display for DatapathStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "bpffs    {} (layout {})", self.bpffs_path, self.layout)?;
        match (&self.guard, &self.guard_problem) {
            (Some(guard), _) => writeln!(f, "guard    {} at {}", guard.mode, guard.interface)?,
            (None, Some(problem)) => writeln!(f, "guard    NONE: {problem}")?,
            (None, None) => {
                writeln!(f, "guard    none: only the keys of [peers] protect the peer port")?;
            }
        }
        match (self.nat_exemption, &self.nat_exemption_problem) {
            (Some(how), _) => {
                writeln!(f, "nat      exempt: connections to the VIP are {how} (nft list table inet lota)")?;
            }
            (None, problem) => {
                let problem = problem.as_deref().unwrap_or("not installed");
                writeln!(f, "nat      NOT exempt, a hostPort 80 can redirect the VIP: {problem}")?;
            }
        }
        let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
        writeln!(f, "ports    {}", ports.join(", "))?;
        for name in &self.names {
            let kind = match (name.kind(), name.when_down()) {
                (NameKind::Own, WhenDown::Refuse) => "own",
                (NameKind::Own, WhenDown::ClusterDns) => "own; by the cluster's DNS while the daemon is down",
                (NameKind::Intercepted, _) => "intercepted",
            };
            writeln!(f, "name     {name} ({kind})")?;
        }
        for InterceptedTarget { target, port, is_former } in &self.targets {
            let which = if *is_former { "former, " } else { "" };
            writeln!(f, "target   {target} ({which}port {port} of the VIP)")?;
        }
        let others = if self.default_allow { "allowed" } else { "denied" };
        writeln!(f, "access   {} addresses, {} prefixes, others {others}", self.addresses, self.prefixes)?;
        writeln!(f, "identity {}", self.identity)?;
        writeln!(f, "\n{:<16} {:>6}  {:<10} why", "INTERFACE", "INDEX", "MODE")?;
        for InterfaceStatus { name, index, mode, programs_ahead, skipped, checked, intercepts } in
            &self.interfaces
        {
            let mode = mode.map_or("no".to_owned(), |mode| mode.to_string());
            let why = match (programs_ahead, skipped) {
                (Some(0), _) => "first program",
                (Some(_), _) => "NOT first: another program sees its packets before LOTA",
                (None, Some(skipped)) => &skipped.to_string(),
                (None, None) => "",
            };
            let checked = if *checked { "; senders are checked" } else { "" };
            let intercepts =
                if *intercepts == Some(false) { "; does not intercept connections to targets" } else { "" };
            writeln!(f, "{name:<16} {index:>6}  {mode:<10} {why}{checked}{intercepts}")?;
        }
        writeln!(f, "\n{:<16} {:>14} {:>18}", "VERDICT", "PACKETS", "BYTES")?;
        for VerdictStatus { verdict, packets, bytes } in &self.verdicts {
            writeln!(f, "{verdict:<16} {packets:>14} {bytes:>18}")?;
        }
        Ok(())
    }
}
