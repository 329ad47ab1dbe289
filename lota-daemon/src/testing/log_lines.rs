//! Verifies that nobody can flood the log: lines that a request, a response or a message causes have a rate limit.

use std::{fs, path::Path};

/// Folders of the code that handles requests and responses.
const FOLDERS: [&str; 4] = ["dns", "gateway", "http", "proxy"];
/// Files whose lines are about changes of a state, or commands of an operator.
const STATES: [&str; 4] = ["gateway/verification.rs", "http/stray.rs", "http/tls.rs", "proxy/pins.rs"];
/// Maximum distance in lines between the limit and the line to log.
const DISTANCE: usize = 3;

/// Returns the lines under `place` that log something without a limit.
fn unlimited(place: &Path) -> Vec<String> {
    if place.is_dir() {
        let entries = fs::read_dir(place).unwrap();
        return entries.flat_map(|entry| unlimited(&entry.unwrap().path())).collect();
    }
    if place.to_string_lossy().ends_with("tests.rs") || STATES.iter().any(|states| place.ends_with(states)) {
        return Vec::new();
    }
    let text = fs::read_to_string(place).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let logs = |line: &str| ["error!(", "warn!(", "info!("].iter().any(|log| line.contains(log));
    let is_limited =
        |at: usize| lines[at.saturating_sub(DISTANCE)..at].iter().any(|line| line.contains(".admit()"));
    let found = (0..lines.len()).filter(|at| logs(lines[*at]) && !is_limited(*at));
    found.map(|at| format!("{}:{}", place.display(), at + 1)).collect()
}

#[test]
fn lines_about_requests_have_a_rate_limit() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let found: Vec<String> = FOLDERS.iter().flat_map(|folder| unlimited(&source.join(folder))).collect();
    assert!(found.is_empty(), "use `LogLimit`: {found:#?}");
    assert!(!unlimited(&source.join("daemon")).is_empty(), "cannot read the sources");
}
