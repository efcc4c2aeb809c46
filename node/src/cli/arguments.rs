//! The commands and what each takes.

use clap::{Parser, Subcommand};
use clap_complete::Shell;

use crate::cli::bench::BenchArguments;
use crate::cli::cert::CertCommand;
use crate::cli::cluster::ClusterArguments;
use crate::cli::configuration::ConfigCommand;
use crate::cli::consumer::ConsumerArguments;
use crate::cli::kv::KvArguments;
use crate::cli::link::LinkArguments;
use crate::cli::messages::{PublishArguments, ReplyArguments, RequestArguments, SubscribeArguments};
use crate::cli::output::Format;
use crate::cli::serve::ServeArguments;
use crate::cli::store::StoreCommand;
use crate::cli::stream::StreamArguments;
use crate::cli::task::{DlqArguments, PolicyArguments, TaskArguments};

/// A persistent-log message router that NATS and JetStream clients use unchanged.
#[derive(Debug, Parser)]
#[command(
    name = "beamlog",
    version,
    max_term_width = 100,
    after_help = "\
A first tour, in two terminals:
  beamlog serve                                          # a node on 127.0.0.1:4222, data in ./beamlog-data
  beamlog stream add ORDERS --subjects 'orders.>'        # keep what is published under orders
  beamlog pub orders.eu 'two apples' --ack               # answers when it is on stable storage
  beamlog consumer add ORDERS billing                    # a durable reading position
  beamlog consumer next ORDERS billing                   # read and ack

Exit codes:
  0    done
  1    understood, but it could not be done: refused, not found, timed out, damage found
  2    wrong usage or configuration, or the node cannot start: port in use, data folder locked by
       another process, of another kind, or of an unknown format version
  10   cluster health: not healthy
  130  stopped at once by a second SIGINT or SIGTERM"
)]
pub(crate) struct Arguments {
    /// How results are printed: for people, or for programs.
    #[arg(short, long, global = true, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a node.
    Serve(Box<ServeArguments>),
    /// Publish a message.
    Pub(PublishArguments),
    /// Subscribe and print what comes.
    Sub(SubscribeArguments),
    /// Send a request and print the answer.
    Request(RequestArguments),
    /// Answer requests.
    Reply(ReplyArguments),
    /// Streams: messages that are kept.
    Stream(Box<StreamArguments>),
    /// Consumers: durable reading positions of a stream.
    Consumer(ConsumerArguments),
    /// Keys and values in buckets.
    Kv(KvArguments),
    /// Links of a running node to NATS clusters.
    Link(Box<LinkArguments>),
    /// The cluster that a node is in, and clusters for development.
    Cluster(Box<ClusterArguments>),
    /// Certificates of a cluster: who is a node.
    #[command(subcommand)]
    Cert(CertCommand),
    /// Tasks of a node that serves them: what was asked for, who has it, what became of it.
    Task(TaskArguments),
    /// Dead letters of tasks: look, replay, purge.
    Dlq(DlqArguments),
    /// Policies of tasks: how a provider is chosen.
    Policy(PolicyArguments),
    /// Look into the store of a node that is not running.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Check and show the configuration of a node.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Measure a server quickly.
    Bench(BenchArguments),
    /// Print the versions of this program and of what it writes.
    Version,
    /// Print a shell's completion script.
    #[command(after_help = "\
Examples:
  beamlog completion bash > ~/.local/share/bash-completion/completions/beamlog
  beamlog completion zsh > ~/.zfunc/_beamlog")]
    Completion { shell: Shell },
}
