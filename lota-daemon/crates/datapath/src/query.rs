//! Lists the programs on an interface in their order. `aya` provides this, too, but needs CAP_SYS_ADMIN, since it
//! opens each program; their IDs are enough here.

use std::io;

use aya::programs::TcAttachType;
use nix::libc;

/// `BPF_PROG_QUERY`, `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` (`include/uapi/linux/bpf.h`).
const PROG_QUERY: libc::c_long = 16;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
/// Maximum number of programs on one hook that are read.
const MAX_PROGRAMS: u32 = 64;

/// The part of `union bpf_attr` that a query uses.
#[repr(C)]
#[derive(Default)]
struct ProgQuery {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Returns the IDs of the tcx programs on an interface, first to last.
///
/// # Errors
/// If the kernel has no tcx (before 6.6), or the interface does not exist.
pub(super) fn tcx(ifindex: u32, direction: TcAttachType) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; MAX_PROGRAMS as usize];
    let mut query = ProgQuery {
        target_ifindex: ifindex,
        attach_type: if direction == TcAttachType::Egress { TCX_EGRESS } else { TCX_INGRESS },
        prog_ids: ids.as_mut_ptr() as u64,
        count: MAX_PROGRAMS,
        ..ProgQuery::default()
    };
    // SAFETY: the kernel reads and writes `query`, whose size is passed, and writes at most `count` IDs to
    // `prog_ids`; both outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, &raw mut query, size_of::<ProgQuery>()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ids[..query.count.min(MAX_PROGRAMS) as usize].to_vec())
}
