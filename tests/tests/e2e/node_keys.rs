//! Keys of nodes instead of a cluster key.

use std::{fs, mem, path::Path};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{ADMIN, Mode, Namespace, Node},
    tour::{Tour, wait_until},
};
use serde_json::Value;

use crate::secrets::{
    OBJECTS, ReadCounts, cached_objects, count_all, expect_no_secret, get, next_hits, readers, while_reading,
};

/// Kinds of keys in the order of a migration.
const MODES: [&str; 3] = ["shared", "both", "node"];
/// Reads from the cache of another node, on each node, after which the next step begins.
const REMOTE_HITS: u64 = 8;
/// Reasons in the log for refusing messages that a migration and a rotation must not cause.
const REASONS: [&str; 3] = ["a wrong MAC", "no public key of its sender", "no peer header"];

/// State of the cluster's keys: a node's public keys by its place.
type Keys = [Vec<String>; 3];

pub(crate) fn migration(tour: &mut Tour) -> Result<()> {
    let migrated = migrate(tour);
    for node in &tour.nodes {
        let _ = fs::remove_file(node.folder().join("node-key.pem"));
    }
    // This writes the cluster key and a configuration with it again.
    tour.restart(Mode::OwnCredential).context("afterwards")?;
    migrated
}

fn migrate(tour: &mut Tour) -> Result<()> {
    let objects = cached_objects(tour, "node-keys")?;
    let mut nodes = mem::take(&mut tour.nodes);
    let (readers, reads) = (readers(tour, &objects)?, [(); 3].map(|()| ReadCounts::default()));
    let done = while_reading(&readers, &reads, |_| true, || steps(&mut nodes, &reads));
    tour.nodes = nodes;
    done?;
    let all = count_all(&reads);
    println!("  {all} reads during the migration and the rotation; none failed");
    // The first refusals, of which the log has each reason only once in ten seconds.
    remove_key(tour)?;
    stranger(&tour.nodes[2])?;
    for node in &tour.nodes {
        let secret = fs::read_to_string(node.folder().join("node-key.pem"))?;
        let secret = secret.lines().nth(1).context("an empty key file")?;
        expect_no_secret(tour, &[secret])?;
    }
    Ok(())
}

/// Migrates from cluster keys to keys of nodes, node by node, and replaces the key of one node.
fn steps(nodes: &mut [Node], reads: &[ReadCounts; 3]) -> Result<()> {
    next_hits(reads, REMOTE_HITS).context("before the migration")?;
    let before = refusals(nodes)?;
    let first = nodes.iter().map(|node| fs::read_to_string(node.config())).collect::<Result<Vec<_>, _>>()?;
    let mut keys = Keys::default();
    for (node, keys) in nodes.iter().zip(&mut keys) {
        keys.push(public_key(node, &node.folder().join("node-key.pem"))?);
    }
    for (mode, order) in [(1, [2, 0, 1]), (2, [1, 2, 0])] {
        for at in order {
            let node = &mut nodes[at];
            fs::write(node.config(), configured(&first[at], node, MODES[mode], &keys)?)?;
            node.start()?;
            let is_known = format!("lota_peer_authentication{{mode=\"{}\"}}", MODES[mode]);
            ensure!(
                node.metric(&is_known)? == 1.0 && node.metric("lota_node_keys")? == 2.0,
                "{}",
                node.name()
            );
            next_hits(reads, REMOTE_HITS).with_context(|| format!("n{} has mode {}", at + 1, MODES[mode]))?;
        }
        if MODES[mode] == "both" {
            let shown = nodes[0].command().arg("check").arg(nodes[0].config()).output()?;
            let shown = String::from_utf8(shown.stdout)?;
            let is_done = shown.contains("2 of 2 other nodes answer, with the keys of both nodes");
            ensure!(is_done && shown.contains("a stolen cluster key still counts"), "{shown}");
        }
    }
    for node in &*nodes {
        fs::remove_file(node.folder().join("cluster-secret"))?;
        ensure!(node.metric("lota_cluster_keys")? == 0.0, "{} has a cluster key", node.name());
        let status: Value = serde_json::from_str(&status(node, &["--json"])?)?;
        let peers = status["peers"].as_array().context("no peers")?;
        let are_known = peers.iter().all(|peer| peer["has_public_key"] == true);
        ensure!(status["peer_authentication"] == "node" && are_known, "{status:#}");
    }
    // A node's key is replaced without a restart.
    let file = nodes[1].folder().join("next-key.pem");
    keys[1].push(public_key(&nodes[1], &file)?);
    publish(nodes, &first, &keys)?;
    next_hits(reads, REMOTE_HITS).context("the next key is known")?;
    fs::rename(file, nodes[1].folder().join("node-key.pem"))?;
    nodes[1].reload()?;
    next_hits(reads, REMOTE_HITS).context("n2 has the next key")?;
    keys[1].remove(0);
    publish(nodes, &first, &keys)?;
    next_hits(reads, REMOTE_HITS).context("the first key is forgotten")?;
    let after = refusals(nodes)?;
    ensure!(after == before, "messages were refused: {before:?}, then {after:?}");
    Ok(())
}

/// Returns the output of `lota status`, which fails if the node has a problem.
fn status(node: &Node, arguments: &[&str]) -> Result<String> {
    let mut command = node.command();
    let output = command.arg("status").args(arguments).arg("--config").arg(node.config()).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// Makes a node's key, and returns its public half.
fn public_key(node: &Node, file: &Path) -> Result<String> {
    let arguments = ["node-key", "--create", "--file", &file.display().to_string()];
    Ok(node.lota(&arguments)?.trim().to_owned())
}

/// Returns a node's configuration with these keys.
fn configured(first: &str, node: &Node, mode: &str, keys: &Keys) -> Result<String> {
    let folder = node.folder().display();
    let shared = format!("secret_file = \"{folder}/cluster-secret\"\n");
    ensure!(first.contains(&shared), "{first}");
    let kept = if mode == "node" { "" } else { &shared };
    let own = format!("{kept}authentication = \"{mode}\"\nnode_key_file = \"{folder}/node-key.pem\"\n");
    let mut text = first.replace(&shared, &own);
    for (place, keys) in (1..).zip(keys) {
        let name = format!("{{ name = \"n{place}\", ");
        ensure!(text.contains(&name), "{text}");
        text = text.replace(&name, &format!("{name}public_keys = {keys:?}, "));
    }
    Ok(text)
}

/// Lets all nodes read these public keys.
fn publish(nodes: &[Node], first: &[String], keys: &Keys) -> Result<()> {
    for (node, first) in nodes.iter().zip(first) {
        fs::write(node.config(), configured(first, node, "node", keys)?)?;
        let later = node.reload()?;
        ensure!(later.lines().count() == 1, "a restart is needed: {later}");
    }
    Ok(())
}

/// Returns how many log lines of each node report a message that was refused for its keys.
fn refusals(nodes: &[Node]) -> Result<Vec<usize>> {
    let count = |node: &Node| {
        let log = fs::read_to_string(node.log())?;
        Ok(log.lines().filter(|line| REASONS.iter().any(|reason| line.contains(reason))).count())
    };
    nodes.iter().map(count).collect()
}

/// A host with a node's configuration, and a key that no node knows, gets nothing.
fn stranger(node: &Node) -> Result<()> {
    let checked = |key: &str| -> Result<String> {
        let file = node.folder().join("checked.toml");
        fs::write(&file, fs::read_to_string(node.config())?.replace("/node-key.pem", key))?;
        let output = node.command().arg("check").arg(&file).output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let answer = checked("/node-key.pem")?;
    ensure!(answer.contains("2 of 2 other nodes answer, with the keys of both nodes"), "{answer}");
    public_key(node, &node.folder().join("other-key.pem"))?;
    let answer = checked("/other-key.pem")?;
    ensure!(answer.matches("does not answer as a peer").count() == 2, "{answer}");
    ensure!(answer.contains("peers.nodes lacks the public key of this node"), "{answer}");
    Ok(())
}

/// A node whose key the others do not know any more is refused from then on, and sent nothing.
fn remove_key(tour: &Tour) -> Result<()> {
    let configuration = fs::read_to_string(tour.nodes[0].config())?;
    let of_three = configuration.lines().find(|line| line.contains("name = \"n3\"")).context("no n3")?;
    let (before, _) = of_three.split_once("public_keys = [").context("no key of n3")?;
    let without = format!("{before}{}", of_three.split_once("], ").context("no end")?.1);
    let refused = "lota_peer_requests_total{role=\"refused\"}";
    let mut texts = Vec::new();
    for node in &tour.nodes[..2] {
        let text = fs::read_to_string(node.config())?;
        ensure!(text.contains(of_three), "{text}");
        fs::write(node.config(), text.replace(of_three, &without))?;
        node.reload()?;
        texts.push(text);
    }
    // Its pings are refused, and no pings go there.
    let pod: Namespace = tour.pod(3, 1);
    for number in 0..OBJECTS {
        let reply = get(tour, &pod, &format!("node-keys/{number}"), &ADMIN)?;
        let by_itself = reply.status == 200 && reply.header("lota-cache").contains("node=n3");
        ensure!(by_itself, "{} {}", reply.status, reply.header("lota-cache"));
    }
    wait_until("n3 to be alone", || Ok(tour.nodes[2].metric("lota_nodes_active")? == 1.0))?;
    for node in &tour.nodes[..2] {
        wait_until("a refusal", || Ok(node.metric(refused)? > 0.0))?;
        let log = fs::read_to_string(node.log())?;
        ensure!(log.contains("no public key of its sender is known"), "{} logs no reason", node.name());
        ensure!(node.metric("lota_node_keys")? == 1.0, "{} knows the key", node.name());
        let shown = status(node, &[])?;
        ensure!(shown.contains("no public key of n3"), "{shown}");
    }
    // Once the others know it again, it is a node as before.
    for (node, text) in tour.nodes.iter().zip(texts) {
        fs::write(node.config(), text)?;
        node.reload()?;
    }
    wait_until("every node to see every other", || Ok(tour.metric("lota_nodes_active")? == 9.0))
}
