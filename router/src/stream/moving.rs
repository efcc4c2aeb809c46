//! What a stream knows of its move from one shard to another.

use beamlog_log::{Sequence, Timestamp};
use wincode::{SchemaRead, SchemaWrite};

use crate::stream::body::StreamBody;
use crate::stream::message_ids::MessageIds;

/// Whether it is on its way. While it is, nobody but the move reaches it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub(crate) enum Moving {
    #[default]
    No,
    /// The copy that is being made, of the move with this number.
    Arriving(u64),
    /// The copy, whole. It waits to be made the stream.
    Arrived(u64),
    /// What is copied: it does not change any more.
    Leaving(u64),
}

/// An id inside the window whose message is gone: only the shard before ever had it.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct MovedId {
    pub id: Vec<u8>,
    pub sequence: Sequence,
    pub at: Timestamp,
    /// Checksum of subject and payload.
    pub content: u32,
}

impl Moving {
    pub(crate) const fn is_moving(self) -> bool {
        !matches!(self, Self::No)
    }

    /// Of which move.
    pub(crate) const fn number(self) -> Option<u64> {
        match self {
            Self::No => None,
            Self::Arriving(number) | Self::Arrived(number) | Self::Leaving(number) => Some(number),
        }
    }

    /// It is a copy that is to be the stream.
    pub(crate) const fn is_copy(self) -> bool {
        matches!(self, Self::Arriving(_) | Self::Arrived(_))
    }
}

impl StreamBody {
    /// By what it is found: the copy that arrives is not found by its name, for somebody else has that.
    pub(crate) fn key(&self) -> String {
        match self.moving {
            Moving::No | Moving::Leaving(_) => self.config.name.clone(),
            // No name has a space.
            Moving::Arriving(_) | Moving::Arrived(_) => format!("{} arriving", self.config.name),
        }
    }

    /// Folds in ids of messages that this shard never had.
    pub(crate) fn apply_moved_ids(&mut self, ids: Vec<MovedId>) {
        self.moved_ids.extend(ids);
        self.dirty = true;
    }

    /// Ids of the shard before are of no use when the window has passed them. Told by messages, not by a clock: all
    /// copies of this state forget them together.
    pub(crate) fn forget_moved_ids(&mut self, now: Timestamp) {
        let window = self.config.duplicate_window_nanos.unwrap_or(0);
        if self.moved_ids.last().is_some_and(|newest| newest.at.0.saturating_add(window) < now.0) {
            self.moved_ids.clear();
        }
    }

    /// Puts the ids that came from the shard before among those of the messages that are here.
    pub(crate) fn derive_moved_ids(&mut self, horizon: Timestamp) {
        if self.moved_ids.is_empty() {
            return;
        }
        let here = self.message_ids.iter();
        let mut all: Vec<(Vec<u8>, Sequence, Timestamp, u32)> =
            here.map(|(id, sequence, at, content)| (id.to_vec(), sequence, at, content)).collect();
        let moved = self.moved_ids.iter().filter(|moved| moved.at >= horizon);
        all.extend(moved.map(|MovedId { id, sequence, at, content }| (id.clone(), *sequence, *at, *content)));
        all.sort_by_key(|(_, sequence, ..)| *sequence);
        all.dedup_by_key(|(_, sequence, ..)| *sequence);
        self.message_ids = MessageIds::default();
        for (id, sequence, at, content) in all {
            self.message_ids.insert(&id, sequence, at, content);
        }
    }
}
