//! Collects the licenses of all linked code; most of them must be distributed with the program.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};

use super::{sbom, toolchain::Toolchain};
use crate::setup::ImageTools;

/// Prefixes of license file names.
const BEGINNINGS: [&str; 6] = ["COPYING", "COPYRIGHT", "LICENCE", "LICENSE", "NOTICE", "UNLICENSE"];

/// Returns every license text once, with the code that it applies to.
pub(super) fn gather(tools: &ImageTools, toolchain: &Toolchain) -> Result<String, String> {
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut without = String::new();
    for ((name, version), found) in sbom::crates(toolchain.architecture)? {
        if found.checksum.is_none() {
            continue;
        }
        let crate_ = format!("{name} {version}");
        let files = files(&sources(&format!("{name}-{version}"))?)?;
        if files.is_empty() {
            without += &format!("{crate_}: {} (its package contains no license text)\n", found.licence);
        }
        for file in files {
            texts.entry(read(&file)?).or_default().insert(crate_.clone());
        }
    }
    let of_package = |package: &str| PathBuf::from(format!("/usr/share/doc/{package}/copyright"));
    let foreign = [
        ("Rust's library", toolchain.rust_licence.clone()),
        ("glibc", of_package(toolchain.libc)),
        ("GCC's unwinder", of_package(&toolchain.libgcc)),
        ("ca-certificates", tools.certificates_log.with_file_name("copyright")),
    ];
    for (name, file) in foreign.iter().filter(|(_, file)| file.exists()) {
        texts.entry(read(file)?).or_default().insert((*name).to_owned());
    }
    let rule = "=".repeat(80);
    let mut all = format!("Licenses of the code in lota and its image.\n\n{without}");
    for (text, whose) in texts {
        let whose: Vec<String> = whose.into_iter().collect();
        all += &format!("\n{rule}\n{}\n{rule}\n\n{}\n", whose.join(", "), text.trim_end());
    }
    Ok(all)
}

/// Returns the folder that cargo has unpacked a crate in.
fn sources(package: &str) -> Result<PathBuf, String> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let registries = fs::read_dir(home.ok_or("no HOME")?.join("registry/src"));
    let registries = registries.map_err(|error| format!("cannot read cargo's sources: {error}"))?.flatten();
    let mut places = registries.map(|registry| registry.path().join(package));
    places.find(|place| place.is_dir()).ok_or_else(|| format!("cannot find the sources of {package}"))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().to_uppercase();
            BEGINNINGS.iter().any(|beginning| name.starts_with(beginning)) && entry.path().is_file()
        })
        .map(|entry| entry.path())
        .collect();
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
}
