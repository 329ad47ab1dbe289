use serde_json::json;

use super::*;

/// Returns the report of a busy node, so many seconds after its start.
fn report(second: u64) -> NodeReport {
    let mut report = crate::admin::node_status::healthy();
    report["node"]["uptime_seconds"] = json!(second);
    report["traffic"]["requests"][0]["count"] = json!(100 * second);
    report["traffic"]["sent"] = json!({
        "local": (second * second) << 30, "remote": (second % 3) << 30, "fill": 0, "gateway": second << 20,
    });
    report["datapath"]["verdicts"] = json!([{"verdict": "denied", "packets": 2 * second, "bytes": 0}]);
    let long = format!("bucket/{}shard-000123.tar", "very/long/".repeat(9));
    report["top"] = json!({
        "objects": [{"name": long, "requests": 1234, "bytes": 5u64 << 40}, {"name": "b/\x1b[2Jk", "requests": 1, "bytes": 2}],
        "pods": [{"name": "10.1.0.2", "requests": 1235, "bytes": 5u64 << 40}],
    });
    serde_json::from_value(report).unwrap()
}

#[test]
fn a_small_terminal_shows_everything() {
    let mut seen = Observation::default();
    (1..90).for_each(|second| seen.look(Ok(report(second))));
    let text = text(&seen, SIZE);
    for words in [
        "lota top  n1  up 89 s",
        "requests 100.0/s",
        "hits 100.0 % now",
        "this node    177.0 GiB/s",
        "shard-000123.tar   1234    5.0 TiB",
        "b/\\u{1b}[2Jk",
        "10.1.0.2",
        "REFUSED 2.0/s",
        "10.1.0.9",
        "alive",
        "TO SEND",
        "PODS, LAST MIN ",
        "sent 178.0 GiB/s",
        "q quits",
    ] {
        assert!(text.contains(words), "no `{words}` in\n{text}");
    }
    assert!(!text.contains('\x1b') && text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert_eq!(text.lines().count(), 24);
    let json = seen.past.back().unwrap().json(seen.report.as_ref().unwrap());
    assert_eq!(json["requests_per_second"], 100.0);
    assert_eq!(json["sent_bytes_per_second"]["gateway"], 1 << 20);
}

#[test]
fn no_terminal_is_too_small() {
    let mut seen = Observation::default();
    seen.look(Ok(report(1)));
    seen.look(Ok(report(2)));
    seen.look(Err(anyhow::anyhow!("gone")));
    for (width, height) in [(1, 1), (3, 40), (200, 2), (20, 9), (300, 90)] {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| Screen::plain().draw(&seen, frame.area(), frame.buffer_mut())).unwrap();
    }
}

#[test]
fn another_daemon_restarts_the_history() {
    let mut seen = Observation::default();
    (1..9).for_each(|second| seen.look(Ok(report(second))));
    assert_eq!(seen.past.len(), 7);
    let mut other = report(1);
    other.node.pid += 1;
    seen.look(Ok(other));
    assert!(seen.past.is_empty());
    seen.look(Err(anyhow::anyhow!("gone")));
    assert!(text(&seen, SIZE).contains("no response: gone"));
}
