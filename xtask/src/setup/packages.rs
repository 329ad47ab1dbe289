//! Installs or unpacks Debian's packages. One process at a time runs apt.

use std::{fs, path::Path, process::Command, time::Duration};

use super::{
    is_root,
    lock::{Lock, beside, lock, once},
};
use crate::process::{ROOT, command, run, succeeds};

/// File whose age is that of the machine's package lists. It does not exist on a fresh machine.
const REFRESHED: &str = "/run/lota-packages-refreshed";
/// Maximum age of the package lists; older ones are refreshed.
const MAX_LISTS_AGE: Duration = Duration::from_secs(30 * 60);

/// Installs the missing ones of these Debian packages.
pub(crate) fn packages(names: &[&str]) -> Result<(), String> {
    if missing(names).is_empty() {
        return Ok(());
    }
    let list = missing(names).join(" ");
    if !Path::new("/usr/bin/apt-get").exists() || !is_root() {
        return Err(format!("missing packages (names are Debian's; install them as root): {list}"));
    }
    let apt = lock_apt()?;
    let missing = missing(names);
    if missing.is_empty() {
        return Ok(());
    }
    refresh(&apt)?;
    let mut install = command("apt-get", &["install", "-y", "-qq", "--no-install-recommends"]);
    install.args(&missing).env("DEBIAN_FRONTEND", "noninteractive");
    run(&format!("installing {list}"), apt.hold(&mut install)?)
}

fn missing<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let installed = |name: &str| {
        let output = Command::new("dpkg-query").args(["-W", "-f=${Status}", name]).output();
        output.is_ok_and(|output| output.stdout.ends_with(b" installed"))
    };
    names.iter().copied().filter(|name| !installed(name)).collect()
}

fn lock_apt() -> Result<Lock, String> {
    lock(&Path::new(ROOT).join("target/apt.lock"))
}

/// Refreshes the lists of Debian's packages.
pub(crate) fn refresh_packages() -> Result<(), String> {
    refresh(&lock_apt()?)
}

fn refresh(apt: &Lock) -> Result<(), String> {
    let refreshed = fs::metadata(REFRESHED).and_then(|file| file.modified());
    if refreshed.is_ok_and(|time| time.elapsed().is_ok_and(|age| age < MAX_LISTS_AGE)) {
        return Ok(());
    }
    run("refreshing the package lists", apt.hold(&mut command("apt-get", &["update", "-qq"]))?)?;
    fs::write(REFRESHED, "").map_err(|error| format!("cannot write {REFRESHED}: {error}"))
}

/// Unpacks Debian packages and their missing dependencies into a folder, unless it exists.
pub(crate) fn unpacked(names: &[&str], place: &Path) -> Result<(), String> {
    once(place, |lock| unpack(names, place, lock))
}

fn unpack(names: &[&str], place: &Path, lock: &Lock) -> Result<(), String> {
    unpack_into(place, lock, |fetched, apt| {
        fs::create_dir_all(fetched.join("partial"))
            .map_err(|error| format!("{}: {error}", fetched.display()))?;
        refresh(apt)?;
        let archives = format!("Dir::Cache::archives={}", fetched.display());
        let mut fetch =
            command("apt-get", &["install", "-y", "-qq", "--no-install-recommends", "--download-only"]);
        fetch.args(["--reinstall", "-o", &archives, "-o", "APT::Sandbox::User=root"]).args(names);
        run(&format!("fetching {}", names.join(", ")), apt.hold(&mut fetch)?)
    })
}

/// Unpacks the packages that `fetch` gets, under apt's lock, into a folder.
pub(super) fn unpack_into(
    place: &Path,
    lock: &Lock,
    fetch: impl FnOnce(&Path, &Lock) -> Result<(), String>,
) -> Result<(), String> {
    if !is_root() {
        return Err(format!("fetching packages to {} needs root", place.display()));
    }
    let failed = |error: std::io::Error| format!("{}: {error}", place.display());
    let fetched = beside(place, "debs");
    let unfinished = beside(place, "unfinished");
    // First, since apt of an interrupted run may still write to the folder.
    let apt = lock_apt()?;
    // Left by an interrupted run.
    for left in [&fetched, &unfinished] {
        let _ = fs::remove_dir_all(left);
    }
    fs::create_dir_all(&fetched).map_err(failed)?;
    fetch(&fetched, &apt)?;
    drop(apt);
    // The folder is renamed when complete.
    for package in fs::read_dir(&fetched).map_err(failed)?.flatten() {
        let package = package.path();
        let is_package = package.extension().is_some_and(|extension| extension == "deb");
        let mut extract = Command::new("dpkg-deb");
        extract.arg("-x").arg(&package).arg(&unfinished);
        if is_package && !succeeds(lock.hold(&mut extract)?) {
            return Err(format!("cannot unpack {}", package.display()));
        }
    }
    fs::remove_dir_all(&fetched).map_err(failed)?;
    fs::rename(&unfinished, place).map_err(failed)
}
