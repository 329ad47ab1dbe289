//! A mixed load for a long time, in a lab of three nodes whose caches are smaller than the data: no request may fail, no
//! read may return wrong bytes, latency may not grow, and what a daemon uses must return to a level.
//!
//! A client without progress, wrong bytes, an exceeded limit or a slow minute ends the run at once. Slow growth is found at
//! the end, by comparing the second quarter of the run with the last.

#[path = "soak/figures.rs"]
mod figures;

use std::{
    process::ExitCode,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Parser;
use lota_tests::{
    bench::{self, Goal, MAX_RATIO, Panel, Report, Windows},
    history,
    lab::{Mode, NODES, Pod, claim},
    load::{LoadClient, LoadState, Workload},
    suite::lab_with,
    tour::{Tour, wait_within},
};
use serde::Serialize;

use figures::{CAPACITY, FIGURES, NodeUse};

const NAME: &str = "lota-bench-soak";
/// Interval between samples.
const INTERVAL: Duration = Duration::from_secs(5);
/// Samples between two replacements of pods.
const SAMPLES_PER_POD: usize = 2;
/// Time within which each client must complete a request.
const PROGRESS: Duration = Duration::from_secs(10);
/// Time within which each object must have been written once.
const WRITTEN: Duration = Duration::from_secs(300);
/// Caches of half the size of the data, objects in stripes, and uploads that are kept.
const CONFIG: &str =
    "[placement]\nstripe_above = \"1MiB\"\nstripe = \"1MiB\"\n[cache]\nafter_write = \"keep\"\n";

/// Runs a mixed load for a long time.
#[derive(Debug, Parser)]
struct SoakArguments {
    /// Length of the run, in minutes.
    #[arg(long, default_value_t = 20)]
    minutes: u32,
    /// Print the results as JSON.
    #[arg(long)]
    json: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Measurements at one time.
#[derive(Debug, Serialize)]
struct SoakSample {
    /// Minutes since the beginning.
    minute: f64,
    /// Requests per second since the sample before.
    rate: f64,
    /// Latencies of these requests, in milliseconds.
    p50: f64,
    p99: f64,
    nodes: Vec<NodeUse>,
}

fn main() -> ExitCode {
    bench::ended("soak", measure(&SoakArguments::parse()))
}

/// Returns the load: about 300 requests per second at most, of 500 MB of data, of which some is used more often.
fn workload() -> Workload {
    Workload {
        bucket: "soak",
        clients: 6,
        keys: 4000,
        keys_per_large: 25,
        draws: 2,
        pause: 20..100,
        cure: PROGRESS,
        writes_first: true,
        reads_last: false,
    }
}

fn measure(arguments: &SoakArguments) -> Result<bool> {
    claim(NAME)?;
    let mut tour = lab_with(NAME, "embedded")?;
    tour.nodes.iter_mut().for_each(|node| node.edit("4GiB", &format!("{CAPACITY}MiB")));
    tour.restart_with(Mode::OwnCredential, "[cache]\n", CONFIG)?;
    let load = LoadState::new(workload(), rand::random());
    load.make_bucket(&tour.lab)?;
    let length = Duration::from_secs(60) * arguments.minutes;
    let (mut samples, mut windows) = (Vec::new(), Windows::of(length));
    let ran = load
        .run(&mut tour, |tour| watch(tour, &load, length, &mut samples, &mut windows))
        .and_then(|(clients, watched)| watched.map(|()| clients));
    // What ended a run early can be seen in the plot.
    let mut report = Report::new("soak");
    if arguments.json {
        report.print_json();
    }
    let minutes: Vec<f64> = samples.iter().map(|sample| sample.minute).collect();
    report.add_series(&samples, &minutes, &panels(&samples))?;
    summarize(&mut report, &tour, &load, &samples, &windows)?;
    let written = report.write()?;
    check(&ran?)?;
    Ok(written)
}

/// Takes samples for this time, and replaces pods.
fn watch(
    tour: &Tour,
    load: &LoadState,
    length: Duration,
    samples: &mut Vec<SoakSample>,
    windows: &mut Windows,
) -> Result<()> {
    wait_within(WRITTEN, "each object to be written", || {
        let silent = load.longest_silence();
        ensure!(silent < PROGRESS, "a client has completed no request for {silent:.1?}");
        Ok(load.is_ready() || load.is_over.load(Ordering::Relaxed))
    })?;
    let (began, mut before) = (Instant::now(), load.latencies.counts());
    windows.begin(before.clone());
    let mut last = began;
    for number in 1.. {
        thread::sleep((began + INTERVAL * number).saturating_duration_since(Instant::now()));
        // A client ends all others if it fails.
        if load.is_over.load(Ordering::Relaxed) || began.elapsed() > length {
            break;
        }
        let counts = load.latencies.counts();
        let (requests, seconds) = (counts.since(&before), last.elapsed().as_secs_f64());
        last = Instant::now();
        let sample = SoakSample {
            minute: began.elapsed().as_secs_f64() / 60.0,
            rate: requests.total() as f64 / seconds,
            p50: requests.percentile(0.5) * 1e3,
            p99: requests.percentile(0.99) * 1e3,
            nodes: tour.nodes.iter().map(NodeUse::of).collect::<Result<_>>()?,
        };
        eprint!(
            "\r    {:.1} min: {:.0}/s, p50 {:.1} ms, p99 {:.1} ms ",
            sample.minute, sample.rate, sample.p50, sample.p99
        );
        let limits = sample.nodes.iter().try_for_each(NodeUse::check);
        samples.push(sample);
        limits?;
        windows.add(began.elapsed(), &counts)?;
        let silent = load.longest_silence();
        ensure!(silent < PROGRESS, "a client has completed no request for {silent:.1?}");
        if samples.len().is_multiple_of(SAMPLES_PER_POD) {
            // The last pod of the last node has no access.
            let node = u8::try_from(samples.len() / SAMPLES_PER_POD % usize::from(NODES - 1))? + 1;
            load.replace_pod(tour, Pod(node, 2))
                .with_context(|| format!("replacing a pod of node {node}"))?;
        }
        before = counts;
    }
    eprintln!();
    Ok(())
}

/// Adds the results to the report.
fn summarize(
    report: &mut Report,
    tour: &Tour,
    load: &LoadState,
    samples: &[SoakSample],
    windows: &Windows,
) -> Result<()> {
    let each = |figure: fn(&SoakSample) -> f64| samples.iter().map(figure).collect::<Vec<_>>();
    report.add("requests per second", "/s", Goal::None, each(|sample| sample.rate));
    report.add("p50 of five seconds", "ms", Goal::None, each(|sample| sample.p50));
    report.add("p99 of five seconds", "ms", Goal::None, each(|sample| sample.p99));
    report.add(
        format!("slowest p99 of {:.0?}, relative to the first ones", windows.length),
        "x",
        Goal::AtMost(MAX_RATIO),
        vec![windows.worst],
    );
    load.failures().iter().for_each(|failure| eprintln!("    repeated: {failure}"));
    let retries = load.retries.load(Ordering::Relaxed);
    report.add("requests that were repeated", "", Goal::AtMost(0.0), vec![retries as f64]);
    let evictions = tour.metric("lota_cache_evictions_total").unwrap_or(f64::NAN);
    report.add("evicted objects", "", Goal::AtLeast(1.0), vec![evictions]);
    for figure in &FIGURES {
        let of = |sample: &SoakSample, node: usize| (figure.of)(&sample.nodes[node]);
        let all = samples.iter().flat_map(|sample| (0..sample.nodes.len()).map(|node| of(sample, node)));
        let largest = all.fold(0.0, f64::max);
        report.add(
            format!("{} of a node, at most", figure.name),
            figure.unit,
            Goal::AtMost(figure.limit),
            vec![largest],
        );
        let growth = (0..usize::from(NODES))
            .filter_map(|node| {
                let over_time: Vec<f64> = samples.iter().map(|sample| of(sample, node)).collect();
                figure.growth(&over_time)
            })
            .max_by(|one, other| one.excess().total_cmp(&other.excess()));
        if let Some(growth) = growth {
            report.add(
                "… growth from the second quarter to the last",
                figure.unit,
                Goal::AtMost(growth.allowed),
                vec![growth.found],
            );
        }
    }
    Ok(())
}

/// Returns the panels of the plot.
fn panels(samples: &[SoakSample]) -> Vec<Panel> {
    let each = |figure: fn(&SoakSample) -> f64| samples.iter().map(figure).collect::<Vec<_>>();
    let latency = Panel {
        title: "latency in ms".to_owned(),
        lines: vec![
            ("p50".to_owned(), each(|sample| sample.p50)),
            ("p99".to_owned(), each(|sample| sample.p99)),
        ],
    };
    let rate = Panel {
        title: "requests per second".to_owned(),
        lines: vec![("all clients".to_owned(), each(|sample| sample.rate))],
    };
    let figures = FIGURES.iter().map(|figure| {
        let line = |node: usize| {
            let values = samples.iter().map(|sample| (figure.of)(&sample.nodes[node]));
            (format!("node {}", node + 1), values.collect())
        };
        let unit = if figure.unit.is_empty() { String::new() } else { format!(" in {}", figure.unit) };
        Panel { title: format!("{}{unit}", figure.name), lines: (0..usize::from(NODES)).map(line).collect() }
    });
    [latency, rate].into_iter().chain(figures).collect()
}

/// Checks what the clients saw.
fn check(clients: &[LoadClient<'_>]) -> Result<()> {
    let events: Vec<_> = clients.iter().flat_map(|client| client.events.iter().copied()).collect();
    let hits = clients.iter().map(|client| client.hits).sum::<usize>();
    ensure!(hits > 0, "no request was a hit");
    eprintln!("    {} operations, {hits} of them hits; checking the history", events.len());
    history::check(&events).map_err(|wrong| anyhow!(wrong))
}
