//! Suites without a lab: lint, unit tests, fuzzing.

use std::{
    fs,
    num::NonZero,
    path::{Path, PathBuf},
    process::Output,
    thread,
};

use super::Counts;
use crate::{
    process::{ROOT, cargo, run},
    setup::{self, CargoCommand},
};

/// Formatting, clippy with warnings as errors, the one feature that no other suite builds, and the policy for dependencies.
pub(super) fn lint(counts: &mut Counts) -> Result<(), String> {
    let deny = setup::to_lint()?;
    counts.run("formatting", &mut cargo(&["fmt", "--all", "--check"]))?;
    // The only default feature is the one that compiles libFuzzer.
    let mut clippy = cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--no-default-features"]);
    counts.run("clippy", clippy.args(["--", "--deny", "warnings"]))?;
    let log = ["check", "--quiet", "--package", "lota-datapath", "--features", "log"];
    counts.run("the kernel side with its log", &mut cargo(&log))?;
    // Advisories would need the network.
    let mut deny = deny.command(&["check", "bans", "licenses", "sources"]);
    counts.run("licences, sources and versions", &mut deny)
}

/// Unit and property tests.
pub(super) fn unit(counts: &mut Counts) -> Result<(), String> {
    setup::to_build()?;
    counts.tests(
        "unit and property tests",
        // A fuzz target that is run as a test never ends.
        &mut cargo(&["test", "--quiet", "--workspace", "--exclude", "lota-fuzz", "--lib", "--bins"]),
    )?;
    counts.tests("examples in the documentation", &mut cargo(&["test", "--quiet", "--workspace", "--doc"]))
}

/// Runs every fuzz target for a few seconds, from its seeds and the inputs that earlier runs found. For longer:
/// `LOTA_FUZZ_SECONDS=600 cargo xtask test fuzz`.
pub(super) fn fuzz(counts: &mut Counts) -> Result<(), String> {
    let cargo_fuzz = setup::to_fuzz()?;
    let seconds: u32 = match std::env::var("LOTA_FUZZ_SECONDS") {
        Ok(seconds) => seconds.parse().map_err(|_| "LOTA_FUZZ_SECONDS is not a number".to_owned())?,
        Err(_) => 10,
    };
    // Sanitizers need a nightly toolchain, and detect errors of unsafe code, of which this project has little.
    let common = ["--sanitizer", "none", "--dev", "--fuzz-dir", "tests/fuzz"];
    run("building the fuzz targets", cargo_fuzz.command(&["build"]).args(common))?;
    let targets =
        fs::read_dir(Path::new(ROOT).join("tests/fuzz/targets")).map_err(|error| error.to_string())?;
    let mut targets: Vec<PathBuf> = targets.flatten().map(|target| target.path()).collect();
    targets.sort();
    let names: Vec<&str> = targets.iter().filter_map(|target| target.file_stem()?.to_str()).collect();
    let at_once = thread::available_parallelism().map_or(1, NonZero::get);
    for some in names.chunks(at_once) {
        eprintln!("==> fuzzing {} for {seconds} s", some.join(", "));
        let fuzzed: Vec<_> = thread::scope(|scope| {
            let fuzzing: Vec<_> = some
                .iter()
                .map(|target| scope.spawn(|| fuzz_target(&cargo_fuzz, target, &common, seconds)))
                .collect();
            fuzzing.into_iter().map(|fuzzing| fuzzing.join().map_err(|_| "a thread panicked")).collect()
        });
        for (target, output) in some.iter().zip(fuzzed) {
            let output = output??;
            let stderr = String::from_utf8_lossy(&output.stderr);
            if output.status.success() {
                let done = stderr.lines().rfind(|line| line.starts_with("Done"));
                eprintln!("    {target}: {}", done.unwrap_or_default());
            } else {
                // The error is far from the end of the output: print all of it.
                eprintln!("{stderr}");
            }
            counts.one(target, output.status.success());
        }
    }
    Ok(())
}

fn fuzz_target(
    cargo_fuzz: &CargoCommand,
    target: &str,
    common: &[&str],
    seconds: u32,
) -> Result<Output, String> {
    let found = format!("target/fuzz/{target}");
    fs::create_dir_all(Path::new(ROOT).join(&found)).map_err(|error| error.to_string())?;
    let mut fuzz = cargo_fuzz.command(&["run"]);
    fuzz.args(common).args([target, &found]);
    let seeds = format!("tests/fuzz/seeds/{target}");
    if Path::new(ROOT).join(&seeds).exists() {
        fuzz.arg(seeds);
    }
    fuzz.args(["--", "-max_len=4096", "-timeout=10"]);
    fuzz.arg(format!("-max_total_time={seconds}"));
    // Inputs that fail stay there; add them to the seeds once the bug is fixed.
    fuzz.arg(format!("-artifact_prefix=target/fuzz/{target}-"));
    fuzz.output().map_err(|error| format!("cannot run {fuzz:?}: {error}"))
}

/// Writes the documents that unit tests compare with the code.
pub(crate) fn docs() -> Result<(), String> {
    setup::to_build()?;
    let tests = ["test", "--quiet", "--package", "lota-daemon", "--lib", "the_document_is_up_to_date"];
    run("writing docs/metrics.md and docs/configuration.md", cargo(&tests).env("LOTA_WRITE_DOCS", "1"))
}
