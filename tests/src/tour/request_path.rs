//! Steps 2 and 3: the nodes run, and an unmodified S3 client reads through them.

use std::ffi::OsStr;

use anyhow::{Context as _, Result, ensure};

use super::{Line, SIZE, Tour, expect, same};
use crate::{
    lab::{Pod, Style, VIP, run},
    strace::Strace,
};

pub(super) fn nodes(tour: &mut Tour) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for node in &tour.nodes {
        ensure!(node.admin("/healthz")?.starts_with("alive"), "{} is not alive", node.name());
        let log = std::fs::read_to_string(node.log())?;
        let attached = log.matches("redirecting connections").count();
        ensure!(attached >= 2, "{} attached to {attached} interfaces", node.name());
        let mode = log.lines().find_map(|line| line.split_once("mode=")).map_or("?", |(_, mode)| mode);
        let guard = log.lines().find(|line| line.contains("guard attached"));
        let guard = guard.and_then(|line| line.split_once("mode=")).map_or("?", |(_, mode)| mode);
        lines.push(Line::new(format!("{} is ready", node.name()), format!("pods: {mode}; uplink: {guard}")));
    }
    for (node, pod) in tour.one_pod_per_node() {
        for name in ["cwlota.com", "any-bucket.cwlota.com"] {
            let found = run(pod.pod_command("getent").args(["ahostsv4", name]))?;
            ensure!(found.starts_with(&VIP.to_string()), "{name} on node {node} is {found}");
        }
    }
    lines.push(Line::new("pods resolve cwlota.com and *.cwlota.com", VIP.to_string()));
    let elsewhere = tour.pod(1, 1).pod_command("getent").args(["ahostsv4", "example.com"]).status()?;
    ensure!(!elsewhere.success(), "the responder answered for a name outside its zone");
    Ok(lines)
}

pub(super) fn client(tour: &mut Tour) -> Result<Vec<Line>> {
    let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
    let key = "request-path/object 64M";
    let mut lines = Vec::new();

    let made = client.create_bucket(&pod)?;
    // 409 if the suite has made it.
    ensure!([200, 409].contains(&made.status), "create_bucket was answered {} {}", made.status, made.code);
    lines.push(Line::timed("create a bucket, from a pod of n1", &made));
    let put = client.put(&pod, key, 1, SIZE)?;
    lines.push(Line::timed("upload 64 MiB", &put));

    let cold = client.get(&pod, key, Style::Path)?;
    same(&cold, &put.sha256, "cold read")?;
    expect(&cold, 200, "miss", "cold read")?;
    ensure!(cold.headers.get("x-amz-meta-made-by").is_some_and(|value| value == "lab"), "metadata is lost");
    lines.push(Line::timed("read it cold, from n1", &cold));
    let owner = tour.wait_cached(key)?;
    ensure!(owner == cold.node(), "{owner} has cached the object, but the response named {}", cold.node());

    let (sent, passed_on) = (total(tour, "sendfile")?, total(tour, "splice")?);
    for (node, pod) in tour.one_pod_per_node() {
        for (style, name) in [(Style::Path, "path style"), (Style::Virtual, "virtual host")] {
            let what = format!("read it warm, from n{node}, {name}");
            let warm = client.get(&pod, key, style)?;
            same(&warm, &put.sha256, &what)?;
            expect(&warm, 200, "hit", &what)?;
            ensure!(warm.node() == owner, "{what}: served by {} rather than {owner}", warm.node());
            lines.push(Line::timed(what, &warm));
        }
        let what = format!("read it warm, from n{node}, in parallel ranges");
        let warm = client.download(&pod, key, Style::Virtual)?;
        same(&warm, &put.sha256, &what)?;
        lines.push(Line { seen: "byte-equal".into(), ..Line::timed(what, &warm) });
    }
    let by_sendfile = total(tour, "sendfile")? - sent;
    ensure!(by_sendfile >= 9.0 * SIZE as f64, "only {by_sendfile} bytes of nine hits went by sendfile");
    lines.push(Line::new(
        "bytes that left the owner by sendfile(2)",
        format!("{:.0} MiB", by_sendfile / 1048576.0),
    ));
    let by_splice = total(tour, "splice")? - passed_on;
    // Bytes that arrive together with the response head are not spliced.
    ensure!(by_splice >= 3.9 * SIZE as f64, "only {by_splice} bytes of four remote hits went by splice");
    lines.push(Line::new(
        "bytes that the other nodes passed on by splice(2)",
        format!("{:.0} MiB", by_splice / 1048576.0),
    ));
    for verdict in ["redirected", "delivered"] {
        let metric = format!("lota_datapath_packets_total{{verdict=\"{verdict}\"}}");
        for node in &tour.nodes {
            ensure!(node.metric(&metric)? >= 1.0, "{} has counted no packet as {verdict}", node.name());
        }
    }
    lines.push(traced(tour, key, &owner)?);
    Ok(lines)
}

/// Returns the bytes that all nodes have sent by `call`.
fn total(tour: &Tour, call: &str) -> Result<f64> {
    tour.metric(&format!("lota_{call}_bytes_total"))
}

/// Verifies with strace that a hit is sent by sendfile.
fn traced(tour: &Tour, key: &str, owner: &str) -> Result<Line> {
    let node = tour.nodes.iter().find(|node| node.name() == owner).context("no such node")?;
    let output = tour.lab.folder().join("strace");
    let options = ["-e", "trace=sendfile,sendmsg,write,writev", "-o"].map(OsStr::new);
    let strace = Strace::attach(node, options.into_iter().chain([output.as_os_str()]))?;
    let number: u8 = owner.trim_start_matches('n').parse()?;
    let warm = tour.client.get(&tour.lab.pod(Pod(number, 1)), key, Style::Path);
    drop(strace);
    expect(&warm?, 200, "hit", "read under strace")?;
    let calls = std::fs::read_to_string(output)?;
    let returned = |call: &str| -> u64 {
        let lines = calls.lines().filter(|line| line.contains(call));
        lines.filter_map(|line| line.rsplit_once("= ")?.1.split(' ').next()?.parse::<u64>().ok()).sum()
    };
    let (file, other) = (returned("sendfile"), returned("sendmsg") + returned("write"));
    ensure!(file == SIZE, "strace saw {file} bytes go by sendfile");
    ensure!(other < 64 << 10, "strace saw {other} bytes go by other calls");
    Ok(Line::new(
        "system calls of one hit, by strace",
        format!("sendfile {file} bytes, others {other} bytes"),
    ))
}
