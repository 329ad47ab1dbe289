//! Shares of two pods of a node that read hits at the same time, and the limit of a pod.

use std::thread;

use anyhow::{Result, anyhow};
use lota_tests::{
    bench::{Goal, Report},
    lab::{Pod, VIP},
};

use super::{LARGE, ROUNDS, Server, Stage, TURN, turn};

/// Limit of each pod, in bytes per second.
const LIMIT: u64 = 200 << 20;

/// Measures what a pod with one connection gets beside one with 64, and beside none.
pub(super) fn shares(stage: &Stage, report: &mut Report) -> Result<()> {
    let (many, one) = (server(stage, 1)?, server(stage, 2)?);
    warm(&one)?;
    let (mut share, mut alone) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        eprint!("\r    two pods: round {} of {ROUNDS} ", round + 1);
        let (many, beside) = thread::scope(|scope| {
            let many = scope.spawn(|| turn(&many, 64, TURN));
            let beside = turn(&one, 1, TURN);
            many.join().map_err(|_| anyhow!("wrk panicked")).flatten().and_then(|many| Ok((many, beside?)))
        })?;
        let beside = beside.bytes_per_second;
        share.push(beside / (beside + many.bytes_per_second));
        alone.push(beside / turn(&one, 1, TURN)?.bytes_per_second);
    }
    eprintln!();
    let title = "64 MiB, one pod with 64 connections and one with 1";
    report.add(format!("{title}: share of the one with 1"), "x", Goal::AtLeast(0.33), share);
    report.add(format!("{title}: its bytes relative to those alone"), "x", Goal::None, alone);
    Ok(())
}

/// Measures what a pod with a limit gets, by several numbers of connections.
pub(super) fn limited(report: &mut Report) -> Result<()> {
    let stage = Stage::set(&format!("[limits]\npod_bandwidth = \"{LIMIT}\"\n"))?;
    let pod = server(&stage, 1)?;
    warm(&pod)?;
    for connections in [1, 64] {
        let measure = |_| Ok(turn(&pod, connections, TURN)?.bytes_per_second / LIMIT as f64);
        let ratios = (0..ROUNDS / 2).map(measure).collect::<Result<_>>()?;
        let what = format!("64 MiB, {connections} connections, limits.pod_bandwidth: received / the limit");
        report.add(what, "x", Goal::AtMost(1.05), ratios);
    }
    Ok(())
}

fn server(stage: &Stage, pod: u8) -> Result<Server> {
    Ok(stage.server(Pod(1, pod), "LOTA", (VIP, 80).into(), &[stage.lota(0)?], LARGE))
}

/// Fills the cache, and has LOTA verify the gateway.
fn warm(server: &Server) -> Result<()> {
    (0..3).try_for_each(|_| turn(server, 1, TURN).map(drop))
}
