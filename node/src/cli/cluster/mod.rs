//! `cluster …`: a node's cluster through its admin server, and a whole cluster for development.

mod dev;
mod http;
mod shard;
mod show;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::cli::cluster::dev::DevArguments;
use crate::cli::cluster::shard::ShardCommand;
use crate::cli::exit::{Code, Failure};
use crate::cli::link::{AdminArguments, AdminClient};
use crate::cli::output::Output;
use crate::cli::stream::done;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  beamlog cluster dev                                    # three nodes on this machine, for development
  beamlog cluster status                                 # who is in it, who leads, who is behind
  beamlog cluster health                                 # exit code 0 when healthy, 10 when not
  beamlog cluster transfer n2                            # let another node lead
  beamlog cluster remove n3                              # its store never comes back under its id
  beamlog cluster shard add --replicas 3                 # another shard, on three of the nodes

A node joins by itself when it is started with --cluster-join; how to set one up: docs/operations/cluster.md.")]
pub(crate) struct ClusterArguments {
    #[command(subcommand)]
    pub(crate) command: ClusterCommand,
    #[command(flatten)]
    pub(crate) access: AdminArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Show the members, their roles and how far each is.
    Status,
    /// Say whether there is a leader, a quorum and every member: exit code 10 when not.
    Health,
    /// Take in a node that is connected and waits to be added.
    Add {
        /// Name or id of the node.
        node: String,
    },
    /// Take a node out, for good.
    Remove {
        /// Name or id of the node.
        node: String,
    },
    /// Let another node lead.
    Transfer {
        /// Name or id of the node; without it the one that holds most.
        node: Option<String>,
        /// Number of the shard that it is to lead.
        #[arg(long, default_value_t = 0)]
        shard: u8,
    },
    /// Show the shards beside the first, begin one, and say who holds it.
    Shard {
        #[command(subcommand)]
        command: ShardCommand,
    },
    /// Start a cluster on this machine and keep it running, for development.
    Dev(DevArguments),
}

pub(crate) async fn cluster(arguments: ClusterArguments, output: Output) -> Result<(), Failure> {
    let admin = AdminClient::new(&arguments.access)?;
    match arguments.command {
        ClusterCommand::Status => output.value(&admin.request("GET", "/cluster").await?, show::status),
        ClusterCommand::Health => {
            let status = admin.request("GET", "/cluster").await?;
            output.value(&health(&status), show::health)?;
            if status["healthy"] == true {
                return Ok(());
            }
            Err(Failure { code: Code::NotHealthy, message: String::new() })
        }
        ClusterCommand::Add { node } => act(&admin, "add", (Some(node), None), "took in", output).await,
        ClusterCommand::Remove { node } => {
            act(&admin, "remove", (Some(node), None), "took out", output).await
        }
        ClusterCommand::Transfer { node, shard } => {
            act(&admin, "transfer", (node, Some(shard)), "leadership goes to", output).await
        }
        ClusterCommand::Shard { command } => shard::shard(&admin, command, output).await,
        ClusterCommand::Dev(arguments) => dev::dev(arguments).await,
    }
}

fn health(status: &Value) -> Value {
    json!({ "healthy": status["healthy"], "problems": status["problems"] })
}

async fn act(
    admin: &AdminClient,
    action: &str,
    (node, shard): (Option<String>, Option<u8>),
    did: &str,
    output: Output,
) -> Result<(), Failure> {
    let mut body = json!({ "node": node });
    // Said only where it is needed: an older node does not know it.
    if let Some(shard) = shard.filter(|shard| *shard != 0) {
        body["shard"] = shard.into();
    }
    let answer = admin.post(&format!("/cluster/{action}"), &body).await?;
    let name = node.unwrap_or_else(|| "another node".to_owned());
    done(output, answer, &format!("{did} {name}"))
}
