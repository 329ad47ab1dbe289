//! `lota`: the daemon and its commands.

use std::process::ExitCode;

use clap::Parser as _;
use lota_daemon::{
    cli::{self, args::Cli},
    process::logging,
};

/// A small hit allocates dozens of times, which took a tenth of its time with glibc's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    logging::init();
    cli::run(Cli::parse())
}
