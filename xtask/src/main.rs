//! The project's own commands. Each sets up what it needs first.

mod demo;
mod deploy;
mod image;
mod kernels;
mod kubernetes;
mod setup;
mod suites;
mod tell;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask demo [--gateway URL] [--keep] [--json] [--release]
                               show the main job: a lab of three nodes, a real gateway, a real client;
                               --release: by an optimized build, which takes some minutes more at first
cargo xtask test [SUITE…]      run the suites by name (lint, unit, fuzz, packet, kernels, datapath,
                               storage, e2e, parity, clients, consistency, deploy, kubernetes, image, monitoring,
                               page), or all of them; kubernetes-node runs only if it is named
cargo xtask bench [NAME…]      measure (datapath, placement, serving, cold, memory, storage), and write
                               target/bench/NAME.json
cargo xtask lab up [--gateway URL] [--release] | down | exec PLACE COMMAND…
                               the lab without the tour, to play in
cargo xtask docs               write the documents that are made from the code: docs/metrics.md, docs/configuration.md
cargo xtask deploy-render      render deploy/'s Kustomize side from its chart
cargo xtask image [--dev] [--tag TAG]
                               build the container image, target/image/lota.oci.tar, and its list of
                               components, target/image/sbom.cdx.json
cargo xtask setup              install what building and testing need (Debian 12, as root)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["demo", rest @ ..] => demo::demo(rest),
        ["lab", rest @ ..] => demo::lab(rest),
        ["bench", names @ ..] => suites::bench(names),
        ["test", suites @ ..] => suites::test(suites),
        ["docs"] => suites::docs(),
        ["deploy-render"] => deploy::render(),
        ["image", rest @ ..] => image::image(rest),
        ["setup"] => setup::all(),
        [kubernetes::AHEAD] => kubernetes::build_ahead(),
        [] | ["help" | "--help" | "-h", ..] => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        [other, ..] => Err(format!("there is no command `{other}`\n{HELP}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
