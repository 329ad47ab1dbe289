//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// The Local Object Transfer Accelerator: one daemon per node.
#[derive(Debug, Parser)]
#[command(name = "lota", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `lota` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node.
    Run {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Look into the cache.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Look after the kernel side.
    #[command(subcommand)]
    Datapath(DatapathCommand),
}

/// Looking into the cache.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List the complete objects on this node's disk.
    Ls {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// For scripts.
        #[arg(long)]
        json: bool,
    },
}

/// Looking after the kernel side.
#[derive(Debug, Subcommand)]
pub enum DatapathCommand {
    /// Take LOTA out of the kernel: the virtual address, the programs, the maps.
    Detach {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
}
