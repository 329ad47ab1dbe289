//! Upgrades and rollbacks under load: the build of the last release point and today's, and today's and one that has the next
//! version of each format. Needs root and what `cargo xtask test upgrade` installs and builds.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use lota_tests::{
    suite::{Suite, TestFn, lab_with, tests},
    tour::Tour,
};

#[path = "upgrade/load.rs"]
mod load;
#[path = "upgrade/nodes.rs"]
mod nodes;
#[path = "upgrade/roll.rs"]
mod roll;

const NAME: &str = "lota-upgrade";

const TESTS: [(&str, TestFn); 2] = [
    ("from the last release point to this build and back", roll::released),
    ("from this build to the next formats and back", roll::next_formats),
];

fn main() -> ExitCode {
    Suite::run(NAME, |suite| suite.in_lab(make, tests(&TESTS)))
}

fn make() -> Result<Tour> {
    let tour = lab_with(NAME, "embedded")?;
    let made = tour.client.create_bucket(&tour.pod(1, 1))?;
    ensure!(made.status == 200, "making the bucket: {} {}", made.status, made.code);
    Ok(tour)
}
