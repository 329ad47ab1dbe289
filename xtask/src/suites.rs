//! The suites, by name, and the one line of counts at their end.

use std::{
    fs,
    num::NonZero,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::Instant,
};

use crate::{
    demo, image,
    kernels::{KERNELS, boot},
    kubernetes, setup,
    tell::{ROOT, cargo, run, watch},
};

/// A suite: its name, and what runs it.
type Suite = (&'static str, fn(&mut Counts) -> Result<(), String>);

const SUITES: [Suite; 16] = [
    ("lint", lint),
    ("unit", unit),
    ("fuzz", fuzz),
    ("packet", packet),
    ("kernels", kernels),
    ("datapath", datapath),
    ("storage", storage),
    ("e2e", e2e),
    ("parity", parity),
    ("clients", clients),
    ("consistency", consistency),
    ("deploy", deploy),
    ("kubernetes", kubernetes),
    ("image", image::suite),
    ("monitoring", monitoring),
    ("page", page),
];

/// Those that run only when they are named.
const ON_DEMAND: [Suite; 1] = [("kubernetes-node", kubernetes_node)];

/// Most lines of what went wrong that are said again at the end.
const MOST_SAID_AGAIN: usize = 200;

/// How many checks did what.
#[derive(Default)]
pub(crate) struct Counts {
    passed: u64,
    failed: u64,
    /// What went wrong, in the words of whoever found it.
    wrong: Vec<String>,
}

/// Runs the named suites, or all.
pub(crate) fn test(names: &[&str]) -> Result<(), String> {
    let suites = || SUITES.iter().chain(&ON_DEMAND);
    if let Some(unknown) = names.iter().find(|name| suites().all(|(known, _)| known != *name)) {
        let known: Vec<&str> = suites().map(|(name, _)| *name).collect();
        return Err(format!("there is no suite `{unknown}`; there are {}", known.join(", ")));
    }
    let wanted: Vec<&Suite> = match names {
        [] => SUITES.iter().collect(),
        names => suites().filter(|(name, _)| names.contains(name)).collect(),
    };
    let mut ahead = match wanted.iter().position(|(name, _)| *name == "kubernetes") {
        Some(1..) => kubernetes::Ahead::begin().unwrap_or_else(|error| {
            eprintln!("xtask: {error}");
            None
        }),
        _ => None,
    };
    let mut all = Counts::default();
    let mut table = format!("\n{:<16}{:>8}{:>8}{:>9}", "suite", "passed", "failed", "seconds");
    for (name, run) in wanted {
        println!("\n===== {name} =====");
        if *name == "kubernetes"
            && let Some(ahead) = ahead.take()
        {
            ahead.end();
        }
        let (began, mut counts) = (Instant::now(), Counts::default());
        if let Err(error) = run(&mut counts) {
            eprintln!("xtask: {name}: {error}");
            counts.wrong.push(error);
            counts.failed += 1;
        }
        let seconds = began.elapsed().as_secs();
        table += &format!("\n{name:<16}{:>8}{:>8}{seconds:>9}", counts.passed, counts.failed);
        all.passed += counts.passed;
        all.failed += counts.failed;
        all.wrong.extend(counts.wrong.into_iter().map(|line| format!("{name}: {line}")));
    }
    println!("{table}");
    // What scrolled by long ago, or was cut out of a log's middle.
    for line in all.wrong.iter().take(MOST_SAID_AGAIN) {
        println!("{line}");
    }
    println!("\n{} passed, {} failed", all.passed, all.failed);
    if all.failed == 0 { Ok(()) } else { Err("not everything passed".into()) }
}

/// Runs the named benchmarks, or all. They are not part of the tests: machines differ, and so do their minutes.
pub(crate) fn bench(names: &[&str]) -> Result<(), String> {
    // What runs in this process itself is measured as it is delivered.
    const BENCHES: [(&str, &str); 6] = [
        ("datapath", "dev"),
        ("placement", "release"),
        ("serving", "release"),
        ("cold", "release"),
        ("memory", "release"),
        ("storage", "release"),
    ];
    let known = BENCHES.map(|(name, _)| name);
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        return Err(format!("there is no benchmark `{unknown}`; there are {}", known.join(", ")));
    }
    setup::to_build()?;
    setup::to_run()?;
    let mut missed = Vec::new();
    for (bench, profile) in BENCHES.iter().filter(|(name, _)| names.is_empty() || names.contains(name)) {
        let mut command =
            cargo(&["bench", "--quiet", "--profile", profile, "--package", "lota-tests", "--bench", bench]);
        command.env("LOTA_PYTHON", setup::client()?);
        command.env("LOTA_BIN", demo::build_lota(*profile == "release")?);
        if ["serving", "cold", "memory"].contains(bench) {
            command.env("LOTA_NGINX", setup::nginx()?);
        }
        if *bench == "serving" {
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

/// Formatting, clippy with warnings as errors, the one feature that no other suite builds, and what dependencies may be.
fn lint(counts: &mut Counts) -> Result<(), String> {
    setup::to_lint()?;
    counts.run("formatting", &mut cargo(&["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    counts.run("clippy", &mut cargo(&clippy))?;
    let log = ["check", "--quiet", "--package", "lota-daemon", "--features", "datapath-log"];
    counts.run("the kernel side with its log", &mut cargo(&log))?;
    // Advisories are the network's.
    let deny = ["deny", "check", "bans", "licenses", "sources"];
    counts.run("licences, sources and versions", &mut cargo(&deny))
}

/// Unit and property tests.
fn unit(counts: &mut Counts) -> Result<(), String> {
    setup::to_build()?;
    counts.tests("unit and property tests", &mut cargo(&["test", "--quiet", "--workspace", "--lib"]))
}

/// Every fuzz target for a little while, from its seeds and whatever was found before. More at once:
/// `LOTA_FUZZ_SECONDS=600 cargo xtask test fuzz`.
fn fuzz(counts: &mut Counts) -> Result<(), String> {
    setup::to_fuzz()?;
    let seconds: u32 = match std::env::var("LOTA_FUZZ_SECONDS") {
        Ok(seconds) => seconds.parse().map_err(|_| "LOTA_FUZZ_SECONDS is not a number".to_owned())?,
        Err(_) => 10,
    };
    // Sanitizers want a nightly toolchain, and find what this project has next to none of: unsafe code gone wrong.
    let common = ["--sanitizer", "none", "--dev", "--fuzz-dir", "tests/fuzz"];
    run("building the fuzz targets", cargo(&["fuzz", "build"]).args(common))?;
    let targets =
        fs::read_dir(Path::new(ROOT).join("tests/fuzz/targets")).map_err(|error| error.to_string())?;
    let mut targets: Vec<PathBuf> = targets.flatten().map(|target| target.path()).collect();
    targets.sort();
    let names: Vec<&str> = targets.iter().filter_map(|target| target.file_stem()?.to_str()).collect();
    let at_once = thread::available_parallelism().map_or(1, NonZero::get);
    for some in names.chunks(at_once) {
        eprintln!("==> fuzzing {} for {seconds} s", some.join(", "));
        let fuzzed: Vec<_> = thread::scope(|scope| {
            let fuzzing: Vec<_> =
                some.iter().map(|target| scope.spawn(|| fuzz_target(target, &common, seconds))).collect();
            fuzzing.into_iter().map(|fuzzing| fuzzing.join().map_err(|_| "a thread panicked")).collect()
        });
        for (target, output) in some.iter().zip(fuzzed) {
            let output = output??;
            let said = String::from_utf8_lossy(&output.stderr);
            if output.status.success() {
                let done = said.lines().rfind(|line| line.starts_with("Done"));
                eprintln!("    {target}: {}", done.unwrap_or_default());
            } else {
                // A long way back from its end it says what went wrong.
                eprintln!("{said}");
            }
            counts.one(target, output.status.success());
        }
    }
    Ok(())
}

fn fuzz_target(target: &str, common: &[&str], seconds: u32) -> Result<Output, String> {
    let found = format!("target/fuzz/{target}");
    fs::create_dir_all(Path::new(ROOT).join(&found)).map_err(|error| error.to_string())?;
    let mut fuzz = cargo(&["fuzz", "run"]);
    fuzz.args(common).args([target, &found]);
    let seeds = format!("tests/fuzz/seeds/{target}");
    if Path::new(ROOT).join(&seeds).exists() {
        fuzz.arg(seeds);
    }
    fuzz.args(["--", "-max_len=4096", "-timeout=10"]);
    fuzz.arg(format!("-max_total_time={seconds}"));
    // What it fails on stays there; add it to the seeds when it is mended.
    fuzz.arg(format!("-artifact_prefix=target/fuzz/{target}-"));
    fuzz.output().map_err(|error| format!("cannot run {fuzz:?}: {error}"))
}

/// The programs, run by the kernel.
fn packet(counts: &mut Counts) -> Result<(), String> {
    setup::to_build()?;
    setup::to_run()?;
    counts.tests(
        "packet tests",
        &mut cargo(&["test", "--quiet", "--package", "lota-tests", "--test", "packet"]),
    )
}

/// The programs, run and attached by other kernels.
fn kernels(counts: &mut Counts) -> Result<(), String> {
    setup::to_build()?;
    setup::to_run()?;
    for kernel in KERNELS {
        let (before, mut result) = (counts.passed, (0, 0));
        let passed = boot(kernel, |line| result = add_result(line, result))?;
        counts.passed += result.0;
        counts.failed += result.1;
        if !passed && result.1 == 0 {
            return Err(format!("{kernel} did not get to the end of the suite"));
        }
        if counts.passed == before {
            return Err(format!("no test passed on {kernel}"));
        }
    }
    Ok(())
}

/// The kernel side, with the daemon around it.
fn datapath(counts: &mut Counts) -> Result<(), String> {
    let mut tests = lab_tests("datapath", setup::client)?;
    tests.env("LOTA_RCLONE", setup::resolvers()?);
    counts.tests("datapath tests", &mut tests)
}

/// The cache, on disks that fail and in processes that are killed.
fn storage(counts: &mut Counts) -> Result<(), String> {
    setup::to_build()?;
    setup::to_run()?;
    let tests = ["test", "--quiet", "--package", "lota-tests", "--test", "storage"];
    counts.tests("suite storage", &mut cargo(&tests))
}

/// The whole road.
fn e2e(counts: &mut Counts) -> Result<(), String> {
    with_lab(counts, "e2e", setup::client)
}

/// The same requests at the gateway and through LOTA.
fn parity(counts: &mut Counts) -> Result<(), String> {
    with_lab(counts, "parity", setup::client)
}

/// Clients that others wrote.
fn clients(counts: &mut Counts) -> Result<(), String> {
    with_lab(counts, "clients", setup::clients)
}

/// Reads after writes.
fn consistency(counts: &mut Counts) -> Result<(), String> {
    with_lab(counts, "consistency", setup::client)
}

/// Metrics, and the dashboard and alerts that are made of them.
fn monitoring(counts: &mut Counts) -> Result<(), String> {
    let mut tests = lab_tests("monitoring", setup::client)?;
    tests.env("LOTA_PROMTOOL", setup::promtool()?);
    counts.tests("suite monitoring", &mut tests)
}

/// Writes the documents that unit tests compare with the code.
pub(crate) fn docs() -> Result<(), String> {
    setup::to_build()?;
    let tests = ["test", "--quiet", "--package", "lota-daemon", "--lib", "the_document_is_up_to_date"];
    run("writing docs/metrics.md and docs/configuration.md", cargo(&tests).env("LOTA_WRITE_DOCS", "1"))
}

/// The status page, in a browser.
fn page(counts: &mut Counts) -> Result<(), String> {
    let mut tests = lab_tests("page", setup::client)?;
    tests.env("LOTA_BROWSER", setup::browser()?);
    counts.tests("the status page", &mut tests)
}

/// The image as a pod, on a real kubelet.
fn kubernetes_node(counts: &mut Counts) -> Result<(), String> {
    let servers = kubernetes::servers()?;
    let node = kubernetes::node_servers()?;
    let image = image::for_tests()?;
    let mut tests = lab_tests("kubernetes_node", setup::client)?;
    tests.args(["--", "--nocapture"]).env("LOTA_IMAGE", image);
    tests.env("LOTA_APISERVER", servers.apiserver).env("LOTA_ETCD", servers.etcd);
    tests.env("LOTA_KUBECTL", servers.clients.kubectl).env("LOTA_HELM", servers.clients.helm);
    tests.env("LOTA_KUBELET", node.kubelet).env("LOTA_CONTROLLER_MANAGER", node.controller_manager);
    tests.env("LOTA_SCHEDULER", node.scheduler).env("LOTA_CONTAINERD", node.containerd);
    tests.env("LOTA_BUSYBOX", node.busybox);
    counts.tests("suite kubernetes-node", &mut tests)
}

/// What a real API server tells.
fn kubernetes(counts: &mut Counts) -> Result<(), String> {
    let servers = kubernetes::servers()?;
    let mut tests = lab_tests("kubernetes", setup::client)?;
    tests.env("LOTA_APISERVER", servers.apiserver).env("LOTA_ETCD", servers.etcd);
    tests.env("LOTA_KUBECTL", servers.clients.kubectl).env("LOTA_HELM", servers.clients.helm);
    counts.tests("suite kubernetes", &mut tests)
}

/// What `deploy/` renders to.
fn deploy(counts: &mut Counts) -> Result<(), String> {
    setup::to_build()?;
    let tools = kubernetes::clients()?;
    let mut tests = cargo(&["test", "--quiet", "--package", "lota-tests", "--test", "deploy"]);
    tests.env("LOTA_HELM", tools.helm).env("LOTA_KUBECTL", tools.kubectl);
    tests.env("LOTA_PYTHON", setup::schemas()?);
    // As the DaemonSet does.
    tests.env("LOTA_NODE_NAME", "n1").env("LOTA_NODE_ADDRESS", "10.0.0.1");
    counts.tests("suite deploy", &mut tests)
}

/// A suite that runs nodes and a gateway, and clients by this Python.
fn with_lab(counts: &mut Counts, suite: &str, python: fn() -> Result<PathBuf, String>) -> Result<(), String> {
    let mut tests = lab_tests(suite, python)?;
    tests.env("LOTA_WEED", setup::seaweedfs()?);
    counts.tests(&format!("suite {suite}"), &mut tests)
}

/// A suite's tests, with what a lab needs: the daemon, and a Python with clients.
fn lab_tests(suite: &str, python: fn() -> Result<PathBuf, String>) -> Result<Command, String> {
    setup::to_build()?;
    setup::to_run()?;
    let mut tests = cargo(&["test", "--quiet", "--package", "lota-tests", "--test", suite]);
    tests.env("LOTA_PYTHON", python()?);
    tests.env("LOTA_BIN", demo::build_lota(false)?);
    Ok(tests)
}

impl Counts {
    fn one(&mut self, what: &str, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.wrong.push(format!("{what} failed"));
        }
    }

    /// A check of ours: says how it went.
    pub(crate) fn check(&mut self, what: &str, result: Result<(), String>) {
        let passed = result.is_ok();
        match result {
            Ok(()) => println!("ok      {what}"),
            Err(error) => {
                println!("FAILED  {what}: {error}");
                self.wrong.push(error);
            }
        }
        self.one(what, passed);
    }

    /// A check that is a command.
    fn run(&mut self, what: &str, command: &mut Command) -> Result<(), String> {
        let succeeded = watch(what, command, |_| ())?;
        self.one(what, succeeded);
        Ok(())
    }

    /// Adds up the result lines of cargo's test runner, and keeps what it says of failures; one that ends badly without
    /// a result has failed, too.
    fn tests(&mut self, what: &str, command: &mut Command) -> Result<(), String> {
        let (mut result, mut is_wrong) = ((0, 0), false);
        let succeeded = watch(what, command, |line| {
            result = add_result(line, result);
            // From here on it says what went wrong, then its result.
            is_wrong = line == "failures:" || is_wrong && !line.starts_with("test result: ");
            if is_wrong && !line.is_empty() && line != "failures:" {
                self.wrong.push(line.to_owned());
            }
        })?;
        let (passed, mut failed) = result;
        if !succeeded && failed == 0 {
            failed = 1;
            self.wrong.push(format!("{what} ended badly"));
        }
        if succeeded && passed == 0 {
            return Err("no test ran".into());
        }
        self.passed += passed;
        self.failed += failed;
        Ok(())
    }
}

/// Passed and failed, with those of a test runner's result line.
fn add_result(line: &str, (passed, failed): (u64, u64)) -> (u64, u64) {
    match line.starts_with("test result: ") {
        true => (passed + number_before(line, " passed"), failed + number_before(line, " failed")),
        false => (passed, failed),
    }
}

fn number_before(line: &str, word: &str) -> u64 {
    let digits = line.split(word).next().unwrap_or_default();
    digits
        .rsplit(|character: char| !character.is_ascii_digit())
        .next()
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}
