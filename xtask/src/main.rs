//! The project's commands. Each installs what it needs first.

mod architecture;
mod builds;
mod demo;
mod deploy;
mod image;
mod kernels;
mod kubernetes;
mod process;
mod programs;
mod setup;
mod suites;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask demo [--gateway URL] [--keep] [--json] [--release]
                               run the guided demo: a lab with three nodes, a real gateway and a real client;
                               --release: optimized build; the first build takes a few minutes longer
cargo xtask test [SUITE…]      run the suites by name (lint, unit, packet, e2e, e2e-gateways, datapath, parity,
                               consistency, chaos, upgrade, clients, kernels, storage, deploy, monitoring, page,
                               kubernetes, image, fuzz), or all of them; arm64 and cluster run only if they are named;
                               lab suites run in parallel (LOTA_LANES, default 2) and print their output when done
cargo xtask bench [NAME…]      run benchmarks (datapath, placement, serving, cold, memory, storage, writes, objects);
                               results are in target/bench/NAME.json
cargo xtask bench soak [--minutes N] [--json]
                               run a mixed load for a long time, by default 20 minutes; fails if latency, memory, descriptors,
                               threads or disk space grow
cargo xtask lab up [--gateway URL] [--release] | down | exec PLACE COMMAND…
                               start, stop or enter the lab without the demo
cargo xtask docs               generate docs/metrics.md and docs/configuration.md from the code
cargo xtask deploy-render      render the Kustomize files of deploy/ from the chart
cargo xtask image [--dev] [--tag TAG]
                               build the container image, target/image/lota.oci.tar, and its SBOM,
                               target/image/sbom.cdx.json
cargo xtask setup              install the build and test dependencies (Debian 12, as root)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["demo", rest @ ..] => demo::demo(rest),
        ["lab", rest @ ..] => demo::lab(rest),
        ["bench", arguments @ ..] => suites::bench(arguments),
        ["test", suites @ ..] => suites::test(suites),
        ["docs"] => suites::docs(),
        ["deploy-render"] => deploy::render(),
        ["image", rest @ ..] => image::image(rest),
        ["setup"] => setup::all(),
        [suites::IN_LANE, name] => suites::run_here(name),
        [setup::ahead::COMMAND, suites @ ..] => suites::prepare(suites),
        [] | ["help" | "--help" | "-h", ..] => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        [other, ..] => Err(format!("unknown command `{other}`\n{HELP}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
