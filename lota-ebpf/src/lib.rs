//! The half of the kernel side that has no kernel in it: what a packet is, and what to do about it.
//!
//! It builds for the host too, where property tests run it on every packet they can think of.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod decide;
pub mod names;
pub mod packet;
