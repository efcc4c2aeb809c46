//! `cluster shard …`: the shards of a cluster beside its first one.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::cli::exit::Failure;
use crate::cli::link::AdminClient;
use crate::cli::output::{Output, cell, columns};
use crate::cli::stream::done;

#[derive(Debug, Subcommand)]
pub(crate) enum ShardCommand {
    /// Show the shards, who holds and who leads each, and how many streams it has.
    Ls,
    /// Begin another shard: streams with as many replicas as it has nodes go there.
    Add {
        /// How many nodes hold it: those that hold fewest shards.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=5))]
        replicas: u8,
        /// The nodes that hold it, by name.
        #[arg(long, value_delimiter = ',', conflicts_with = "replicas")]
        nodes: Vec<String>,
    },
    /// Let other nodes hold a shard: its log goes to those that are new.
    Set {
        /// Number of the shard.
        #[arg(value_parser = clap::value_parser!(u8).range(1..))]
        shard: u8,
        /// All nodes that are to hold it, by name.
        #[arg(long, value_delimiter = ',', required = true)]
        nodes: Vec<String>,
    },
}

pub(super) async fn shard(admin: &AdminClient, command: ShardCommand, output: Output) -> Result<(), Failure> {
    match command {
        ShardCommand::Ls => {
            let page = admin.request("GET", "/cluster").await?;
            output.value(&page["shards"], list)
        }
        ShardCommand::Add { replicas, nodes } => {
            let body =
                if nodes.is_empty() { json!({ "replicas": replicas }) } else { json!({ "nodes": nodes }) };
            let answer = admin.post("/cluster/shard", &body).await?;
            let text = format!("shard {} begins", answer["shard"]);
            done(output, answer, &text)
        }
        ShardCommand::Set { shard, nodes } => {
            let body = json!({ "shard": shard, "nodes": nodes });
            let answer = admin.post("/cluster/shard", &body).await?;
            done(output, answer, &format!("shard {shard} goes to {}", nodes.join(", ")))
        }
    }
}

/// The shards as a table.
pub(super) fn list(shards: &Value) -> String {
    let shards = shards.as_array().into_iter().flatten();
    let rows: Vec<Vec<String>> = shards
        .map(|shard| {
            let nodes: Vec<String> = shard["nodes"].as_array().into_iter().flatten().map(cell).collect();
            vec![
                cell(&shard["number"]),
                nodes.join(","),
                cell(&shard["leader"]),
                cell(&shard["streams"]),
                cell(&shard["here"]["standing"]),
                cell(&shard["here"]["committed"]),
            ]
        })
        .collect();
    if rows.is_empty() {
        return "no shards beside the first; `beamlog cluster shard add` begins one\n".to_owned();
    }
    columns(&["shard", "nodes", "leader", "streams", "here", "committed"], &rows)
}
