//! The check of every node before an installation.

use std::{env, path::Path};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{NODES, run, run_with_input},
    tool,
};

use crate::{
    install::{HOME, Install},
    kubectl::wait,
    setup::Cluster,
};

/// A node's rule that drops connections to LOTA.
const RULE: &str = "add table inet site\n\
                    add chain inet site input { type filter hook input priority 0; policy accept; }\n\
                    add rule inet site input tcp dport 80 drop\n";

/// Verifies that the documented commands check each node, and show one table with the node whose rules are in the way.
pub(crate) fn table(cluster: &mut Cluster) -> Result<()> {
    let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/install.md"))?;
    let section = guide.split("\n## ").find(|section| section.starts_with("Check all nodes first"));
    let commands: Vec<&str> = section.context("no section")?.split("\n```\n").skip(1).step_by(2).collect();
    let command = |word: &str| commands.iter().find(|command| command.contains(word)).context("no command");
    let (show, missing) = (command("jq -")?, command("field-selector")?);

    let sick = NODES;
    let place = cluster.lab.node(sick);
    run_with_input(place.command("nft").args(["-f", "-"]), RULE)?;
    let checked = (|| {
        let manifest = cluster.render(
            "lota-preflight",
            Install::Privileged,
            &["--set-json", "preflight.enabled=true"],
        )?;
        cluster.kubectl.apply(&manifest)?;
        wait("every node to be checked", || {
            let set = cluster.kubectl.json(&["-n", HOME, "get", "daemonset", "lota-preflight"])?;
            Ok(set["status"]["numberAvailable"] == NODES)
        })?;
        let table = shell(cluster, show)?;
        eprintln!("{table}");
        let rows: Vec<Vec<&str>> = table.lines().map(cells).collect();
        let row = rows.iter().find(|row| row.get(1) == Some(&"rules") && row.get(3) == Some(&"n3"));
        let row = row.with_context(|| format!("no row about the rule of n{sick}:\n{table}"))?;
        ensure!(row[2] == "1" && row[4].contains("inet site"), "{row:?}");
        let failures: Vec<_> = rows.iter().filter(|row| row.first() == Some(&"fail")).collect();
        ensure!(failures.is_empty(), "{failures:?}");
        let nodes = NODES.to_string();
        ensure!(
            rows.contains(&vec!["all", "-", nodes.as_str(), "nodes have answered"]),
            "not all nodes:\n{table}"
        );
        let missing = shell(cluster, missing)?;
        ensure!(!missing.contains("preflight-"), "nodes that were not checked:\n{missing}");
        cluster.kubectl.delete(&manifest)
    })();
    run(place.command("nft").args(["delete", "table", "inet", "site"]))?;
    checked
}

fn cells(row: &str) -> Vec<&str> {
    row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

/// Runs a documented command; returns its output.
fn shell(cluster: &Cluster, command: &str) -> Result<String> {
    let kubectl = tool("LOTA_KUBECTL")?;
    let folder = kubectl.parent().unwrap_or_else(|| Path::new("/"));
    let path = format!("{}:{}", folder.display(), env::var("PATH").unwrap_or_default());
    let mut shell = cluster.lab.switch().command("sh");
    shell.args(["-c", command]).env("PATH", path).env("HOME", cluster.lab.folder());
    run(shell.env("KUBECONFIG", cluster.kubectl.kubeconfig()))
}
