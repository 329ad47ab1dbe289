//! Other kernels than this machine's: Debian's, booted by qemu without KVM, with the packet suite in the initramfs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    setup,
    tell::{ROOT, cargo, command, run, watch},
};

/// Debian's names of the kernels: clsact on the first, tcx on the second.
pub(crate) const KERNELS: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64"];
/// In the order in which they need each other.
const MODULES: [&str; 6] = ["llc", "stp", "bridge", "veth", "sch_ingress", "cls_bpf"];
/// Longest that a guest may take, in seconds.
const PATIENCE: &str = "300";
/// What the guest's last word begins with.
const EXIT: &str = "GUEST-EXIT: ";

const INIT: &str = r#"#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for folder in /run /tmp /var/tmp; do mount -t tmpfs tmpfs $folder; done
mount -t bpf bpf /sys/fs/bpf
while read -r module; do insmod /modules/$module.ko || { echo "no module $module"; poweroff -f; }; done < /modules/order
/bin/ip link set lo up
echo "kernel $(uname -r)"
/bin/packet --color never
echo "GUEST-EXIT: $?"
sync
poweroff -f
"#;

/// Boots one kernel and runs the packet suite on it, showing each line to `look`; did it pass?
pub(crate) fn boot(kernel: &str, look: impl FnMut(&str)) -> Result<bool, String> {
    let tools = setup::qemu()?;
    let folder = Path::new(ROOT).join("target/kernels");
    let image = unpack(kernel, &folder)?;
    let initramfs = initramfs(&image, &tools)?;
    let vmlinuz = only(&image.join("boot"), "vmlinuz-")?;
    let mut qemu = Command::new("timeout");
    qemu.args(["-k", "5", PATIENCE]).arg(&tools.qemu).args(&tools.arguments);
    qemu.args(["-accel", "tcg", "-m", "1024", "-smp", "1", "-nic", "none", "-vga", "none"]);
    qemu.arg("-kernel").arg(vmlinuz).arg("-initrd").arg(initramfs);
    qemu.args(["-append", "console=ttyS0 panic=-1 quiet", "-nographic", "-no-reboot"]);
    qemu.env("LD_LIBRARY_PATH", &tools.libraries);
    // qemu's own exit says nothing of the guest's.
    let (mut passed, mut look) = (false, look);
    watch(&format!("booting {kernel}"), qemu.stdin(Stdio::null()), |line| {
        passed |= line.trim_end().ends_with(&format!("{EXIT}0"));
        look(line.trim_end());
    })?;
    Ok(passed)
}

/// Fetches the package that a metapackage stands for, and unpacks it; where.
fn unpack(metapackage: &str, folder: &Path) -> Result<PathBuf, String> {
    setup::refresh_packages()?;
    let mut ask = command("apt-cache", &["depends", "--no-recommends", "--no-suggests", metapackage]);
    let told = ask.output().map_err(|error| format!("cannot run apt-cache: {error}"))?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let package = told
        .lines()
        .find_map(|line| {
            line.trim().strip_prefix("Depends: ").filter(|name| name.starts_with("linux-image-"))
        })
        .ok_or_else(|| format!("Debian has no {metapackage} (is /etc/apt/sources.list complete?)"))?;
    let place = folder.join(package);
    if !place.exists() {
        setup::unpack(&[package], &place)?;
    }
    Ok(place)
}

/// Everything the guest needs: busybox, `ip` and `tc`, modules, and the suite itself.
fn initramfs(image: &Path, tools: &setup::Qemu) -> Result<PathBuf, String> {
    let root = setup::beside(image, "root");
    let failed = |error: std::io::Error| format!("making the guest's files: {error}");
    if root.exists() {
        fs::remove_dir_all(&root).map_err(failed)?;
    }
    for folder in ["bin", "sbin", "proc", "sys", "dev", "run", "tmp", "var/tmp", "modules", "etc"] {
        fs::create_dir_all(root.join(folder)).map_err(failed)?;
    }
    fs::copy(&tools.busybox, root.join("bin/busybox")).map_err(failed)?;
    for applet in ["sh", "mount", "insmod", "uname", "sync", "poweroff"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).map_err(failed)?;
    }
    let suite = root.join("bin/packet");
    run("stripping the suite", command("strip", &["-o"]).arg(&suite).arg(packet_suite()?))?;
    for program in ["ip", "tc"] {
        let found = setup::find(program).ok_or_else(|| format!("there is no `{program}`"))?;
        fs::copy(found, root.join("bin").join(program)).map_err(failed)?;
    }
    for program in ["ip", "tc", "packet"] {
        let told = Command::new("ldd").arg(root.join("bin").join(program)).output().map_err(failed)?;
        for library in
            String::from_utf8_lossy(&told.stdout).split_whitespace().filter(|word| word.starts_with('/'))
        {
            let copy = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(copy.parent().unwrap_or(&root)).map_err(failed)?;
            fs::copy(library, copy).map_err(failed)?;
        }
    }
    let modules = only(&image.join("lib/modules"), "")?;
    for module in MODULES {
        let found =
            find_module(&modules, module).ok_or_else(|| format!("the kernel has no module {module}"))?;
        let copy = root.join("modules").join(format!("{module}.ko"));
        if found.extension().is_some_and(|extension| extension == "xz") {
            let plain = Command::new("xz").args(["-dc"]).arg(&found).output().map_err(failed)?;
            if !plain.status.success() {
                return Err(format!("xz cannot read {}", found.display()));
            }
            fs::write(copy, plain.stdout).map_err(failed)?;
        } else {
            fs::copy(found, copy).map_err(failed)?;
        }
    }
    fs::write(root.join("modules/order"), format!("{}\n", MODULES.join("\n"))).map_err(failed)?;
    fs::write(root.join("init"), INIT).map_err(failed)?;
    run("marking init as a program", command("chmod", &["755"]).arg(root.join("init")))?;
    let archive = setup::beside(image, "cpio.gz");
    let pack =
        format!("find . | {} -o -H newc --quiet | gzip -1 > {}", tools.cpio.display(), archive.display());
    run("packing the guest's files", command("sh", &["-c", &pack]).current_dir(&root))?;
    Ok(archive)
}

/// The built packet suite.
fn packet_suite() -> Result<PathBuf, String> {
    let mut build = cargo(&["test", "--package", "lota-tests", "--test", "packet", "--no-run"]);
    let output = build.output().map_err(|error| format!("cannot run cargo: {error}"))?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let path = told.lines().filter(|line| line.contains("Executable"));
    let path = path.filter_map(|line| line.split_once('(')?.1.strip_suffix(')')).next();
    let path =
        path.filter(|_| output.status.success()).ok_or_else(|| format!("building it failed:\n{told}"))?;
    Ok(Path::new(ROOT).join(path))
}

fn find_module(folder: &Path, module: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && !path.is_symlink() {
            if let Some(found) = find_module(&path, module) {
                return Some(found);
            }
        } else if name == format!("{module}.ko") || name == format!("{module}.ko.xz") {
            return Some(path);
        }
    }
    None
}

/// The one entry of a folder that begins so.
fn only(folder: &Path, prefix: &str) -> Result<PathBuf, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut found = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    found.next().map(|entry| entry.path()).ok_or_else(|| format!("nothing in {}", folder.display()))
}
