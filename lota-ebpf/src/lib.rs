//! The pure part of the eBPF programs: packet parsing and decisions, without helpers or maps.
//!
//! It also builds for the host, where property tests run it.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod decide;
pub mod dns;
pub mod packet;
pub mod sender;
