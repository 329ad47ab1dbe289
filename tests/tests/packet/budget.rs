//! How large the programs may be. A program that grows past its budget was made larger on purpose, or by mistake.

use anyhow::{Context as _, Result, ensure};

use super::kernel::Kernel;

/// `program = [instructions, verified]`: instructions as loaded, and those that the verifier goes through, of the
/// 1,000,000 that it would.
const BUDGET: &str = include_str!("../budget.toml");

pub(crate) fn instructions(kernel: &Kernel) -> Result<()> {
    let budget: std::collections::BTreeMap<String, [u32; 2]> = toml::from_str(BUDGET)?;
    let mut over = Vec::new();
    for (name, translated, verified) in kernel.sizes()? {
        let [most_translated, most_verified] =
            budget.get(&name).with_context(|| format!("budget.toml has no {name}"))?;
        if translated > *most_translated || verified > *most_verified {
            over.push(format!("{name} = [{translated}, {verified}]"));
        }
    }
    ensure!(over.is_empty(), "beyond tests/tests/budget.toml: {}", over.join(", "));
    Ok(())
}
