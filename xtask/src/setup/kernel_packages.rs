//! Kernels of other suites of Debian's archive than this machine's. Their lists are apart from the machine's.

use std::{fs, path::Path, process::Command};

use super::{
    lock::{beside, once},
    packages::unpack_into,
};
use crate::process::{command, output_of, run};

/// Beginnings of the names of packages that a kernel consists of; newer kernels have three.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];
/// Keys that sign Debian's archive.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Returns the packages of a kernel on which a package depends, found with these options of apt.
pub(crate) fn dependencies(package: &str, options: &[String]) -> Result<Vec<String>, String> {
    let mut depends = command("apt-cache", &["depends", "--no-recommends", "--no-suggests"]);
    let output = output_of(depends.args(options).arg(package))?;
    let names = output.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(names.filter(|name| PARTS.iter().any(|part| name.starts_with(part))).map(str::to_owned).collect())
}

/// Unpacks the kernel that a metapackage of a suite depends on into a folder, unless it exists.
pub(crate) fn unpacked_kernel(suite: &str, metapackage: &str, place: &Path) -> Result<(), String> {
    once(place, |lock| {
        let apt = beside(place, "apt");
        let options = lists(suite, &apt)?;
        let mut packages = vec![metapackage.to_owned()];
        let mut next = 0;
        while let Some(package) = packages.get(next) {
            for name in dependencies(package, &options)? {
                if !packages.contains(&name) {
                    packages.push(name);
                }
            }
            next += 1;
        }
        unpack_into(place, lock, |fetched, apt| {
            let mut fetch = command("apt-get", &["download", "-qq"]);
            fetch.args(&options).args(&packages).current_dir(fetched);
            run(&format!("fetching {}", packages.join(", ")), apt.hold(&mut fetch)?)
        })?;
        fs::remove_dir_all(&apt).map_err(|error| format!("{}: {error}", apt.display()))
    })
}

/// Downloads the list of a suite's packages from this machine's mirror. Returns apt's options to use it.
fn lists(suite: &str, folder: &Path) -> Result<Vec<String>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let format = "$(REPO_URI) $(LABEL)";
    let mirrors = output_of(Command::new("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    let mirror = mirrors.lines().find_map(|line| line.strip_suffix(" Debian"));
    let mirror = mirror.ok_or("no mirror of Debian in apt's sources")?;
    for part in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(part)).map_err(failed)?;
    }
    let source = format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
    fs::write(folder.join("sources.list"), source).map_err(failed)?;
    let option = |name: &str, path: &str| format!("-o{name}={}", folder.join(path).display());
    let options = vec![
        option("Dir::Etc::SourceList", "sources.list"),
        "-oDir::Etc::SourceParts=/dev/null".to_owned(),
        option("Dir::State::Lists", "lists"),
        option("Dir::Cache", "cache"),
        "-oAcquire::Languages=none".to_owned(),
        "-oAPT::Sandbox::User=root".to_owned(),
    ];
    run(
        &format!("refreshing the package list of {suite}"),
        command("apt-get", &["update", "-qq"]).args(&options),
    )?;
    Ok(options)
}
