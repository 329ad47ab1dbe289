//! The project's Python environment, which also provides programs from PyPI.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{lock::lock, packages::packages};
use crate::process::{ROOT, cargo, command, for_checkout, run, succeeds};

/// Returns the interpreter of the project's environment, with these packages installed.
pub(crate) fn python(requirements: &[&str]) -> Result<PathBuf, String> {
    let home = Path::new(ROOT).join("target/lab-venv");
    let lock = lock(&home.with_extension("lock"))?;
    let pip = home.join("bin/pip");
    let frozen = || {
        let frozen = Command::new(&pip).args(["freeze", "--disable-pip-version-check"]).output().ok()?;
        frozen.status.success().then(|| String::from_utf8_lossy(&frozen.stdout).into_owned())
    };
    let installed = match frozen() {
        Some(installed) => installed,
        None => {
            packages(&["python3", "python3-venv"])?;
            let mut make = command("python3", &["-m", "venv", "--clear"]);
            run("making a Python environment", lock.hold(make.arg(&home))?)?;
            String::new()
        }
    };
    let is_missing = |package: &&&str| !installed.lines().any(|line| line == **package);
    let missing: Vec<&str> = requirements.iter().filter(is_missing).copied().collect();
    if !missing.is_empty() {
        let mut install = Command::new(&pip);
        install.args(["install", "--quiet", "--disable-pip-version-check"]).args(&missing);
        run(&format!("installing {}", missing.join(", ")), lock.hold(&mut install)?)?;
    }
    fs::canonicalize(home.join("bin")).map(|bin| bin.join("python")).map_err(|error| error.to_string())
}

/// A cargo command from another project.
pub(crate) struct CargoCommand {
    name: &'static str,
    /// Path of the program outside of cargo's folder.
    program: Option<PathBuf>,
}

impl CargoCommand {
    /// Returns the user's program, or PyPI's, which installs in seconds, or else builds it.
    pub(super) fn get(name: &'static str, version: &str) -> Result<Self, String> {
        if succeeds(&mut cargo(&[name, "--version"])) {
            return Ok(Self { name, program: None });
        }
        let package = format!("cargo-{name}");
        match python(&[&format!("astral-dev-toolchain-{package}=={version}")]) {
            Ok(python) => Ok(Self { name, program: Some(python.with_file_name(package)) }),
            Err(error) => {
                eprintln!("xtask: {error}");
                install(&package, &["--version", version, "--locked"], |_| ())?;
                Ok(Self { name, program: None })
            }
        }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.program {
            Some(program) => for_checkout(Command::new(program)),
            None => cargo(&[]),
        };
        command.arg(self.name).args(arguments);
        command
    }
}

/// Builds a program with cargo, without optimization and debug information, which takes half the time.
pub(super) fn install(
    package: &str,
    arguments: &[&str],
    prepare: impl FnOnce(&mut Command),
) -> Result<(), String> {
    let mut install = cargo(&["install", package, "--debug"]);
    install.args(arguments).env("CARGO_PROFILE_DEV_DEBUG", "false");
    prepare(&mut install);
    run(&format!("installing {package} (a minute or two, once)"), &mut install)
}
