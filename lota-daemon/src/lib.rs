//! The node's daemon, as a library: tests and tools use its parts.

pub mod access;
pub mod admin;
pub mod backend;
pub mod bundle;
pub mod cache;
pub mod cache_tools;
pub mod check;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod control;
pub mod datapath;
pub mod dns;
#[cfg(test)]
mod docs;
pub mod gateway;
pub mod handover;
pub mod http;
pub mod kubernetes;
pub mod live;
mod lock;
pub mod logs;
pub mod metrics;
pub mod node;
pub mod peer;
pub mod placement;
pub mod prefetch;
pub mod privileges;
pub mod proxy;
pub mod report;
pub mod s3;
pub mod sockets;
pub mod top;
pub mod workers;
