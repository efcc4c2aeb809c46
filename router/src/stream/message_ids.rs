//! The message ids seen inside the deduplication window.
//!
//! Derived: rebuilt from the messages that carry an id. Ids leave in the order in which they came, so
//! that a queue with an index over it is enough.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use beamlog_log::{Sequence, Timestamp};
use foldhash::fast::FixedState;
use hashbrown::HashTable;

/// Ids one stream remembers. Beyond it publishes with an id are refused: forgetting early would let a
/// duplicate in.
pub(crate) const IDS_MAX: usize = 16 << 20;

#[derive(Debug)]
struct Seen {
    id: Box<[u8]>,
    sequence: Sequence,
    at: Timestamp,
    content: u32,
}

/// What is known of an id that was seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Known {
    pub(crate) sequence: Sequence,
    /// Checksum of subject and payload (DR19).
    pub(crate) content: u32,
}

#[derive(Debug, Default)]
pub(crate) struct MessageIds {
    seen: VecDeque<Seen>,
    /// How many left the queue so far: position in the queue = stored number − this.
    gone: u64,
    index: HashTable<u64>,
    hasher: FixedState,
}

/// What a message id stands for: an id that comes back with other content is no duplicate.
pub(crate) fn content_checksum(subject: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(subject);
    hasher.update(payload);
    hasher.finalize()
}

impl MessageIds {
    pub(crate) fn len(&self) -> usize {
        self.seen.len()
    }

    fn at(&self, number: u64) -> &Seen {
        let position = usize::try_from(number - self.gone).expect("the queue fits memory");
        &self.seen[position]
    }

    pub(crate) fn find(&self, id: &[u8]) -> Option<Known> {
        let hash = self.hasher.hash_one(id);
        let number = self.index.find(hash, |number| *self.at(*number).id == *id)?;
        let seen = self.at(*number);
        Some(Known { sequence: seen.sequence, content: seen.content })
    }

    /// Remembers an id. Times do not go back. An id that is still known is taken for the newer message.
    pub(crate) fn insert(&mut self, id: &[u8], sequence: Sequence, at: Timestamp, content: u32) {
        let hash = self.hasher.hash_one(id);
        let number = self.gone + self.seen.len() as u64;
        if let Ok(old) = self.index.find_entry(hash, |number| {
            let position = usize::try_from(*number - self.gone).expect("the queue fits memory");
            *self.seen[position].id == *id
        }) {
            old.remove();
        }
        self.seen.push_back(Seen { id: id.into(), sequence, at, content });
        let (seen, gone, hasher) = (&self.seen, self.gone, &self.hasher);
        self.index.insert_unique(hash, number, |number| {
            let position = usize::try_from(*number - gone).expect("the queue fits memory");
            hasher.hash_one(&*seen[position].id)
        });
    }

    /// Forgets what was seen before `horizon`.
    pub(crate) fn expire(&mut self, horizon: Timestamp) {
        while let Some(oldest) = self.seen.front()
            && oldest.at < horizon
        {
            let hash = self.hasher.hash_one(&*oldest.id);
            let number = self.gone;
            if let Ok(entry) = self.index.find_entry(hash, |candidate| *candidate == number) {
                entry.remove();
            }
            self.seen.pop_front();
            self.gone += 1;
        }
        if self.seen.is_empty() {
            self.seen.shrink_to(1024);
            let (seen, gone, hasher) = (&self.seen, self.gone, &self.hasher);
            self.index.shrink_to(1024, |number| {
                let position = usize::try_from(*number - gone).expect("the queue fits memory");
                hasher.hash_one(&*seen[position].id)
            });
        }
    }

    /// All of them in the order in which they came: id, sequence, when, content.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], Sequence, Timestamp, u32)> {
        self.seen.iter().map(|seen| (&*seen.id, seen.sequence, seen.at, seen.content))
    }

    /// Those of sequences behind this one. Sequences grow with the order in which ids came.
    pub(crate) fn behind(&self, after: Sequence) -> impl Iterator<Item = (&[u8], Sequence, Timestamp, u32)> {
        let first = self.seen.partition_point(|seen| seen.sequence <= after);
        self.seen.range(first..).map(|seen| (&*seen.id, seen.sequence, seen.at, seen.content))
    }

    /// When the oldest was seen.
    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        self.seen.front().map(|seen| seen.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_until_its_window_ends() {
        let mut ids = MessageIds::default();
        for n in 1..=1000_u64 {
            ids.insert(format!("id-{n}").as_bytes(), Sequence(n), Timestamp(n), 7);
        }
        assert_eq!(ids.find(b"id-1"), Some(Known { sequence: Sequence(1), content: 7 }));
        ids.expire(Timestamp(501));
        assert_eq!(ids.find(b"id-500"), None);
        assert_eq!(ids.find(b"id-501"), Some(Known { sequence: Sequence(501), content: 7 }));
        assert_eq!((ids.len(), ids.oldest()), (500, Some(Timestamp(501))));
        ids.expire(Timestamp(u64::MAX));
        assert_eq!((ids.len(), ids.find(b"id-1000")), (0, None));
    }

    #[test]
    fn an_id_used_again_belongs_to_the_newer_message() {
        let mut ids = MessageIds::default();
        ids.insert(b"a", Sequence(1), Timestamp(1), 1);
        ids.insert(b"a", Sequence(2), Timestamp(5), 2);
        assert_eq!(ids.find(b"a"), Some(Known { sequence: Sequence(2), content: 2 }));
        ids.expire(Timestamp(3));
        assert_eq!(ids.find(b"a"), Some(Known { sequence: Sequence(2), content: 2 }));
    }
}
