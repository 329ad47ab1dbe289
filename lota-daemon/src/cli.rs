//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    access::Subject,
    cache::Which,
    config::{ByteSize, Origin},
    prefetch::Objects,
};

/// The Local Object Transfer Accelerator: one daemon per node.
#[derive(Debug, Parser)]
#[command(name = "lota", version)]
pub struct Cli {
    /// The configuration file.
    #[arg(long, global = true, default_value = "/etc/lota/lota.toml")]
    pub config: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `lota` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node. A daemon that runs already hands over to this one, without a refused connection.
    Run,
    /// Say of a configuration, line by line, what works on this node and what will not, and what to do about it.
    Check(Check),
    /// Have objects brought into the cluster's caches, ahead of who will read them.
    Prefetch(Prefetch),
    /// Show how each part of the node is, and what to do where something is wrong. Ends with 0 if all is well, 1 if
    /// something is not, 2 if no daemon answers.
    Status(Look),
    /// Is the daemon ready? For probes: if LOTA_INSTANCE is set, it must be that daemon's, of two on one node.
    Ready,
    /// Have the daemon read its configuration again, as SIGHUP does: [access] holds at once; what else has changed is named.
    /// A gateway that failed its trial is tried again.
    Reload,
    /// Show what happens on the node, live.
    Top(Top),
    /// Put together what others need to see to help: the node's state, configuration, metrics, log. No secrets, and no
    /// names of objects.
    SupportBundle {
        /// Where to write it; `-` is the standard output.
        #[arg(default_value = "lota-support.tar.gz")]
        file: PathBuf,
    },
    /// Look into the cache.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Say which addresses may talk to LOTA on this node, and see which were refused.
    #[command(subcommand)]
    Access(AccessCommand),
    /// Look after the kernel side.
    #[command(subcommand)]
    Datapath(DatapathCommand),
    /// See how far the gateway is trusted.
    #[command(subcommand)]
    Gateway(GatewayCommand),
}

/// Checking a configuration.
#[derive(Args, Debug)]
pub struct Check {
    /// The file; that of `--config`, if none is named.
    pub file: Option<PathBuf>,
    /// A line of JSON for each that is said.
    #[arg(long)]
    pub json: bool,
}

/// Having objects brought. Credentials and region come from the environment, as AWS's tools read it.
#[derive(Args, Debug)]
pub struct Prefetch {
    /// `s3://bucket/prefix`.
    pub objects: Objects,
    /// Where LOTA is.
    #[arg(long, default_value = "http://cwlota.com", value_parser = Origin::parse)]
    pub endpoint: Origin,
    /// Most bytes to have brought in a second, such as `2GiB`; as fast as may be, if nothing is said.
    #[arg(long, value_parser = ByteSize::parse)]
    pub rate: Option<ByteSize>,
    /// Requests at once.
    #[arg(long, default_value_t = 16)]
    pub jobs: usize,
    /// A file that remembers what was done: with it, a prefetch that broke off goes on where it was.
    #[arg(long)]
    pub list: Option<PathBuf>,
    /// A line of JSON at the end, for scripts, and no progress.
    #[arg(long)]
    pub json: bool,
}

/// Showing what happens.
#[derive(Args, Debug)]
pub struct Top {
    /// Seconds between two looks.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    pub interval: f64,
    /// A line of JSON for each look, for scripts.
    #[arg(long)]
    pub json: bool,
    /// One look, as text, and the end.
    #[arg(long)]
    pub once: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("0.1 to 3600 seconds".to_owned()) }
}

/// Looking into the cache.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List the complete objects on this node's disk.
    Ls(Look),
    /// Show what each disk holds, and how many reads were hits.
    Stat(Look),
    /// Remove objects, by the daemon that runs. Who reads one reads on; the next read brings it again.
    Evict(Evict),
    /// Compare every complete object with its checksums, beside the daemon that may run.
    Verify(Verify),
}

/// Removing objects.
#[derive(Args, Debug)]
pub struct Evict {
    /// `s3://bucket/key`, or `s3://bucket/prefix*`.
    #[arg(required_unless_present = "all")]
    pub which: Option<Which>,
    /// All of them.
    #[arg(long, conflicts_with = "which")]
    pub all: bool,
    /// For scripts.
    #[arg(long)]
    pub json: bool,
}

/// Comparing objects.
#[derive(Args, Debug)]
pub struct Verify {
    /// Have the daemon drop those that differ.
    #[arg(long)]
    pub repair: bool,
    /// Most bytes to read in a second, such as `500MiB`; as fast as may be, if nothing is said.
    #[arg(long, value_parser = ByteSize::parse)]
    pub rate: Option<ByteSize>,
    /// For scripts: a line for each that differs, and one at the end; no progress.
    #[arg(long)]
    pub json: bool,
}

/// Who may talk to LOTA.
#[derive(Debug, Subcommand)]
pub enum AccessCommand {
    /// Allow an address, bound to its interface and gone with it, or a prefix.
    Allow {
        /// `10.1.0.2` or `10.1.0.0/16`.
        subject: Subject,
        /// The interface that the address sends from; that of the route to it, if none is named.
        #[arg(long)]
        interface: Option<String>,
    },
    /// Deny an address or a prefix, whatever configuration and Kubernetes say. Open connections end.
    Deny(About),
    /// Take back an `allow` or `deny`: configuration and Kubernetes decide again.
    Forget(About),
    /// List the entries as the kernel has them.
    List(Look),
    /// List the addresses that were refused, last first.
    Denied(Look),
}

/// Looking after the kernel side.
#[derive(Debug, Subcommand)]
pub enum DatapathCommand {
    /// Show what is steered how, and what not and why.
    Status(Look),
    /// Take LOTA out of the kernel: the virtual address, the programs, the maps.
    Detach,
}

/// Looking at the gateway.
#[derive(Debug, Subcommand)]
pub enum GatewayCommand {
    /// Show each server that has answered as the gateway, what its trial has shown, and why.
    Status(Look),
}

/// About whom.
#[derive(Args, Debug)]
pub struct About {
    /// `10.1.0.2` or `10.1.0.0/16`.
    pub subject: Subject,
}

/// Showing something.
#[derive(Args, Debug)]
pub struct Look {
    /// For scripts.
    #[arg(long)]
    pub json: bool,
}
