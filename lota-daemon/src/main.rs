//! `lota`: arguments and signals.

mod show;
mod status;

use std::{
    io::{ErrorKind, Write as _},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use clap::Parser as _;
use lota_daemon::{
    access::Subject,
    admin::socket,
    cache::Which,
    cache_tools, check,
    cli::{
        About, AccessCommand, CacheCommand, Check, Cli, Command, DatapathCommand, Evict, GatewayCommand,
        Look, Prefetch, Top, Verify,
    },
    config::{Config, Reload},
    control::{AccessRequest, Verb},
    datapath::{self, PinnedMaps},
    live::{self, How},
    logs, node, prefetch,
    workers::Workers,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// A small hit allocates dozens of times, which took a tenth of its time with glibc's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    logs::init();
    let Cli { config, command } = Cli::parse();
    let done = match command {
        // It may run in a pod, where there is no configuration.
        Command::Prefetch(wanted) => prefetch(&wanted),
        Command::Run => run(&config),
        // Whether it can be read is the first thing to say.
        Command::Check(Check { file, json }) => check(&file.unwrap_or(config), json),
        // These have more than two ends.
        Command::Status(Look { json }) => return status::status(&config, json),
        Command::Ready => return status::ready(&config),
        command => {
            Config::read(&config).map_err(Into::into).and_then(|read| dispatch(command, &read, &config))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lota: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command, config: &Config, path: &Path) -> Result<()> {
    let shown = match command {
        // Above, where the file itself is wanted, or none, or more than two ends.
        Command::Run | Command::Prefetch(_) | Command::Check(_) | Command::Status(_) | Command::Ready => {
            return Ok(());
        }
        Command::Top(Top { interval, json, once }) => {
            let how = How { interval: Duration::from_secs_f64(interval), json, once };
            return block_on(live::run(&config.admin.socket, how))?;
        }
        Command::Reload => reload(config)?,
        Command::SupportBundle { file } => return status::bundle(config, path, &file),
        Command::Datapath(DatapathCommand::Detach) => return detach(config),
        Command::Cache(CacheCommand::Ls(Look { json })) => show::cache(&config.cache.disks, json)?,
        Command::Cache(CacheCommand::Stat(Look { json })) => block_on(cache_tools::stat(config, json))??,
        Command::Cache(CacheCommand::Evict(Evict { which, json, .. })) => {
            block_on(cache_tools::evict(config, &which.unwrap_or(Which::All), json))??
        }
        Command::Cache(CacheCommand::Verify(Verify { repair, rate, json })) => {
            return block_on(cache_tools::verify(config, repair, rate, json))?;
        }
        Command::Access(AccessCommand::List(Look { json })) => {
            show::access(&PinnedMaps::new(&config.datapath).access()?, json)
        }
        Command::Access(AccessCommand::Denied(Look { json })) => {
            show::denied(&PinnedMaps::new(&config.datapath).denied()?, json)
        }
        Command::Access(AccessCommand::Allow { subject, interface }) => {
            access(config, Verb::Allow, subject, interface)?
        }
        Command::Access(AccessCommand::Deny(About { subject })) => access(config, Verb::Deny, subject, None)?,
        Command::Access(AccessCommand::Forget(About { subject })) => {
            access(config, Verb::Forget, subject, None)?
        }
        Command::Datapath(DatapathCommand::Status(Look { json })) => {
            show::datapath(&block_on(socket::request_status(&config.admin.socket))??, json)?
        }
        Command::Gateway(GatewayCommand::Status(Look { json })) => {
            show::gateway(&block_on(socket::request_gateway(&config.admin.socket))??, json)?
        }
    };
    // Whoever reads need not read to the end.
    match std::io::stdout().write_all(shown.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// This thread keeps the capabilities that the kernel side needs; everything that handles what others send runs on
/// threads that have none.
fn run(path: &Path) -> Result<()> {
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
        node::run(config, Reload::on_hangup(path)?, stopped, workers).await
    })
}

fn check(file: &Path, json: bool) -> Result<()> {
    let failures = block_on(check::run(file, |line| match json {
        true => println!("{}", serde_json::json!(line)),
        false => println!("{line}"),
    }))?;
    anyhow::ensure!(failures == 0, "{failures} of these will not work");
    Ok(())
}

fn prefetch(wanted: &Prefetch) -> Result<()> {
    let summary = block_on(prefetch::run(wanted))??;
    if wanted.json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        eprintln!("{summary}");
    }
    anyhow::ensure!(
        summary.failed == 0,
        "{} objects could not be asked for: {}",
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
    let named =
        later.iter().map(|key| format!("{key} has changed, and holds with the next daemon: lota run\n"));
    Ok(named.fold("[access] holds as it is now\n".to_owned(), |said, line| said + &line))
}

fn detach(config: &Config) -> Result<()> {
    block_on(datapath::detach(&config.datapath, &config.endpoint.vips()))?
}

fn block_on<F: Future>(future: F) -> Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
