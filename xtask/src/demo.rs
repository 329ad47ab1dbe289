//! The tour and the lab: both are the program `lota-lab` of the tests' package, around the built daemon.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    setup,
    tell::{ROOT, cargo, run},
};

/// `cargo xtask demo`.
pub(crate) fn demo(arguments: &[&str]) -> Result<(), String> {
    let mut tour = lab_command("tour", arguments)?;
    // Replaced by it, so that Ctrl-C is the tour's to handle.
    Err(format!("cannot run the tour: {}", tour.exec()))
}

/// `cargo xtask lab …`.
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
        _ => return Err("say `lab up`, `lab down`, or `lab exec n1p1 COMMAND…`".into()),
    };
    Err(format!("cannot run the lab: {}", lab.exec()))
}

/// Builds the daemon; where it is. Without optimization unless asked for: that is most of the time to a first
/// demo, and an object's bytes go by the kernel either way.
pub(crate) fn build_lota(release: bool) -> Result<String, String> {
    let build = ["build", "--quiet", "--package", "lota-daemon", "--release"];
    let build = if release { &build[..] } else { &build[..4] };
    run("building lota", &mut cargo(build))?;
    Ok(program(if release { "release/lota" } else { "debug/lota" }))
}

/// A `lota-lab` command, with the daemon and the client it needs. `--release` is for us, the rest for it.
fn lab_command(verb: &str, arguments: &[&str]) -> Result<Command, String> {
    setup::to_build()?;
    setup::to_run()?;
    let python = setup::client()?;
    let lota = build_lota(arguments.contains(&"--release"))?;
    build_lab()?;
    let mut command = Command::new(program("debug/lota-lab"));
    command.arg(verb).arg("--lota").arg(lota).arg("--python").arg(python);
    command.args(arguments.iter().filter(|argument| **argument != "--release"));
    Ok(command)
}

fn build_lab() -> Result<(), String> {
    run("building the lab", &mut cargo(&["build", "--quiet", "--package", "lota-tests"]))
}

/// Where what was built is.
pub(crate) fn program(name: &str) -> String {
    let path = target().join(name);
    std::fs::canonicalize(&path).unwrap_or(path).display().to_string()
}

/// Where everything is built.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new(ROOT).join("target"), PathBuf::from)
}
