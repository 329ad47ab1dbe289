//! The lab, the embedded gateway, and the tour that is both the demo and the end-to-end suite.

use anyhow::Context as _;

pub mod bench;
pub mod gateway;
pub mod lab;
pub mod suite;
pub mod tour;

/// A path that `cargo xtask` hands over to what it runs.
///
/// # Errors
/// If it has not.
pub fn tool(variable: &str) -> anyhow::Result<std::path::PathBuf> {
    let path = std::env::var_os(variable);
    Ok(path
        .with_context(|| format!("{variable} is not set: run this by `cargo xtask test` or `bench`"))?
        .into())
}
