//! Steps 5 and 6: every read returns the current content, and only to authorized clients.

use anyhow::{Result, ensure};

use super::{Line, MIB, Tour, expect, same};
use crate::lab::{ADMIN, Credential, GATEWAY, GATEWAY_PORT, NOBODY, Style};

pub(super) fn overwrites(tour: &mut Tour) -> Result<Vec<Line>> {
    let (client, pod, key) = (&tour.client, tour.pod(2, 1), "fresh/object");
    let mut lines = Vec::new();
    client.put(&pod, key, 50, 8 * MIB)?;
    client.get(&pod, key, Style::Path)?;
    tour.wait_cached(key)?;
    expect(&client.get(&pod, key, Style::Path)?, 200, "hit", "before the overwrite")?;

    let direct = format!("http://{GATEWAY}:{GATEWAY_PORT}");
    let ways = [
        ("through LOTA", "http://cwlota.com", tour.pod(3, 1), 51),
        ("at the gateway, past LOTA", direct.as_str(), tour.lab.switch(), 52),
    ];
    for (way, endpoint, from, seed) in ways {
        let put = client.put_at(endpoint, &from, key, seed, 8 * MIB)?;
        lines.push(Line::timed(format!("overwrite {way}"), &put));
        for (node, pod) in tour.one_pod_per_node() {
            let what = format!("the next read through n{node}");
            let got = client.get(&pod, key, Style::Path)?;
            same(&got, &put.sha256, &what)?;
            lines.push(Line { seen: format!("new content ({})", got.cache()), ..Line::timed(what, &got) });
        }
    }
    client.delete(&pod, key)?;
    let gone = client.get(&pod, key, Style::Path)?;
    ensure!(gone.status == 404 && gone.code == "NoSuchKey", "after a delete: {} {}", gone.status, gone.code);
    lines.push(Line::new("delete it; the next read", format!("404 {}", gone.code)));
    Ok(lines)
}

pub(super) fn refusals(tour: &mut Tour) -> Result<Vec<Line>> {
    if !tour.origin.has_users() {
        return Ok(vec![Line::new("skipped", "an external gateway has only one user")]);
    }
    let (client, pod, key) = (&tour.client, tour.pod(1, 2), "refused/object");
    let put = client.put(&pod, key, 60, 4 * MIB)?;
    client.get(&pod, key, Style::Path)?;
    tour.wait_cached(key)?;
    let wrong = Credential { secret_key: "not the secret of this key".into(), ..ADMIN };
    let mut lines = Vec::new();
    for (who, credential, codes) in [
        ("a wrong secret", wrong, ["SignatureDoesNotMatch", "InvalidAccessKeyId"]),
        ("a right secret without permission", NOBODY, ["AccessDenied", "AccessDenied"]),
    ] {
        for (node, pod) in tour.one_pod_per_node() {
            for style in [Style::Path, Style::Virtual] {
                let got = client.with(credential.clone()).get(&pod, key, style)?;
                let refused = got.status == 403 && codes.contains(&got.code.as_str());
                ensure!(refused, "{who}, through n{node}: {} {}", got.status, got.code);
                ensure!(
                    got.cache().is_empty() && got.size < 4096,
                    "{who}: the refusal carries {} bytes",
                    got.size
                );
            }
        }
        let code = codes[0];
        lines.push(Line::new(format!("{who}, on a cached object, all nodes"), format!("403 {code}")));
    }
    let still = client.get(&pod, key, Style::Path)?;
    same(&still, &put.sha256, "after the refusals")?;
    expect(&still, 200, "hit", "after the refusals")?;
    lines.push(Line::timed("for an authorized client, it is still cached", &still));
    Ok(lines)
}
