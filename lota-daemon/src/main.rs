//! `lota`: arguments and signals.

mod show;

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use clap::Parser as _;
use lota_daemon::{
    admin::socket,
    cli::{About, AccessCommand, CacheCommand, Cli, Command, DatapathCommand, Look},
    config::Config,
    control::{AccessRequest, Verb},
    datapath::{self, PinnedMaps},
    node, privileges,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

fn main() -> ExitCode {
    // A level, or a list of `module=level`.
    let wanted = std::env::var("LOTA_LOG").ok().and_then(|wanted| wanted.parse::<Targets>().ok());
    let filter = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer().with_target(false).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines).with(filter).init();
    match dispatch(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lota: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Run { config } => run(Config::read(&config)?),
        Command::Cache(CacheCommand::Ls(Look { config, json })) => {
            show::cache(&Config::read(&config)?.cache.folder, json)
        }
        Command::Access(command) => access(command),
        Command::Datapath(DatapathCommand::Status(Look { config, json })) => {
            show::datapath(&status(&Config::read(&config)?.admin.socket)?, json)
        }
        Command::Datapath(DatapathCommand::Detach { config }) => detach(&Config::read(&config)?),
    }
}

/// Two runtimes: this thread keeps the capabilities that the kernel side needs, and everything that handles what
/// others send runs on threads that have none.
fn run(config: Config) -> Result<()> {
    let serving = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(privileges::drop_all)
        .build()?;
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = control.block_on(async {
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
        node::run(config, stopped, serving.handle()).await
    });
    serving.shutdown_background();
    ended
}

fn access(command: AccessCommand) -> Result<()> {
    let (verb, subject, interface, config) = match command {
        AccessCommand::Allow { subject, interface, config } => (Verb::Allow, subject, interface, config),
        AccessCommand::Deny(About { subject, config }) => (Verb::Deny, subject, None, config),
        AccessCommand::Forget(About { subject, config }) => (Verb::Forget, subject, None, config),
        AccessCommand::List(Look { config, json }) => {
            return show::access(&PinnedMaps::new(&Config::read(&config)?.datapath).access()?, json);
        }
        AccessCommand::Denied(Look { config, json }) => {
            return show::denied(&PinnedMaps::new(&Config::read(&config)?.datapath).denied()?, json);
        }
    };
    let config = Config::read(&config)?;
    let request = AccessRequest { verb, subject, interface };
    block_on(socket::request_access(&config.admin.socket, &request))?
}

fn status(socket: &Path) -> Result<datapath::Status> {
    block_on(socket::request_status(socket))?
}

fn detach(config: &Config) -> Result<()> {
    block_on(datapath::detach(&config.datapath, &config.endpoint.vips()))?
}

fn block_on<F: Future>(future: F) -> Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
