//! Alert rules: each is complete, names known metrics, has a section in the troubleshooting guide, and is made to fire.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result, ensure};
use lota_tests::lab::run;
use serde::{Deserialize, de::DeserializeOwned};

use super::{monitoring, names_known_metrics, promtool};

const RULES: &str = "alerts.yaml";
const TESTS: &str = "alerts_test.yaml";

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Alert>,
}

/// An alert; every field but `for` is required.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Alert {
    alert: String,
    expr: String,
    #[serde(rename = "for")]
    _pending: Option<String>,
    #[serde(rename = "labels")]
    _labels: Labels,
    annotations: Annotations,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Labels {
    #[serde(rename = "severity")]
    _severity: Severity,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Critical,
    Warning,
    Info,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Annotations {
    summary: String,
    description: String,
    runbook_url: String,
}

#[derive(Deserialize)]
struct RuleTests {
    tests: Vec<RuleTest>,
}

#[derive(Deserialize)]
struct RuleTest {
    #[serde(default)]
    alert_rule_test: Vec<AlertTest>,
    #[serde(default)]
    promql_expr_test: Vec<ExpressionTest>,
}

#[derive(Deserialize)]
struct AlertTest {
    alertname: String,
    /// Alerts that fire at that time.
    #[serde(default)]
    exp_alerts: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct ExpressionTest {
    expr: String,
    exp_samples: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    labels: String,
}

fn parse<T: DeserializeOwned>(file: &str) -> Result<T> {
    let path = monitoring().join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_norway::from_str(&text).with_context(|| format!("cannot parse {}", path.display()))
}

fn alerts() -> Result<Vec<Alert>> {
    Ok(parse::<Rules>(RULES)?.groups.into_iter().flat_map(|group| group.rules).collect())
}

pub(crate) fn are_complete() -> Result<()> {
    run(&mut promtool(&["check", "rules", "--lint-fatal", RULES])?)?;
    let guide = fs::read_to_string(monitoring().join("../../docs/troubleshooting.md"))?;
    let anchors: BTreeSet<String> =
        guide.lines().filter_map(|line| line.strip_prefix("## ")).map(anchor).collect();
    let alerts = alerts()?;
    ensure!(alerts.len() > 10, "{} alerts", alerts.len());
    for Alert { alert, expr, annotations, .. } in &alerts {
        names_known_metrics(expr)?;
        let Annotations { summary, description, runbook_url } = annotations;
        ensure!(!summary.is_empty() && !description.is_empty(), "{alert} does not describe itself");
        let section = runbook_url.split_once("/docs/troubleshooting.md#").map(|(_, section)| section);
        ensure!(
            section.is_some_and(|section| anchors.contains(section)),
            "{alert}: no section {runbook_url}"
        );
    }
    Ok(())
}

/// Returns a heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, '-' | '_')).collect()
}

pub(crate) fn fire() -> Result<()> {
    run(&mut promtool(&["test", "rules", TESTS])?)?;
    let mut fired = BTreeSet::new();
    for test in parse::<RuleTests>(TESTS)?.tests {
        let by_name = test.alert_rule_test.into_iter().filter(|test| !test.exp_alerts.is_empty());
        fired.extend(by_name.map(|test| test.alertname));
        for ExpressionTest { expr, exp_samples } in test.promql_expr_test {
            let samples = exp_samples.iter().map(|sample| sample.labels.as_str());
            let expression = (!exp_samples.is_empty()).then_some(expr.as_str());
            fired.extend(samples.chain(expression).filter_map(alert_name));
        }
    }
    for Alert { alert, .. } in alerts()? {
        ensure!(fired.contains(&alert), "no test makes {alert} fire");
    }
    Ok(())
}

/// Returns the alert that labels or a selector name.
fn alert_name(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("alertname=\"")?;
    Some(rest.split_once('"')?.0.to_owned())
}
