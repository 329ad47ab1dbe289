//! The initramfs of a guest: busybox, `ip` and `tc`, kernel modules, and the programs to run.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    architecture::Architecture,
    process::{command, output_of, run},
    setup::{Emulator, GuestTools, beside},
};

/// Kernel modules in the order of their dependencies.
const MODULES: [&str; 6] = ["llc", "stp", "bridge", "veth", "sch_ingress", "cls_bpf"];
/// Programs that busybox provides.
const APPLETS: [&str; 9] = ["grep", "head", "insmod", "mount", "nsenter", "poweroff", "sh", "sync", "uname"];
/// Prefix of the guest's last line.
pub(super) const EXIT: &str = "GUEST-EXIT: ";

const INIT: &str = r#"#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for folder in /run /tmp /var/tmp; do mount -t tmpfs tmpfs $folder; done
mount -t bpf bpf /sys/fs/bpf
while read -r module; do insmod /modules/$module.ko || { echo "no module $module"; poweroff -f; }; done < /modules/order
/bin/ip link set lo up
echo "kernel $(uname -r) on $(uname -m)"
grep -m 1 KernelPageSize /proc/self/smaps
# As root, then with the capabilities of a hardened installation, which matter when programs are loaded and attached, and not
# to the tests of many packets. 5.10 counts maps against this limit.
ulimit -l unlimited
/bin/packet --color never
failed=$?
LOTA_HARDENED=1 /bin/packet --color never --skip forged --skip truncated --skip access:
failed=$((failed + $?))
if [ -e /bin/steered ]; then
    LOTA_BIN=/bin/lota /bin/steered --color never
    failed=$((failed + $?))
fi
echo "GUEST-EXIT: $failed"
sync
poweroff -f
"#;

/// A program for a guest.
pub(crate) struct GuestProgram {
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
}

/// Builds a guest's initramfs, with the modules of the kernel whose packages are in `image`. Returns its path.
pub(super) fn initramfs(
    image: &Path,
    emulator: &Emulator,
    programs: &[GuestProgram],
) -> Result<PathBuf, String> {
    let root = beside(image, "root");
    let tools = &emulator.guest;
    let failed = |error: std::io::Error| format!("cannot create the guest's files: {error}");
    if root.exists() {
        fs::remove_dir_all(&root).map_err(failed)?;
    }
    for folder in ["bin", "sbin", "proc", "sys", "dev", "run", "tmp", "var/tmp", "modules", "etc"] {
        fs::create_dir_all(root.join(folder)).map_err(failed)?;
    }
    fs::copy(&tools.busybox, root.join("bin/busybox")).map_err(failed)?;
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).map_err(failed)?;
    }
    let strip = match tools.architecture {
        Architecture::X86_64 => "strip".to_owned(),
        other => format!("{}-strip", other.gnu()),
    };
    for GuestProgram { name, path } in programs {
        let copy = root.join("bin").join(name);
        run(&format!("stripping {name}"), command(&strip, &["-o"]).arg(copy).arg(path))?;
    }
    for (name, path) in [("ip", &tools.ip), ("tc", &tools.tc)] {
        fs::copy(path, root.join("bin").join(name)).map_err(failed)?;
    }
    for library in libraries(tools, programs)? {
        let copy = root.join(&library);
        fs::create_dir_all(copy.parent().unwrap_or(&root)).map_err(failed)?;
        fs::copy(tools.root.join(&library), copy).map_err(failed)?;
    }
    for module in MODULES {
        add_module(image, &root, module)?;
    }
    fs::write(root.join("modules/order"), format!("{}\n", MODULES.join("\n"))).map_err(failed)?;
    fs::write(root.join("init"), INIT).map_err(failed)?;
    run("marking init as a program", command("chmod", &["755"]).arg(root.join("init")))?;
    let archive = beside(image, "cpio.gz");
    let pack =
        format!("find . | {} -o -H newc --quiet | gzip -1 > {}", emulator.cpio.display(), archive.display());
    run("packing the guest's files", command("sh", &["-c", &pack]).current_dir(&root))?;
    Ok(archive)
}

fn add_module(image: &Path, root: &Path, module: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot create the guest's files: {error}");
    let found = find_file(image, &|name| ["ko", "ko.xz"].iter().any(|end| name == format!("{module}.{end}")));
    let found = found.ok_or_else(|| format!("the kernel has no module {module}"))?;
    let copy = root.join("modules").join(format!("{module}.ko"));
    if found.extension().is_some_and(|extension| extension == "xz") {
        let plain = Command::new("xz").args(["-dc"]).arg(&found).output().map_err(failed)?;
        if !plain.status.success() {
            return Err(format!("xz cannot read {}", found.display()));
        }
        fs::write(copy, plain.stdout).map_err(failed)
    } else {
        fs::copy(found, copy).map(drop).map_err(failed)
    }
}

/// Returns the paths, below the tools' root, of the libraries that the programs load.
fn libraries(tools: &GuestTools, programs: &[GuestProgram]) -> Result<BTreeSet<PathBuf>, String> {
    let mut left: Vec<PathBuf> = programs.iter().map(|program| program.path.clone()).collect();
    left.extend([tools.ip.clone(), tools.tc.clone()]);
    let mut all = BTreeSet::new();
    while let Some(program) = left.pop() {
        // `ldd` would run the program.
        let dynamic =
            output_of(command("readelf", &["--wide", "--dynamic", "--program-headers"]).arg(&program))?;
        for needed in dynamic.lines().filter_map(needed) {
            let library = find_library(tools, needed)
                .ok_or_else(|| format!("{} needs {needed}, which was not found", program.display()))?;
            if all.insert(library.clone()) {
                left.push(tools.root.join(library));
            }
        }
    }
    Ok(all)
}

/// Returns the library or loader that a line of readelf's output names.
fn needed(line: &str) -> Option<&str> {
    let names_one = line.contains("(NEEDED)") || line.contains("program interpreter:");
    let (_, name) = line.split_once('[').filter(|_| names_one)?;
    let name = name.split(']').next()?;
    Some(name.rsplit(['/', ' ']).next().unwrap_or(name))
}

fn find_library(tools: &GuestTools, name: &str) -> Option<PathBuf> {
    let gnu = tools.architecture.gnu();
    // The loader is found at its own path first.
    let folders = ["lib64".to_owned(), "lib".to_owned(), format!("lib/{gnu}"), format!("usr/lib/{gnu}")];
    let mut paths = folders.iter().map(|folder| Path::new(folder).join(name));
    paths.find(|path| tools.root.join(path).is_file())
}

/// Returns a file whose name `accepts` returns true for.
pub(super) fn find_file(folder: &Path, accepts: &impl Fn(&str) -> bool) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() && !path.is_symlink() {
            if let Some(found) = find_file(&path, accepts) {
                return Some(found);
            }
        } else if path.is_file() && accepts(&entry.file_name().to_string_lossy()) {
            return Some(path);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::needed;

    #[test]
    fn libraries_and_the_loader_are_needed() {
        let lines = [
            "      [Requesting program interpreter: /lib/ld-linux-aarch64.so.1]",
            " 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]",
            " 0x000000000000000e (SONAME)             Library soname: [libbpf.so.1]",
            "  [Nr] Name              Type",
        ];
        assert_eq!(lines.map(needed), [Some("ld-linux-aarch64.so.1"), Some("libc.so.6"), None, None]);
    }
}
