//! Follows the cgroups of pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use anyhow::{Result, anyhow};
use lota_datapath::{CgroupHierarchy, IdentityStatus};

use super::{AWAITED, Control};
use crate::access::{AccessConfig, IdentityConfig, pods::Uid};

/// Hierarchy with the cgroups of pods, or the reason why only addresses identify pods.
#[derive(Debug, Default)]
pub(super) struct CgroupSource {
    hierarchy: Option<CgroupHierarchy>,
    problem: Option<CgroupObstacle>,
    /// Last error of reading the cgroups.
    trouble: Option<String>,
    /// Whether the kernel does not have the last known cgroups yet.
    is_pending: bool,
    lacking: LackingPods,
}

/// Reason why cgroups do not identify pods.
#[derive(Clone, Debug)]
pub(super) struct CgroupObstacle {
    what: String,
    can_be_configured: bool,
}

/// When each pod without a known cgroup was first seen without it.
#[derive(Debug, Default)]
struct LackingPods(BTreeMap<Uid, Instant>);

impl LackingPods {
    fn set(&mut self, lacking: &BTreeSet<&Uid>, now: Instant) {
        self.0.retain(|uid, _| lacking.contains(uid));
        for uid in lacking {
            self.0.entry((*uid).clone()).or_insert(now);
        }
    }

    /// Returns whether kubelet had enough time to make the cgroup of this pod.
    fn is_late(&self, uid: &Uid, now: Instant) -> bool {
        self.0.get(uid).is_some_and(|since| now.duration_since(*since) >= AWAITED)
    }
}

impl CgroupSource {
    /// Opens the hierarchy if the configuration wants cgroups to identify pods.
    ///
    /// # Errors
    /// If the configuration requires it and it is not there.
    pub(super) fn open(config: &AccessConfig, has_kubernetes: bool) -> Result<Self> {
        if config.identity == IdentityConfig::Address || !has_kubernetes {
            return Ok(Self::default());
        }
        let problem = match CgroupHierarchy::open(&config.cgroup_path) {
            Ok(hierarchy) => return Ok(Self { hierarchy: Some(hierarchy), ..Self::default() }),
            Err(problem) => problem,
        };
        let what = format!("{} (access.cgroup_path): {problem}", config.cgroup_path.display());
        if config.identity == IdentityConfig::CgroupAndAddress {
            return Err(anyhow!(what).context(
                "access.identity = \"cgroup+address\" needs the node's cgroup v2 hierarchy: mount it, or use \"auto\"",
            ));
        }
        let problem = CgroupObstacle { what, can_be_configured: problem.can_be_configured() };
        Ok(Self { problem: Some(problem), ..Self::default() })
    }

    /// Opens the hierarchy again if it could not be opened, since kubelet may have started later.
    fn reopen(&mut self, config: &AccessConfig, has_kubernetes: bool) {
        if self.problem.is_some()
            && let Ok(opened) = Self::open(config, has_kubernetes)
            && opened.hierarchy.is_some()
        {
            *self = opened;
            self.log();
        }
    }

    /// Logs by what pods are identified.
    pub(super) fn log(&self) {
        match (&self.hierarchy, &self.problem) {
            (Some(_), _) => tracing::info!("pods are identified by address and cgroup"),
            (None, Some(problem)) => {
                tracing::warn!(problem = problem.what, "pods are identified by address only");
            }
            (None, None) => tracing::info!("pods are identified by address only"),
        }
    }
}

impl Control {
    /// Checks that pods can be identified as a configuration requires.
    ///
    /// # Errors
    /// If they cannot.
    pub fn check_identity(&self, config: &AccessConfig) -> Result<()> {
        CgroupSource::open(config, self.config.has_kubernetes).map(drop)
    }

    /// Reads the cgroups of pods. Without an answer, the last known ones hold.
    pub(super) fn read_cgroups(&mut self) {
        self.cgroups.reopen(self.access.config(), self.config.has_kubernetes);
        let now = match &self.cgroups.hierarchy {
            None => None,
            Some(hierarchy) => match hierarchy.pods() {
                Ok(cgroups) => {
                    self.cgroups.trouble = None;
                    Some(cgroups)
                }
                Err(error) => {
                    let trouble = Some(error.to_string());
                    if self.cgroups.trouble != trouble {
                        tracing::warn!(%error, "cannot read the cgroups of pods; keeping the last known ones");
                        self.cgroups.trouble = trouble;
                    }
                    Some(self.access.identities.cgroups().cloned().unwrap_or_default())
                }
            },
        };
        if self.access.identities.cgroups() != now.as_ref() {
            self.cgroups.is_pending = true;
            // The network of a pod is set up after its cgroup.
            self.search.hinted(Instant::now());
        }
        self.access.identities.set_cgroups(now);
        self.cgroups.lacking.set(&self.access.identities.without_cgroups(), Instant::now());
    }

    /// Returns whether a pod that the API server reported has no known cgroup. It can be long until kubelet makes it, which
    /// nothing reports, and soon afterwards the pod's containers start.
    #[must_use]
    pub fn awaits_cgroups(&self) -> bool {
        !self.access.identities.without_cgroups().is_empty()
    }

    /// Brings access in line with the cgroups of pods, if they have changed.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn follow_cgroups(&mut self) -> Result<()> {
        self.read_cgroups();
        if self.cgroups.is_pending {
            self.apply_access()?;
            self.cgroups.is_pending = false;
        }
        Ok(())
    }

    /// Returns how pods are identified.
    pub(super) fn identity_status(&self) -> IdentityStatus {
        let now = Instant::now();
        // Cgroups of new pods may just be made.
        let is_late = |uid: &Uid| self.cgroups.lacking.is_late(uid, now);
        let status = self.access.identity_status(is_late);
        match self.cgroups.problem.clone() {
            Some(CgroupObstacle { what, can_be_configured }) => {
                IdentityStatus { problem: Some(what), can_be_configured, ..status }
            }
            None => status,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_pod_is_late_by_itself_whatever_others_do() {
        let (a, b, start) = ("a".to_owned(), "b".to_owned(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lacking = LackingPods::default();
        for second in 0..=10 {
            // Pods come and go all the time.
            let pods = if second % 2 == 0 { BTreeSet::from([&a, &b]) } else { BTreeSet::from([&a]) };
            assert!(!lacking.is_late(&a, at(second)) || second == 10);
            lacking.set(&pods, at(second));
        }
        assert!(lacking.is_late(&a, at(10)) && !lacking.is_late(&b, at(10)));
        lacking.set(&BTreeSet::new(), at(11));
        assert!(!lacking.is_late(&a, at(30)), "its cgroup is known");
    }
}
