//! A process under strace.

use std::{
    ffi::OsStr,
    fs,
    process::{Child, Command},
};

use anyhow::{Context as _, Result};

use crate::{
    lab::{Node, interrupt},
    tour::wait_until,
};

/// An strace that follows every thread of a process, until it is dropped.
#[derive(Debug)]
pub struct Strace(Child);

impl Strace {
    /// Attaches to a node's daemon, and waits until every thread is followed.
    ///
    /// # Errors
    /// If strace cannot be run, or does not follow every thread in time.
    pub fn attach(node: &Node, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Self> {
        let pid = node.pid().with_context(|| format!("{} does not run", node.name()))?.to_string();
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-p", &pid]).args(arguments);
        let strace = Self(command.spawn().context("running strace")?);
        wait_until("strace to follow every thread", || {
            let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
            let statuses = tasks.map(|task| fs::read_to_string(task?.path().join("status")));
            let statuses: Vec<String> = statuses.collect::<std::io::Result<_>>()?;
            Ok(statuses.iter().all(|status| !status.contains("TracerPid:\t0\n")))
        })?;
        Ok(strace)
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        if let Err(error) = interrupt(&mut self.0) {
            eprintln!("cannot end strace: {error:#}");
        }
    }
}
