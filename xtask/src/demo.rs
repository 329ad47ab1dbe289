//! The tour and the lab: both are the program `lota-lab` of the tests' package, around the built daemon.

use std::{os::unix::process::CommandExt as _, path::Path, process::Command};

use crate::{
    setup,
    tell::{ROOT, cargo, run},
};

/// `cargo xtask demo`.
pub(crate) fn demo(arguments: &[&str]) -> Result<(), String> {
    let mut tour = lab_command("tour")?;
    // Replaced by it, so that Ctrl-C is the tour's to handle.
    Err(format!("cannot run the tour: {}", tour.args(arguments).exec()))
}

/// `cargo xtask lab …`.
pub(crate) fn lab(arguments: &[&str]) -> Result<(), String> {
    let mut lab = match arguments {
        ["up", rest @ ..] => {
            let mut lab = lab_command("up")?;
            lab.args(rest);
            lab
        }
        ["down"] | ["exec", _, _, ..] => {
            setup::to_build()?;
            build_lab()?;
            let mut lab = Command::new(lota_lab());
            lab.args(arguments);
            lab
        }
        _ => return Err("say `lab up`, `lab down`, or `lab exec n1p1 COMMAND…`".into()),
    };
    Err(format!("cannot run the lab: {}", lab.exec()))
}

/// The daemon as users run it: optimized. Where it is.
pub(crate) fn build_lota() -> Result<String, String> {
    run("building lota", &mut cargo(&["build", "--quiet", "--release", "--package", "lota-daemon"]))?;
    Ok(path("release/lota"))
}

fn lab_command(verb: &str) -> Result<Command, String> {
    setup::to_build()?;
    setup::to_run()?;
    let python = setup::client()?;
    let lota = build_lota()?;
    build_lab()?;
    let mut command = Command::new(lota_lab());
    command.arg(verb).arg("--lota").arg(lota).arg("--python").arg(python);
    Ok(command)
}

fn build_lab() -> Result<(), String> {
    run("building the lab", &mut cargo(&["build", "--quiet", "--package", "lota-tests"]))
}

fn lota_lab() -> String {
    path("debug/lota-lab")
}

fn path(program: &str) -> String {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| format!("{ROOT}/target"));
    let path = Path::new(&target).join(program);
    std::fs::canonicalize(&path).unwrap_or(path).display().to_string()
}
