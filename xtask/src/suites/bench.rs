//! Benchmarks. They are no suites: machines differ, and so do their minutes.

use crate::{
    demo,
    process::{cargo, watch},
    setup,
};

/// Benchmarks that take so long that they run only by name.
const ONLY_BY_NAME: [&str; 1] = ["soak"];

/// Runs the named benchmarks, or all. They get the options that follow the names.
pub(crate) fn bench(arguments: &[&str]) -> Result<(), String> {
    // What runs in this process itself is measured as it is delivered.
    const BENCHES: [(&str, &str); 9] = [
        ("datapath", "dev"),
        ("placement", "release"),
        ("serving", "release"),
        ("cold", "release"),
        ("memory", "release"),
        ("storage", "release"),
        ("writes", "release"),
        // The links are the limit.
        ("objects", "dev"),
        ("soak", "release"),
    ];
    let options = arguments.iter().position(|argument| argument.starts_with("--"));
    let (names, options) = arguments.split_at(options.unwrap_or(arguments.len()));
    let known = BENCHES.map(|(name, _)| name);
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        return Err(format!("there is no benchmark `{unknown}`; there are {}", known.join(", ")));
    }
    if !options.is_empty() && names.is_empty() {
        return Err(format!("{} is an option of a benchmark: name that first", options[0]));
    }
    setup::to_build()?;
    setup::to_run()?;
    let mut missed = Vec::new();
    for (bench, profile) in BENCHES.iter().filter(|(name, _)| match names {
        [] => !ONLY_BY_NAME.contains(name),
        names => names.contains(name),
    }) {
        let mut command =
            cargo(&["bench", "--quiet", "--profile", profile, "--package", "lota-tests", "--bench", bench]);
        if !options.is_empty() {
            command.arg("--").args(options);
        }
        command.env("LOTA_PYTHON", setup::client()?);
        command.env("LOTA_BIN", demo::build_lota(*profile == "release")?);
        if ["serving", "cold", "memory"].contains(bench) {
            command.env("LOTA_NGINX", setup::nginx()?);
        }
        if ["serving", "writes"].contains(bench) {
            command.env("LOTA_WEED", setup::seaweedfs()?);
        }
        if !watch(&format!("benchmark {bench}"), &mut command, |_| ())? {
            missed.push(*bench);
        }
    }
    match missed.as_slice() {
        [] => Ok(()),
        missed => Err(format!("a goal was missed, or it failed: {}", missed.join(", "))),
    }
}
