//! Output of commands: tables for people, JSON for scripts.

use std::{fmt::Display, time::SystemTime};

use anyhow::Result;
use lota_cache::{self, DiskPlan, DiskStatus, PinUsage, Stripe};
use lota_datapath::{AccessEntry, AccessTable, DatapathStatus, Denied};
use nix::net::if_::if_indextoname;
use serde::Serialize;
use serde_json::json;

use crate::{
    admin::{node_status::text::bytes, socket::ServerOfGateway},
    metrics::Reads,
    process::escape::{plain, plain_json, plain_lines},
    proxy::{PinReport, PinStatus},
};

pub(crate) fn cache(disks: &[DiskPlan], json: bool) -> Result<String> {
    let mut shown = String::new();
    let listed = disks.iter().map(|disk| lota_cache::list(&disk.folder)).collect::<Result<Vec<_>, _>>()?;
    for object in listed.into_iter().flatten() {
        let (meta, stripe) = (object.meta, object.stripe);
        let age = SystemTime::now().duration_since(object.stored).unwrap_or_default().as_secs();
        let name = meta.version.name;
        if json {
            let row = json!({
                "gateway": name.gateway.as_str(),
                "bucket": name.bucket.as_str(),
                "key": name.key.as_str(),
                "version_id": name.version_id,
                "etag": meta.version.validator.etag,
                "size": meta.size,
                "stripe": stripe.map(Stripe::index),
                "stripe_length": stripe.map(|stripe| stripe.length().bytes()),
                "age_seconds": age,
                "file": object.file,
            });
            json_line(&mut shown, &row);
        } else {
            line(
                &mut shown,
                format_args!(
                    "{:>14}  {age:>8}s  {}  {name}{}",
                    meta.size,
                    meta.version.validator.etag,
                    stripe.map_or_else(String::new, |stripe| format!("  {stripe}"))
                ),
            );
        }
    }
    Ok(shown)
}

pub(crate) fn access(table: &AccessTable, json: bool) -> String {
    let mut shown = String::new();
    let addresses = table.addresses.iter().map(|(address, entry)| (address.to_string(), entry));
    let prefixes = table.prefixes.iter().map(|(prefix, entry)| (prefix.to_string(), entry));
    if !json {
        line(&mut shown, format_args!("{:<40} {:<6} {:<16} SOURCE", "ADDRESS", "ACCESS", "INTERFACE"));
    }
    for (subject, AccessEntry { allow, ifindex, port, source }) in addresses.chain(prefixes) {
        let [interface, port] = [ifindex, port].map(|index| (*index != 0).then(|| name(*index)));
        if json {
            let row = json!({
                "subject": subject, "allow": allow, "interface": interface, "ifindex": ifindex,
                "port": port, "source": source.label(),
            });
            json_line(&mut shown, &row);
        } else {
            let access = if *allow { "allow" } else { "deny" };
            line(
                &mut shown,
                format_args!(
                    "{subject:<40} {access:<6} {:<16} {}{}",
                    interface.as_deref().unwrap_or("any"),
                    source.label(),
                    port.map_or_else(String::new, |port| format!(" (port {port})"))
                ),
            );
        }
    }
    if !json {
        line(
            &mut shown,
            format_args!(
                "{:<40} {:<6} {:<16} config",
                "(all others)",
                if table.default_allow { "allow" } else { "deny" },
                "any"
            ),
        );
    }
    shown
}

pub(crate) fn denied(denied: &[Denied], json: bool) -> String {
    let mut shown = String::new();
    if !json {
        line(
            &mut shown,
            format_args!("{:<40} {:>10} {:>14}  {:<8} INTERFACE", "ADDRESS", "PACKETS", "LAST", "VERDICT"),
        );
    }
    for Denied { address, count, last, ifindex, verdict } in denied {
        let ago = SystemTime::now().duration_since(*last).unwrap_or_default().as_secs_f64();
        let verdict = verdict.map(lota_common::Verdict::label);
        if json {
            let row = json!({
                "address": address, "packets": count, "seconds_ago": ago, "interface": name(*ifindex),
                "ifindex": ifindex, "verdict": verdict,
            });
            json_line(&mut shown, &row);
        } else {
            let ago = format!("{ago:.1} s ago");
            line(
                &mut shown,
                format_args!(
                    "{:<40} {count:>10} {ago:>14}  {:<8} {}",
                    address.to_string(),
                    verdict.unwrap_or("?"),
                    name(*ifindex)
                ),
            );
        }
    }
    shown
}

pub(crate) fn datapath(status: &DatapathStatus, json: bool) -> Result<String> {
    Ok(match json {
        true => format!("{}\n", plain_json(&serde_json::to_string(status)?)),
        false => plain_lines(&status.to_string()),
    })
}

pub(crate) fn gateway(servers: &[ServerOfGateway], json: bool) -> Result<String> {
    let mut shown = String::new();
    if !json {
        line(
            &mut shown,
            format_args!(
                "{:<12} {:<24} {:<10} {:<18} {:<20} WHY",
                "GATEWAY", "SERVER", "TRUSTED", "CERTIFICATE", "304 PROVES BY"
            ),
        );
    }
    for of_gateway in servers {
        if json {
            json_line(&mut shown, of_gateway);
            continue;
        }
        let ServerOfGateway { gateway, server } = of_gateway;
        let trusted = match server.trusted {
            None => "unverified",
            Some(true) => "yes",
            Some(false) => "no",
        };
        let certificate = server.certificate.as_deref().map_or("none", |hex| &hex[..hex.len().min(16)]);
        let proves_by = server.proves_by.as_deref().unwrap_or("unknown");
        let why = server.why.as_deref().unwrap_or_default();
        let address = server.address.to_string();
        line(
            &mut shown,
            format_args!("{gateway:<12} {address:<24} {trusted:<10} {certificate:<18} {proves_by:<20} {why}"),
        );
    }
    Ok(shown)
}

/// Returns a table of the pins.
pub(crate) fn pins(report: &PinReport, json: bool) -> Result<String> {
    if json {
        return Ok(format!("{}\n", plain_json(&serde_json::to_string(report)?)));
    }
    let mut shown = format!("{:>12} {:>12} {:>12}  PREFIX\n", "BYTES", "CACHED HERE", "LIMIT HERE");
    for PinStatus { prefix, bytes: all, here: PinUsage { cached, limit } } in &report.pins {
        let [all, cached, limit] = [*all, *cached, *limit].map(bytes);
        line(&mut shown, format_args!("{all:>12} {cached:>12} {limit:>12}  {prefix}"));
    }
    let pinned = report.pins.iter().fold(0, |all: u64, pin| all.saturating_add(pin.bytes));
    line(
        &mut shown,
        format_args!("{} of {} that can be pinned in the cluster", bytes(pinned), bytes(report.possible)),
    );
    Ok(shown)
}

/// Returns the usage of the cache's disks. `reads` are those since the daemon started, if one runs.
pub(crate) fn disks(disks: &[DiskStatus], reads: Option<Reads>, running: bool, json: bool) -> String {
    if json {
        let disks: Vec<_> = disks
            .iter()
            .map(|disk| {
                json!({
                    "folder": disk.folder, "objects": disk.usage.objects, "stripes": disk.usage.stripes,
                    "bytes": disk.usage.bytes, "pinned_bytes": disk.usage.pinned,
                    "capacity": disk.capacity, "free": free(disk),
                    "encrypted": running.then_some(disk.encrypted), "works": running.then_some(disk.works),
                    "fills": disk.usage.fills, "evictions": disk.evictions, "corrupt": disk.corrupt,
                    "verified_bytes": disk.verified,
                })
            })
            .collect();
        let hit_ratio = reads.and_then(|reads| reads.hit_ratio());
        let mut shown = String::new();
        json_line(
            &mut shown,
            &json!({ "running": running, "disks": disks, "reads": reads, "hit_ratio": hit_ratio }),
        );
        return shown;
    }
    let mut shown = format!(
        "{:<32} {:>10} {:>12} {:>12} {:>5} {:>12}  STATE\n",
        "DISK", "OBJECTS", "BYTES", "CAPACITY", "USED", "FREE"
    );
    for disk in disks {
        line(&mut shown, disk_row(disk, running));
    }
    line(&mut shown, since_start(reads));
    shown
}

/// Returns the free space of the disk that the folder is on, or would be.
fn free(disk: &DiskStatus) -> Option<u64> {
    let there = disk.folder.ancestors().find(|path| path.exists())?;
    lota_cache::free(there).ok()
}

fn disk_row(disk: &DiskStatus, running: bool) -> String {
    let used = if disk.capacity == 0 { 0.0 } else { disk.usage.bytes as f64 * 100.0 / disk.capacity as f64 };
    let state = match (running, disk.works, disk.encrypted) {
        (false, ..) => "no daemon runs",
        (_, false, _) => "FAILED",
        (_, _, true) => "encrypted",
        (_, _, false) => "not encrypted",
    };
    let mut line = format!(
        "{:<32} {:>10} {:>12} {:>12} {used:>4.0}% {:>12}  {state}",
        disk.folder.display(),
        disk.usage.objects + disk.usage.stripes,
        bytes(disk.usage.bytes),
        bytes(disk.capacity),
        free(disk).map_or("?".to_owned(), bytes),
    );
    for (count, what) in
        [(disk.usage.fills as u64, "filling"), (disk.evictions, "removed"), (disk.corrupt, "CORRUPT")]
    {
        if count > 0 {
            line.push_str(&format!(", {count} {what}"));
        }
    }
    line
}

fn since_start(reads: Option<Reads>) -> String {
    let Some(reads) = reads else { return "no daemon runs: hit ratio unknown".to_owned() };
    let Reads { hits, fills, misses } = reads;
    match reads.hit_ratio() {
        Some(ratio) => format!(
            "{:.1}% hits since start: {hits} hits, {fills} joined fills, {misses} misses",
            ratio * 100.0
        ),
        None => "no reads since start".to_owned(),
    }
}

/// Adds a line of a table.
fn line(shown: &mut String, line: impl Display) {
    shown.push_str(&plain(&line.to_string()));
    shown.push('\n');
}

/// Adds a line of JSON.
fn json_line(shown: &mut String, row: &impl Serialize) {
    // Keys of these types are always strings.
    shown.push_str(&plain_json(&serde_json::to_string(row).unwrap_or_default()));
    shown.push('\n');
}

fn name(ifindex: u32) -> String {
    let name = if_indextoname(ifindex).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("(gone: {ifindex})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_cannot_forge_a_line() {
        let mut shown = String::new();
        line(&mut shown, "12  b/k\n99  b/forged\x1b[2J");
        json_line(&mut shown, &json!({ "key": "\u{9b}2J" }));
        assert_eq!(shown, "12  b/k\\n99  b/forged\\u{1b}[2J\n{\"key\":\"\\u009b2J\"}\n");
    }
}
