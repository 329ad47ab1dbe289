//! The suite `image`: builds the image, inspects it, and starts it like a hardened pod.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    Image, build, buildah, folder, program, remove, sbom,
    started::{Container, ready},
};
use crate::{
    architecture::Architecture,
    process::{command, output_of, run},
    setup::{self, ImageTools},
    suites::Counts,
};

/// The architecture of the machine that tests.
pub(super) const ARCHITECTURE: Architecture = Architecture::X86_64;
const TAG: &str = "localhost/lota:test";
/// All files in the image.
const FILES: [&str; 5] = [
    "etc/ssl/certs/ca-certificates.crt",
    "usr/bin/lota",
    "usr/share/doc/lota/LICENSE",
    "usr/share/doc/lota/third-party.txt",
    "usr/share/lota/sbom.cdx.json",
];
/// Maximum size of all files except the program, in bytes.
const MAX_OTHER_BYTES: u64 = 2 << 20;

/// Runs the suite.
pub(crate) fn suite(counts: &mut Counts) -> Result<(), String> {
    setup::to_run()?;
    let tools = setup::image_tools()?;
    let program = program(ARCHITECTURE, false)?;
    let first = build(&tools, ARCHITECTURE, &program, TAG)?;
    let first_sum = checksum(&first)?;
    let image = build(&tools, ARCHITECTURE, &program, TAG)?;
    counts.check("two images of one program are the same", same(&first, &first_sum, &image));
    let loaded = Loaded::from(&tools, &image)?;
    counts.check("it starts `lota run` as root", loaded.settings());
    counts.check("no file is writable or setuid", only_what_should_be(&loaded.root));
    counts.check("the list of components is complete", list_is_complete(&loaded.root));

    let mut container = Container::new(&tools, &loaded.root)?;
    counts.check("it prints its version", container.version());
    counts.check(
        "it becomes ready, with the hardened pod's privileges",
        container.start().and_then(|()| ready()),
    );
    counts.check("it has four capabilities", container.privileges());
    counts.check("the datapath is attached", container.attached());
    // Both servers were found: the answers are the admin port's, and LOTA's without a gateway.
    let (admin, no_gateway) = ("available: /, /status.json", "The gateway cannot be reached");
    counts.check("names are found in /etc/hosts", container.finds("gateway.test:7481", admin));
    counts.check("names are found by a name server", container.finds("cwlota.com", no_gateway));
    counts.check("other names are not found", container.finds("cwlota.org", "dns error"));
    counts.check("it ends on SIGTERM", container.stop());
    Ok(())
}

fn checksum(image: &Image) -> Result<String, String> {
    output_of(command("sha256sum", &[]).arg(&image.archive))
}

fn same(first: &Image, first_sum: &str, second: &Image) -> Result<(), String> {
    let second_sum = checksum(second)?;
    if first.digest != second.digest || first_sum != second_sum {
        return Err(format!("{} {first_sum}, then {} {second_sum}", first.digest, second.digest));
    }
    Ok(())
}

/// The image as users get it: loaded from its archive.
struct Loaded<'a> {
    tools: &'a ImageTools,
    root: PathBuf,
}

impl<'a> Loaded<'a> {
    fn from(tools: &'a ImageTools, image: &Image) -> Result<Self, String> {
        let folder = folder(ARCHITECTURE);
        let archive = format!("oci-archive:{}", image.archive.display());
        let mut from = buildah(tools, &folder)?;
        from.args(["from", "--quiet", "--name", "started", "--signature-policy"]).arg(&tools.policy);
        run("loading the archive", from.arg(archive).stdout(std::process::Stdio::null()))?;
        let mut mount = buildah(tools, &folder)?;
        let root = PathBuf::from(output_of(mount.args(["mount", "started"]))?);
        Ok(Self { tools, root })
    }

    fn settings(&self) -> Result<(), String> {
        let settings = "{{.OCIv1.Config.User}} {{.OCIv1.Config.Entrypoint}} {{.OCIv1.Config.Cmd}}";
        let mut inspect = buildah(self.tools, &folder(ARCHITECTURE))?;
        let found = output_of(inspect.args(["inspect", "--format", settings, "started"]))?;
        if found == "0:0 [/usr/bin/lota] [run]" { Ok(()) } else { Err(found) }
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        let _ = remove(&folder(ARCHITECTURE).join("store"));
    }
}

fn only_what_should_be(root: &Path) -> Result<(), String> {
    let (mut files, mut other_bytes) = (Vec::new(), 0);
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|error| error.to_string())?.flatten() {
            let (path, found) = (entry.path(), entry.metadata().map_err(|error| error.to_string())?);
            let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            // setuid, setgid, sticky and write permission: only root may write, and only to folders.
            let forbidden = if found.is_dir() { 0o7022 } else { 0o7222 };
            if found.mode() & forbidden != 0 || (found.uid(), found.gid()) != (0, 0) {
                return Err(format!("{name} is {:o}, of {}:{}", found.mode(), found.uid(), found.gid()));
            }
            if found.is_dir() {
                folders.push(path);
                continue;
            }
            other_bytes += if name == "usr/bin/lota" { 0 } else { found.len() };
            files.push(name);
        }
    }
    files.sort();
    if files != FILES {
        return Err(format!("the image contains {files:?}"));
    }
    if other_bytes > MAX_OTHER_BYTES {
        Err(format!("the files other than the program have {other_bytes} bytes"))
    } else {
        Ok(())
    }
}

/// Verifies the list against `Cargo.lock`, and against the crates whose source paths are in the program's panic
/// messages.
fn list_is_complete(root: &Path) -> Result<(), String> {
    let read = |name: &str| fs::read(root.join(name)).map_err(|error| format!("{name}: {error}"));
    let list = String::from_utf8(read("usr/share/lota/sbom.cdx.json")?).map_err(|error| error.to_string())?;
    if fs::read_to_string(folder(ARCHITECTURE).join("sbom.cdx.json")).ok().as_ref() != Some(&list) {
        return Err("the list beside the image differs from the one in it".into());
    }
    let pinned = sbom::checksums()?;
    for ((name, version), found) in sbom::crates(ARCHITECTURE)? {
        let id = (name, version);
        let named = format!("\"name\": \"{}\", \"version\": \"{}\"", id.0, id.1);
        let line = list.lines().find(|line| line.contains(&named));
        let line = line.ok_or_else(|| format!("missing in the list: {named}"))?;
        let checksum = pinned.get(&id).map_or("\"hashes\"", String::as_str);
        if line.contains(checksum) != found.checksum.is_some() || line.contains("\"expression\": \"\"") {
            return Err(format!("differs from Cargo.lock, or has no license: {line}"));
        }
    }
    let program = read("usr/bin/lota")?;
    let traces = traces(&program);
    if traces.len() < 50 {
        return Err(format!("the program contains the paths of only {} crates", traces.len()));
    }
    match traces.iter().find(|trace| !list.contains(&format!("\"pkg:cargo/{}\"", trace.replace('+', "%2B"))))
    {
        Some(missing) => Err(format!("{missing} is linked, but missing in the list")),
        None => Ok(()),
    }
}

/// Returns the crates whose source paths are in the program, as `name@version`.
fn traces(program: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(program);
    let mut traces: Vec<String> =
        text.split("/registry/src/index.crates.io-")
            .skip(1)
            .filter_map(|path| {
                let package = path.split('/').nth(1)?;
                if !package.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+".contains(&byte)) {
                    return None;
                }
                // The version begins after the first hyphen that precedes a digit.
                let at = package.match_indices('-').find(|(at, _)| {
                    package[at + 1..].split('.').next().is_some_and(|major| {
                        !major.is_empty() && major.bytes().all(|byte| byte.is_ascii_digit())
                    })
                })?;
                Some(format!("{}@{}", &package[..at.0], &package[at.0 + 1..]))
            })
            .collect();
    traces.sort();
    traces.dedup();
    traces
}
