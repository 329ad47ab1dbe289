//! The node's daemon as a library, which the binary, the tests and the benchmarks use.
//!
//! The modules, from the outside in. A module uses only modules below it; a test checks this.
//!
//! | layer | module | contents |
//! |---|---|---|
//! | commands | [`cli`] | arguments and what runs in the operator's shell |
//! | process | [`daemon`] | start-up, wiring, listeners, handover |
//! | | [`config`] | the configuration file, composed of the sections of the modules below |
//! | operations | [`admin`] | HTTP port and Unix socket for operators: metrics, status, page |
//! | | [`reconciler`] | keeps the kernel side in line with configuration, pods and interfaces |
//! | request path | [`proxy`] | entry node and owner: one request from head to last byte |
//! | | [`storage`] | reads from the storage backend for fills |
//! | | [`gateway`] | authorization of each request by the S3 gateway |
//! | | [`metrics`] | counters, and the busiest objects and pods |
//! | cluster | [`kubernetes`] | watches of pods and nodes |
//! | | [`cluster`] | membership, the peer protocol |
//! | node | [`access`] | which pods have access |
//! | | [`dns`] | answers for the zone's names |
//! | protocols | [`http`] | connections, framing, zero-copy bodies |
//! | inner crates | [`lota_datapath`] | eBPF programs and maps |
//! | | [`lota_cache`] | objects on local disks, and which node or disk has which |
//! | | [`lota_s3`] | S3 requests and answers, without I/O |
//! | foundations | [`process`] | threads, privileges, logging |
//! | | [`settings`] | errors, defaults and reading of files that sections of the configuration share, and values that are read again |

pub mod access;
pub mod admin;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod daemon;
pub mod dns;
pub mod gateway;
pub mod http;
pub mod kubernetes;
pub mod metrics;
pub mod process;
pub mod proxy;
pub mod reconciler;
pub mod settings;
pub mod storage;
#[cfg(test)]
mod testing;
