//! Requirements of the datapath on the kernel and on the daemon's privileges, checked before anything is changed.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use nix::sys::{
    statfs::{BPF_FS_MAGIC, statfs},
    utsname::uname,
};

/// Oldest supported kernel. `bpf_sk_assign` at TC came with 5.7 and `sk_lookup` with 5.9; 5.10 is the first long-term
/// release after these. Without tcx (before 6.6) clsact is used.
const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// Word in the version of a kernel that is built with PREEMPT_RT (`init/Makefile`): `#1 SMP PREEMPT_RT Debian …`.
const REAL_TIME: &str = "PREEMPT_RT";

/// Bits of the required capabilities (`include/uapi/linux/capability.h`), their names and purposes.
pub const CAPABILITIES: [(u32, &str, &str); 4] = [
    (39, "CAP_BPF", "load programs and write maps"),
    (38, "CAP_PERFMON", "load programs with loops"),
    (12, "CAP_NET_ADMIN", "attach programs and add the VIP"),
    (10, "CAP_NET_BIND_SERVICE", "answer DNS queries on port 53"),
];

/// A requirement that is not met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The version of the kernel is too low, or unknown.
    Kernel(Option<(u32, u32)>),
    /// The kernel preempts programs (PREEMPT_RT). Two of them could then use the memory of one CPU at the same time.
    RealTime,
    /// The daemon lacks a capability.
    Capability {
        /// Its name.
        name: &'static str,
        /// Purpose of the capability: completes "needed to".
        purpose: &'static str,
    },
    /// `datapath.bpffs_path` is not on a BPF file system.
    Bpffs(PathBuf),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = OLDEST_KERNEL;
        match self {
            Self::Kernel(Some((found_major, found_minor))) => {
                write!(
                    f,
                    "kernel {found_major}.{found_minor} is too old: LOTA needs {major}.{minor} or later"
                )
            }
            Self::Kernel(None) => {
                write!(f, "cannot read the kernel's version: LOTA needs Linux {major}.{minor} or later")
            }
            Self::RealTime => f.write_str(
                "the kernel is built with PREEMPT_RT, which LOTA does not support: use a standard kernel",
            ),
            Self::Capability { name, purpose } => write!(f, "{name} is missing: it is needed to {purpose}"),
            Self::Bpffs(path) => write!(
                f,
                "{} is not on a BPF file system: run `mount -t bpf bpf /sys/fs/bpf`; in a container, mount it from the host",
                path.display()
            ),
        }
    }
}

/// Checks all requirements.
///
/// # Errors
/// Everything that is missing; never empty.
pub fn preflight(bpffs_path: &Path) -> Result<(), Vec<Missing>> {
    let version = kernel_version().filter(|version| *version >= OLDEST_KERNEL);
    let kernel = version.is_none().then(|| Missing::Kernel(kernel_version()));
    let is_real_time = uname().is_ok_and(|kernel| is_real_time(&kernel.version().to_string_lossy()));
    let real_time = is_real_time.then_some(Missing::RealTime);
    let effective = effective_capabilities();
    let capabilities = CAPABILITIES
        .iter()
        .filter(|(bit, ..)| effective & (1 << bit) == 0)
        .map(|(_, name, purpose)| Missing::Capability { name, purpose });
    let bpffs = (!is_on_bpffs(bpffs_path)).then(|| Missing::Bpffs(bpffs_path.to_owned()));
    let missing: Vec<_> = kernel.into_iter().chain(real_time).chain(capabilities).chain(bpffs).collect();
    if missing.is_empty() { Ok(()) } else { Err(missing) }
}

fn kernel_version() -> Option<(u32, u32)> {
    parse_release(uname().ok()?.release().to_str()?)
}

fn is_real_time(version: &str) -> bool {
    version.split_whitespace().any(|word| word == REAL_TIME)
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn effective_capabilities() -> u64 {
    parse_capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn parse_capabilities(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// Whether the nearest existing ancestor of a folder, which need not exist yet, is on a BPF file system.
fn is_on_bpffs(folder: &Path) -> bool {
    folder
        .ancestors()
        .find(|path| path.exists())
        .and_then(|path| statfs(path).ok())
        .is_some_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        for (release, version) in [
            ("6.18.44-fc", Some((6, 18))),
            ("5.10", Some((5, 10))),
            ("6.1.0-25-amd64", Some((6, 1))),
            ("x", None),
        ] {
            assert_eq!(parse_release(release), version);
        }
        assert!((5, 4) < OLDEST_KERNEL && (6, 1) > OLDEST_KERNEL);
    }

    #[test]
    fn kernels_that_preempt_programs() {
        for (version, expected) in [
            ("#1 SMP PREEMPT_RT Debian 6.12.57-1 (2025-11-05)", true),
            ("#1 SMP PREEMPT_DYNAMIC Debian 6.12.57-1 (2025-11-05)", false),
            ("#7 SMP Fri Nov 27 10:00:00 UTC 2026", false),
            ("", false),
        ] {
            assert_eq!(is_real_time(version), expected, "{version}");
        }
    }

    #[test]
    fn capability_masks() {
        assert_eq!(parse_capabilities("Name:\tx\nCapEff:\t0000008000001400\n"), 1 << 39 | 1 << 12 | 1 << 10);
        assert_eq!(parse_capabilities("garbage"), 0);
    }

    #[test]
    fn a_plain_folder_is_not_a_bpffs() {
        let folder = Path::new("/tmp/not/there");
        assert!(preflight(folder).unwrap_err().contains(&Missing::Bpffs(folder.to_owned())));
    }
}
