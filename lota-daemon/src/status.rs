//! Commands about the state of the node, with ends of their own.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lota_daemon::{
    admin::socket,
    bundle::Bundle,
    config::Config,
    datapath::PinnedMaps,
    report::{INSTANCE, Mark},
};
use tokio::time::timeout;

use super::{block_on, show};

/// Nobody is there who could say.
const NO_DAEMON: u8 = 2;
/// Longest wait for one.
const PATIENCE: Duration = Duration::from_secs(10);

/// Shows how each part is.
pub(crate) fn status(config: &Path, json: bool) -> ExitCode {
    let report = match ask(config, async |socket| socket::request_report(socket).await) {
        Ok(report) => report,
        Err(error) => return nobody(&error),
    };
    let shown = match json {
        true => serde_json::to_string(&report).map(|json| json + "\n").unwrap_or_default(),
        false => report.table(colours()),
    };
    // Whoever reads need not read to the end.
    let _ = io::stdout().write_all(shown.as_bytes());
    if report.mark() == Mark::Ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Is the daemon that answers ready, and the one that is meant?
pub(crate) fn ready(config: &Path) -> ExitCode {
    let presence = match ask(config, async |socket| socket::request_presence(socket).await) {
        Ok(presence) => presence,
        Err(error) => return nobody(&error),
    };
    let meant = std::env::var(INSTANCE).ok().filter(|instance| !instance.is_empty());
    if !presence.ready {
        eprintln!("lota: the daemon is not ready");
        return ExitCode::FAILURE;
    }
    if meant.is_some() && meant != presence.instance {
        let other = presence.instance.as_deref().unwrap_or("one without a name");
        eprintln!("lota: another daemon answers: {other}");
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
        let access = maps.access().map(|table| show::access(&table, false));
        bundle.add("access.txt", "`lota access list`", access);
        let denied = maps.denied().map(|denied| show::denied(&denied, false));
        bundle.add("denied.txt", "`lota access denied`", denied);
        let status = socket::request_status(socket).await.and_then(|status| show::datapath(&status, false));
        bundle.add("datapath.txt", "`lota datapath status`", status);
        let gateway =
            socket::request_gateway(socket).await.and_then(|servers| show::gateway(&servers, false));
        bundle.add("gateway.txt", "`lota gateway status`", gateway);
        if to == Path::new("-") {
            return Ok(bundle.write(io::stdout().lock())?);
        }
        // It has addresses in it: for whoever runs this, to pass on.
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(to);
        let writing = || format!("writing {}", to.display());
        bundle.write(file.with_context(writing)?).with_context(writing)?;
        eprintln!("written to {}: see MANIFEST in it for what there is", to.display());
        Ok(())
    })?
}

fn ask<T>(config: &Path, request: impl AsyncFnOnce(&Path) -> Result<T>) -> Result<T> {
    let config = Config::read(config)?;
    let socket = &config.admin.socket;
    block_on(async {
        let asked = timeout(PATIENCE, request(socket)).await;
        asked.with_context(|| format!("the daemon at {} does not answer", socket.display()))?
    })?
}

fn nobody(error: &anyhow::Error) -> ExitCode {
    eprintln!("lota: {error:#}");
    ExitCode::from(NO_DAEMON)
}

fn colours() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !unwanted
}
