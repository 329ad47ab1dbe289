//! Metrics as Prometheus scrapes them, and the dashboard and alerts that use them. Needs root and what `cargo xtask
//! test monitoring` installs.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use lota_daemon::metrics::catalog;
use lota_tests::{
    lab::{Mode, NOBODY, Style, run},
    suite::{Suite, TestFn, lab_with, tests},
    tool,
    tour::{MIB, Tour, wait_until},
};
use serde_json::{Value, json};

#[path = "monitoring/rules.rs"]
mod rules;

/// The lab of this suite.
const NAME: &str = "lota-monitoring";

fn main() -> ExitCode {
    Suite::run(NAME, |suite| {
        suite.alone("alert rules are valid and have runbooks", rules::are_complete);
        suite.alone("each alert fires when it should, and only then", rules::fire);
        suite.alone("the dashboard's queries are valid and use existing metrics", dashboard_is_sound);
        let table: [(&str, TestFn); 3] = [
            ("a scrape follows Prometheus' conventions", scrape_is_sound),
            ("every request is counted once, in the right series", counted),
            ("pods can read metrics on their own port, and nothing else", for_pods),
        ];
        suite.in_lab(|| lab_with(NAME, "embedded"), tests(&table));
    })
}

fn monitoring() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/monitoring")
}

fn promtool(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(tool("LOTA_PROMTOOL")?);
    command.current_dir(monitoring()).args(arguments);
    Ok(command)
}

fn dashboard_is_sound() -> Result<()> {
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(monitoring().join("dashboard.json"))?)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let mut ids = BTreeSet::new();
    let mut queries = Vec::new();
    for panel in panels {
        ensure!(ids.insert(panel["id"].as_u64()), "duplicate id {}", panel["id"]);
        for target in panel["targets"].as_array().into_iter().flatten() {
            ensure!(
                target["datasource"]["uid"] == "${datasource}",
                "{} has its own datasource",
                panel["title"]
            );
            queries.push(target["expr"].as_str().context("no query")?.to_owned());
        }
    }
    ensure!(queries.len() > 30, "{} queries", queries.len());
    let all = queries.join("\n");
    names_known_metrics(&all)?;
    let unused: Vec<_> =
        catalog::all().filter(|metric| !all.contains(metric.name)).map(|metric| metric.name).collect();
    ensure!(unused.is_empty(), "the dashboard does not show {}", unused.join(", "));
    // promtool parses the queries as rules.
    let rules = queries.iter().enumerate().map(|(place, query)| {
        let expr = query.replace("$__rate_interval", "5m").replace("$node", ".*");
        json!({"record": format!("panel:{place}"), "expr": expr})
    });
    let rules = json!({"groups": [{"name": "dashboard", "rules": rules.collect::<Vec<_>>()}]});
    let file = std::env::temp_dir().join(format!("lota-dashboard-{}.json", std::process::id()));
    fs::write(&file, rules.to_string())?;
    let checked = run(promtool(&["check", "rules"])?.arg(&file));
    fs::remove_file(&file)?;
    checked.map(|_| ())
}

/// Verifies that all series in a text belong to existing metrics, and all labels to them.
fn names_known_metrics(text: &str) -> Result<()> {
    for (start, _) in text.match_indices("lota_") {
        let rest = &text[start..];
        let end =
            rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let metric = catalog::of_series(name).with_context(|| format!("there is no metric {name}"))?;
        let Some((matchers, _)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) else {
            continue;
        };
        // Split outside of quotes, which may contain commas.
        for matcher in matchers.split(", ").filter(|matcher| matcher.contains(['=', '~'])) {
            let label = matcher.split(['=', '!', '~']).next().unwrap_or_default();
            let is_known = ["node", "instance", "job"].contains(&label)
                || metric.labels.iter().any(|(known, _)| *known == label);
            ensure!(is_known, "{name} has no label `{label}`");
        }
    }
    Ok(())
}

fn scrape_is_sound(tour: &mut Tour) -> Result<()> {
    let (client, pod) = (&tour.client, tour.pod(1, 1));
    client.create_bucket(&pod)?;
    // Enough objects that other nodes own some.
    for number in 0..10 {
        let key = format!("monitored/{number}");
        client.put(&pod, &key, 140, MIB)?;
        client.get(&pod, &key, Style::Path)?;
    }
    wait_until("the fill to be counted", || {
        let shown = tour.nodes.iter().map(|node| node.admin("/metrics")).collect::<Result<Vec<_>>>()?;
        Ok(shown.iter().any(|text| text.contains("lota_fills_total{")))
    })?;
    let mut all = String::new();
    for node in &tour.nodes {
        let text = node.admin("/metrics")?;
        let mut check = promtool(&["check", "metrics"])?;
        let mut check = check.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        check.stdin.take().context("no stdin")?.write_all(text.as_bytes())?;
        let output = check.wait_with_output()?;
        let output_text = [output.stdout, output.stderr].concat();
        ensure!(
            output.status.success() && output_text.is_empty(),
            "promtool: {}",
            String::from_utf8_lossy(&output_text)
        );
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            ensure!(catalog::of_series(name).is_some(), "{name} is not in the catalog");
        }
        all.push_str(&text);
    }
    for metric in catalog::all() {
        // Exported only where they apply.
        let of_some = ["lota_kubernetes_up", "lota_uncached_total"].contains(&metric.name);
        ensure!(of_some || all.contains(&format!("# TYPE {} ", metric.name)), "{} is not shown", metric.name);
    }
    Ok(())
}

fn counted(tour: &mut Tour) -> Result<()> {
    let (client, pod, key) = (tour.client.clone(), tour.pod(1, 1), "counted");
    client.create_bucket(&pod)?;
    client.put(&pod, key, 141, 3 * MIB)?;
    client.get(&pod, key, Style::Path)?;
    let owner = tour.wait_cached(key)?;
    // Verification of the gateway.
    wait_until("a hit", || Ok(client.get(&pod, key, Style::Path)?.cache() == "hit"))?;
    let locality = if owner == "n1" { "local" } else { "remote" };
    let series = [
        "lota_requests_total{cache=\"hit\",status=\"200\"}".to_owned(),
        "lota_requests_total{cache=\"hit\",status=\"206\"}".to_owned(),
        "lota_requests_total{cache=\"bypass\",status=\"403\"}".to_owned(),
        "lota_request_seconds_count{cache=\"hit\"}".to_owned(),
        "lota_range_requests_total".to_owned(),
        "lota_object_size_requests_total{size=\"16MiB\"}".to_owned(),
        format!("lota_owner_requests_total{{locality=\"{locality}\"}}"),
        format!("lota_sent_bytes_total{{source=\"{locality}\"}}"),
        "lota_gateway_requests_total{gateway=\"default\",status=\"304\"}".to_owned(),
        "lota_gateway_requests_total{gateway=\"default\",status=\"403\"}".to_owned(),
        "lota_errors_total{kind=\"unavailable\"}".to_owned(),
    ];
    let before = series.iter().map(|series| tour.metric(series)).collect::<Result<Vec<_>>>()?;
    client.get(&pod, key, Style::Path)?;
    client.get_with(&pod, key, json!({"range": "bytes=0-1023"}))?;
    let refused = client.with(NOBODY).get(&pod, key, Style::Path)?;
    ensure!(refused.status == 403, "{}", refused.status);
    let moved = [1.0, 1.0, 1.0, 2.0, 1.0, 2.0, 3.0, (3 * MIB + 1024) as f64, 2.0, 1.0, 0.0];
    for ((series, before), moved) in series.iter().zip(before).zip(moved) {
        let now = tour.metric(series)? - before;
        // The body of a refusal also comes from the owner; rounds of the gateway's verification are requests to it.
        let tolerance = match series.as_str() {
            series if series.contains("sent_bytes") => 0.0..=2000.0,
            series if series.starts_with("lota_gateway_requests_total") => 0.0..=f64::INFINITY,
            _ => 0.0..=0.0,
        };
        ensure!(tolerance.contains(&(now - moved)), "{series} moved by {now}, not {moved}");
    }
    ensure!(
        tour.metric("lota_nodes_known")? == 9.0
            && tour.metric("lota_cache_capacity_bytes")? == 3.0 * (4u64 << 30) as f64
    );
    let version = format!("lota_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    ensure!(tour.metric(&version)? == 3.0, "the nodes have different versions");
    Ok(())
}

fn for_pods(tour: &mut Tour) -> Result<()> {
    let node = &mut tour.nodes[0];
    node.stop(nix::sys::signal::Signal::SIGTERM)?;
    node.edit("[admin]\n", "[admin]\nmetrics_listen = \"0.0.0.0:7482\"\n");
    node.configure(Mode::OwnCredential)?;
    node.start()?;
    node.forget_edits();
    let pod = tour.pod(1, 1);
    let ask = |port: u16, path: &str| {
        let mut curl = pod.pod_command("curl");
        curl.args(["--silent", "--max-time", "3", "--include"]).arg(format!("http://10.77.0.1:{port}{path}"));
        run(&mut curl)
    };
    let answer = ask(7482, "/metrics")?;
    ensure!(answer.contains("text/plain; version=0.0.4") && answer.contains("lota_build_info"), "{answer}");
    ensure!(answer.contains("lota_datapath_packets_total{"), "without the kernel side: {answer}");
    ensure!(ask(7482, "/readyz")?.contains("ready pid="), "not ready for pods");
    for path in ["/", "/status.json", "/access", "/metrics/"] {
        ensure!(ask(7482, path)?.starts_with("HTTP/1.1 404 "), "pods can read {path}");
    }
    ensure!(ask(7481, "/metrics").is_err(), "pods reach the admin port");
    tour.restart(Mode::OwnCredential)
}
