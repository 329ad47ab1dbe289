//! Which programs are on an interface, in which order. `aya` can tell, too, but needs CAP_SYS_ADMIN: it opens
//! each program, where their numbers are enough here.

use std::io;

use nix::libc;

/// `BPF_PROG_QUERY` and `BPF_TCX_INGRESS` (`include/uapi/linux/bpf.h`).
const PROG_QUERY: libc::c_long = 16;
const TCX_INGRESS: u32 = 46;
/// More programs than this on one hook are more than anyone has seen.
const MOST: u32 = 64;

/// The part of `union bpf_attr` that a query is.
#[repr(C)]
#[derive(Default)]
struct Query {
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

/// The numbers of the tcx programs on an interface, first to last.
///
/// # Errors
/// If the kernel has no tcx (before 6.6), or the interface is gone.
pub(super) fn tcx_ingress(ifindex: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; MOST as usize];
    let mut query = Query {
        target_ifindex: ifindex,
        attach_type: TCX_INGRESS,
        prog_ids: ids.as_mut_ptr() as u64,
        count: MOST,
        ..Query::default()
    };
    // SAFETY: the kernel reads and writes `query`, which is as long as said, and at most `count` numbers at
    // `prog_ids`; both outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ids[..query.count.min(MOST) as usize].to_vec())
}
