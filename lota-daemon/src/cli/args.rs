//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use lota_cache::{EvictSelector, PinnedPrefix};
use lota_common::ByteSize;
use lota_datapath::Subject;
use lota_s3::Origin;

use crate::cli::prefetch::Objects;

/// LOTA, the Local Object Transfer Accelerator: caches S3 objects on the disks of a cluster's nodes. One daemon runs on each
/// node; the other commands inspect and control it.
#[derive(Debug, Parser)]
#[command(name = "lota", version)]
pub struct Cli {
    /// The configuration file.
    #[arg(long, global = true, default_value = "/etc/lota/lota.toml")]
    pub config: PathBuf,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of `lota`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon. If one is already running, take over its sockets without refusing a connection.
    Run,
    /// Validate a configuration on this node and print one result per check, with a fix for each failure. Exit status: 0
    /// if no check failed, otherwise 1.
    Check(Check),
    /// Load objects into the cluster's cache in advance. Credential and region come from AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN and AWS_REGION.
    Prefetch(Prefetch),
    /// Show the health of this node, with a fix for each problem. Exit status: 0 healthy, 1 degraded or
    /// failing, 2 no daemon answers.
    Status(OutputArgs),
    /// Readiness probe. Exit status: 0 ready, 1 not ready, 2 no daemon answers. If the environment variable LOTA_INSTANCE
    /// is set, only a daemon with the same value counts as ready.
    Ready,
    /// Reload the configuration, like SIGHUP. Changes to [access] and public keys of nodes apply at once; other changed keys are
    /// listed and apply after a restart. Gateway servers that failed verification are verified again.
    Reload,
    /// Show live activity: requests, hits, throughput, busiest objects and pods.
    Top(TopArgs),
    /// Collect diagnostics into an archive for a bug report: status, configuration, metrics, log. Secrets and object
    /// names are left out.
    SupportBundle {
        /// Output file; `-` for standard output.
        #[arg(default_value = "lota-support.tar.gz")]
        file: PathBuf,
    },
    /// Remove LOTA from this node: programs, maps, the VIP, the cache and sockets. Fails while a daemon runs.
    Uninstall {
        /// After the removal, wait for SIGTERM or SIGINT, so that a DaemonSet does not restart the container.
        #[arg(long)]
        wait: bool,
    },
    /// Do nothing until SIGTERM or SIGINT, as the last container of a pod that has done its work.
    #[command(hide = true)]
    Wait,
    /// Inspect and manage the cache of this node.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// List and change the addresses with access on this node, and list refused addresses.
    #[command(subcommand)]
    Access(AccessCommand),
    /// Inspect or detach the eBPF programs.
    #[command(subcommand)]
    Datapath(DatapathCommand),
    /// Inspect the verification of the gateway's servers.
    #[command(subcommand)]
    Gateway(GatewayCommand),
    /// Print the public key of this node, for `peers.nodes` in the configuration of all nodes.
    NodeKey(NodeKeyArgs),
}

/// Arguments of `lota node-key`.
#[derive(Args, Debug)]
pub struct NodeKeyArgs {
    /// File with the private key; default: `peers.node_key_file` of the configuration.
    #[arg(long)]
    pub file: Option<PathBuf>,
    /// Make the file if it does not exist.
    #[arg(long)]
    pub create: bool,
}

/// Arguments of `lota check`.
#[derive(Args, Debug)]
pub struct Check {
    /// Configuration file; default: that of `--config`.
    pub file: Option<PathBuf>,
    /// Print one JSON object per result, with the name of the node.
    #[arg(long)]
    pub json: bool,
    /// Exit with status 0 even if checks failed, as an init container must.
    #[arg(long, hide = true)]
    pub exit_zero: bool,
}

/// Arguments of `lota prefetch`.
#[derive(Args, Debug)]
pub struct Prefetch {
    /// Objects to load: `s3://bucket/prefix` loads all keys that begin with the prefix.
    pub objects: Objects,
    /// URL of the LOTA endpoint.
    #[arg(long, default_value = "http://cwlota.com", value_parser = Origin::parse)]
    pub endpoint: Origin,
    /// Rate limit in bytes per second, such as `2GiB`; default: unlimited.
    #[arg(long, value_parser = ByteSize::parse)]
    pub rate: Option<ByteSize>,
    /// Concurrent requests.
    #[arg(long, default_value_t = 16)]
    pub jobs: usize,
    /// File that records finished objects. A later run with the same file skips them.
    #[arg(long)]
    pub state_file: Option<PathBuf>,
    /// Print one JSON object at the end instead of progress.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `lota top`.
#[derive(Args, Debug)]
pub struct TopArgs {
    /// Refresh interval in seconds.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    pub interval: f64,
    /// Print one JSON object per refresh.
    #[arg(long)]
    pub json: bool,
    /// Print one snapshot as text and exit.
    #[arg(long)]
    pub once: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("0.1 to 3600 seconds".to_owned()) }
}

/// The commands of `lota cache`.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List the complete objects on this node's disks.
    Ls(OutputArgs),
    /// Show the usage of each disk and the hit ratio.
    Stat(OutputArgs),
    /// Evict objects from the running daemon's cache. Reads in progress complete.
    Evict(Evict),
    /// Verify every complete object against its checksums. Works beside a running daemon.
    Verify(Verify),
    /// Pin objects on all nodes: they are evicted last. Nothing is loaded into the cache; `lota prefetch` does that.
    Pin(Pin),
    /// Remove a pin on all nodes. The objects stay cached, and are evicted like others.
    Unpin(Unpin),
    /// List the pins, and the bytes that this node has cached of each.
    Pins(OutputArgs),
}

/// Arguments of `lota cache evict`.
#[derive(Args, Debug)]
pub struct Evict {
    /// Objects to evict: `s3://bucket/key` or `s3://bucket/prefix*`.
    #[arg(required_unless_present = "all")]
    pub which: Option<EvictSelector>,
    /// Evict all objects.
    #[arg(long, conflicts_with = "which")]
    pub all: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `lota cache pin`.
#[derive(Args, Debug)]
pub struct Pin {
    /// Objects to pin: `s3://bucket/prefix` pins all keys that begin with the prefix.
    pub prefix: PinnedPrefix,
    /// Space for these objects in the caches of all nodes together, such as `2TiB`; default: all that can be pinned and is not.
    #[arg(long, value_parser = ByteSize::parse)]
    pub bytes: Option<ByteSize>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `lota cache unpin`.
#[derive(Args, Debug)]
pub struct Unpin {
    /// Prefix as `lota cache pins` shows it.
    pub prefix: PinnedPrefix,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `lota cache verify`.
#[derive(Args, Debug)]
pub struct Verify {
    /// Evict objects whose bytes do not match.
    #[arg(long)]
    pub repair: bool,
    /// Rate limit in bytes per second, such as `500MiB`; default: unlimited.
    #[arg(long, value_parser = ByteSize::parse)]
    pub rate: Option<ByteSize>,
    /// Print one JSON object per mismatch and one at the end, instead of progress.
    #[arg(long)]
    pub json: bool,
}

/// The commands of `lota access`.
#[derive(Debug, Subcommand)]
pub enum AccessCommand {
    /// Allow an address or a prefix. An address is bound to its interface and loses access when the interface is
    /// removed.
    Allow {
        /// Address or prefix: `10.1.0.2` or `10.1.0.0/16`.
        subject: Subject,
        /// Interface that the address sends from; default: the interface that it is behind.
        #[arg(long)]
        interface: Option<String>,
    },
    /// Deny an address or a prefix, overriding configuration and Kubernetes. Open connections are closed.
    Deny(SubjectArgs),
    /// Remove an earlier `allow` or `deny`; the configuration and Kubernetes apply again.
    Forget(SubjectArgs),
    /// List the access entries in the kernel's maps.
    List(OutputArgs),
    /// List refused addresses, most recent first.
    Denied(OutputArgs),
}

/// The commands of `lota datapath`.
#[derive(Debug, Subcommand)]
pub enum DatapathCommand {
    /// Show for each interface how its traffic is redirected, or why it is not.
    Status(OutputArgs),
    /// Remove the programs, the maps and the VIP from the kernel.
    Detach,
}

/// The commands of `lota gateway`.
#[derive(Debug, Subcommand)]
pub enum GatewayCommand {
    /// Show each server of the gateway, whether it is trusted, and what its `304` responses prove.
    Status(OutputArgs),
}

/// The subject of an access command.
#[derive(Args, Debug)]
pub struct SubjectArgs {
    /// Address or prefix: `10.1.0.2` or `10.1.0.0/16`.
    pub subject: Subject,
}

/// Output format of a command.
#[derive(Args, Debug)]
pub struct OutputArgs {
    /// Print JSON: one object, or one per line for a list.
    #[arg(long)]
    pub json: bool,
}
