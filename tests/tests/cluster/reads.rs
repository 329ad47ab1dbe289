//! Logs of readers' pods.

use anyhow::{Context as _, Result, ensure};

use crate::kubectl::{Kubectl, wait};

/// Beginnings of what kubelet says in place of a log that does not exist yet.
const NO_LOG: [&str; 2] = ["failed to try resolving symlinks", "unable to retrieve container logs"];
/// Errors of curl.
const UNKNOWN_HOST: &str = "curl: (6) ";
const NOT_CONNECTED: &str = "curl: (7) ";

/// The log of a reader.
#[derive(Clone, Debug)]
pub(crate) struct ReadLog {
    /// When the container started, in seconds since the machine started.
    started: f64,
    pub(crate) reads: Vec<Read>,
}

/// Form in which a pod addresses the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By LOTA's name.
    Name,
    /// By the address of the VIP.
    Address,
    /// At the gateway's address, as without LOTA.
    Gateway,
}

/// One read of a pod.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    /// When it ended, in seconds since the machine started.
    pub(crate) at: f64,
    pub(crate) kind: Kind,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    /// `cache` is empty if LOTA did not answer.
    Answer { status: String, cache: String, digest: String },
    /// An error of curl.
    Failed(String),
}

impl ReadLog {
    /// Returns the log of a pod so far; `None` if its container has not written yet.
    pub(crate) fn of(kubectl: &Kubectl, namespace: &str, pod: &str) -> Result<Option<Self>> {
        let text = kubectl.run(&["-n", namespace, "logs", pod])?;
        let mut lines = text.lines();
        let first = lines.next().filter(|first| !NO_LOG.iter().any(|text| first.starts_with(text)));
        let Some(first) = first else { return Ok(None) };
        let started = first.strip_suffix(" start").and_then(|time| time.parse().ok());
        Ok(Some(Self {
            started: started.with_context(|| format!("unexpected first line of {pod}: {first}"))?,
            reads: lines.map(Read::parse).collect::<Result<_>>()?,
        }))
    }

    /// Waits until the log of a pod meets a condition; returns it.
    pub(crate) fn wait(
        kubectl: &Kubectl,
        (namespace, pod): (&str, &str),
        what: &str,
        is_met: impl Fn(&Self) -> bool,
    ) -> Result<Self> {
        let mut log = None;
        let waited = wait(&format!("{what} of {pod}"), || {
            log = Self::of(kubectl, namespace, pod)?;
            Ok(log.as_ref().is_some_and(&is_met))
        });
        waited.with_context(|| format!("{:?}", log.as_ref().map(Self::last)))?;
        log.context("no log")
    }

    /// Waits until a pod has hits of each of these kinds; returns its log.
    pub(crate) fn wait_hits(kubectl: &Kubectl, pod: (&str, &str), kinds: &[Kind]) -> Result<Self> {
        Self::wait(kubectl, pod, "hits", |log| log.has_hits(kinds))
    }

    /// Returns whether each of these kinds got content from LOTA's cache.
    fn has_hits(&self, kinds: &[Kind]) -> bool {
        kinds.iter().all(|kind| self.reads.iter().any(|read| read.kind == *kind && read.is_hit()))
    }

    /// Verifies the reads of a pod that the rules select: refused only until LOTA answers, then always answered by LOTA, with
    /// this content. Those at the gateway's address are always answered, and those of other kinds than LOTA answers are as for
    /// any pod. Returns when LOTA first answered, in seconds since the machine started.
    pub(crate) fn verify_selected(&self, digest: &str, kinds: &[Kind]) -> Result<f64> {
        let mut first = f64::INFINITY;
        for kind in kinds {
            let mut reads = self.reads.iter().filter(|read| read.kind == *kind);
            let reached = reads.by_ref().find(|read| !read.is_as_for_any_pod(digest));
            let reached = reached.with_context(|| format!("LOTA has answered no read by {kind:?}"))?;
            for read in [reached].into_iter().chain(reads) {
                ensure!(read.is_of_lota(digest), "not LOTA's answer with {digest}: {read:?}");
            }
            first = first.min(reached.at);
        }
        let others = self.reads.iter().filter(|read| !kinds.contains(&read.kind));
        let wrong = others.into_iter().find(|read| !read.is_as_for_any_pod(digest));
        ensure!(wrong.is_none(), "LOTA does not answer this kind, and yet: {wrong:?}");
        Ok(first)
    }

    /// Returns when the last read of these kinds began that LOTA did not answer, in seconds since the machine started; if there
    /// is none, when the container started.
    pub(crate) fn last_unanswered(&self, kinds: &[Kind], digest: &str) -> f64 {
        let began = [self.started].into_iter().chain(self.reads.iter().map(|read| read.at));
        let unanswered =
            began.zip(&self.reads).filter(|(_, read)| kinds.contains(&read.kind) && !read.is_of_lota(digest));
        unanswered.last().map_or(self.started, |(began, _)| began)
    }

    /// Returns when the container started, in seconds since the machine started.
    pub(crate) fn started(&self) -> f64 {
        self.started
    }

    /// Verifies the reads of a pod that the rules do not select: the gateway itself answers at its address, and everything
    /// else is refused.
    pub(crate) fn verify_others(&self, digest: &str) -> Result<()> {
        let wrong = self.reads.iter().find(|read| !read.is_as_for_any_pod(digest));
        ensure!(wrong.is_none(), "the rules do not select it, and yet: {wrong:?}");
        Ok(())
    }

    /// Returns the number of reads of the kind with the fewest.
    pub(crate) fn rounds(&self, kinds: &[Kind]) -> usize {
        let of = |kind: &Kind| self.reads.iter().filter(|read| read.kind == *kind).count();
        kinds.iter().map(of).min().unwrap_or_default()
    }

    /// Returns the last reads, to show them.
    fn last(&self) -> &[Read] {
        &self.reads[self.reads.len().saturating_sub(6)..]
    }
}

impl Read {
    fn parse(line: &str) -> Result<Self> {
        let parsed = || {
            let mut words = line.splitn(3, ' ');
            let at = words.next()?.parse().ok()?;
            let kind = match words.next()? {
                "name" => Kind::Name,
                "address" => Kind::Address,
                "gateway" => Kind::Gateway,
                _ => return None,
            };
            let rest = words.next()?;
            let outcome = match rest.strip_prefix("failed: ") {
                Some(error) => Outcome::Failed(error.to_owned()),
                None => {
                    let (head, digest) = rest.rsplit_once(' ')?;
                    let (status, cache) = head.split_once(' ')?;
                    Outcome::Answer {
                        status: status.to_owned(),
                        cache: cache.split(';').next().unwrap_or_default().to_owned(),
                        digest: digest.to_owned(),
                    }
                }
            };
            Some(Self { at, kind, outcome })
        };
        parsed().with_context(|| format!("unexpected line of a reader: {line}"))
    }

    /// Returns whether it has this content.
    fn is_success(&self, expected: &str) -> bool {
        matches!(&self.outcome, Outcome::Answer { status, digest, .. } if status == "200" && digest == expected)
    }

    fn cache(&self) -> &str {
        match &self.outcome {
            Outcome::Answer { cache, .. } => cache,
            Outcome::Failed(_) => "",
        }
    }

    fn is_hit(&self) -> bool {
        self.cache() == "hit"
    }

    /// Returns whether LOTA answered with this content.
    pub(crate) fn is_of_lota(&self, digest: &str) -> bool {
        self.is_success(digest) && !self.cache().is_empty()
    }

    /// Returns whether the gateway itself answered with this content.
    pub(crate) fn is_of_gateway(&self, digest: &str) -> bool {
        self.is_success(digest) && self.cache().is_empty()
    }

    /// Returns whether this is what a pod without access gets: the cluster's DNS does not know the name, connections to the VIP
    /// are refused, and the gateway itself answers at its address.
    fn is_as_for_any_pod(&self, digest: &str) -> bool {
        match self.kind {
            Kind::Name => self.has_failed_by(UNKNOWN_HOST),
            Kind::Address => self.has_failed_by(NOT_CONNECTED),
            Kind::Gateway => self.is_of_gateway(digest),
        }
    }

    /// Returns whether the connection was refused.
    pub(crate) fn is_unconnected(&self) -> bool {
        self.has_failed_by(NOT_CONNECTED)
    }

    fn has_failed_by(&self, code: &str) -> bool {
        matches!(&self.outcome, Outcome::Failed(error) if error.contains(code))
    }
}

/// Returns the seconds since the machine started, as readers log them.
pub(crate) fn uptime() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}
