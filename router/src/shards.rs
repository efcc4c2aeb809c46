//! The shards of one node: each has a log, a driver and an engine of its own, and the streams of one never have
//! the numbers of another's. So whoever has a stream's number knows whose it is.

use std::sync::{Arc, PoisonError, RwLock, Weak};

use beamlog_log::{ShardId, StreamId};

use crate::router::Shared;

/// The highest number of a shard.
pub const SHARD_NUMBER_MAX: u8 = 126;

/// Numbers of streams from here on say in their upper 8 bits whose they are: 0 is the local shard.
const FIRST_BESIDE: u32 = 1 << 31;
const BITS_OF_STREAM: u32 = 24;
const LOCAL: u32 = FIRST_BESIDE >> BITS_OF_STREAM;

/// Which shard of its node it is.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum ShardKind {
    /// That of a node that stands alone, or the one that all voters of a cluster hold.
    #[default]
    Common,
    /// Held by its node alone, beside the first.
    Local,
    /// Held by some nodes of a cluster: from 1 to [`SHARD_NUMBER_MAX`].
    Numbered(u8),
}

impl ShardKind {
    /// Whose stream it is.
    #[must_use]
    pub fn of(stream: StreamId) -> Self {
        match (stream.0 >> BITS_OF_STREAM).checked_sub(LOCAL) {
            None => Self::Common,
            Some(0) => Self::Local,
            Some(number) => Self::Numbered(u8::try_from(number).expect("eight bits less the highest")),
        }
    }

    /// What its log says it is of.
    pub(crate) const fn id(self) -> ShardId {
        match self {
            Self::Common | Self::Local => ShardId(0),
            Self::Numbered(number) => ShardId(number as u32),
        }
    }

    pub(crate) const fn first_stream(self) -> u32 {
        match self {
            Self::Common => 1,
            Self::Local => FIRST_BESIDE,
            Self::Numbered(number) => (LOCAL + number as u32) << BITS_OF_STREAM,
        }
    }

    pub(crate) const fn last_stream(self) -> u32 {
        match self {
            Self::Common => FIRST_BESIDE - 1,
            // The number after it is always counted: there is one.
            Self::Local | Self::Numbered(_) => self.first_stream() | ((1 << BITS_OF_STREAM) - 1),
        }
    }
}

/// The shards of a node that are open, over one [`crate::interest::Interest`].
#[derive(Default)]
pub(crate) struct Table(RwLock<Vec<Weak<Shared>>>);

impl Table {
    pub(crate) fn add(&self, shard: &Arc<Shared>) {
        let mut shards = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // One that was closed may be opened again.
        shards.retain(|other| other.upgrade().is_some_and(|other| other.kind != shard.kind));
        shards.push(Arc::downgrade(shard));
    }

    /// The first one that is so.
    pub(crate) fn find(&self, is_wanted: impl Fn(&Shared) -> bool) -> Option<Arc<Shared>> {
        let shards = self.0.read().unwrap_or_else(PoisonError::into_inner);
        shards.iter().filter_map(Weak::upgrade).find(|shard| is_wanted(shard))
    }
}

impl Shared {
    /// The shard that has this stream, if it is another one of this node.
    pub(crate) fn other_of(&self, stream: StreamId) -> Option<Arc<Self>> {
        self.other(ShardKind::of(stream))
    }

    pub(crate) fn other(&self, kind: ShardKind) -> Option<Arc<Self>> {
        if kind == self.kind { None } else { self.table.find(|shard| shard.kind == kind) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_stream_says_its_shard() {
        let kinds = [ShardKind::Common, ShardKind::Local];
        let numbered = (1..=SHARD_NUMBER_MAX).map(ShardKind::Numbered);
        let mut free = 1;
        for kind in kinds.into_iter().chain(numbered) {
            assert_eq!(kind.first_stream(), free, "{kind:?}");
            for number in [kind.first_stream(), kind.last_stream()] {
                assert_eq!(ShardKind::of(StreamId(number)), kind);
            }
            free = kind.last_stream().checked_add(1).expect("there is always a next number");
        }
    }
}
