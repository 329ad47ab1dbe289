//! Prepares for suites while earlier ones run: most of the time is spent waiting for the network.

use std::{
    env,
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use crate::process::{ROOT, succeeds, tied};

/// Hidden command that prepares.
pub(crate) const COMMAND: &str = "prepare";

/// Starts to prepare for these suites in another process, whose output goes to `target/suites/prepare.log`. After a
/// failure, the suites themselves prepare, and report the error.
pub(crate) fn begin<'a>(suites: impl Iterator<Item = &'a str>) {
    let folder = Path::new(ROOT).join("target/suites");
    let begun = fs::create_dir_all(&folder).and_then(|()| {
        let log = File::create(folder.join("prepare.log"))?;
        let mut prepare = tied(env::current_exe()?);
        prepare.arg(COMMAND).args(suites).stdin(Stdio::null());
        prepare.stdout(log.try_clone()?).stderr(log).spawn()
    });
    if let Err(error) = begun {
        eprintln!("xtask: cannot prepare ahead of the suites: {error}");
    }
}

/// Lowers this process' CPU priority.
pub(crate) fn give_way() {
    succeeds(Command::new("renice").args(["-n", "19", "-p", &std::process::id().to_string()]));
}
