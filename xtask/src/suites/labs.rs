//! Suites whose programs are tests of the package `lota-tests`.

use std::{env, ffi::OsString, path::PathBuf};

use super::{Counts, Tests, counts::add_result};
use crate::{
    builds, image,
    kernels::{ARM64_KERNELS, DebianKernel, GuestProgram, KERNELS, boot},
    kubernetes, programs, setup,
};

/// Tools for a suite's tests: environment variables with their values.
pub(super) type Tools = Result<Vec<(&'static str, OsString)>, String>;

/// Suites of which one failure is one too many, however busy the machine is: what they verify does not depend on time.
const NEVER_REPEATED: [&str; 5] = ["chaos", "consistency", "deploy", "packet", "storage"];

/// Variable that limits the gateways of suites that run with several.
const GATEWAYS: &str = "LOTA_GATEWAYS";

/// Runs a suite's tests.
pub(super) fn tests(counts: &mut Counts, name: &str, with: Tests) -> Result<(), String> {
    let Some(all) = with.gateways else {
        return run(counts, name, with.program, (with.tools)()?);
    };
    let named = env::var(GATEWAYS).ok();
    let named: Option<Vec<&str>> = named.as_deref().map(|named| named.split(',').map(str::trim).collect());
    let is_named = |gateway: &&str| named.as_ref().is_none_or(|named| named.contains(gateway));
    let gateways: Vec<&str> = all.split(',').filter(is_named).collect();
    if gateways.is_empty() {
        eprintln!("    {GATEWAYS} names no gateway of this suite ({all})");
        return Ok(());
    }
    let gateways = (GATEWAYS, gateways.join(",").into());
    run(counts, name, with.program, (with.tools)()?.into_iter().chain([gateways]))
}

/// Runs a program of tests, with the daemon and these environment variables.
fn run(
    counts: &mut Counts,
    name: &str,
    program: &str,
    variables: impl IntoIterator<Item = (&'static str, OsString)>,
) -> Result<(), String> {
    let (program, lota) = programs::test(program)?;
    let mut tests = programs::run(&program);
    tests.env("LOTA_BIN", lota).envs(variables);
    if !NEVER_REPEATED.contains(&name) {
        tests.env("LOTA_TEST_ATTEMPTS", "2");
    }
    counts.tests(&format!("suite {name}"), &mut tests)
}

/// The programs, run and attached by other kernels.
pub(super) fn kernels(counts: &mut Counts) -> Result<(), String> {
    setup::to_run()?;
    let (path, _) = programs::test("packet")?;
    in_guests(counts, &KERNELS, &[GuestProgram { name: "packet", path }])
}

/// The programs on kernels for arm64, and reads through daemons that are built for it.
pub(super) fn arm64(counts: &mut Counts) -> Result<(), String> {
    setup::to_run()?;
    let programs = programs::cross(["packet", "steered", "lota"])?;
    in_guests(counts, &ARM64_KERNELS, &programs)
}

fn in_guests(counts: &mut Counts, kernels: &[DebianKernel], programs: &[GuestProgram]) -> Result<(), String> {
    for kernel in kernels {
        let (before, mut result) = (counts.passed, (0, 0));
        let passed = boot(kernel, programs, |line| result = add_result(line, result))?;
        counts.passed += result.0;
        counts.failed += result.1;
        if !passed && result.1 == 0 {
            return Err(format!("{kernel} did not get to the end of the suite"));
        }
        if counts.passed == before {
            return Err(format!("no test passed on {kernel}"));
        }
    }
    Ok(())
}

/// Upgrades and rollbacks between builds.
pub(super) fn upgrade(counts: &mut Counts) -> Result<(), String> {
    let mut builds = vec![("LOTA_BIN_NEXT", builds::next_formats()?)];
    match builds::released()? {
        Ok(released) => builds.push(("LOTA_BIN_RELEASED", released)),
        Err(reason) => eprintln!("    the released build is NOT tested, since it is unavailable: {reason}"),
    }
    run(counts, "upgrade", "upgrade", lab(setup::client()?, builds)?)
}

/// The image as pods, on real kubelets.
pub(super) fn cluster(counts: &mut Counts) -> Result<(), String> {
    let mut tools = node()?;
    tools.push(("LOTA_IMAGE", image::for_tests()?.into()));
    run(counts, "cluster", "cluster", tools)
}

/// Tools for tests that only need root.
pub(super) fn none() -> Tools {
    setup::to_run().map(|()| Vec::new())
}

/// Tools for every lab: a Python with a client, and more.
fn lab(python: PathBuf, more: Vec<(&'static str, PathBuf)>) -> Tools {
    setup::to_run()?;
    let tools = more.into_iter().chain([("LOTA_PYTHON", python)]);
    Ok(tools.map(|(name, path)| (name, path.into())).collect())
}

/// The library by which clocks jump.
pub(super) fn clocks() -> Tools {
    lab(setup::client()?, vec![("LOTA_FAKETIME", setup::faketime()?)])
}

pub(super) fn resolvers() -> Tools {
    lab(setup::client()?, vec![("LOTA_RCLONE", setup::resolvers()?)])
}

/// Tools for labs with the embedded gateway.
pub(super) fn embedded() -> Tools {
    lab(setup::client()?, Vec::new())
}

pub(super) fn gateways() -> Tools {
    lab(setup::client()?, vec![("LOTA_WEED", setup::seaweedfs()?), ("LOTA_RGW", setup::rgw()?)])
}

pub(super) fn other_clients() -> Tools {
    lab(setup::clients()?, vec![("LOTA_WEED", setup::seaweedfs()?)])
}

pub(super) fn promtool() -> Tools {
    lab(setup::client()?, vec![("LOTA_PROMTOOL", setup::promtool()?)])
}

pub(super) fn browser() -> Tools {
    lab(setup::client()?, vec![("LOTA_BROWSER", setup::browser()?)])
}

pub(super) fn renderers() -> Tools {
    setup::jq()?;
    let tools = kubernetes::clients()?;
    let paths =
        [("LOTA_HELM", tools.helm), ("LOTA_KUBECTL", tools.kubectl), ("LOTA_PYTHON", setup::schemas()?)];
    let paths = paths.map(|(name, path)| (name, path.into()));
    // As the DaemonSet does.
    let node = [("LOTA_NODE_NAME", "n1".into()), ("LOTA_NODE_ADDRESS", "10.0.0.1".into())];
    Ok(paths.into_iter().chain(node).collect())
}

pub(super) fn api_server() -> Tools {
    let python = setup::client()?;
    let servers = kubernetes::servers()?;
    let clients = servers.clients;
    let servers = [("LOTA_APISERVER", servers.apiserver), ("LOTA_ETCD", servers.etcd)];
    let clients = [("LOTA_KUBECTL", clients.kubectl), ("LOTA_HELM", clients.helm)];
    lab(python, servers.into_iter().chain(clients).collect())
}

pub(super) fn node() -> Tools {
    setup::iptables()?;
    setup::jq()?;
    let mut tools = api_server()?;
    let node = kubernetes::node_servers()?;
    let node = [
        ("LOTA_KUBELET", node.kubelet),
        ("LOTA_CONTROLLER_MANAGER", node.controller_manager),
        ("LOTA_SCHEDULER", node.scheduler),
        ("LOTA_CONTAINERD", node.containerd),
        ("LOTA_CNI", node.cni),
        ("LOTA_BUSYBOX", node.busybox),
    ];
    tools.extend(node.map(|(name, path)| (name, path.into())));
    Ok(tools)
}
