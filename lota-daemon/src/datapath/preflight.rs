//! Can this kernel, with these privileges, hold the datapath? Asked before anything is touched.

use std::{fs, path::Path};

use nix::sys::{
    statfs::{BPF_FS_MAGIC, statfs},
    utsname::uname,
};

/// The oldest kernel with everything the programs use: `bpf_sk_assign` at TC came in 5.7, `sk_lookup` in
/// 5.9; 5.10 is the first long-term one after these. Without tcx (before 6.6) clsact is used.
const OLDEST: (u32, u32) = (5, 10);

/// Capabilities (`include/uapi/linux/capability.h`) and what needs them.
const CAPABILITIES: [(u32, &str, &str); 3] = [
    (39, "CAP_BPF", "loads programs and writes maps"),
    (12, "CAP_NET_ADMIN", "attaches programs and adds the virtual address"),
    (10, "CAP_NET_BIND_SERVICE", "answers names on port 53"),
];

/// Looks for everything that is missing.
///
/// # Errors
/// Says all of it, in one line.
pub fn preflight(pins: &Path) -> Result<(), String> {
    let mut missing = Vec::new();
    match kernel() {
        Some(version) if version < OLDEST => missing.push(format!(
            "kernel {}.{} is too old: the datapath needs {}.{} or newer",
            version.0, version.1, OLDEST.0, OLDEST.1
        )),
        Some(_) => {}
        None => missing.push("this is not Linux, or its version cannot be read".to_owned()),
    }
    let effective = capabilities();
    for (bit, name, use_) in CAPABILITIES {
        if effective & (1 << bit) == 0 {
            missing.push(format!("{name} is missing, which {use_}"));
        }
    }
    if !on_bpffs(pins) {
        missing.push(format!(
            "{} is not on a BPF file system: `mount -t bpf bpf /sys/fs/bpf`, and in a container mount it from \
             the host",
            pins.display()
        ));
    }
    if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
}

fn kernel() -> Option<(u32, u32)> {
    parse_release(uname().ok()?.release().to_str()?)
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_capabilities(&status)
}

fn parse_capabilities(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// The pin folder need not exist yet: its nearest ancestor that does decides.
fn on_bpffs(pins: &Path) -> bool {
    pins.ancestors()
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
        assert!((5, 4) < OLDEST && (6, 1) > OLDEST);
    }

    #[test]
    fn capability_masks() {
        assert_eq!(parse_capabilities("Name:\tx\nCapEff:\t0000008000001400\n"), 1 << 39 | 1 << 12 | 1 << 10);
        assert_eq!(parse_capabilities("garbage"), 0);
    }

    #[test]
    fn a_plain_folder_is_not_a_bpffs() {
        let message = preflight(Path::new("/tmp/not/there")).unwrap_err();
        assert!(message.contains("mount -t bpf"), "{message}");
    }
}
