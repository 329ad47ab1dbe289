//! Times at which the API server reports addresses.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{kubectl::Kubectl, reads::uptime};

/// Records when the API server reports the address of a pod.
pub(crate) struct AddressWatch {
    process: Child,
    seen: JoinHandle<Result<f64>>,
}

impl AddressWatch {
    pub(crate) fn start(kubectl: &Kubectl, namespace: &str, pod: &str) -> Result<Self> {
        let mut command = kubectl.command();
        command.args(["-n", namespace, "get", "pods", "--watch", "--no-headers"]);
        command.args(["--output", "custom-columns=IP:.status.podIP"]);
        command.arg(format!("--field-selector=metadata.name={pod}"));
        let mut process = command.stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(process.stdout.take().context("no output")?);
        let seen = thread::spawn(move || {
            for line in output.lines() {
                if line?.starts_with("10.") {
                    return uptime();
                }
            }
            bail!("the watch ended")
        });
        Ok(Self { process, seen })
    }

    /// Returns when the address was reported, in seconds since the machine started.
    pub(crate) fn end(mut self) -> Result<f64> {
        let seen = self.seen.join().map_err(|_| anyhow!("a thread panicked"))?;
        self.process.kill()?;
        self.process.wait()?;
        seen
    }
}
