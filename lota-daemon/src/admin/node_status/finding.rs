//! The result of a check or of a diagnosis: `lota check`, `lota status`, `lota top` and the status page show the same
//! fields.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::process::escape::plain;

/// Column where the fixes begin.
const INDENT: usize = 20;

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It works.
    Ok,
    /// It works with limitations, or cannot be determined.
    Warn,
    /// It does not work: pods are refused, or get errors.
    Fail,
}

impl Level {
    /// Returns the text of the level.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }

    fn color(self) -> &'static str {
        match self {
            Self::Ok => "\x1b[32m",
            Self::Warn => "\x1b[33m",
            Self::Fail => "\x1b[1;31m",
        }
    }
}

/// State of one part, or the result of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Name of the part.
    pub part: String,
    /// Severity.
    pub level: Level,
    /// State of the part, or the problem.
    pub what: String,
    /// Fix, if there is a problem.
    pub fix: Option<String>,
}

impl Finding {
    /// Returns a line, and a second one with the fix if there is a problem.
    #[must_use]
    pub fn text(&self, colors: bool) -> String {
        let Self { part, level, what, fix } = self;
        let label = match colors {
            true => format!("{}{:<4}\x1b[0m", level.color(), level.label()),
            false => format!("{:<4}", level.label()),
        };
        let mut text = format!("{label}  {part:<12}  {}\n", plain(what));
        if let Some(fix) = fix {
            text.push_str(&format!("{:INDENT$}→ {}\n", "", plain(fix)));
        }
        text
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(false).trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_cannot_forge_a_finding() {
        let finding = Finding {
            part: "verification".to_owned(),
            level: Level::Warn,
            what: "no answer\nok    gateway".to_owned(),
            fix: Some("see its log\x1b[2J".to_owned()),
        };
        assert_eq!(
            finding.to_string(),
            "warn  verification  no answer\\nok    gateway\n                    → see its log\\u{1b}[2J"
        );
        let colored = finding.text(true);
        assert!(colored.starts_with("\x1b[33mwarn\x1b[0m  verification  no answer"), "{colored}");
    }
}
