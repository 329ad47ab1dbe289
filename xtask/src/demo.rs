//! The tour and the lab: both run the program `lota-lab` of the tests' package with the built daemon.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use crate::{
    process::{ROOT, cargo, run},
    setup,
};

/// Runs `cargo xtask demo`.
pub(crate) fn demo(arguments: &[&str]) -> Result<(), String> {
    let mut tour = lab_command("tour", arguments)?;
    // The tour replaces this process, so that it handles Ctrl-C.
    Err(format!("cannot run the tour: {}", tour.exec()))
}

/// Runs `cargo xtask lab …`.
pub(crate) fn lab(arguments: &[&str]) -> Result<(), String> {
    let mut lab = match arguments {
        ["up", rest @ ..] => lab_command("up", rest)?,
        ["down"] | ["exec", _, _, ..] => {
            setup::to_build()?;
            build_lab()?;
            let mut lab = Command::new(program("debug/lota-lab"));
            lab.args(arguments);
            lab
        }
        _ => return Err("use `lab up`, `lab down`, or `lab exec n1p1 COMMAND…`".into()),
    };
    Err(format!("cannot run the lab: {}", lab.exec()))
}

/// Builds the daemon, and returns its path. Without optimization by default: compiling takes most of the time of a
/// first demo, and the kernel moves the bytes of objects either way.
pub(crate) fn build_lota(release: bool) -> Result<String, String> {
    let build = ["build", "--quiet", "--package", "lota-daemon", "--release"];
    let build = if release { &build[..] } else { &build[..4] };
    run("building lota", &mut cargo(build))?;
    Ok(program(if release { "release/lota" } else { "debug/lota" }))
}

/// Returns a `lota-lab` command with the daemon and the client that it needs. `--release` applies to the build; other
/// arguments are passed on.
fn lab_command(verb: &str, arguments: &[&str]) -> Result<Command, String> {
    setup::to_build()?;
    let is_release = arguments.contains(&"--release");
    // Building needs the CPUs, the rest the network, so both run at the same time.
    let (built, python) = thread::scope(|scope| {
        let build = scope.spawn(|| build_for_lab(is_release));
        let python = setup::to_run().and_then(|()| setup::client());
        (build.join().unwrap_or_else(|_| Err("a thread panicked".into())), python)
    });
    let (lota, python) = (built?, python?);
    let mut command = Command::new(program("debug/lota-lab"));
    command.arg(verb).arg("--lota").arg(lota).arg("--python").arg(python);
    command.args(arguments.iter().filter(|argument| **argument != "--release"));
    Ok(command)
}

/// Builds the daemon and the lab. Returns the path of the daemon.
fn build_for_lab(is_release: bool) -> Result<String, String> {
    if is_release {
        let lota = build_lota(true)?;
        build_lab()?;
        return Ok(lota);
    }
    // In one build, and so with one set of features: separate builds would compile most dependencies twice.
    let build = ["build", "--quiet", "--package", "lota-daemon", "--package", "lota-tests"];
    run("building lota and the lab", &mut cargo(&build))?;
    Ok(program("debug/lota"))
}

fn build_lab() -> Result<(), String> {
    run("building the lab", &mut cargo(&["build", "--quiet", "--package", "lota-tests"]))
}

/// Returns the path of a built program.
pub(crate) fn program(name: &str) -> String {
    let path = target().join(name);
    std::fs::canonicalize(&path).unwrap_or(path).display().to_string()
}

/// Returns the target folder.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new(ROOT).join("target"), PathBuf::from)
}
