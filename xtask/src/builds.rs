//! Other builds of the daemon, for the suite `upgrade`. Each program has a folder of its own, so that it does not replace
//! the checkout's. The compiled dependencies are those of the checkout's build, since profile and features are the same.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    demo,
    process::{ROOT, cargo, command, output_of, run, succeeds},
    setup::{self, Lock, once},
};

/// The last release point, or the last commit that may become one. Replace it whenever one is released.
const RELEASED: &str = "7b7f3148d2d503bcfb8aa97ae8278259272eae66";

/// A test that every build has and that takes little time to compile.
const SMALL_TEST: &str = "page";

/// Builds the checkout with the next version of each format. Returns the path of the program.
pub(crate) fn next_formats() -> Result<PathBuf, String> {
    setup::to_build()?;
    let place = folder()?.join("next");
    let features = ["--features", "lota-daemon/next-formats"];
    let mut build = build(Path::new(ROOT), &place, &features);
    run("building lota with the next formats", &mut build)?;
    Ok(place.join("debug/lota"))
}

/// Builds the released commit, unless that was done before. Returns the path of the program.
///
/// # Errors
/// If it does not build. A commit that is unavailable, for example without git, is `Ok(Err(reason))`.
pub(crate) fn released() -> Result<Result<PathBuf, String>, String> {
    let place = folder()?;
    let program = place.join(format!("lota-{RELEASED}"));
    if !program.exists()
        && let Err(reason) = find_released()
    {
        return Ok(Err(reason));
    }
    once(&program, |lock| build_released(&place, &program, lock))?;
    Ok(Ok(program))
}

/// Fetches the commit if this clone does not have it.
fn find_released() -> Result<(), String> {
    let commit = format!("{RELEASED}^{{commit}}");
    if succeeds(&mut command("git", &["cat-file", "-e", &commit])) {
        return Ok(());
    }
    output_of(&mut command("git", &["fetch", "--quiet", "--depth", "1", "origin", RELEASED])).map(drop)
}

fn build_released(place: &Path, program: &Path, lock: &Lock) -> Result<(), String> {
    setup::to_build()?;
    let (checkout, target) = (place.join(RELEASED), place.join("released"));
    let failed = |error: io::Error| format!("cannot check out {RELEASED}: {error}");
    fs::create_dir_all(&checkout).map_err(failed)?;
    let mut archive = command("git", &["archive", RELEASED]);
    let mut archive = archive.stdout(Stdio::piped()).spawn().map_err(failed)?;
    let mut unpack = Command::new("tar");
    unpack.arg("--extract").arg("--directory").arg(&checkout);
    unpack.stdin(archive.stdout.take().map_or_else(Stdio::null, Stdio::from));
    run("checking out the released build", &mut unpack)?;
    if !archive.wait().map_err(failed)?.success() {
        return Err(format!("cannot check out {RELEASED}: git archive failed"));
    }
    let mut build = build(&checkout, &target, &["--locked"]);
    // It is built once.
    build.env("CARGO_INCREMENTAL", "0");
    run("building the released lota", lock.hold(&mut build)?)?;
    // Under its name only when it is complete.
    fs::rename(target.join("debug/lota"), program)
        .map_err(|error| format!("cannot move the released build: {error}"))
}

/// Returns the command that builds the daemon of a checkout, at a low priority, since suites run meanwhile.
fn build(checkout: &Path, place: &Path, more: &[&str]) -> Command {
    let mut build = cargo(&["build", "--quiet", "--workspace", "--bin", "lota"]);
    // A test, without which dependencies would have other features and be compiled again: one that is small.
    build.args(["--test", SMALL_TEST]).args(more).current_dir(checkout).env("CARGO_TARGET_DIR", place);
    build.env("CARGO_BUILD_BUILD_DIR", fs::canonicalize(demo::target()).unwrap_or_else(|_| demo::target()));
    at_low_priority(&build)
}

/// Returns the command, run by `nice`.
fn at_low_priority(command: &Command) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", "10"]).arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        nice.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(name, value),
            None => nice.env_remove(name),
        };
    }
    nice
}

fn folder() -> Result<PathBuf, String> {
    let folder = demo::target().join("upgrade");
    let failed = |error: io::Error| format!("{}: {error}", folder.display());
    fs::create_dir_all(&folder).map_err(failed)?;
    fs::canonicalize(&folder).map_err(failed)
}
