//! The lab, the embedded gateway, and the tour, which is both the demo and part of the end-to-end suite.

use anyhow::Context as _;

pub mod bench;
pub mod gateway;
pub mod history;
pub mod lab;
pub mod load;
pub mod strace;
pub mod suite;
pub mod tour;

/// Returns a path that `cargo xtask` passes in an environment variable.
///
/// # Errors
/// If the variable is not set.
pub fn tool(variable: &str) -> anyhow::Result<std::path::PathBuf> {
    let path = std::env::var_os(variable);
    Ok(path
        .with_context(|| format!("{variable} is not set: run this by `cargo xtask test` or `bench`"))?
        .into())
}
