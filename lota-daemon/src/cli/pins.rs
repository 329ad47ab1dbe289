//! `lota cache pin`, `unpin` and `pins`.

use anyhow::Result;

use super::{
    args::{Pin, Unpin},
    output,
};
use crate::{
    admin::{node_status::text::bytes, socket},
    config::Config,
    process::escape::{plain, plain_json},
    proxy::{PinChanged, PinRequest},
};

/// Pins objects.
///
/// # Errors
/// If no daemon runs, or it refuses.
pub(super) async fn pin(config: &Config, Pin { prefix, bytes: size, json }: Pin) -> Result<String> {
    let request = PinRequest { prefix, bytes: size.map(|size| size.0) };
    let changed = socket::request_pin(&config.admin.socket, &request).await?;
    let what = format!("pinned {}: up to {} in all nodes' caches", request.prefix, bytes(changed.bytes));
    shown(&changed, &what, json)
}

/// Removes a pin.
///
/// # Errors
/// If no daemon runs, or there is no such pin.
pub(super) async fn unpin(config: &Config, Unpin { prefix, json }: Unpin) -> Result<String> {
    let changed = socket::request_unpin(&config.admin.socket, &prefix).await?;
    shown(&changed, &format!("unpinned {prefix}"), json)
}

/// Lists the pins.
///
/// # Errors
/// If no daemon runs.
pub(super) async fn list(config: &Config, json: bool) -> Result<String> {
    output::pins(&socket::request_pins(&config.admin.socket).await?, json)
}

fn shown(changed: &PinChanged, what: &str, json: bool) -> Result<String> {
    if json {
        return Ok(format!("{}\n", plain_json(&serde_json::to_string(changed)?)));
    }
    let mut shown = format!("{}\n", plain(what));
    for unreached in &changed.unreached {
        let line =
            format!("not reached: {} ({}); it learns of this within minutes", unreached.node, unreached.why);
        shown.push_str(&plain(&line));
        shown.push('\n');
    }
    Ok(shown)
}
