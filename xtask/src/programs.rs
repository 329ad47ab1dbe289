//! Builds the programs that suites run. Tests and daemon are built with one selection of packages, and so with one
//! set of features: another selection would compile most dependencies again.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use crate::{
    demo,
    kernels::GuestProgram,
    process::{ROOT, cargo, tied},
    setup::{self, CrossCompiler},
};

/// Whether this process runs a suite in a lane, for which everything has been built.
static ARE_BUILT: AtomicBool = AtomicBool::new(false);

/// Builds the tests of every suite, and leaves links to them for processes in which [`are_built`] is true.
pub(crate) fn build_all() -> Result<(), String> {
    let folder = folder();
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(failed)?;
    }
    fs::create_dir_all(&folder).map_err(failed)?;
    for (name, program) in build("*")? {
        // A hard link, since a later build replaces the file.
        fs::hard_link(&program, folder.join(name)).map_err(failed)?;
    }
    Ok(())
}

/// Makes [`test`] use the programs that [`build_all`] has built.
pub(crate) fn are_built() {
    ARE_BUILT.store(true, Ordering::Relaxed);
}

/// Returns the tests of this name and the daemon. Builds them if necessary.
pub(crate) fn test(name: &str) -> Result<(PathBuf, PathBuf), String> {
    if ARE_BUILT.load(Ordering::Relaxed) {
        return Ok((folder().join(name), folder().join("lota")));
    }
    let mut built = build(name)?;
    let mut take = |name| built.remove(name).ok_or_else(|| format!("cargo built no {name}"));
    Ok((take(name)?, take("lota")?))
}

fn folder() -> PathBuf {
    let folder = demo::target().join("suites/programs");
    fs::canonicalize(&folder).unwrap_or(folder)
}

/// Builds the daemon and the tests with matching names. Returns their paths.
fn build(tests: &str) -> Result<BTreeMap<String, PathBuf>, String> {
    setup::to_build()?;
    let arguments = ["build", "--quiet", "--workspace", "--message-format", "json-render-diagnostics"];
    let mut build = cargo(&arguments);
    build.args(["--bin", "lota", "--test", tests]);
    run_build("building lota and its tests", build)
}

/// Builds the daemon or tests of these names for arm64.
pub(crate) fn cross<const N: usize>(names: [&'static str; N]) -> Result<[GuestProgram; N], String> {
    let compiler = CrossCompiler::get()?;
    let mut arguments = vec!["--quiet", "--workspace", "--message-format", "json-render-diagnostics"];
    for name in names {
        arguments.extend([if name == "lota" { "--bin" } else { "--test" }, name]);
    }
    let mut built = run_build("building for arm64", compiler.cargo("build", &arguments, &[]))?;
    let mut programs = Vec::new();
    for name in names {
        let path = built.remove(name).ok_or_else(|| format!("cargo built no {name}"))?;
        programs.push(GuestProgram { name, path });
    }
    programs.try_into().map_err(|_| "cargo built other programs".to_owned())
}

/// Runs a cargo command. Returns the paths of the programs that it has built.
fn run_build(what: &str, mut build: Command) -> Result<BTreeMap<String, PathBuf>, String> {
    let started = Instant::now();
    eprintln!("==> {what}");
    build.stderr(Stdio::inherit());
    let output = build.output().map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("{what}: {build:?} ended with {}", output.status));
    }
    eprintln!("    done in {:.1} s", started.elapsed().as_secs_f64());
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(artifact).collect())
}

/// Returns name and path of a program, from a line of cargo's output.
fn artifact(line: &str) -> Option<(String, PathBuf)> {
    let value = |text: &str, name: &str| {
        let text = text.split_once(&format!("\"{name}\":\""))?.1;
        Some(text.split_once('"')?.0.to_owned())
    };
    let (_, target) = line.split_once("\"target\":{")?;
    Some((value(target, "name")?, value(target, "executable")?.into()))
}

/// Returns a command that runs tests like cargo.
pub(crate) fn run(tests: &Path) -> Command {
    let mut run = tied(tests);
    run.arg("--quiet").current_dir(Path::new(ROOT).join("tests"));
    run
}
