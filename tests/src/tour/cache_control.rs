//! Step 8: `Cache-Control` of GET requests.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Line, MIB, Tour, expect, same};
use crate::lab::Style;

pub(super) fn directives(tour: &mut Tour) -> Result<Vec<Line>> {
    let (client, pod, key) = (&tour.client, tour.pod(1, 1), "directives/object");
    let put = client.put(&pod, key, 80, 4 * MIB)?;
    let mut lines = Vec::new();
    let steps = [
        ("no-store", "bypass", false),
        ("no-cache", "miss", false),
        ("", "miss", true),
        ("no-cache", "hit", true),
        ("no-store", "bypass", true),
        ("", "hit", true),
    ];
    for (directive, cache, stored) in steps {
        let what =
            if directive.is_empty() { "plain".to_owned() } else { format!("Cache-Control: {directive}") };
        let got = if directive.is_empty() {
            client.get(&pod, key, Style::Path)?
        } else {
            client.get_with(&pod, key, json!({"cache_control": directive}))?
        };
        same(&got, &put.sha256, &what)?;
        expect(&got, 200, cache, &what)?;
        if stored {
            tour.wait_cached(key)?;
        } else {
            // A fill would be in progress or complete by now.
            let fills = tour.metric("lota_fills_in_progress")?;
            ensure!(fills == 0.0 && tour.holders(key)?.is_empty(), "{what} left the object in a cache");
        }
        let held = if stored { "in a cache" } else { "in no cache" };
        lines.push(Line { seen: format!("{cache}; {held}"), ..Line::timed(what, &got) });
    }
    Ok(lines)
}
