//! Bad requests, and storage that misbehaves.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use lota_tests::{
    lab::{Mode, Style},
    tour::{MIB, Tour},
};
use serde_json::json;

pub(crate) fn odd_keys(tour: &mut Tour) -> Result<()> {
    let (client, pod) = (&tour.client, tour.pod(1, 1));
    let long = "k".repeat(1000);
    // SeaweedFS stores keys as files, and refuses names over 255 bytes and dot segments with its own response.
    for key in ["with space", "plus+and%2Fpercent", "ünï/cødé €", "quote\"<&>", "dots/..x", &long] {
        let put = match client.put(&pod, key, 100, 5000) {
            Ok(put) => put,
            Err(_) if !tour.origin.speaks_lota() => continue,
            Err(error) => return Err(error),
        };
        let cold = client.get(&pod, key, Style::Path)?;
        ensure!(
            cold.status == 200 && cold.sha256 == put.sha256,
            "cold {key:?}: {} {}",
            cold.status,
            cold.code
        );
        tour.wait_cached(key)?;
        let warm = client.get(&tour.pod(2, 1), key, Style::Virtual)?;
        ensure!(
            warm.sha256 == put.sha256 && warm.cache() == "hit",
            "warm {key:?}: {} {}",
            warm.status,
            warm.cache()
        );
    }
    for key in ["../../../../etc/passwd", "..", "a/../../b", "%2e%2e/%2e%2e/x"] {
        let got = client.get(&pod, key, Style::Path)?;
        ensure!(got.status >= 400 && got.status < 500, "{key:?} was answered {}", got.status);
    }
    if tour.origin.speaks_lota() {
        for key in ["a//b", "trailing/", "../up", "..", "a/../../b", "%2e%2e/x", &"ü".repeat(512)] {
            let put = client.put(&pod, key, 101, 3000)?;
            for _ in ["cold", "warm"] {
                let got = client.get(&pod, key, Style::Path)?;
                ensure!(got.sha256 == put.sha256, "{key:?}: {} {}", got.status, got.code);
            }
            tour.wait_cached(key)?;
        }
    }
    // The cache folders contain only files of the daemon, with its own names.
    for node in &tour.nodes {
        for file in object_files(&node.cache_folder())? {
            let name = file.file_name().and_then(|name| name.to_str()).context("a file name is not UTF-8")?;
            let fields = name.strip_suffix(".object").context("not an object's file")?;
            let fields: Vec<&str> = fields.split('-').collect();
            let is_id = |field: &str| field.len() == 32 && hex::decode(field).is_ok();
            let is_length = |field: &&str| u64::from_str_radix(field, 16).is_ok();
            // Version, name, size and, where it differs from the size, the disk space used.
            ensure!((3..=4).contains(&fields.len()) && fields[2..].iter().all(is_length), "{name}");
            ensure!(is_id(fields[0]) && is_id(fields[1]), "{name}");
        }
        for made_ahead in fs::read_dir(node.cache_folder().join("lota-cache/v4/new"))? {
            ensure!(made_ahead?.metadata()?.len() == 0, "a fill left something behind");
        }
        let beside = fs::read_dir(node.cache_folder())?.count();
        ensure!(beside == 1, "{beside} entries in the cache folder, not only `lota-cache`");
    }
    Ok(())
}

pub(crate) fn impossible_ranges(tour: &mut Tour) -> Result<()> {
    let (client, pod, key) = (&tour.client, tour.pod(1, 1), "ranges/impossible");
    let put = client.put(&pod, key, 102, MIB)?;
    for cached in [false, true] {
        let got = client.get_with(&pod, key, json!({"range": format!("bytes={}-", 2 * MIB)}))?;
        ensure!(
            got.status == 416 && got.code == "InvalidRange",
            "cached {cached}: {} {}",
            got.status,
            got.code
        );
        if !cached {
            client.get(&pod, key, Style::Path)?;
            tour.wait_cached(key)?;
        }
    }
    for (range, size) in
        [("bytes=0-0", 1), ("bytes=-5", 5), ("bytes=1048575-", 1), ("bytes=5-99999999", MIB - 5)]
    {
        let got = client.get_with(&pod, key, json!({"range": range}))?;
        ensure!(
            got.status == 206 && got.size == size && got.cache() == "hit",
            "{range}: {} {}",
            got.status,
            got.size
        );
    }
    // Ranges that servers interpret differently are forwarded, cached or not.
    for range in ["lines=5-2", "bytes=100-18446744073709551616", "bytes=0-0,", "bytes=-0"] {
        let got = client.get_with(&pod, key, json!({"range": range}))?;
        ensure!(
            got.status >= 400 || got.cache() == "bypass",
            "{range}: {} from `{}`, {} of {} bytes",
            got.status,
            got.cache(),
            got.size,
            put.size
        );
    }
    Ok(())
}

pub(crate) fn multipart(tour: &mut Tour) -> Result<()> {
    let (client, pod, key) = (&tour.client, tour.pod(3, 1), "multipart/object");
    let put = client.upload(&pod, key, 103, 24 * MIB + 7)?;
    ensure!(put.status == 200, "{} {}", put.status, put.code);
    for (_, pod) in tour.one_pod_per_node() {
        let got = client.get(&pod, key, Style::Path)?;
        ensure!(got.sha256 == put.sha256, "{} {}: {} bytes", got.status, got.code, got.size);
    }
    Ok(())
}

/// Returns all object files in a cache folder.
fn object_files(cache: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for shard in fs::read_dir(cache.join("lota-cache/v4"))? {
        let shard = shard?.path();
        if shard.is_dir() && !shard.ends_with("new") {
            for file in fs::read_dir(shard)? {
                files.push(file?.path());
            }
        }
    }
    Ok(files)
}

pub(crate) fn damaged_cache(tour: &mut Tour) -> Result<()> {
    let (client, pod, key) = (&tour.client.clone(), tour.pod(1, 1), "damaged/object");
    let put = client.put(&pod, key, 104, 2 * MIB)?;
    client.get(&pod, key, Style::Path)?;
    let owner = tour.wait_cached(key)?;
    let node = tour.nodes.iter_mut().find(|node| node.name() == owner).context("no such node")?;
    node.stop(nix::sys::signal::Signal::SIGKILL)?;
    for path in object_files(&node.cache_folder())? {
        let mut bytes = fs::read(&path)?;
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes)?;
    }
    node.start()?;
    ensure!(node.cached()?.is_empty(), "damaged records were kept");
    for _ in 0..2 {
        let got = client.get(&pod, key, Style::Path)?;
        ensure!(got.sha256 == put.sha256, "{} {}", got.status, got.code);
    }
    Ok(())
}

pub(crate) fn gateway_down(tour: &mut Tour) -> Result<()> {
    let (client, pod, key) = (tour.client.clone(), tour.pod(1, 1), "down/object");
    client.put(&pod, key, 105, MIB)?;
    client.get(&pod, key, Style::Path)?;
    tour.wait_cached(key)?;
    // Removes the gateway's address.
    let switch = tour.lab.switch();
    switch.ip("addr del 10.77.0.100/24 dev br0")?;
    let got = client.get_with(&pod, key, json!({"attempts": 1}));
    switch.ip("addr add 10.77.0.100/24 dev br0")?;
    let got = got?;
    ensure!(got.status == 503 && got.code == "ServiceUnavailable", "{} {}", got.status, got.code);
    let got = client.get(&pod, key, Style::Path)?;
    ensure!(got.status == 200, "after it came back: {} {}", got.status, got.code);
    tour.restart(Mode::OwnCredential)
}
