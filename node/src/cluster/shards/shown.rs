//! The shards as the page of the cluster shows them.

use std::sync::PoisonError;

use serde_json::{Value, json};

use super::Shards;
use crate::cluster::shown;

impl Shards {
    /// One item for each shard, and what is not as it should be.
    pub(crate) fn page(&self) -> (Vec<Value>, Vec<String>) {
        let seen = self.0.seen.borrow().clone();
        let problems_here = self.0.problems.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut problems = Vec::new();
        let mut items = Vec::new();
        for listed in &seen.list.shards {
            let number = listed.shard.number;
            let leader = self.leader(number, &seen.members);
            if leader.is_none() {
                problems.push(format!("shard {number} has no leader"));
            }
            problems.extend(problems_here.get(&number).map(|problem| format!("shard {number}: {problem}")));
            let mut item = json!({
                "number": number,
                "nodes": listed.shard.nodes,
                "streams": listed.streams,
                "leader": leader,
            });
            if let Some(part) = self.part(number) {
                let status = part.node.cluster.status();
                let here = shown::problems(&status);
                problems.extend(here.into_iter().map(|problem| format!("shard {number}: {problem}")));
                let voters = shown::voters(&status);
                let wanted = listed.shard.nodes.len();
                if voters.len() != wanted {
                    problems
                        .push(format!("shard {number} has {} voters and is to have {wanted}", voters.len()));
                }
                item["here"] = json!({
                    "standing": shown::standing(&status.state.standing),
                    "term": status.state.term,
                    "quorum": status.state.quorum,
                    "last": status.last.index.0,
                    "durable": status.durable.index.0,
                    "committed": status.committed.0,
                    "applied": status.applied.0,
                    "voters": voters,
                });
            }
            items.push(item);
        }
        (items, problems)
    }
}
