//! Threads and privileges of the process, and its log output.

pub mod escape;
pub(crate) mod log_limit;
pub mod logging;
pub mod privileges;
pub mod workers;
