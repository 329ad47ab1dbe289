//! Locks between processes, for suites that run side by side while [`super::ahead`] installs what they need.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A locked file. The lock ends when this value is dropped and all commands that hold it have ended.
pub(crate) struct Lock(File);

impl Lock {
    /// Makes a command and the processes that it starts hold the lock, too: a command that outlives an interrupted
    /// xtask still writes. The command inherits the file as its standard input, which is empty.
    pub(crate) fn hold<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command, String> {
        let file = self.0.try_clone().map_err(|error| format!("cannot pass on a lock: {error}"))?;
        Ok(command.stdin(Stdio::from(file)))
    }
}

/// Locks a file until the returned value is dropped.
pub(crate) fn lock(path: &Path) -> Result<Lock, String> {
    let failed = |error: std::io::Error| format!("cannot lock {}: {error}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
    let file = file.map_err(failed)?;
    file.lock().map_err(failed)?;
    Ok(Lock(file))
}

/// Runs `make` unless `place` exists. If another process is making it, waits for that one.
pub(crate) fn once(place: &Path, make: impl FnOnce(&Lock) -> Result<(), String>) -> Result<(), String> {
    if place.exists() {
        return Ok(());
    }
    let lock = lock(&beside(place, "lock"))?;
    if place.exists() { Ok(()) } else { make(&lock) }
}

/// Returns a path with a suffix.
pub(crate) fn beside(path: &Path, more: &str) -> PathBuf {
    PathBuf::from(format!("{}.{more}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        fs::TryLockError,
        io::{BufRead as _, BufReader},
    };

    use super::*;

    #[test]
    fn a_command_holds_the_lock_after_its_xtask_has_ended() {
        let path = env::temp_dir().join(format!("lota-lock-{}", std::process::id()));
        let is_locked = || {
            let tried = File::open(&path).unwrap().try_lock();
            assert!(!matches!(tried, Err(TryLockError::Error(_))), "{tried:?}");
            tried.is_err()
        };
        let held = lock(&path).unwrap();
        // The shell's child inherits the lock, as apt's dpkg does.
        let mut command = Command::new("sh");
        // A shell's background commands have another standard input.
        command
            .args(["-c", "exec 3<&0; sleep 60 & echo $!; wait"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = held.hold(&mut command).unwrap().spawn().unwrap();
        let mut pid = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        drop((held, command));
        assert!(is_locked(), "while the command runs");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_locked(), "while its child runs");
        assert!(Command::new("kill").arg(pid.trim()).status().unwrap().success());
        // Waits for the end of the child.
        drop(lock(&path).unwrap());
        assert!(!is_locked());
        fs::remove_file(&path).unwrap();
    }
}
