//! What commands print: a table for people, JSON for scripts.

use std::{path::Path, time::SystemTime};

use anyhow::Result;
use lota_daemon::{
    access::{Entry, Table},
    cache,
    datapath::{Denied, Status},
};
use nix::net::if_::if_indextoname;
use serde_json::json;

pub(crate) fn cache(folder: &Path, json: bool) -> Result<()> {
    for object in cache::list(folder)? {
        let meta = object.meta;
        let age = SystemTime::now().duration_since(object.stored).unwrap_or_default().as_secs();
        let name = meta.version.name;
        if json {
            let line = json!({
                "bucket": name.bucket.as_str(),
                "key": name.key.as_str(),
                "version_id": name.version_id,
                "etag": meta.version.validator.etag,
                "size": meta.size,
                "age_seconds": age,
                "file": object.data,
            });
            println!("{line}");
        } else {
            println!("{:>14}  {age:>8}s  {}  {name}", meta.size, meta.version.validator.etag);
        }
    }
    Ok(())
}

pub(crate) fn access(table: &Table, json: bool) -> Result<()> {
    let addresses = table.addresses.iter().map(|(address, entry)| (address.to_string(), entry));
    let prefixes = table.prefixes.iter().map(|(prefix, entry)| (prefix.to_string(), entry));
    if !json {
        println!("{:<40} {:<6} {:<16} SOURCE", "ADDRESS", "ACCESS", "INTERFACE");
    }
    for (subject, Entry { allow, ifindex, source }) in addresses.chain(prefixes) {
        let interface = (*ifindex != 0).then(|| name(*ifindex));
        if json {
            let line = json!({
                "subject": subject, "allow": allow, "interface": interface, "ifindex": ifindex,
                "source": source.label(),
            });
            println!("{line}");
        } else {
            let access = if *allow { "allow" } else { "deny" };
            println!(
                "{subject:<40} {access:<6} {:<16} {}",
                interface.as_deref().unwrap_or("any"),
                source.label()
            );
        }
    }
    if !json {
        println!(
            "{:<40} {:<6} {:<16} config",
            "(all others)",
            if table.default_allow { "allow" } else { "deny" },
            "any"
        );
    }
    Ok(())
}

pub(crate) fn denied(denied: &[Denied], json: bool) -> Result<()> {
    if !json {
        println!("{:<40} {:>10} {:>14}  INTERFACE", "ADDRESS", "PACKETS", "LAST");
    }
    for Denied { address, count, last, ifindex, verdict } in denied {
        let ago = SystemTime::now().duration_since(*last).unwrap_or_default().as_secs_f64();
        let verdict = verdict.map(lota_common::Verdict::label);
        if json {
            let line = json!({
                "address": address, "packets": count, "seconds_ago": ago, "interface": name(*ifindex),
                "ifindex": ifindex, "verdict": verdict,
            });
            println!("{line}");
        } else {
            let ago = format!("{ago:.1} s ago");
            println!("{:<40} {count:>10} {ago:>14}  {}", address.to_string(), name(*ifindex));
        }
    }
    Ok(())
}

pub(crate) fn datapath(status: &Status, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(status)?);
    } else {
        print!("{status}");
    }
    Ok(())
}

fn name(ifindex: u32) -> String {
    let name = if_indextoname(ifindex).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("(gone: {ifindex})"))
}
