//! `lota check`: validates a configuration on this node and prints a fix for each failure. It changes nothing and
//! shows no secret.

mod disks;
mod files;
mod gateway;
mod kubernetes;
mod node;
mod peers;
mod rules;
mod server;
mod zones;

use std::path::Path;

use nix::sys::utsname::uname;

use crate::{
    admin::node_status::{Finding, Level},
    config::Config,
};

/// Passes findings to `say` and counts failures.
struct CheckReport<'a> {
    say: &'a mut dyn FnMut(&Finding),
    failures: usize,
}

impl CheckReport<'_> {
    fn ok(&mut self, part: &str, what: impl Into<String>) {
        self.add(Level::Ok, part, what.into(), None);
    }

    fn warn(&mut self, part: &str, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Level::Warn, part, what.into(), Some(fix.into()));
    }

    fn fail(&mut self, part: &str, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Level::Fail, part, what.into(), Some(fix.into()));
    }

    fn add(&mut self, level: Level, part: &str, what: String, fix: Option<String>) {
        self.failures += usize::from(level == Level::Fail);
        (self.say)(&Finding { part: part.to_owned(), level, what, fix });
    }
}

/// Returns the name of this node: that in the configuration, or else that of the machine.
pub(super) fn node_name(file: &Path) -> String {
    let of_machine = || uname().map(|machine| machine.nodename().to_string_lossy().into_owned());
    let configured = Config::read(file).map(|config| config.node.name).ok();
    let in_environment = || std::env::var("LOTA_NODE_NAME").ok().filter(|name| !name.is_empty());
    configured.or_else(in_environment).or_else(|| of_machine().ok()).unwrap_or_default()
}

/// Returns a finding as one line of JSON, so that the findings of several nodes can be put together.
pub(super) fn json_line(node: &str, finding: &Finding) -> String {
    /// A finding with the node that it is about.
    #[derive(serde::Serialize)]
    struct NodeFinding<'a> {
        node: &'a str,
        #[serde(flatten)]
        finding: &'a Finding,
    }
    serde_json::json!(NodeFinding { node, finding }).to_string()
}

/// Checks a file and passes each finding to `say`. Returns the number of failures.
pub async fn run(file: &Path, mut say: impl FnMut(&Finding)) -> usize {
    let mut report = CheckReport { say: &mut say, failures: 0 };
    let config = match Config::read(file) {
        Ok(config) => config,
        Err(error) => {
            report.fail("config", error.to_string(), "see docs/configuration.md for all keys");
            return report.failures;
        }
    };
    report.ok("config", format!("{} is valid: node {}", file.display(), config.node.name));
    files::check(&mut report, &config);
    disks::check(&mut report, &config);
    node::check(&mut report, &config).await;
    rules::check(&mut report, &config).await;
    gateway::check(&mut report, &config).await;
    peers::check(&mut report, &config).await;
    zones::check(&mut report, &config).await;
    kubernetes::check(&mut report, &config).await;
    report.failures
}

#[cfg(test)]
mod tests;
