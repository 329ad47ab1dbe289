//! To a client, LOTA is the gateway: the same signed requests, byte for byte, are sent to the gateway and through
//! LOTA cold, warm, and from pods of every node; what comes back must be the same but for a short list.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::raw::Reply,
    suite::{Suite, lab_with},
    tour::Tour,
};

#[path = "parity/differences.rs"]
mod differences;
#[path = "parity/reads.rs"]
mod reads;
#[path = "parity/table.rs"]
mod table;
#[path = "parity/versions.rs"]
mod versions;
#[path = "parity/writes.rs"]
mod writes;

/// The lab of this suite.
const NAME: &str = "lota-parity";

/// One test's share of the requests.
type Test = fn(&mut Tour) -> Result<()>;

const TESTS: [(&str, Test); 8] = [
    ("reads by LOTA's own credential", reads::own_credential),
    ("reads by direct path", reads::direct),
    ("reads by the client's own request", reads::client_only),
    ("reads signed anew", reads::signed_anew),
    ("one object, asked for in every way", reads::one_after_the_other),
    ("versions", versions::all),
    ("writes", writes::as_they_are),
    ("writes signed anew", writes::signed_anew),
];

fn main() -> ExitCode {
    Suite::run(NAME, |suite| {
        for origin in ["embedded", "seaweedfs"] {
            // Only the project's own gateway speaks its protocol, and it keeps no versions.
            let missing = if origin == "embedded" { "versions" } else { "direct" };
            let tests = TESTS.iter().filter(|(name, _)| !name.contains(missing));
            let tests = tests.map(|(name, test)| (format!("{origin}: {name}"), Box::new(*test) as Box<_>));
            suite.in_lab(move || lab_with(NAME, origin), tests.collect());
        }
    })
}

/// Compares what came by two ways; every difference, by what was asked.
fn compare(
    asked: &[String],
    (one, ones): (&str, &[Reply]),
    (other, others): (&str, &[Reply]),
    differences: &mut BTreeMap<String, Vec<String>>,
) -> Result<()> {
    ensure!(ones.len() == asked.len() && others.len() == asked.len(), "an answer is missing");
    for ((asked, expected), got) in asked.iter().zip(ones).zip(others) {
        for difference in differences::between(expected, got) {
            let kind = difference.split(':').next().context("nothing")?.to_owned();
            differences
                .entry(kind)
                .or_default()
                .push(format!("{asked}: {other} is not as {one}: {difference}"));
        }
    }
    Ok(())
}

/// Fails with a few differences of each kind.
fn judge(differences: &BTreeMap<String, Vec<String>>) -> Result<()> {
    let shown: Vec<String> = differences
        .iter()
        .map(|(kind, found)| {
            format!("{} of `{kind}`:\n    {}", found.len(), found[..found.len().min(4)].join("\n    "))
        })
        .collect();
    ensure!(shown.is_empty(), "{}", shown.join("\n"));
    Ok(())
}
