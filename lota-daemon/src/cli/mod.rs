//! Commands of the operator's shell: arguments, execution, and output.

pub mod args;
mod cache;
pub mod check;
mod node_key;
mod output;
mod pins;
pub mod prefetch;
mod status;
pub mod support_bundle;
pub mod top;
mod uninstall;

use std::{
    io::{ErrorKind, Write as _},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use lota_cache::EvictSelector;
use lota_datapath::{self, PinnedMaps, Subject};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use self::{
    args::{
        AccessCommand, CacheCommand, Check, Cli, Command, DatapathCommand, Evict, GatewayCommand, OutputArgs,
        Prefetch, SubjectArgs, TopArgs, Verify,
    },
    top::TopOptions,
};
use crate::{
    admin::socket,
    config::{Config, Reload},
    daemon,
    process::{
        escape::{plain_json, plain_lines},
        workers::Workers,
    },
    reconciler::{AccessRequest, Verb},
};

/// Runs the command of the arguments.
#[must_use]
pub fn run(Cli { config, command }: Cli) -> ExitCode {
    let done = match command {
        // It may run in a pod without a configuration.
        Command::Prefetch(options) => run_prefetch(&options),
        Command::Run => run_daemon(&config),
        // Reports itself whether the configuration can be read.
        Command::Check(Check { file, json, exit_zero }) => {
            run_check(&file.unwrap_or(config), json).and_then(|failures| match failures {
                failures if failures == 0 || exit_zero => Ok(()),
                failures => Err(anyhow::anyhow!("{failures} checks failed")),
            })
        }
        Command::NodeKey(options) => node_key::show(options, &config).map(|public| print!("{public}")),
        Command::Wait => block_on(until_stopped()).and_then(|waited| Ok(waited?)),
        // These have their own exit codes.
        Command::Status(OutputArgs { json }) => return status::status(&config, json),
        Command::Ready => return status::ready(&config),
        command => {
            Config::read(&config).map_err(Into::into).and_then(|read| dispatch(command, &read, &config))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lota: {}", plain_lines(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command, config: &Config, path: &Path) -> Result<()> {
    let shown = match command {
        // Handled in `run`.
        Command::Run
        | Command::Prefetch(_)
        | Command::Check(_)
        | Command::NodeKey(_)
        | Command::Wait
        | Command::Status(_)
        | Command::Ready => {
            return Ok(());
        }
        Command::Top(TopArgs { interval, json, once }) => {
            let how = TopOptions { interval: Duration::from_secs_f64(interval), json, once };
            return block_on(top::run(&config.admin.socket, how))?;
        }
        Command::Reload => reload(config)?,
        Command::SupportBundle { file } => return status::bundle(config, path, &file),
        Command::Datapath(DatapathCommand::Detach) => return detach(config),
        Command::Uninstall { wait } => return remove_all(config, wait),
        Command::Cache(CacheCommand::Ls(OutputArgs { json })) => output::cache(&config.cache.disks, json)?,
        Command::Cache(CacheCommand::Stat(OutputArgs { json })) => block_on(cache::stat(config, json))??,
        Command::Cache(CacheCommand::Evict(Evict { which, json, .. })) => {
            block_on(cache::evict(config, &which.unwrap_or(EvictSelector::All), json))??
        }
        Command::Cache(CacheCommand::Verify(Verify { repair, rate, json })) => {
            return block_on(cache::verify(config, repair, rate, json))?;
        }
        Command::Cache(CacheCommand::Pin(pin)) => block_on(pins::pin(config, pin))??,
        Command::Cache(CacheCommand::Unpin(unpin)) => block_on(pins::unpin(config, unpin))??,
        Command::Cache(CacheCommand::Pins(OutputArgs { json })) => block_on(pins::list(config, json))??,
        Command::Access(AccessCommand::List(OutputArgs { json })) => {
            output::access(&PinnedMaps::new(&config.datapath).access()?, json)
        }
        Command::Access(AccessCommand::Denied(OutputArgs { json })) => {
            output::denied(&PinnedMaps::new(&config.datapath).denied()?, json)
        }
        Command::Access(AccessCommand::Allow { subject, interface }) => {
            access(config, Verb::Allow, subject, interface)?
        }
        Command::Access(AccessCommand::Deny(SubjectArgs { subject })) => {
            access(config, Verb::Deny, subject, None)?
        }
        Command::Access(AccessCommand::Forget(SubjectArgs { subject })) => {
            access(config, Verb::Forget, subject, None)?
        }
        Command::Datapath(DatapathCommand::Status(OutputArgs { json })) => {
            output::datapath(&block_on(socket::request_status(&config.admin.socket))??, json)?
        }
        Command::Gateway(GatewayCommand::Status(OutputArgs { json })) => {
            output::gateway(&block_on(socket::request_gateway(&config.admin.socket))??, json)?
        }
    };
    // A reader such as `head` may close the pipe early.
    match std::io::stdout().write_all(shown.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Runs the daemon. This thread keeps the capabilities that the kernel side needs; input from outside is handled on
/// threads without any.
fn run_daemon(path: &Path) -> Result<()> {
    let config = Config::read(path)?;
    let workers = Workers::start()?;
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    control.block_on(async {
        let (stop, stopped) = watch::channel(false);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            let _ = stop.send(true);
            // Kept, so that the signal stays visible until the process ends.
            std::future::pending::<()>().await;
        });
        daemon::run(config, Reload::on_hangup(path)?, stopped, workers).await
    })
}

/// Checks a configuration. Returns the number of failures.
fn run_check(file: &Path, json: bool) -> Result<usize> {
    let node = check::node_name(file);
    block_on(check::run(file, |finding| match json {
        true => println!("{}", plain_json(&check::json_line(&node, finding))),
        // It escapes its text.
        false => print!("{}", finding.text(status::colors())),
    }))
}

/// Waits for SIGTERM or SIGINT.
async fn until_stopped() -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn run_prefetch(options: &Prefetch) -> Result<()> {
    let summary = block_on(prefetch::run(options))??;
    if options.json {
        println!("{}", plain_json(&serde_json::to_string(&summary)?));
    } else {
        eprintln!("{}", plain_lines(&summary.to_string()));
    }
    anyhow::ensure!(
        summary.failed == 0,
        "cannot request {} objects; the first error: {}",
        summary.failed,
        summary.first_failure
    );
    Ok(())
}

fn access(config: &Config, verb: Verb, subject: Subject, interface: Option<String>) -> Result<String> {
    let request = AccessRequest { verb, subject, interface };
    let about = block_on(socket::request_access(&config.admin.socket, &request))??;
    let done = match verb {
        Verb::Allow => "allowed",
        Verb::Deny => "denied",
        Verb::Forget => "forgotten",
    };
    Ok(format!("{done} {about}\n"))
}

fn reload(config: &Config) -> Result<String> {
    let later = block_on(socket::request_reload(&config.admin.socket))??;
    let named = later.iter().map(|key| format!("{key} changed: restart the daemon to apply it (lota run)\n"));
    Ok(named
        .fold("[access], public keys of nodes and files with secrets reloaded\n".to_owned(), |text, line| {
            text + &line
        }))
}

fn remove_all(config: &Config, wait: bool) -> Result<()> {
    block_on(async {
        uninstall::run(config).await?;
        println!("removed: programs, maps, VIPs, cache and sockets of LOTA on this node");
        if wait {
            until_stopped().await?;
        }
        Ok(())
    })?
}

fn detach(config: &Config) -> Result<()> {
    block_on(lota_datapath::detach(&config.datapath, &config.endpoint.vips()))?
}

fn block_on<F: Future>(future: F) -> Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
