//! Commands on the state of the node, with their own exit codes.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lota_datapath::PinnedMaps;
use tokio::time::timeout;

use super::{block_on, output};
use crate::{
    admin::{
        node_status::{INSTANCE, Level},
        socket,
    },
    cli::support_bundle::Bundle,
    config::Config,
    process::escape::{plain, plain_json, plain_lines},
};

/// Exit code if no daemon answers.
const NO_DAEMON: u8 = 2;
/// Timeout for the daemon's response.
const DAEMON_TIMEOUT: Duration = Duration::from_secs(10);

/// Prints the health of each part.
pub(crate) fn status(config: &Path, json: bool) -> ExitCode {
    let report = match ask(config, async |socket| socket::request_report(socket).await) {
        Ok(report) => report,
        Err(error) => return no_daemon(&error),
    };
    let shown = match json {
        true => serde_json::to_string(&report).map(|json| plain_json(&json) + "\n").unwrap_or_default(),
        false => report.table(colors()),
    };
    // A reader such as `head` may close the pipe early.
    let _ = io::stdout().write_all(shown.as_bytes());
    if report.level() == Level::Ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Reports whether the daemon that answers is ready and is the expected instance.
pub(crate) fn ready(config: &Path) -> ExitCode {
    let presence = match ask(config, async |socket| socket::request_presence(socket).await) {
        Ok(presence) => presence,
        Err(error) => return no_daemon(&error),
    };
    let expected = std::env::var(INSTANCE).ok().filter(|instance| !instance.is_empty());
    if !presence.ready {
        eprintln!("lota: the daemon is not ready");
        return ExitCode::FAILURE;
    }
    if expected.is_some() && expected != presence.instance {
        let other = presence.instance.as_deref().unwrap_or("an unnamed instance");
        eprintln!("lota: another daemon answers: {}", plain(other));
        return ExitCode::FAILURE;
    }
    println!("ready pid={}", presence.pid);
    ExitCode::SUCCESS
}

/// Writes a support bundle.
pub(crate) fn bundle(config: &Config, path: &Path, to: &Path) -> Result<()> {
    block_on(async {
        let mut bundle = Bundle::gather(config, path).await;
        let socket = &config.admin.socket;
        let maps = PinnedMaps::new(&config.datapath);
        let access = maps.access().map(|table| output::access(&table, false));
        bundle.add("access.txt", "`lota access list`", access);
        let denied = maps.denied().map(|denied| output::denied(&denied, false));
        bundle.add("denied.txt", "`lota access denied`", denied);
        let status = socket::request_status(socket).await.and_then(|status| output::datapath(&status, false));
        bundle.add("datapath.txt", "`lota datapath status`", status);
        let gateway =
            socket::request_gateway(socket).await.and_then(|servers| output::gateway(&servers, false));
        bundle.add("gateway.txt", "`lota gateway status`", gateway);
        if to == Path::new("-") {
            return Ok(bundle.write(io::stdout().lock())?);
        }
        // Only the owner can read it, because it contains addresses.
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(to);
        let writing = || format!("writing {}", to.display());
        bundle.write(file.with_context(writing)?).with_context(writing)?;
        eprintln!("written to {}; its MANIFEST lists the contents", to.display());
        Ok(())
    })?
}

fn ask<T>(config: &Path, request: impl AsyncFnOnce(&Path) -> Result<T>) -> Result<T> {
    let config = Config::read(config)?;
    let socket = &config.admin.socket;
    block_on(async {
        let response = timeout(DAEMON_TIMEOUT, request(socket)).await;
        response.with_context(|| format!("the daemon at {} does not answer", socket.display()))?
    })?
}

fn no_daemon(error: &anyhow::Error) -> ExitCode {
    eprintln!("lota: {}", plain_lines(&format!("{error:#}")));
    ExitCode::from(NO_DAEMON)
}

/// Returns whether standard output is a terminal that shows colors.
pub(super) fn colors() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !unwanted
}
