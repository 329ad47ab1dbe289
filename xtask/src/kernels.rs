//! Runs the packet suite on other kernels: Debian's, booted by qemu without KVM, with the suite in the initramfs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    process::{ROOT, command, run, tied, watch},
    setup,
};

/// A kernel of Debian's.
pub(crate) struct DebianKernel {
    /// Suite of Debian's archive; `None`: that of this machine.
    suite: Option<&'static str>,
    /// Metapackage.
    package: &'static str,
}

/// From the oldest supported kernel to the newest: 5.10 and 6.1 with clsact, 6.12 and 7.x with tcx.
pub(crate) const KERNELS: [DebianKernel; 4] = [
    DebianKernel { suite: Some("bullseye"), package: "linux-image-cloud-amd64" },
    DebianKernel { suite: None, package: "linux-image-cloud-amd64" },
    DebianKernel { suite: None, package: "linux-image-6.12-cloud-amd64" },
    DebianKernel { suite: Some("sid"), package: "linux-image-cloud-amd64" },
];

impl std::fmt::Display for DebianKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.package, self.suite.unwrap_or("this machine's Debian"))
    }
}

/// Kernel modules in the order of their dependencies.
const MODULES: [&str; 6] = ["llc", "stp", "bridge", "veth", "sch_ingress", "cls_bpf"];
/// Timeout for a guest, in seconds.
const GUEST_TIMEOUT_SECONDS: &str = "1200";
/// Prefix of the guest's last line.
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
# As root, then with the capabilities of a hardened installation, which matter when programs are loaded and attached, and not
# to the tests of many packets. 5.10 counts maps against this limit.
ulimit -l unlimited
/bin/packet --color never
root=$?
LOTA_HARDENED=1 /bin/packet --color never --skip forged --skip truncated --skip access:
echo "GUEST-EXIT: $((root + $?))"
sync
poweroff -f
"#;

/// Fetches everything that need not be built.
pub(crate) fn prepare() -> Result<(), String> {
    setup::to_run()?;
    setup::qemu()?;
    let folder = folder();
    KERNELS.iter().try_for_each(|kernel| unpack(kernel, &folder).map(drop))
}

fn folder() -> PathBuf {
    Path::new(ROOT).join("target/kernels")
}

/// Boots one kernel and runs the packet `suite` on it, as root and with few capabilities. Passes each line to `look`.
/// Returns whether the suite passed both times.
pub(crate) fn boot(kernel: &DebianKernel, suite: &Path, look: impl FnMut(&str)) -> Result<bool, String> {
    let tools = setup::qemu()?;
    let image = unpack(kernel, &folder())?;
    let initramfs = initramfs(&image, &tools, suite)?;
    let vmlinuz =
        find_file(&image, &|name| name.starts_with("vmlinuz")).ok_or("the package has no kernel")?;
    let mut qemu = tied("timeout");
    qemu.args(["-k", "5", GUEST_TIMEOUT_SECONDS]).arg(&tools.qemu).args(&tools.arguments);
    qemu.args(["-accel", "tcg", "-m", "1024", "-smp", "1", "-nic", "none", "-vga", "none"]);
    qemu.arg("-kernel").arg(vmlinuz).arg("-initrd").arg(initramfs);
    qemu.args(["-append", "console=ttyS0 panic=-1 quiet", "-nographic", "-no-reboot"]);
    qemu.env("LD_LIBRARY_PATH", &tools.libraries);
    // qemu's exit status does not depend on the guest's.
    let (mut passed, mut look) = (false, look);
    watch(&format!("booting {kernel}"), qemu.stdin(Stdio::null()), |line| {
        passed |= line.trim_end().ends_with(&format!("{EXIT}0"));
        look(line.trim_end());
    })?;
    Ok(passed)
}

/// Fetches and unpacks a kernel. Returns its folder.
fn unpack(kernel: &DebianKernel, folder: &Path) -> Result<PathBuf, String> {
    if let Some(suite) = kernel.suite {
        let place = folder.join(suite);
        setup::unpacked_kernel(suite, kernel.package, &place)?;
        return Ok(place);
    }
    setup::refresh_packages()?;
    let package = setup::dependencies(kernel.package, &[])?.into_iter().next();
    let package =
        package.ok_or_else(|| format!("Debian has no {kernel} (is /etc/apt/sources.list complete?)"))?;
    let place = folder.join(&package);
    setup::unpacked(&[&package], &place)?;
    Ok(place)
}

/// Builds the guest's initramfs: busybox, `ip` and `tc`, modules, and the suite.
fn initramfs(image: &Path, tools: &setup::Qemu, suite: &Path) -> Result<PathBuf, String> {
    let root = setup::beside(image, "root");
    let failed = |error: std::io::Error| format!("cannot create the guest's files: {error}");
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
    let packet = root.join("bin/packet");
    run("stripping the suite", command("strip", &["-o"]).arg(packet).arg(suite))?;
    for program in ["ip", "tc"] {
        let found = setup::find(program).ok_or_else(|| format!("cannot find `{program}`"))?;
        fs::copy(found, root.join("bin").join(program)).map_err(failed)?;
    }
    for program in ["ip", "tc", "packet"] {
        let output = Command::new("ldd").arg(root.join("bin").join(program)).output().map_err(failed)?;
        for library in
            String::from_utf8_lossy(&output.stdout).split_whitespace().filter(|word| word.starts_with('/'))
        {
            let copy = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(copy.parent().unwrap_or(&root)).map_err(failed)?;
            fs::copy(library, copy).map_err(failed)?;
        }
    }
    for module in MODULES {
        let found =
            find_file(image, &|name| ["ko", "ko.xz"].iter().any(|end| name == format!("{module}.{end}")));
        let found = found.ok_or_else(|| format!("the kernel has no module {module}"))?;
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

/// Returns a file whose name `accepts` returns true for.
fn find_file(folder: &Path, accepts: &impl Fn(&str) -> bool) -> Option<PathBuf> {
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
