//! `lota top`: shows live activity of a node in a terminal.

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
use crate::admin::{node_status::NodeReport, socket};

/// Length of the sparklines, in intervals.
const PAST: usize = 240;
/// Timeout for the daemon's report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// Size of the smallest terminal that shows everything.
const SIZE: (u16, u16) = (80, 24);

/// Output options.
#[derive(Clone, Copy, Debug)]
pub struct TopOptions {
    /// Refresh interval.
    pub interval: Duration,
    /// Prints one line of JSON per refresh.
    pub json: bool,
    /// Prints one snapshot and exits.
    pub once: bool,
}

/// Reports received so far.
#[derive(Debug, Default)]
pub struct Observation {
    /// Latest report.
    pub report: Option<NodeReport>,
    /// Rates between the reports, oldest first.
    pub past: VecDeque<Rates>,
    /// Reason why the latest report is missing, if it is.
    pub trouble: Option<String>,
}

impl Observation {
    /// Adds the result of a refresh.
    pub fn look(&mut self, looked: Result<NodeReport>) {
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
                // Another daemon answers, whose counters start at 0.
                None => self.past.clear(),
            }
            if self.past.len() > PAST {
                self.past.pop_front();
            }
        }
        self.report = Some(report);
    }
}

/// Shows the node of this admin socket until `q` is pressed, or once.
///
/// # Errors
/// If there is no terminal, or if no daemon answers the first request.
pub async fn run(socket: &Path, how: TopOptions) -> Result<()> {
    let mut seen = Observation::default();
    // An error of the first request is printed before the screen is cleared.
    seen.look(Ok(look(socket).await?));
    if how.json || how.once {
        return lines(socket, how, seen).await;
    }
    ensure!(std::io::stdout().is_terminal(), "standard output is not a terminal; use --once or --json");
    let mut terminal = ratatui::try_init()?;
    let shown = show(socket, how, seen, &mut terminal).await;
    ratatui::try_restore()?;
    shown
}

async fn show(
    socket: &Path,
    how: TopOptions,
    mut seen: Observation,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<()> {
    let screen = Screen::for_this_terminal();
    let mut next = Instant::now() + how.interval;
    loop {
        terminal.draw(|frame| screen.draw(&seen, frame.area(), frame.buffer_mut()))?;
        // Blocking is fine: nothing else runs on this thread.
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

/// Prints reports without a terminal.
async fn lines(socket: &Path, how: TopOptions, mut seen: Observation) -> Result<()> {
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
        // A reader such as `head` may close the pipe early.
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

async fn look(socket: &Path) -> Result<NodeReport> {
    match timeout(REPORT_TIMEOUT, socket::request_report(socket)).await {
        Ok(report) => report,
        Err(_) => bail!("the daemon at {} does not answer", socket.display()),
    }
}

/// Returns the size of the terminal, or a default without one.
fn size() -> (u16, u16) {
    let size = std::io::stdout().is_terminal().then(ratatui::crossterm::terminal::size);
    let (width, height) = size.and_then(Result::ok).unwrap_or(SIZE);
    (width.max(SIZE.0), height.max(SIZE.1))
}

/// Returns the screen of this width and height as text.
#[must_use]
pub fn text(seen: &Observation, (width, height): (u16, u16)) -> String {
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
mod tests;
