//! Runs suites on other kernels: Debian's, booted by qemu without KVM, with the programs in the initramfs.

mod guest;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

pub(crate) use self::guest::GuestProgram;
use self::guest::{EXIT, find_file, initramfs};
use crate::{
    architecture::Architecture::{self, Arm64, X86_64},
    process::{ROOT, tied, watch},
    setup::{self, Source},
};

/// A kernel of Debian's.
pub(crate) struct DebianKernel {
    /// Suite of Debian's archive; `None`: that of this machine.
    suite: Option<&'static str>,
    /// Metapackage.
    package: &'static str,
    architecture: Architecture,
}

/// From the oldest supported kernel to the newest: 5.10 and 6.1 with clsact, 6.12 and 7.x with tcx.
pub(crate) const KERNELS: [DebianKernel; 4] = [
    DebianKernel { suite: Some("bullseye"), package: "linux-image-cloud-amd64", architecture: X86_64 },
    DebianKernel { suite: None, package: "linux-image-cloud-amd64", architecture: X86_64 },
    DebianKernel { suite: None, package: "linux-image-6.12-cloud-amd64", architecture: X86_64 },
    DebianKernel { suite: Some("sid"), package: "linux-image-cloud-amd64", architecture: X86_64 },
];

/// Kernels for arm64: 6.1 with clsact, and 7.x with tcx and pages of 16 KiB, the largest that Debian has.
pub(crate) const ARM64_KERNELS: [DebianKernel; 2] = [
    DebianKernel { suite: None, package: "linux-image-cloud-arm64", architecture: Arm64 },
    DebianKernel { suite: Some("sid"), package: "linux-image-arm64-16k", architecture: Arm64 },
];

impl std::fmt::Display for DebianKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.package, self.suite.unwrap_or("this machine's Debian"))
    }
}

/// Fetches everything that need not be built.
pub(crate) fn prepare() -> Result<(), String> {
    prepare_for(X86_64, &KERNELS)
}

/// Like [`prepare`], for arm64.
pub(crate) fn prepare_arm64() -> Result<(), String> {
    setup::CrossCompiler::get()?;
    prepare_for(Arm64, &ARM64_KERNELS)
}

fn prepare_for(architecture: Architecture, kernels: &[DebianKernel]) -> Result<(), String> {
    setup::to_run()?;
    setup::emulator(architecture)?;
    let folder = folder();
    kernels.iter().try_for_each(|kernel| unpack(kernel, &folder).map(drop))
}

fn folder() -> PathBuf {
    Path::new(ROOT).join("target/kernels")
}

/// Boots one kernel and runs `packet` on it, as root and with few capabilities, and the other programs. Passes each line to
/// `look`. Returns whether all passed each time.
pub(crate) fn boot(
    kernel: &DebianKernel,
    programs: &[GuestProgram],
    look: impl FnMut(&str),
) -> Result<bool, String> {
    let emulator = setup::emulator(kernel.architecture)?;
    let image = unpack(kernel, &folder())?;
    let initramfs = initramfs(&image, &emulator, programs)?;
    let vmlinuz =
        find_file(&image, &|name| name.starts_with("vmlinuz")).ok_or("the package has no kernel")?;
    let (memory, cpus, timeout_seconds) = match kernel.architecture {
        X86_64 => ("1024", "1", "1200"),
        // Also three daemons. Two CPUs, since they may differ about the order of reads and writes. `packet` alone takes seven
        // minutes each time.
        Arm64 => ("2048", "2", "3600"),
    };
    let mut qemu = tied("timeout");
    qemu.args(["-k", "5", timeout_seconds]).arg(&emulator.qemu).args(&emulator.arguments);
    qemu.args(["-accel", "tcg", "-m", memory, "-smp", cpus, "-nic", "none", "-vga", "none"]);
    qemu.arg("-kernel").arg(vmlinuz).arg("-initrd").arg(initramfs);
    qemu.arg("-append").arg(format!("console={} panic=-1 quiet", emulator.console));
    qemu.args(["-nographic", "-no-reboot"]).env("LD_LIBRARY_PATH", &emulator.libraries);
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
    let &DebianKernel { suite, package, architecture } = kernel;
    if suite.is_some() || architecture != X86_64 {
        let place = match architecture {
            X86_64 => folder.join(suite.unwrap_or("own")),
            Arm64 => folder.join(format!("{}-{package}", suite.unwrap_or("own"))),
        };
        setup::unpacked_kernel(&Source { suite, architecture }, package, &place)?;
        return Ok(place);
    }
    setup::refresh_packages()?;
    let package = setup::dependencies(package, &[])?.into_iter().next();
    let package =
        package.ok_or_else(|| format!("Debian has no {kernel} (is /etc/apt/sources.list complete?)"))?;
    let place = folder.join(&package);
    setup::unpacked(&[&package], &place)?;
    Ok(place)
}
