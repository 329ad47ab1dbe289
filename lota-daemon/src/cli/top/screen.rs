//! Layout of the `lota top` screen.

use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Sparkline, Widget as _},
};

use super::{Observation, Rates};
use crate::{
    admin::node_status::{
        Level, NodeReport, SentBytesCount,
        text::{bytes, count, duration},
    },
    process::escape::plain,
};

/// Source of bytes: name, color, and a function that returns its count.
type Source = (&'static str, Color, fn(SentBytesCount) -> u64);

/// Draws the screen with or without colors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    colours: bool,
}

impl Screen {
    /// Returns a screen without colors.
    pub(super) fn plain() -> Self {
        Self { colours: false }
    }

    /// Returns a screen with colors, unless `NO_COLOR` is set (<https://no-color.org>).
    pub(super) fn for_this_terminal() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let none = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { colours: !unwanted && !none }
    }

    fn color(self, color: Color) -> Style {
        if self.colours { Style::new().fg(color) } else { Style::new() }
    }

    fn title() -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// Draws the parts that fit into the area.
    pub(super) fn draw(self, seen: &Observation, area: Rect, buffer: &mut Buffer) {
        let Some(report) = &seen.report else { return };
        let wrong: Vec<_> = report.findings.iter().filter(|finding| finding.level != Level::Ok).collect();
        let troubles = u16::try_from(wrong.len().min(3)).unwrap_or(0) + u16::from(seen.trouble.is_some());
        let [head, trouble, figures, throughput, upper, lower, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(troubles),
            Constraint::Length(2),
            Constraint::Length(5),
            Constraint::Fill(3),
            Constraint::Fill(2),
            Constraint::Length(1),
        ])
        .areas(area);
        self.head(report, head, buffer);
        let mut lines: Vec<_> = wrong
            .iter()
            .take(3)
            .map(|finding| {
                let text = format!("{:<4} {}: {}", finding.level.label(), finding.part, plain(&finding.what));
                Line::styled(text, self.level(finding.level))
            })
            .collect();
        if let Some(trouble) = &seen.trouble {
            lines.push(Line::styled(format!("no response: {}", plain(trouble)), self.level(Level::Fail)));
        }
        put(lines, trouble, buffer);
        let now = seen.past.back().copied();
        figures_of(report, now, figures, buffer);
        self.throughput(seen, throughput, buffer);
        let [objects, pods] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Length(36)]).spacing(2).areas(upper);
        ranks("OBJECTS, LAST MIN", report.top.objects.as_deref().unwrap_or_default(), objects, buffer);
        ranks("PODS, LAST MIN", &report.top.pods, pods, buffer);
        let [denied, peers] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).spacing(2).areas(lower);
        refused(report, now, denied, buffer);
        self.peers(report, peers, buffer);
        put(vec![Line::from("q quits").style(self.color(Color::DarkGray))], foot, buffer);
    }

    fn level(self, level: Level) -> Style {
        match level {
            Level::Ok => self.color(Color::Green),
            Level::Warn => self.color(Color::Yellow),
            Level::Fail => self.color(Color::Red).add_modifier(Modifier::BOLD),
        }
    }

    fn head(self, report: &NodeReport, area: Rect, buffer: &mut Buffer) {
        let (node, level) = (&report.node, report.level());
        let state = match (node.ready, level) {
            (false, _) => "not ready",
            (true, Level::Ok) => "healthy",
            (true, Level::Warn) => "degraded",
            (true, Level::Fail) => "failing",
        };
        let line = Line::from(vec![
            Span::styled("lota top", Self::title()),
            Span::raw(format!("  {}  up {}  ", plain(&node.name), duration(node.uptime_seconds))),
            Span::styled(state, self.level(level)),
        ]);
        put(vec![line], area, buffer);
    }

    /// Draws one line per source, with its history.
    fn throughput(self, seen: &Observation, area: Rect, buffer: &mut Buffer) {
        let sources: [Source; 4] = [
            ("this node", Color::Blue, |sent| sent.local),
            ("other nodes", Color::Magenta, |sent| sent.remote),
            ("fills", Color::Cyan, |sent| sent.fill),
            ("gateway", Color::Yellow, |sent| sent.gateway),
        ];
        let [title, rows] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
        put(vec![Line::styled("THROUGHPUT FROM", Self::title())], title, buffer);
        let peak = |sent: SentBytesCount| sources.iter().map(|(_, _, of)| of(sent)).max().unwrap_or(0);
        let peak = seen.past.iter().map(|rates| peak(rates.sent)).max().unwrap_or(0).max(1);
        for (index, (name, color, of)) in (0u16..).zip(sources) {
            if index >= rows.height {
                break;
            }
            let row = Rect { y: rows.y + index, height: 1, ..rows };
            let [label, line] = Layout::horizontal([Constraint::Length(26), Constraint::Fill(1)]).areas(row);
            let now = seen.past.back().map_or(0, |rates| of(rates.sent));
            put(vec![Line::raw(format!("{name:<12}{:>12}", format!("{}/s", bytes(now))))], label, buffer);
            let skip = seen.past.len().saturating_sub(usize::from(line.width));
            let past: Vec<u64> = seen.past.iter().skip(skip).map(|rates| of(rates.sent)).collect();
            // The newest is at the right.
            let width = u16::try_from(past.len()).unwrap_or(u16::MAX).min(line.width);
            let line = Rect { x: line.right() - width, width, ..line };
            Sparkline::default().data(past).max(peak).style(self.color(color)).render(line, buffer);
        }
    }

    fn peers(self, report: &NodeReport, area: Rect, buffer: &mut Buffer) {
        let peers = report.peers.as_deref().unwrap_or_default();
        let mut lines =
            vec![Line::styled(format!("{:<18} {:<10} {:>9}", "PEERS", "STATE", "TO SEND"), Self::title())];
        // Lost peers come first, because there may be hundreds of peers.
        let (lost, alive): (Vec<_>, Vec<_>) = peers.iter().partition(|peer| peer.lost_seconds.is_some());
        for peer in lost.into_iter().chain(alive) {
            let (state, level) = match peer.lost_seconds {
                Some(since) => (format!("lost {}", duration(since)), Level::Warn),
                None if peer.heard_seconds.is_none() => ("not heard".to_owned(), Level::Ok),
                None => ("alive".to_owned(), Level::Ok),
            };
            let load = peer.load_bytes.map_or(String::new(), bytes);
            lines.push(Line::from(vec![
                Span::raw(format!("{:<18} ", cut(&peer.name, 18))),
                Span::styled(format!("{state:<10}"), self.level(level)),
                Span::raw(format!(" {load:>9}")),
            ]));
        }
        if peers.is_empty() {
            lines.push(Line::raw("none"));
        }
        put(lines, area, buffer);
    }
}

fn figures_of(report: &NodeReport, now: Option<Rates>, area: Rect, buffer: &mut Buffer) {
    let (traffic, cache) = (&report.traffic, &report.cache);
    let rates = now.unwrap_or_default();
    let ratio =
        |ratio: Option<f64>| ratio.map_or("–".to_owned(), |ratio| format!("{:.1} %", ratio * 100.0));
    let reads = traffic.count(&["hit", "miss", "fill"]);
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let since_start = (reads > 0).then(|| traffic.count(&["hit"]) as f64 / reads as f64);
    let lines = [
        format!(
            "requests {:.1}/s   errors {:.1}/s   hits {} now, {} since start",
            rates.requests,
            rates.failed,
            ratio(rates.hits),
            ratio(since_start),
        ),
        format!(
            "sent {}/s   cache {} of {}, {}, {}",
            bytes(rates.sent.all()),
            bytes(cache.bytes),
            bytes(cache.capacity),
            count(cache.objects, "object"),
            count(cache.fills, "fill"),
        ),
    ];
    put(lines.map(Line::raw).into(), area, buffer);
}

/// Draws the busiest objects or pods. The name gets the width that the numbers leave.
fn ranks(title: &str, ranked: &[crate::metrics::heavy_hitters::Ranked], area: Rect, buffer: &mut Buffer) {
    let width = usize::from(area.width).saturating_sub(7 + 11);
    let line = |name: &str, requests: &str, bytes: &str| {
        format!("{:<width$}{requests:>7}{bytes:>11}", cut(name, width))
    };
    let mut lines = vec![Line::styled(line(title, "REQ", "BYTES"), Screen::title())];
    lines.extend(
        ranked.iter().map(|one| Line::raw(line(&one.name, &one.requests.to_string(), &bytes(one.bytes)))),
    );
    put(lines, area, buffer);
}

fn refused(report: &NodeReport, now: Option<Rates>, area: Rect, buffer: &mut Buffer) {
    let denied = report.access.iter().flat_map(|access| &access.denied);
    let title = format!(
        "{:<20} {:>7} {:>9}",
        format!("REFUSED {:.1}/s", now.unwrap_or_default().refused),
        "PACKETS",
        "AGO"
    );
    let mut lines = vec![Line::styled(title, Screen::title())];
    lines.extend(denied.map(|one| {
        let address = one.address.to_string();
        Line::raw(format!("{:<20} {:>7} {:>9}", cut(&address, 20), one.packets, duration(one.seconds_ago)))
    }));
    if lines.len() == 1 {
        lines.push(Line::raw("none"));
    }
    put(lines, area, buffer);
}

/// Shortens a text to the width. Keeps its end, since keys have common prefixes.
fn cut(text: &str, width: usize) -> String {
    let text = plain(text);
    let length = text.chars().count();
    if length <= width {
        return text;
    }
    let kept = text.chars().skip(length - width.saturating_sub(1));
    std::iter::once('…').chain(kept).take(width).collect()
}

fn put(lines: Vec<Line<'_>>, area: Rect, buffer: &mut Buffer) {
    for (index, line) in (0..area.height).zip(lines) {
        buffer.set_line(area.x, area.y + index, &line, area.width);
    }
}
