//! Kernels of Debian's archive, unpacked.

use std::{fs, path::Path};

use super::{
    foreign::{Source, lists},
    lock::{beside, once},
    packages::unpack_into,
};
use crate::process::{command, output_of, run};

/// Beginnings of the names of packages that a kernel consists of; newer kernels have three.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

/// Returns the packages of a kernel on which a package depends, found with these options of apt.
pub(crate) fn dependencies(package: &str, options: &[String]) -> Result<Vec<String>, String> {
    let mut depends = command("apt-cache", &["depends", "--no-recommends", "--no-suggests"]);
    let output = output_of(depends.args(options).arg(package))?;
    let names = output.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(names.filter(|name| PARTS.iter().any(|part| name.starts_with(part))).map(str::to_owned).collect())
}

/// Unpacks the kernel that a metapackage depends on into a folder, unless it exists.
pub(crate) fn unpacked_kernel(source: &Source, metapackage: &str, place: &Path) -> Result<(), String> {
    once(place, |lock| {
        let apt = beside(place, "apt");
        let options = lists(source, &apt)?;
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
