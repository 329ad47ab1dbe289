//! `lota check`: what of a configuration works on this node, what will not, and what to do about it. Nothing is changed,
//! and no secret is shown.

mod disks;
mod files;
mod gateway;
mod kubernetes;
mod node;
mod peers;
mod server;

use std::{fmt, path::Path};

use serde::Serialize;

use crate::config::Config;

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It works.
    Ok,
    /// It works, but not as well or as safely as it could; or it cannot be told from here.
    Warn,
    /// It will not work.
    Fail,
}

/// One thing that is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// How well it is.
    pub level: Level,
    /// What it is about: a part of the configuration.
    pub about: &'static str,
    /// What was found.
    pub what: String,
    /// What to do, unless it is well.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    pub todo: Option<String>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        write!(f, "{level:<5} {:<11} {}", self.about, self.what)?;
        match &self.todo {
            Some(todo) => write!(f, "\n{:<18}→ {todo}", ""),
            None => Ok(()),
        }
    }
}

/// What has been said so far goes to `say`, and is counted.
struct Report<'a> {
    say: &'a mut dyn FnMut(&Line),
    failures: usize,
}

impl Report<'_> {
    fn ok(&mut self, about: &'static str, what: impl Into<String>) {
        self.add(Level::Ok, about, what.into(), None);
    }

    fn warn(&mut self, about: &'static str, what: impl Into<String>, todo: impl Into<String>) {
        self.add(Level::Warn, about, what.into(), Some(todo.into()));
    }

    fn fail(&mut self, about: &'static str, what: impl Into<String>, todo: impl Into<String>) {
        self.add(Level::Fail, about, what.into(), Some(todo.into()));
    }

    fn add(&mut self, level: Level, about: &'static str, what: String, todo: Option<String>) {
        self.failures += usize::from(level == Level::Fail);
        (self.say)(&Line { level, about, what, todo });
    }
}

/// Checks a file, saying each thing as it is found; how many things will not work.
pub async fn run(file: &Path, mut say: impl FnMut(&Line)) -> usize {
    let mut report = Report { say: &mut say, failures: 0 };
    let config = match Config::read(file) {
        Ok(config) => config,
        Err(error) => {
            report.fail("config", error.to_string(), "docs/configuration.md has every key");
            return report.failures;
        }
    };
    report.ok("config", format!("{} is sound: node {}", file.display(), config.node.name));
    files::check(&mut report, &config);
    disks::check(&mut report, &config);
    node::check(&mut report, &config).await;
    gateway::check(&mut report, &config).await;
    gateway::check_backend(&mut report, &config).await;
    peers::check(&mut report, &config).await;
    kubernetes::check(&mut report, &config).await;
    report.failures
}

#[cfg(test)]
#[path = "check/tests.rs"]
mod tests;
