//! Limits for the size of the programs, so that they do not grow by mistake.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::kernel::{Kernel, version};

const BUDGET: &str = include_str!("../budget.toml");
/// Maximum of all limits: a fifth of the million instructions after which a verifier gives up.
const MAX_VERIFIED: u32 = 200_000;
/// Kernels without a limit of their own.
const OTHERS: &str = "others";

/// Limits of a program.
#[derive(Deserialize)]
struct Budget {
    /// Loaded instructions.
    loaded: u32,
    /// Instructions that the verifier processes, by version of the kernel.
    verified: BTreeMap<String, u32>,
}

pub(crate) fn instructions(kernel: &Kernel) -> Result<()> {
    let budget: BTreeMap<String, Budget> = toml::from_str(BUDGET)?;
    let (major, minor) = version()?;
    let version = format!("{major}.{minor}");
    let mut over = Vec::new();
    for (name, loaded, verified) in kernel.sizes()? {
        let limits = budget.get(&name).with_context(|| format!("budget.toml has no {name}"))?;
        let most_verified = limits.verified.get(&version).or_else(|| limits.verified.get(OTHERS));
        let most_verified = *most_verified.with_context(|| format!("no limit of {name} for {version}"))?;
        ensure!(most_verified <= MAX_VERIFIED, "the limit of {name} is {most_verified}");
        println!("{name} on {version}: {loaded} instructions, {verified} verified");
        if loaded > limits.loaded || verified > most_verified {
            over.push(format!("{name}: {loaded} loaded, {verified} verified on {version}"));
        }
    }
    ensure!(over.is_empty(), "over the limits in tests/tests/budget.toml: {}", over.join("; "));
    Ok(())
}
