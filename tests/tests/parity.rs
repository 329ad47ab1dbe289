//! To a client, LOTA is the gateway: the same signed requests, byte for byte, are sent to the gateway and through
//! LOTA cold, warm, and from pods of every node; what comes back must be the same but for a short list.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use lota_tests::{
    lab::{Lab, Origin, clean_up_on_signal, raw::Reply, still_wanted},
    tool,
    tour::{Tools, Tour},
};

#[path = "parity/differences.rs"]
mod differences;
#[path = "parity/reads.rs"]
mod reads;
#[path = "parity/table.rs"]
mod table;
#[path = "parity/writes.rs"]
mod writes;

/// The lab of this suite.
const NAME: &str = "lota-parity";

/// One test's share of the requests.
type Test = fn(&mut Tour) -> Result<()>;

const TESTS: [(&str, Test); 5] = [
    ("reads by LOTA's own credential", reads::own_credential),
    ("reads by direct path", reads::direct),
    ("reads by the client's own request", reads::client_only),
    ("one object, asked for in every way", reads::one_after_the_other),
    ("writes", writes::all),
];

fn main() -> ExitCode {
    if let Err(error) = clean_up_on_signal(NAME) {
        eprintln!("parity: {error:#}");
        return ExitCode::FAILURE;
    }
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let mut failed = false;
    for origin in ["embedded", "seaweedfs"] {
        let lab: Arc<Mutex<Option<Tour>>> = Arc::default();
        let trials = TESTS
            .iter()
            // Only the project's own gateway speaks its protocol.
            .filter(|(name, _)| origin == "embedded" || !name.contains("direct"))
            .map(|(name, test)| {
                let lab = lab.clone();
                Trial::test(format!("{origin}: {name}"), move || {
                    let mut lab = lab.lock().unwrap_or_else(PoisonError::into_inner);
                    if lab.is_none() {
                        *lab = Some(make(origin).map_err(|error| Failed::from(format!("{error:#}")))?);
                    }
                    let tour = lab.as_mut().ok_or("there is no lab")?;
                    test(tour).map_err(|error| Failed::from(format!("{error:#}")))
                })
            })
            .collect();
        failed |= libtest_mimic::run(&arguments, trials).has_failed();
    }
    still_wanted();
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn make(origin: &str) -> Result<Tour> {
    let lab = Lab::up(NAME)?;
    let origin = match origin {
        "embedded" => Origin::embedded(lab.folder())?,
        _ => Origin::seaweed(&tool("LOTA_WEED")?, lab.folder())?,
    };
    Tour::start(lab, origin, &Tools { lota: tool("LOTA_BIN")?, python: tool("LOTA_PYTHON")? })
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
