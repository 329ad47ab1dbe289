//! Runs commands, and prints what runs and how long it took.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read},
    process::{Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// Duration for which output is read after the command has ended: processes that it left behind may hold the pipe.
const LATE_OUTPUT: Duration = Duration::from_secs(5);
/// Interval between checks whether a silent command has ended.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Root folder of the checkout.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Returns a command that runs in the checkout.
pub(crate) fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(ROOT);
    command
}

/// Returns a cargo command with the user's toolchain.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = for_checkout(Command::new(cargo));
    command.args(arguments);
    command
}

/// Makes a cargo command run in the checkout.
pub(crate) fn for_checkout(mut command: Command) -> Command {
    command.current_dir(ROOT);
    // Set for this package by the cargo that runs it.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARGO_PKG_")) {
        command.env_remove(name);
    }
    command
}

/// Returns a command that gets SIGTERM when the thread that starts it ends, so that no suite outlives its xtask.
pub(crate) fn tied(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

/// Runs a command to its end, with our standard output.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<(), String> {
    let started = Instant::now();
    eprintln!("==> {what}");
    let status = command.status().map_err(|error| format!("{what}: cannot run {command:?}: {error}"))?;
    if !status.success() {
        return Err(format!("{what}: {command:?} failed with {status}"));
    }
    eprintln!("    done in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Runs a command without output. Returns whether it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Runs a command without output. Returns its standard output without the last newline.
pub(crate) fn output_of(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?} failed with {}: {}", output.status, errors.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Runs a command, and prints each line of its standard output after passing it to `look`. Returns whether it
/// succeeded.
pub(crate) fn watch(what: &str, command: &mut Command, mut look: impl FnMut(&str)) -> Result<bool, String> {
    let started = Instant::now();
    eprintln!("==> {what}");
    let spawned = command.stdout(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| format!("{what}: cannot run {command:?}: {error}"))?;
    let lines = lines(child.stdout.take());
    let mut ended = None;
    loop {
        match lines.recv_timeout(CHECK_INTERVAL) {
            Ok(line) => {
                look(&line);
                println!("{line}");
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if ended.is_none() && child.try_wait().map_err(|error| format!("{what}: {error}"))?.is_some() {
            ended = Some(Instant::now());
        }
        if ended.is_some_and(|ended| ended.elapsed() > LATE_OUTPUT) {
            eprintln!("    a process that {what} left behind still holds its output");
            break;
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

/// Reads lines in a thread of its own. Bytes that are not UTF-8 are replaced.
fn lines(output: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    if let Some(output) = output {
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = Vec::new();
            while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
    }
    lines
}
