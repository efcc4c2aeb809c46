//! The shards of one node: each has a log, a driver and an engine of its own, and the streams of one never have
//! the numbers of another's. So whoever has a stream's number knows whose it is.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use beamlog_log::StreamId;

use crate::router::Shared;

/// The first number of a stream in the local shard.
const FIRST_LOCAL: u32 = 1 << 31;

/// Which shard of its node it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum ShardKind {
    /// That of a node that stands alone, or the one that all voters of a cluster hold.
    #[default]
    Common,
    /// Held by its node alone, beside the other.
    Local,
}

impl ShardKind {
    pub(crate) const fn of(stream: StreamId) -> Self {
        if stream.0 < FIRST_LOCAL { Self::Common } else { Self::Local }
    }

    pub(crate) const fn first_stream(self) -> u32 {
        match self {
            Self::Common => 1,
            Self::Local => FIRST_LOCAL,
        }
    }

    /// One less than there are numbers: the next one is always counted.
    pub(crate) const fn last_stream(self) -> u32 {
        match self {
            Self::Common => FIRST_LOCAL - 1,
            Self::Local => u32::MAX - 1,
        }
    }
}

/// The other shard of the node, if it has one.
#[derive(Default)]
pub(crate) struct Beside(Mutex<Weak<Shared>>);

impl Beside {
    pub(crate) fn set(&self, other: &Arc<Shared>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(other);
    }

    pub(crate) fn get(&self) -> Option<Arc<Shared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }
}

impl Shared {
    /// The other shard, when it is the one that has this stream.
    pub(crate) fn other_of(&self, stream: StreamId) -> Option<Arc<Self>> {
        if ShardKind::of(stream) == self.kind { None } else { self.beside.get() }
    }
}
