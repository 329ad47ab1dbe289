//! Responses of LOTA are those of the gateway: identical signed requests are sent to the gateway and through LOTA, cold
//! and warm, from pods of every node. The responses must be equal except for a short list of differences.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::raw::Reply,
    suite::{Suite, TestFn, gateways, lab_with},
};

#[path = "parity/differences.rs"]
mod differences;
#[path = "parity/reads.rs"]
mod reads;
#[path = "parity/table.rs"]
mod table;
#[path = "parity/two_gateways.rs"]
mod two_gateways;
#[path = "parity/versions.rs"]
mod versions;
#[path = "parity/writes.rs"]
mod writes;

/// Name of the suite's lab.
const NAME: &str = "lota-parity";

const TESTS: [(&str, TestFn); 9] = [
    ("reads by LOTA's own credential", reads::own_credential),
    ("reads by direct path", reads::direct),
    ("reads by the client's own request", reads::client_only),
    ("re-signed reads", reads::signed_anew),
    ("one object, read in different ways in turn", reads::one_after_the_other),
    ("two gateways at once", two_gateways::at_once),
    ("versions", versions::all),
    ("writes", writes::as_they_are),
    ("re-signed writes", writes::signed_anew),
];

fn main() -> ExitCode {
    Suite::run(NAME, |suite| {
        for origin in gateways() {
            // Only the embedded gateway implements LOTA's protocol, and it does not support versions.
            let missing = if origin == "embedded" { "versions" } else { "direct" };
            let is_there = |name: &str| {
                // The second gateway is another server than the first: the embedded one.
                !name.contains(missing) && (origin == "seaweedfs" || !name.contains("two gateways"))
            };
            let tests = TESTS.iter().filter(|(name, _)| is_there(name));
            let tests = tests.map(|(name, test)| (format!("{origin}: {name}"), Box::new(*test) as Box<_>));
            suite.in_lab(move || lab_with(NAME, origin), tests.collect());
        }
    })
}

/// Compares responses to the same requests from two sources; adds the differences by kind.
fn compare(
    labels: &[String],
    (one, ones): (&str, &[Reply]),
    (other, others): (&str, &[Reply]),
    differences: &mut BTreeMap<String, Vec<String>>,
) -> Result<()> {
    ensure!(ones.len() == labels.len() && others.len() == labels.len(), "an answer is missing");
    for ((label, expected), got) in labels.iter().zip(ones).zip(others) {
        for difference in differences::between(expected, got) {
            let kind = difference.split(':').next().context("nothing")?.to_owned();
            differences
                .entry(kind)
                .or_default()
                .push(format!("{label}: {other} differs from {one}: {difference}"));
        }
    }
    Ok(())
}

/// Fails with some differences of each kind, if there are any.
fn fail_on_differences(differences: &BTreeMap<String, Vec<String>>) -> Result<()> {
    let shown: Vec<String> = differences
        .iter()
        .map(|(kind, found)| {
            format!("{} of `{kind}`:\n    {}", found.len(), found[..found.len().min(4)].join("\n    "))
        })
        .collect();
    ensure!(shown.is_empty(), "{}", shown.join("\n"));
    Ok(())
}
