//! Admissions of connections that processes in the node's own network namespace open: the program at the egress of `lo` admits
//! a packet, and the programs where it arrives know it by the client's address and port.

use aya_ebpf::{btf_maps::LruHashMap, helpers::bpf_ktime_get_boot_ns, macros::btf_map};
use lota_common::{ADMISSION_NS, LocalConnection, MAX_ADMITTED, RawAdmission};

#[btf_map(name = "lota_admitted")]
static ADMITTED: LruHashMap<LocalConnection, RawAdmission, MAX_ADMITTED> = LruHashMap::new();

/// `RawAdmission::arrived` of a packet that has arrived.
const ARRIVED: u64 = 1;

/// Admits the packet that opens a connection.
#[inline(always)]
pub(crate) fn admit(connection: LocalConnection) {
    // SAFETY: reads a clock.
    let at_ns = unsafe { bpf_ktime_get_boot_ns() };
    let _ = ADMITTED.insert(connection, RawAdmission { at_ns, arrived: 0 }, 0);
}

/// Removes the admission of a connection.
#[inline(always)]
pub(crate) fn remove(connection: LocalConnection) {
    let _ = ADMITTED.remove(connection);
}

/// Returns whether a packet that opens a connection has an admission. An admission is for one packet only, since packets can
/// be sent past the program that admits (`PACKET_QDISC_BYPASS`).
#[inline(always)]
pub(crate) fn arrive(connection: LocalConnection) -> bool {
    if admission(connection) != Some(0) {
        let _ = ADMITTED.remove(connection);
        return false;
    }
    // SAFETY: reads a clock.
    let at_ns = unsafe { bpf_ktime_get_boot_ns() };
    ADMITTED.insert(connection, RawAdmission { at_ns, arrived: ARRIVED }, 0).is_ok()
}

/// Returns whether the packet that opens a connection has arrived a moment ago.
#[inline(always)]
pub(crate) fn has_arrived(connection: LocalConnection) -> bool {
    admission(connection) == Some(ARRIVED)
}

/// Returns `arrived` of a recent admission.
#[inline(always)]
fn admission(connection: LocalConnection) -> Option<u64> {
    // SAFETY: a clock is read, and two fields are copied; a slot that is reused meanwhile holds another valid entry.
    let (now, RawAdmission { at_ns, arrived }) =
        unsafe { (bpf_ktime_get_boot_ns(), *ADMITTED.get(connection)?) };
    (now.saturating_sub(at_ns) < ADMISSION_NS).then_some(arrived)
}
