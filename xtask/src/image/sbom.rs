//! The list of the image's components, in CycloneDX: every crate that is linked into the daemon or the eBPF programs,
//! and code from other sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::Path,
};

use super::{VERSION, toolchain::Toolchain};
use crate::{
    architecture::Architecture,
    process::{ROOT, cargo, command, output_of},
    setup::ImageTools,
};

/// Linked packages: the daemon, and the eBPF programs that it contains.
const LINKED: [&str; 2] = ["lota-daemon", "lota-ebpf"];

/// Name and version of a crate.
pub(super) type Id = (String, String);

/// A linked crate.
#[derive(Default)]
pub(super) struct Crate {
    pub(super) licence: String,
    /// Checksum of its archive on crates.io; the project's own crates have none.
    pub(super) checksum: Option<String>,
    needs: BTreeSet<Id>,
}

/// Returns the list for the image whose files are in `root`.
pub(super) fn make(
    tools: &ImageTools,
    toolchain: &Toolchain,
    root: &Path,
    date: &str,
) -> Result<String, String> {
    let crates = crates(toolchain.architecture)?;
    let program = output_of(command("sha256sum", &["--binary"]).arg(root.join("usr/bin/lota")))?;
    let program = program.split_whitespace().next().unwrap_or_default();
    let mut components: Vec<String> = crates.iter().map(|(id, found)| component(id, found)).collect();
    components.extend(foreign(tools, toolchain)?);
    let dependencies = crates.iter().map(|(id, found)| {
        let needs: Vec<String> = found.needs.iter().map(reference).collect();
        format!(r#"    {{"ref": {}, "dependsOn": [{}]}}"#, reference(id), needs.join(", "))
    });
    let of_image = crates.keys().filter(|(name, _)| LINKED.iter().any(|linked| name == linked));
    let of_image: Vec<String> = of_image.map(reference).collect();
    let mut lines = vec![format!(r#"    {{"ref": "image", "dependsOn": [{}]}}"#, of_image.join(", "))];
    lines.extend(dependencies);
    Ok(format!(
        r#"{{
  "bomFormat": "CycloneDX",
  "specVersion": "1.5",
  "serialNumber": {serial},
  "version": 1,
  "metadata": {{
    "timestamp": {date},
    "component": {{
      "type": "container", "bom-ref": "image", "name": "lota", "version": {version},
      "licenses": [{{"expression": "Apache-2.0"}}],
      "components": [
        {{"type": "file", "name": "/usr/bin/lota", "hashes": [{{"alg": "SHA-256", "content": {program}}}]}}
      ]
    }}
  }},
  "components": [
{components}
  ],
  "dependencies": [
{dependencies}
  ]
}}
"#,
        serial = quote(&serial(program)),
        date = quote(date),
        version = quote(VERSION),
        program = quote(program),
        components = components.join(",\n"),
        dependencies = lines.join(",\n"),
    ))
}

/// Returns the list's serial number, which tools for attestations require: a UUID of version 8 (RFC 9562) from the
/// program's checksum in hexadecimal, so that the list of a program is always the same.
fn serial(checksum: &str) -> String {
    let part = |range: Range<usize>| checksum.get(range).unwrap_or_default();
    format!("urn:uuid:{}-{}-8{}-a{}-{}", part(0..8), part(8..12), part(13..16), part(17..20), part(20..32))
}

/// Returns every linked crate, from cargo's dependency tree.
pub(super) fn crates(architecture: Architecture) -> Result<BTreeMap<Id, Crate>, String> {
    let mut crates: BTreeMap<Id, Crate> = BTreeMap::new();
    for (package, target) in LINKED.into_iter().zip([architecture.rust_target(), "bpfel-unknown-none"]) {
        // Procedural macros run at build time. Build scripts and their dependencies are not normal dependencies.
        let edges = ["--edges", "normal,no-proc-macro", "--prefix", "depth", "--format", "{p}|{l}"];
        let mut tree = cargo(&["tree", "--locked", "--package", package, "--target", target]);
        let mut above: Vec<Id> = Vec::new();
        for line in output_of(tree.args(edges))?.lines() {
            let wrong = || format!("unexpected line of cargo tree: `{line}`");
            let at = line.find(|character: char| !character.is_ascii_digit()).ok_or_else(wrong)?;
            let depth: usize = line[..at].parse().map_err(|_| wrong())?;
            let (crate_, licence) = line[at..].split_once('|').ok_or_else(wrong)?;
            let mut words = crate_.split(' ');
            let name = words.next().ok_or_else(wrong)?;
            let version = words.next().and_then(|word| word.strip_prefix('v')).ok_or_else(wrong)?;
            let id = (name.to_owned(), version.to_owned());
            above.truncate(depth);
            if let Some(parent) = above.last().and_then(|parent| crates.get_mut(parent)) {
                parent.needs.insert(id.clone());
            }
            // A repeated crate is marked, and its dependencies are left out.
            let licence = licence.trim_end_matches(" (*)").replace('/', " OR ");
            crates.entry(id.clone()).or_default().licence = licence;
            above.push(id);
        }
    }
    let checksums = checksums()?;
    for (id, found) in &mut crates {
        found.checksum = checksums.get(id).cloned();
    }
    Ok(crates)
}

/// Returns the checksums of the crates.io crates in `Cargo.lock`.
pub(super) fn checksums() -> Result<BTreeMap<Id, String>, String> {
    let lock = fs::read_to_string(Path::new(ROOT).join("Cargo.lock")).map_err(|error| error.to_string())?;
    let packages = lock.split("[[package]]").skip(1).filter_map(|package| {
        let value = |key: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
            line.map(|value| value.trim_matches('"').to_owned())
        };
        Some(((value("name")?, value("version")?), value("checksum")?))
    });
    Ok(packages.collect())
}

fn component(id: &Id, found: &Crate) -> String {
    // A crate that is not on crates.io has no URL there, since the name could belong to another project.
    let origin = found.checksum.as_ref().map_or_else(String::new, |checksum| {
        format!(
            r#""purl": {}, "hashes": [{{"alg": "SHA-256", "content": {}}}], "#,
            reference(id),
            quote(checksum)
        )
    });
    line("library", &reference(id), (&id.0, &id.1, &found.licence), &origin)
}

/// Returns the reference of a crate in the list.
fn reference((name, version): &Id) -> String {
    quote(&purl("cargo", name, version))
}

fn purl(kind: &str, name: &str, version: &str) -> String {
    format!("pkg:{kind}/{name}@{}", version.replace('+', "%2B"))
}

/// Returns the components that are not crates: Rust's library, glibc and GCC's unwinder, which are linked;
/// certificates.
fn foreign(tools: &ImageTools, toolchain: &Toolchain) -> Result<Vec<String>, String> {
    let Toolchain { rust, libc, libgcc, .. } = toolchain;
    let log = output_of(command("zcat", &[]).arg(&tools.certificates_log))?;
    let certificates = log.split(['(', ')']).nth(1).unwrap_or_default();
    let found = [
        ("library", "generic", "rust-std", rust.to_owned(), "MIT OR Apache-2.0"),
        ("library", "deb/debian", libc, installed(libc)?, "LGPL-2.1-or-later"),
        ("library", "deb/debian", libgcc, installed(libgcc)?, "GPL-3.0-or-later WITH GCC-exception-3.1"),
        ("data", "deb/debian", "ca-certificates", certificates.to_owned(), "MPL-2.0"),
    ];
    let line = |(type_, kind, name, version, licence): &(&str, &str, &str, String, &str)| {
        let purl = quote(&purl(kind, name, version));
        line(type_, &purl, (name, version, licence), &format!("\"purl\": {purl}, "))
    };
    Ok(found.iter().map(line).collect())
}

/// Returns one component as JSON. `origin` is JSON already.
fn line(type_: &str, reference: &str, (name, version, licence): (&str, &str, &str), origin: &str) -> String {
    let [type_, name, version, licence] = [type_, name, version, licence].map(quote);
    let name = format!(r#""name": {name}, "version": {version}, "#);
    let licence = format!(r#""licenses": [{{"expression": {licence}}}]"#);
    format!(r#"    {{"type": {type_}, "bom-ref": {reference}, {name}{origin}{licence}}}"#)
}

/// Returns the version of a Debian package. Packages of other systems are unknown.
fn installed(package: &str) -> Result<String, String> {
    if !Path::new("/usr/bin/dpkg-query").exists() {
        return Ok("unknown".to_owned());
    }
    output_of(&mut command("dpkg-query", &["-W", "-f", "${Version}", package]))
}

/// Quotes a JSON string.
fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if u32::from(control) < 32 => quoted.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => quoted.push(other),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::serial;

    #[test]
    fn the_serial_number_is_a_uuid_of_the_program() {
        let checksum = "9a73a5088750b4c95158ab26629c854c3d6fc4b173cb7bc8079ad252d8ed7bfa";
        assert_eq!(serial(checksum), "urn:uuid:9a73a508-8750-84c9-a158-ab26629c854c");
    }
}
