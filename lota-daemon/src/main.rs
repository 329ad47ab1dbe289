//! `lota`: arguments and signals.

use std::{path::Path, process::ExitCode, time::SystemTime};

use anyhow::Result;
use clap::Parser as _;
use lota_daemon::{
    cache,
    cli::{CacheCommand, Cli, Command, DatapathCommand},
    config::Config,
    datapath, node,
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
        Command::Cache(CacheCommand::Ls { config, json }) => list(&Config::read(&config)?.cache.folder, json),
        Command::Datapath(DatapathCommand::Detach { config }) => detach(&Config::read(&config)?),
    }
}

#[tokio::main]
async fn run(config: Config) -> Result<()> {
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
    node::run(config, stopped).await
}

fn list(folder: &Path, json: bool) -> Result<()> {
    for object in cache::list(folder)? {
        let meta = object.meta;
        let age = SystemTime::now().duration_since(object.stored).unwrap_or_default().as_secs();
        let name = meta.version.name;
        if json {
            let line = serde_json::json!({
                "bucket": name.bucket.as_str(),
                "key": name.key.as_str(),
                "version_id": name.version_id,
                "etag": meta.version.validator.etag,
                "size": meta.size,
                "age_seconds": age,
                "file": object.data,
            });
            println!("{line}");
        } else {
            println!("{:>14}  {age:>8}s  {}  {name}", meta.size, meta.version.validator.etag);
        }
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn detach(config: &Config) -> Result<()> {
    datapath::detach(&config.datapath, config.endpoint.vip.into()).await
}
