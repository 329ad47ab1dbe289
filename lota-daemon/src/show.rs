//! What commands print: a table for people, JSON for scripts.

use std::{
    fmt::{Display, Write as _},
    time::SystemTime,
};

use anyhow::Result;
use lota_daemon::{
    access::{Entry, Table},
    cache::{self, DiskPlan},
    datapath::{Denied, Status},
    gateway::Server,
};
use nix::net::if_::if_indextoname;
use serde_json::json;

pub(crate) fn cache(disks: &[DiskPlan], json: bool) -> Result<String> {
    let mut shown = String::new();
    let listed = disks.iter().map(|disk| cache::list(&disk.folder)).collect::<Result<Vec<_>, _>>()?;
    for object in listed.into_iter().flatten() {
        let meta = object.meta;
        let age = SystemTime::now().duration_since(object.stored).unwrap_or_default().as_secs();
        let name = meta.version.name;
        if json {
            let row = json!({
                "bucket": name.bucket.as_str(),
                "key": name.key.as_str(),
                "version_id": name.version_id,
                "etag": meta.version.validator.etag,
                "size": meta.size,
                "age_seconds": age,
                "file": object.file,
            });
            line(&mut shown, row);
        } else {
            line(
                &mut shown,
                format_args!("{:>14}  {age:>8}s  {}  {name}", meta.size, meta.version.validator.etag),
            );
        }
    }
    Ok(shown)
}

pub(crate) fn access(table: &Table, json: bool) -> String {
    let mut shown = String::new();
    let addresses = table.addresses.iter().map(|(address, entry)| (address.to_string(), entry));
    let prefixes = table.prefixes.iter().map(|(prefix, entry)| (prefix.to_string(), entry));
    if !json {
        line(&mut shown, format_args!("{:<40} {:<6} {:<16} SOURCE", "ADDRESS", "ACCESS", "INTERFACE"));
    }
    for (subject, Entry { allow, ifindex, source }) in addresses.chain(prefixes) {
        let interface = (*ifindex != 0).then(|| name(*ifindex));
        if json {
            let row = json!({
                "subject": subject, "allow": allow, "interface": interface, "ifindex": ifindex,
                "source": source.label(),
            });
            line(&mut shown, row);
        } else {
            let access = if *allow { "allow" } else { "deny" };
            line(
                &mut shown,
                format_args!(
                    "{subject:<40} {access:<6} {:<16} {}",
                    interface.as_deref().unwrap_or("any"),
                    source.label()
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
            line(&mut shown, row);
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

pub(crate) fn datapath(status: &Status, json: bool) -> Result<String> {
    Ok(if json { format!("{}\n", serde_json::to_string(status)?) } else { status.to_string() })
}

pub(crate) fn gateway(servers: &[Server], json: bool) -> Result<String> {
    let mut shown = String::new();
    if !json {
        line(&mut shown, format_args!("{:<24} {:<10} {:<18} WHY", "SERVER", "TRUSTED", "CERTIFICATE"));
    }
    for server in servers {
        if json {
            line(&mut shown, serde_json::to_string(server)?);
            continue;
        }
        let trusted = match server.trusted {
            None => "untried",
            Some(true) => "yes",
            Some(false) => "no",
        };
        let certificate = server.certificate.as_deref().map_or("none", |hex| &hex[..hex.len().min(16)]);
        let why = server.why.as_deref().unwrap_or_default();
        let address = server.address.to_string();
        line(&mut shown, format_args!("{address:<24} {trusted:<10} {certificate:<18} {why}"));
    }
    Ok(shown)
}

/// Adds a line.
fn line(shown: &mut String, line: impl Display) {
    // Writing to memory does not fail.
    let _ = writeln!(shown, "{line}");
}

fn name(ifindex: u32) -> String {
    let name = if_indextoname(ifindex).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("(gone: {ifindex})"))
}
