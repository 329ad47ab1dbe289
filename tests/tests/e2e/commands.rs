//! `lota check`, and `lota cache stat`, `evict` and `verify`.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Output};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{ADMIN, Node, READER, Style},
    tour::{MIB, Tour, wait_until},
};
use serde_json::Value;

/// Runs a `lota` command with `--json`, and returns its lines.
fn lota(node: &Node, arguments: &[&str]) -> Result<(Output, Vec<Value>)> {
    let mut command = node.command();
    let output = command.args(arguments).arg("--json").arg("--config").arg(node.config()).output()?;
    let lines = String::from_utf8(output.stdout.clone())?;
    let lines = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>();
    Ok((output, lines.context("not JSON")?))
}

pub(crate) fn check(tour: &mut Tour) -> Result<()> {
    let node = &tour.nodes[0];
    let good = fs::read_to_string(node.config())?;
    let (checked, results) = lota(node, &["check"])?;
    let of = |part: &str| results.iter().filter(|line| line["part"] == part).collect::<Vec<_>>();
    ensure!(checked.status.success(), "a good configuration fails: {results:#?}");
    for part in ["config", "cache", "datapath", "gateway", "clock", "verification", "backend", "peers"] {
        let lines = of(part);
        ensure!(!lines.is_empty(), "no result for {part}: {results:#?}");
        ensure!(lines.iter().all(|line| line["level"] != "fail"), "{lines:#?}");
    }
    ensure!(of("peers").iter().any(|line| line["what"].to_string().contains("2 of 2")), "{results:#?}");

    let file = node.folder().join("checked.toml");
    let secret = node.folder().join("other-secret");
    fs::write(&secret, "a-cluster-secret-that-the-others-do-not-have")?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644))?;
    let credential = node.folder().join("other-credential.toml");
    fs::write(
        &credential,
        format!("access_key = \"{}\"\nsecret_key = \"wrong-secret\"\n", READER.access_key),
    )?;
    let own = |name: &str| format!("{}/{name}", node.folder().display());
    for (from, to, part, message) in [
        ("http://10.77.0.100:9000", "http://gateway.example".to_owned(), "gateway", "is a placeholder"),
        ("http://10.77.0.100:9000", "http://10.77.0.100:9999".to_owned(), "gateway", "cannot be reached"),
        ("http://10.77.0.100:9000", "http://no-such-host.invalid".to_owned(), "gateway", "does not resolve"),
        ("http://10.77.0.100:9000", "https://10.77.0.100:9000".to_owned(), "gateway", "does not answer"),
        ("uplink = \"uplink\"", "uplink = \"eth7\"".to_owned(), "datapath", "there is no interface eth7"),
        (&own("cluster-secret"), own("other-secret"), "peers", "does not answer as a peer"),
        (&own("credential.toml"), own("other-credential.toml"), "backend", "refuses LOTA's own credential"),
        (&own("credential.toml"), own("none.toml"), "backend", "cannot read"),
        (
            "capacity = \"4GiB\"\nmin_free",
            "capacty = \"4GiB\"\nmin_free".to_owned(),
            "config",
            "did you mean",
        ),
    ] {
        fs::write(&file, good.replacen(from, &to, 1))?;
        let (checked, results) = lota(node, &["check", &file.display().to_string()])?;
        let found =
            results.iter().find(|line| line["part"] == part && line["what"].to_string().contains(message));
        let found = found.with_context(|| format!("{to}: no result contains `{message}`: {results:#?}"))?;
        ensure!(found["level"] == "fail" && checked.status.code() == Some(1), "{to}: {found}");
        ensure!(found["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{to}: no fix: {found}");
        let all = format!("{results:?}{}", String::from_utf8_lossy(&checked.stderr));
        for secret in ["wrong-secret", "a-cluster-secret-that", "the lab's cluster key", &*ADMIN.secret_key] {
            ensure!(!all.contains(secret), "{to}: it shows `{secret}`");
        }
    }
    fs::write(&file, good.replace(&own("cluster-secret"), &own("other-secret")))?;
    let shown = node.command().arg("check").arg(&file).output()?;
    let shown = String::from_utf8(shown.stdout)?;
    ensure!(shown.contains("warn") && shown.contains("chmod 600"), "an open secret: {shown}");
    Ok(())
}

pub(crate) fn cache(tour: &mut Tour) -> Result<()> {
    let (client, pod) = (tour.client.clone(), tour.pod(1, 1));
    for node in &tour.nodes {
        lota(node, &["cache", "evict", "--all"])?;
    }
    let keys = ["evict/one", "evict/two", "keep/one"];
    let mut puts = Vec::new();
    for key in keys {
        puts.push(client.put(&pod, key, 150, 2 * MIB)?);
        client.get(&pod, key, Style::Path)?;
        tour.wait_cached(key)?;
    }
    let objects = |tour: &Tour| -> Result<u64> {
        tour.nodes.iter().try_fold(0, |all, node| {
            let (_, results) = lota(node, &["cache", "stat"])?;
            ensure!(results[0]["running"] == true, "{results:?}");
            let disk = &results[0]["disks"][0];
            let (bytes, objects) = (disk["bytes"].as_u64(), disk["objects"].as_u64().context("no objects")?);
            // Each object has metadata beside its bytes, and uses whole blocks.
            let each = 2 * MIB + 4096..=2 * MIB + (64 << 10);
            let bytes = bytes.context("no bytes")?;
            ensure!(objects == 0 || each.contains(&(bytes / objects)), "{disk}");
            ensure!(disk["free"].as_u64() > Some(MIB), "{disk}");
            Ok(all + objects)
        })
    };
    ensure!(objects(tour)? == 3, "{} objects", objects(tour)?);
    let evict = |tour: &Tour, which: &str| -> Result<u64> {
        tour.nodes.iter().try_fold(0, |all, node| {
            let (done, results) = lota(node, &["cache", "evict", which])?;
            ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            Ok(all + results[0]["objects"].as_u64().context("not counted")?)
        })
    };
    let named = |key: &str| format!("s3://{}", client.name(key));
    ensure!(evict(tour, &named("evict/none"))? == 0, "an object was evicted without a match");
    ensure!(evict(tour, &named("evict/one"))? == 1 && tour.holders("evict/one")?.is_empty(), "one object");
    ensure!(evict(tour, &named("evict/*"))? == 1 && tour.holders("evict/two")?.is_empty(), "a prefix");
    let wrong = lota(&tour.nodes[0], &["cache", "evict"])?.0;
    ensure!(!wrong.status.success(), "without a name it evicts something");
    // An evicted object is fetched again unchanged.
    let got = client.get(&pod, "evict/one", Style::Path)?;
    ensure!(got.sha256 == puts[0].sha256 && got.cache() == "miss", "{} {}", got.status, got.cache());
    let shown = tour.nodes[0].lota(&["cache", "stat"])?;
    ensure!(shown.contains("hits since start:") && shown.contains("CAPACITY"), "{shown}");
    verify(tour, "keep/one", &puts[2].sha256)
}

fn verify(tour: &Tour, key: &str, sha256: &str) -> Result<()> {
    let (client, pod) = (&tour.client, tour.pod(1, 1));
    let owner = tour.wait_cached(key)?;
    let node = tour.nodes.iter().find(|node| node.name() == owner).context("no such owner")?;
    let (sound, results) = lota(node, &["cache", "verify"])?;
    let last = results.last().context("no output")?;
    ensure!(sound.status.success() && last["corrupt"] == 0, "{results:?}");
    ensure!(last["bytes"].as_u64() >= Some(2 * MIB), "{last}");

    // Corrupts a file of a running daemon.
    let list = node.lota(&["cache", "ls", "--json"])?;
    let objects = list.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
    let object = objects.iter().find(|object| object["key"] == *key).context("not in the list")?;
    let path = object["file"].as_str().context("no file")?;
    let mut bytes = fs::read(path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes)?;
    let (found, results) = lota(node, &["cache", "verify"])?;
    ensure!(found.status.code() == Some(1), "a corrupt object is not detected: {results:?}");
    let corrupt = results.iter().find(|line| line["file"] == path).context("it is not named")?;
    ensure!(corrupt["object"].as_str() == Some(&*client.name(key)), "{corrupt}");
    let (repaired, results) = lota(node, &["cache", "verify", "--repair"])?;
    let last = results.last().context("no output")?;
    ensure!(repaired.status.success() && last["corrupt"] == 1 && last["dropped"] == 1, "{results:?}");
    wait_until("the corrupt object to be gone", || Ok(!node.cached()?.contains_key(&client.name(key))))?;
    ensure!(node.metric("lota_cache_corrupt_total")? >= 1.0, "it is not counted");
    let got = client.get(&pod, key, Style::Path)?;
    ensure!(got.sha256 == sha256, "{} {}", got.status, got.cache());
    Ok(())
}
