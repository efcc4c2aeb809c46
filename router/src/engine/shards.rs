//! The shards of a cluster beside its first one: this shard, the first, keeps the list of them, and who is to hold each.

use std::collections::BTreeMap;

use wincode::{SchemaRead, SchemaWrite};

use crate::api::error::ApiError;
use crate::api::request::{Answer, Reservation, Response};
use crate::engine::record::Record;
use crate::engine::{Engine, Turn};
use crate::shards::SHARD_NUMBER_MAX;

/// Nodes of one shard, and the longest name of one.
const NODES_MAX: usize = 5;
const NODE_BYTES_MAX: usize = 255;

/// A shard that some nodes of the cluster hold.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct ClusterShard {
    /// From 1 on; never used again.
    pub number: u8,
    /// Who are to be its voters, by their names: a node that takes the name of one takes its place.
    pub nodes: Vec<String>,
    /// The peer that begins it. Only this one may: a second beginning would be a second shard.
    pub founder: u64,
}

/// A shard, and how many streams it has.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct ListedShard {
    pub shard: ClusterShard,
    pub streams: u64,
}

/// All shards of a cluster.
#[derive(Clone, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct ShardList {
    /// Streams of the first one.
    pub common_streams: u64,
    /// The others, by number.
    pub shards: Vec<ListedShard>,
}

/// By number.
#[derive(Default)]
pub(super) struct ClusterShards {
    by_number: BTreeMap<u8, ClusterShard>,
    /// Since the last checkpoint.
    dirty: bool,
}

impl ClusterShards {
    pub(super) fn put(&mut self, shard: ClusterShard) {
        self.dirty = true;
        self.by_number.insert(shard.number, shard);
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &ClusterShard> {
        self.by_number.values()
    }

    pub(super) fn is_listed(&self, number: u8) -> bool {
        self.by_number.contains_key(&number)
    }

    pub(super) fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    fn next(&self) -> Option<u8> {
        let last = self.by_number.last_key_value().map_or(0, |(number, _)| *number);
        Some(last + 1).filter(|next| *next <= SHARD_NUMBER_MAX)
    }
}

impl Engine {
    pub(super) fn shard_list(&self) -> ShardList {
        let of = |shard: &ClusterShard| {
            let store = Reservation::store_of_shard(shard.number);
            let streams = self.reservations.streams().filter(|one| one.store == store).count() as u64;
            ListedShard { shard: shard.clone(), streams }
        };
        ShardList { common_streams: self.names.len() as u64, shards: self.shards.all().map(of).collect() }
    }

    /// A new shard, or other nodes for one that there is.
    pub(super) fn put_shard(&mut self, turn: &mut Turn<'_>, shard: ClusterShard) -> Answer {
        let invalid = |text: &str| Err(ApiError::NoSuitablePeers(text.to_owned()));
        let names = &shard.nodes;
        if names.is_empty() || names.len() > NODES_MAX {
            return invalid("a shard has one to five nodes");
        }
        if names.iter().any(|name| name.is_empty() || name.len() > NODE_BYTES_MAX) {
            return Err(ApiError::BadRequest);
        }
        if names.iter().enumerate().any(|(at, name)| names[..at].contains(name)) {
            return invalid("a node is named twice");
        }
        // What the answer says may not be durable yet.
        self.commit_wanted = true;
        match self.shards.by_number.get(&shard.number) {
            Some(have) if have.founder != shard.founder => return invalid("another shard has this number"),
            Some(have) if *have == shard => return Ok(Response::Shards(self.shard_list())),
            Some(_) => {}
            None if self.shards.next() != Some(shard.number) => {
                return invalid("this is not the next number of a shard");
            }
            None => {}
        }
        let record = Record::ShardListed(shard);
        record.push(turn.journal).map_err(|_too_large| ApiError::BadRequest)?;
        let Record::ShardListed(shard) = record else { unreachable!("built above") };
        self.shards.put(shard);
        Ok(Response::Shards(self.shard_list()))
    }
}
