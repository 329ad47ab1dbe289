//! Minimal privileges of the daemon.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{DENIED, Mode, Reached, Style, VIP, knock},
    tour::{MIB, Tour},
};
use nix::sys::signal::Signal;

use super::lota_json;

/// CAP_BPF, CAP_NET_ADMIN, CAP_NET_BIND_SERVICE and CAP_PERFMON.
const FOUR: u64 = 1 << 39 | 1 << 12 | 1 << 10 | 1 << 38;

pub(crate) fn minimal(tour: &mut Tour) -> Result<()> {
    let only_four = "--bounding-set=-all,+bpf,+net_admin,+net_bind_service,+perfmon";
    for attach in ["auto", "clsact"] {
        let node = &mut tour.nodes[2];
        node.stop(Signal::SIGTERM)?;
        node.set_wrapper(vec!["setpriv", only_four, "--inh-caps=-all", "--"]);
        node.edit("attach = \"auto\"", &format!("attach = \"{attach}\""));
        node.configure(Mode::OwnCredential)?;
        let started = node.start();
        node.set_wrapper(Vec::new());
        node.forget_edits();
        started?;
        let (client, pod, key) = (tour.client.clone(), tour.pod(3, 1), "minimal/object");
        let put = client.put(&pod, key, 130, MIB)?;
        let got = client.get(&pod, key, Style::Path)?;
        ensure!(got.sha256 == put.sha256, "{} {}", got.status, got.code);
        ensure!(knock(&tour.lab.pod(DENIED), VIP, 80)?.0 == Reached::Refused, "the denied pod");
        let node = &tour.nodes[2];
        ensure!(node.metric("lota_datapath_packets_total{verdict=\"redirected\"}")? > 0.0, "no metrics");
        let status = &lota_json(node, &["datapath", "status"])?[0];
        let position = &status["interfaces"][0]["programs_ahead"];
        ensure!(attach == "clsact" || *position == 0, "its position is missing: {status}");

        let pid = node.pid().context("it does not run")?;
        let (mut with, mut without) = (0, 0);
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = thread?;
            let status = fs::read_to_string(thread.path().join("status"))?;
            let sets = ["CapPrm:", "CapEff:"].map(|set| {
                let line = status.lines().find_map(|line| line.strip_prefix(set)).unwrap_or_default();
                u64::from_str_radix(line.trim(), 16).unwrap_or(u64::MAX)
            });
            match sets {
                [FOUR, FOUR] if thread.file_name() == *pid.to_string() => with += 1,
                [0, 0] => without += 1,
                other => anyhow::bail!("thread {:?} has the capabilities {other:x?}", thread.file_name()),
            }
        }
        ensure!(with == 1 && without >= 2, "{with} threads with capabilities, {without} without");
    }
    tour.nodes[2].configure(Mode::OwnCredential)?;
    tour.nodes[2].start()
}
