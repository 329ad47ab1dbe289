//! `lota top`: what happens on a node, live in a terminal.

mod rates;
mod screen;

use std::{
    collections::VecDeque,
    io::{IsTerminal as _, Write as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use ratatui::{
    Terminal,
    backend::TestBackend,
    buffer::Buffer,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
};
use tokio::time::timeout;

pub use rates::Rates;

use self::screen::Screen;
use crate::{admin::socket, report::Report};

/// Seconds that sparklines go back, in intervals.
const PAST: usize = 240;
/// Longest wait for the daemon.
const PATIENCE: Duration = Duration::from_secs(3);
/// The smallest terminal that shows everything.
const SIZE: (u16, u16) = (80, 24);

/// How it is shown.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Time between two looks.
    pub interval: Duration,
    /// One line of JSON for each.
    pub json: bool,
    /// One look, and the end.
    pub once: bool,
}

/// What has been seen so far.
#[derive(Debug, Default)]
pub struct Seen {
    /// The last look.
    pub report: Option<Report>,
    /// What happened between the looks, the last one last.
    pub past: VecDeque<Rates>,
    /// Why there was no answer the last time, if so.
    pub trouble: Option<String>,
}

impl Seen {
    /// Takes in what a look came to.
    pub fn look(&mut self, looked: Result<Report>) {
        let report = match looked {
            Ok(report) => report,
            Err(error) => {
                self.trouble = Some(format!("{error:#}"));
                return;
            }
        };
        self.trouble = None;
        if let Some(before) = &self.report {
            match Rates::between(before, &report) {
                Some(rates) => self.past.push_back(rates),
                // Another daemon, which counts from the start.
                None => self.past.clear(),
            }
            if self.past.len() > PAST {
                self.past.pop_front();
            }
        }
        self.report = Some(report);
    }
}

/// Shows the node behind this admin socket until `q` is pressed, or once.
///
/// # Errors
/// If there is no terminal to show it in, or no daemon to begin with.
pub async fn run(socket: &Path, how: How) -> Result<()> {
    let mut seen = Seen::default();
    // Here, rather than on a screen that is gone at once.
    seen.look(Ok(look(socket).await?));
    if how.json || how.once {
        return lines(socket, how, seen).await;
    }
    ensure!(std::io::stdout().is_terminal(), "this is no terminal: use --once or --json");
    let mut terminal = ratatui::try_init()?;
    let shown = show(socket, how, seen, &mut terminal).await;
    ratatui::try_restore()?;
    shown
}

async fn show(
    socket: &Path,
    how: How,
    mut seen: Seen,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<()> {
    let screen = Screen::for_this_terminal();
    let mut next = Instant::now() + how.interval;
    loop {
        terminal.draw(|frame| screen.draw(&seen, frame.area(), frame.buffer_mut()))?;
        // Nothing else runs on this thread.
        while !event::poll(next.saturating_duration_since(Instant::now()))? {
            seen.look(look(socket).await);
            next = Instant::now() + how.interval;
            terminal.draw(|frame| screen.draw(&seen, frame.area(), frame.buffer_mut()))?;
        }
        if let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
        {
            let interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
            if interrupt || matches!(key.code, KeyCode::Char('q' | 'Q') | KeyCode::Esc) {
                return Ok(());
            }
        }
    }
}

/// Without a terminal.
async fn lines(socket: &Path, how: How, mut seen: Seen) -> Result<()> {
    loop {
        tokio::time::sleep(how.interval).await;
        seen.look(look(socket).await);
        if let Some(trouble) = &seen.trouble {
            bail!("{trouble}");
        }
        let line = match (how.json, seen.report.as_ref(), seen.past.back()) {
            (true, Some(report), Some(rates)) => rates.json(report).to_string() + "\n",
            (true, ..) => continue,
            (false, ..) => text(&seen, size()),
        };
        // Whoever reads need not read to the end.
        let mut out = std::io::stdout();
        match out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        if how.once {
            return Ok(());
        }
    }
}

async fn look(socket: &Path) -> Result<Report> {
    match timeout(PATIENCE, socket::request_report(socket)).await {
        Ok(report) => report,
        Err(_) => bail!("the daemon at {} does not answer", socket.display()),
    }
}

/// The terminal's size, if there is one.
fn size() -> (u16, u16) {
    let size = std::io::stdout().is_terminal().then(ratatui::crossterm::terminal::size);
    let (width, height) = size.and_then(Result::ok).unwrap_or(SIZE);
    (width.max(SIZE.0), height.max(SIZE.1))
}

/// The screen as text, of this width and height.
#[must_use]
pub fn text(seen: &Seen, (width, height): (u16, u16)) -> String {
    let drawn = Terminal::new(TestBackend::new(width, height)).ok().and_then(|mut terminal| {
        terminal.draw(|frame| Screen::plain().draw(seen, frame.area(), frame.buffer_mut())).ok()?;
        Some(lines_of(terminal.backend().buffer()))
    });
    drawn.unwrap_or_default()
}

fn lines_of(buffer: &Buffer) -> String {
    let width = usize::from(buffer.area.width).max(1);
    let rows = buffer.content.chunks(width).map(|row| {
        let row: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        row.trim_end().to_owned() + "\n"
    });
    let text: String = rows.collect();
    text.trim_end().to_owned() + "\n"
}

#[cfg(test)]
#[path = "live/tests.rs"]
mod tests;
