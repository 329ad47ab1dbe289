//! `lota-lab`: shows the tour, or keeps a lab for experiments. Run by `cargo xtask demo` and `cargo xtask lab`.

use std::{
    fs,
    io::IsTerminal as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use lota_tests::{
    lab::{DENIED, Lab, Origin, Pod, claim, still_wanted},
    tour::{Line, STEPS, Tools, Tour},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Names of the tour's lab and of the lab of `lab up`.
const DEMO: &str = "lota-demo";
const KEPT: &str = "lota-kept";
/// Timeout for a background lab to start or stop.
const LAB_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Parser)]
#[command(name = "lota-lab")]
struct Cli {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Subcommand)]
enum LabCommand {
    /// Show the main features, step by step.
    Tour {
        #[command(flatten)]
        parts: Parts,
        /// Keep the lab afterwards, until Ctrl-C.
        #[arg(long)]
        keep: bool,
        /// Print one JSON object per line of the table.
        #[arg(long)]
        json: bool,
    },
    /// Start a lab in the background.
    Up {
        #[command(flatten)]
        parts: Parts,
    },
    /// The background process of `up`.
    #[command(hide = true)]
    Hold {
        #[command(flatten)]
        parts: Parts,
    },
    /// Stop and remove the lab.
    Down,
    /// Run a command in a pod (`n1p1`), a node (`n1`) or the gateway's namespace (`switch`) of the lab.
    Exec {
        /// Pod, node or `switch`.
        place: String,
        /// Command with its arguments.
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

#[derive(Args, Clone)]
struct Parts {
    /// Path of the built daemon.
    #[arg(long)]
    lota: PathBuf,
    /// Python interpreter with boto3.
    #[arg(long)]
    python: PathBuf,
    /// S3 endpoint to use instead of the embedded gateway: `http://host:port`.
    #[arg(long)]
    gateway: Option<String>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        LabCommand::Tour { parts, keep, json } => tour(&parts, keep, json),
        LabCommand::Up { parts } => up(&parts),
        LabCommand::Hold { parts } => hold(&parts),
        LabCommand::Down => down(),
        LabCommand::Exec { place, command } => exec(&place, &command),
    };
    still_wanted();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lota-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn tour(parts: &Parts, keep: bool, json: bool) -> Result<()> {
    claim(DEMO)?;
    let table = Table { json, started: Instant::now() };
    table.step(1, "a lab: three nodes, two pods on each, a gateway with storage");
    let mut tour = start(DEMO, parts)?;
    table.line(&plain("namespaces, veth pairs, a bridge; nodes n1, n2, n3", "up"));
    table.line(&plain("gateway, behind counting relays", &tour.origin.address().to_string()));
    let mut failed = 0;
    for step in STEPS {
        table.step(step.number, step.title);
        match (step.run)(&mut tour) {
            Ok(lines) => lines.iter().for_each(|line| table.line(line)),
            Err(error) => {
                failed += 1;
                table.line(&plain("FAILED", &format!("{error:#}")));
            }
        }
    }
    show_access_map(&tour, &table)?;
    if keep && failed == 0 {
        hint(&tour.lab, "Ctrl-C removes the lab.");
        loop {
            thread::park();
        }
    }
    table.step(STEPS.last().map_or(1, |step| step.number + 1), "the lab is removed completely");
    drop(tour);
    let left = Lab::leftovers(DEMO);
    table.line(&plain("namespaces, pins, processes, files left", &left.len().to_string()));
    ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    ensure!(failed == 0, "{failed} steps failed");
    Ok(())
}

fn start(name: &str, parts: &Parts) -> Result<Tour> {
    let lab = Lab::up(name)?;
    let origin = match &parts.gateway {
        Some(url) => Origin::given(url)?,
        None => Origin::embedded(lab.folder())?,
    };
    let tools = Tools { lota: parts.lota.clone(), python: parts.python.clone() };
    Tour::start(lab, origin, &tools)
}

/// Prints the access entries with `bpftool`.
fn show_access_map(tour: &Tour, table: &Table) -> Result<()> {
    if table.json {
        return Ok(());
    }
    let map = tour.nodes[0].map(lota_common::map::ACCESS4);
    println!("\n$ bpftool map dump pinned {}", map.display());
    Command::new("bpftool").args(["map", "dump", "pinned"]).arg(&map).status().context("running bpftool")?;
    Ok(())
}

fn hint(lab: &Lab, end: &str) {
    let pod = lab.pod(Pod(1, 1));
    println!(
        "\nThe lab {name} is up. Enter a pod and try:\n    ip netns exec {pod} bash\n    getent hosts \
         my-bucket.cwlota.com\n    curl -i http://cwlota.com/          # 403: the gateway requires a signature\n\
         The pod {denied} has no access:\n    ip netns exec {denied} curl -i http://cwlota.com/   # refused\n{end}",
        name = lab.name(),
        pod = pod.name(),
        denied = lab.pod(DENIED).name(),
    );
}

/// Returns the path of the file with the id of the background process.
fn holder() -> PathBuf {
    PathBuf::from(format!("/run/lota-lab-{KEPT}.pid"))
}

fn up(parts: &Parts) -> Result<()> {
    down()?;
    let log = fs::File::create(format!("/run/lota-lab-{KEPT}.log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("hold").arg("--lota").arg(&parts.lota).arg("--python").arg(&parts.python);
    if let Some(url) = &parts.gateway {
        command.args(["--gateway", url]);
    }
    // In a process group of its own, so that Ctrl-C in this terminal does not reach it.
    let mut process = command.stdout(log.try_clone()?).stderr(log).process_group(0).spawn()?;
    let deadline = Instant::now() + LAB_TIMEOUT;
    while !holder().exists() {
        if process.try_wait()?.is_some() || Instant::now() > deadline {
            let _ = process.kill();
            let log = fs::read_to_string(format!("/run/lota-lab-{KEPT}.log")).unwrap_or_default();
            Lab::down(KEPT)?;
            bail!("the lab did not start: {log}");
        }
        thread::sleep(Duration::from_millis(50));
    }
    println!("{}", fs::read_to_string(format!("/run/lota-lab-{KEPT}.log"))?.trim());
    Ok(())
}

fn hold(parts: &Parts) -> Result<()> {
    claim(KEPT)?;
    let tour = start(KEPT, parts)?;
    hint(&tour.lab, "`cargo xtask lab down` removes the lab.");
    fs::write(holder(), std::process::id().to_string())?;
    loop {
        thread::park();
    }
}

fn down() -> Result<()> {
    if let Ok(pid) = fs::read_to_string(holder()) {
        let pid: i32 = pid.trim().parse().context("reading the holder's process id")?;
        // The id may have been reused by another process.
        let holds =
            fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("lota-lab"));
        if holds {
            kill(Pid::from_raw(pid), Signal::SIGTERM)?;
            let deadline = Instant::now() + LAB_TIMEOUT;
            while Path::new(&format!("/proc/{pid}")).exists() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(50));
            }
        }
        let _ = fs::remove_file(holder());
    }
    let _ = fs::remove_file(format!("/run/lota-lab-{KEPT}.log"));
    Lab::down(KEPT)
}

fn exec(place: &str, command: &[String]) -> Result<()> {
    let namespace = lota_tests::lab::Namespace::named(&format!("{KEPT}-{place}"));
    let (program, arguments) = command.split_first().context("no command")?;
    // Pods need their own resolv.conf; nodes need the machine's bpffs.
    let pod = place.contains('p');
    let mut command = if pod { namespace.pod_command(program) } else { namespace.command(program) };
    Err(command.args(arguments).exec()).with_context(|| format!("running {program} in {place}"))
}

/// Output of the tour.
struct Table {
    json: bool,
    started: Instant,
}

impl Table {
    fn step(&self, number: u8, title: &str) {
        let at = self.started.elapsed().as_secs_f64();
        if self.json {
            println!("{}", serde_json::json!({"step": number, "title": title, "at": at}));
        } else if std::io::stdout().is_terminal() {
            println!("\n\x1b[1m{number:>2}  {title}\x1b[0m  \x1b[2m{at:.1} s\x1b[0m");
        } else {
            println!("\n{number:>2}  {title}  ({at:.1} s)");
        }
    }

    fn line(&self, line: &Line) {
        let Line { what, seen, seconds } = line;
        if self.json {
            println!("{}", serde_json::json!({"what": what, "seen": seen, "seconds": seconds}));
            return;
        }
        let time = seconds.map(|seconds| format!("{:>8.1} ms", seconds * 1000.0)).unwrap_or_default();
        println!("    {what:<58} {time:>11}  {seen}");
    }
}

fn plain(what: &str, seen: &str) -> Line {
    Line { what: what.to_owned(), seen: seen.to_owned(), seconds: None }
}
