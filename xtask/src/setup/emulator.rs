//! The emulator of the suites that run on other kernels, and the programs in its guests.

use std::path::{Path, PathBuf};

use super::{find, foreign, packages, unpacked};
use crate::{architecture::Architecture, process::ROOT};

/// An emulator, and programs for its guests.
pub(crate) struct Emulator {
    pub(crate) qemu: PathBuf,
    /// Arguments with the machine, and the location of its firmware, since it is not installed.
    pub(crate) arguments: Vec<String>,
    /// Location of its libraries, since it is not installed.
    pub(crate) libraries: String,
    pub(crate) cpio: PathBuf,
    /// Device of the guest's first serial port.
    pub(crate) console: &'static str,
    pub(crate) guest: GuestTools,
}

/// Debian's programs for guests.
pub(crate) struct GuestTools {
    pub(crate) architecture: Architecture,
    /// Root of the file system with their libraries.
    pub(crate) root: PathBuf,
    /// Static.
    pub(crate) busybox: PathBuf,
    pub(crate) ip: PathBuf,
    pub(crate) tc: PathBuf,
}

/// Provides qemu, unpacked, since its package would remove newer tools from the machine.
pub(crate) fn emulator(architecture: Architecture) -> Result<Emulator, String> {
    packages(&["binutils", "xz-utils"])?;
    let target = Path::new(ROOT).join("target");
    let place = target.join(match architecture {
        Architecture::X86_64 => "qemu",
        Architecture::Arm64 => "qemu-arm64",
    });
    let guest = match architecture {
        Architecture::X86_64 => {
            unpacked(&["qemu-system-x86", "busybox-static", "cpio"], &place)?;
            let installed = |name: &str| find(name).ok_or_else(|| format!("cannot find `{name}`"));
            GuestTools {
                architecture,
                root: "/".into(),
                busybox: within(&place, "busybox")?,
                ip: installed("ip")?,
                tc: installed("tc")?,
            }
        }
        Architecture::Arm64 => {
            unpacked(&["qemu-system-arm", "cpio"], &place)?;
            let root = target.join("guest-arm64");
            foreign::unpacked_with_dependencies(&["busybox-static", "iproute2"], architecture, &root)?;
            let [busybox, ip, tc] = ["busybox", "ip", "tc"].map(|name| within(&root, name));
            GuestTools { architecture, busybox: busybox?, ip: ip?, tc: tc?, root }
        }
    };
    let (qemu, machine, console): (_, &[&str], _) = match architecture {
        Architecture::X86_64 => ("qemu-system-x86_64", &[], "ttyS0"),
        // The core of the first Graviton and Altra servers. Grace has a later one of the same line, which this qemu lacks.
        Architecture::Arm64 => ("qemu-system-aarch64", &["-M", "virt", "-cpu", "neoverse-n1"], "ttyAMA0"),
    };
    let below = |path: &str| place.join(path).display().to_string();
    let firmware = ["usr/share/qemu", "usr/share/seabios"];
    let firmware = firmware.iter().flat_map(|path| ["-L".to_owned(), below(path)]);
    Ok(Emulator {
        qemu: within(&place, qemu)?,
        arguments: firmware.chain(machine.iter().map(|&word| word.to_owned())).collect(),
        libraries: ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(below).join(":"),
        cpio: within(&place, "cpio")?,
        console,
        guest,
    })
}

/// Returns the path of a program in unpacked packages.
fn within(place: &Path, program: &str) -> Result<PathBuf, String> {
    let mut paths =
        ["bin", "usr/bin", "sbin", "usr/sbin"].iter().map(|folder| place.join(folder).join(program));
    let missing = || format!("Debian's packages in {} have no {program}", place.display());
    paths.find(|path| path.is_file()).ok_or_else(missing)
}
