//! Debian's packages of other suites or another architecture than this machine's. Their lists are apart from the machine's.

use std::{fs, path::Path, process::Command};

use super::{
    lock::{beside, once},
    packages::unpack_into,
};
use crate::{
    architecture::Architecture,
    process::{command, output_of, run},
};

/// Keys that sign Debian's archive.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Packages to choose from.
pub(crate) struct Source {
    /// Suite of Debian's archive; `None`: that of this machine, with its updates.
    pub(crate) suite: Option<&'static str>,
    pub(crate) architecture: Architecture,
}

/// Unpacks a package of this machine's suite into a folder, unless it exists.
pub(crate) fn unpacked_alone(name: &str, architecture: Architecture, place: &Path) -> Result<(), String> {
    unpack(&["download", "-qq"], &[name], architecture, place)
}

/// Unpacks packages of this machine's suite, and all that they depend on, into a folder, unless it exists.
pub(crate) fn unpacked_with_dependencies(
    names: &[&str],
    architecture: Architecture,
    place: &Path,
) -> Result<(), String> {
    let install = ["install", "-y", "-qq", "--no-install-recommends", "--download-only"];
    unpack(&install, names, architecture, place)
}

fn unpack(
    command_of_apt: &[&str],
    names: &[&str],
    architecture: Architecture,
    place: &Path,
) -> Result<(), String> {
    once(place, |lock| {
        let apt_folder = beside(place, "apt");
        let options = lists(&Source { suite: None, architecture }, &apt_folder)?;
        unpack_into(place, lock, |fetched, apt| {
            let partial = fetched.join("partial");
            fs::create_dir_all(&partial).map_err(|error| format!("{}: {error}", partial.display()))?;
            let mut fetch = command("apt-get", command_of_apt);
            fetch.args(&options).arg(format!("-oDir::Cache::archives={}", fetched.display()));
            fetch.args(names).current_dir(fetched);
            let what = format!("fetching {} for {}", names.join(", "), architecture.debian());
            run(&what, apt.hold(&mut fetch)?)
        })?;
        fs::remove_dir_all(&apt_folder).map_err(|error| format!("{}: {error}", apt_folder.display()))
    })
}

/// Downloads lists of packages from this machine's mirror into a folder. Returns apt's options to use them, as if no package
/// were installed.
pub(super) fn lists(source: &Source, folder: &Path) -> Result<Vec<String>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    for part in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(part)).map_err(failed)?;
    }
    fs::write(folder.join("sources.list"), sources(source.suite)?).map_err(failed)?;
    fs::write(folder.join("status"), "").map_err(failed)?;
    let option = |name: &str, path: &str| format!("-o{name}={}", folder.join(path).display());
    let architecture = source.architecture.debian();
    let options = vec![
        option("Dir::Etc::SourceList", "sources.list"),
        "-oDir::Etc::SourceParts=/dev/null".to_owned(),
        option("Dir::State::Lists", "lists"),
        option("Dir::State::status", "status"),
        option("Dir::Cache", "cache"),
        format!("-oAPT::Architecture={architecture}"),
        format!("-oAPT::Architectures={architecture}"),
        "-oAcquire::Languages=none".to_owned(),
        "-oAPT::Sandbox::User=root".to_owned(),
    ];
    let suite = source.suite.unwrap_or("this machine's Debian");
    run(
        &format!("refreshing the package list of {suite} for {architecture}"),
        command("apt-get", &["update", "-qq"]).args(&options),
    )?;
    Ok(options)
}

/// Returns the lines of a `sources.list`, with this machine's mirror.
fn sources(suite: Option<&str>) -> Result<String, String> {
    let format = "$(REPO_URI) $(RELEASE) $(LABEL)";
    let targets = ["indextargets", "--format", format, "Created-By: Packages"];
    let targets = output_of(Command::new("apt-get").args(targets))?;
    let line = |mirror: &str, suite: &str| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
    let mut lines: Vec<String> = Vec::new();
    for target in targets.lines() {
        let [mirror, own, label] = *target.split(' ').collect::<Vec<_>>() else { continue };
        match (label, suite) {
            ("Debian", Some(suite)) => lines.push(line(mirror, suite)),
            ("Debian" | "Debian-Security", None) => lines.push(line(mirror, own)),
            _ => {}
        }
    }
    lines.sort();
    lines.dedup();
    if suite.is_some() {
        lines.truncate(1);
    }
    if lines.is_empty() { Err("no mirror of Debian in apt's sources".into()) } else { Ok(lines.concat()) }
}
