//! Running commands, and telling what runs and how long it took.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Instant,
};

/// The checkout.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A command that runs in the checkout.
pub(crate) fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(ROOT);
    command
}

/// Cargo, as the user's toolchain has it.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = command(&cargo, arguments);
    // Set by the cargo that runs us, for our own package.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO_PKG_")) {
        command.env_remove(name);
    }
    command
}

/// Runs a command to its end, its output going where ours goes.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<(), String> {
    let started = Instant::now();
    eprintln!("==> {what}");
    let status = command.status().map_err(|error| format!("{what}: cannot run {command:?}: {error}"))?;
    if !status.success() {
        return Err(format!("{what}: {command:?} ended with {status}"));
    }
    eprintln!("    done in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Runs a command quietly; did it succeed?
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Runs a command quietly; what it said, without the end of the last line.
pub(crate) fn ask(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?} ended with {}: {}", output.status, errors.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Runs a command and shows each line of its standard output as it comes, after `look` has seen it; did it
/// succeed?
pub(crate) fn watch(what: &str, command: &mut Command, mut look: impl FnMut(&str)) -> Result<bool, String> {
    let started = Instant::now();
    eprintln!("==> {what}");
    let spawned = command.stdout(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| format!("{what}: cannot run {command:?}: {error}"))?;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            look(&line);
            println!("{line}");
        }
    }
    let status = child.wait().map_err(|error| format!("{what}: {error}"))?;
    eprintln!(
        "    {} after {:.1} s",
        if status.success() { "done" } else { "FAILED" },
        started.elapsed().as_secs_f64()
    );
    Ok(status.success())
}
