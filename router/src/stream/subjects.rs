//! The subjects of one stream that have living messages: how many, and which is the last.
//!
//! Derived: rebuilt from the log when a stream is recovered. An entry is 48 bytes beside its name.

use std::collections::VecDeque;
use std::hash::BuildHasher;

use beamlog_log::{Read, Sequence};
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Slot;

use crate::stream::view::{LastBySubject, SubjectFigures};
use crate::subject;

/// The hash of a subject, computed once per command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SubjectHash(u64);

#[derive(Debug)]
struct Entry {
    subject: Box<[u8]>,
    messages: u64,
    /// At or before the first living message.
    first_bound: u64,
    last: u64,
    /// All living sequences in order: kept only where a limit per subject asks for the oldest, and only
    /// while it is complete.
    #[expect(clippy::box_collection, reason = "most entries have none, and there are millions of entries")]
    order: Option<Box<VecDeque<u64>>>,
}

#[derive(Debug, Default)]
pub(crate) struct SubjectIndex {
    table: HashTable<Entry>,
    hasher: FixedState,
    /// Whether entries keep the order of their messages.
    ordered: bool,
}

impl SubjectIndex {
    pub(crate) fn new(ordered: bool) -> Self {
        Self { ordered, ..Self::default() }
    }

    /// Whether subjects that appear from now on keep the order of their messages.
    pub(crate) fn set_ordered(&mut self, ordered: bool) {
        self.ordered = ordered;
    }

    pub(crate) fn hash(&self, subject: &[u8]) -> SubjectHash {
        SubjectHash(self.hasher.hash_one(subject))
    }

    pub(crate) fn find(&self, hash: SubjectHash, subject: &[u8]) -> Option<SubjectFigures> {
        self.table.find(hash.0, |entry| *entry.subject == *subject).map(figures)
    }

    /// A message was stored; sequences ascend.
    pub(crate) fn stored(&mut self, hash: SubjectHash, subject: &[u8], sequence: Sequence) {
        self.insert(hash, subject, sequence, sequence, 1);
    }

    /// Adds `count` living messages, all after those known so far.
    pub(crate) fn insert(
        &mut self,
        hash: SubjectHash,
        subject: &[u8],
        first: Sequence,
        last: Sequence,
        count: u64,
    ) {
        let hasher = &self.hasher;
        let slot = self.table.entry(
            hash.0,
            |entry| *entry.subject == *subject,
            |entry| hasher.hash_one(&*entry.subject),
        );
        match slot {
            Slot::Occupied(mut slot) => {
                let entry = slot.get_mut();
                assert!(entry.last < first.0, "messages of a subject are counted in their order");
                entry.messages += count;
                entry.last = last.0;
                if count == 1 {
                    if let Some(order) = &mut entry.order {
                        order.push_back(last.0);
                    }
                } else {
                    entry.order = None;
                }
            }
            Slot::Vacant(slot) => {
                let order = (self.ordered && count == 1).then(|| Box::new(VecDeque::from([last.0])));
                slot.insert(Entry {
                    subject: subject.into(),
                    messages: count,
                    first_bound: first.0,
                    last: last.0,
                    order,
                });
            }
        }
    }

    /// The oldest living message of a subject, when that is known without reading.
    pub(crate) fn oldest(&self, hash: SubjectHash, subject: &[u8]) -> Option<Sequence> {
        let entry = self.table.find(hash.0, |entry| *entry.subject == *subject)?;
        if entry.messages == 1 {
            return Some(Sequence(entry.last));
        }
        entry.order.as_ref().and_then(|order| order.front()).map(|oldest| Sequence(*oldest))
    }

    /// A message was removed. `previous` finds the last living one before a sequence; it is asked only
    /// when the last message of a subject went and others stay.
    pub(crate) fn removed(
        &mut self,
        hash: SubjectHash,
        subject: &[u8],
        sequence: Sequence,
        previous: &mut dyn FnMut(Sequence) -> Read<Sequence>,
    ) {
        let Slot::Occupied(mut slot) = self.table.entry(
            hash.0,
            |entry| *entry.subject == *subject,
            |entry| self.hasher.hash_one(&*entry.subject),
        ) else {
            return;
        };
        let entry = slot.get_mut();
        entry.messages -= 1;
        if entry.messages == 0 {
            slot.remove();
            return;
        }
        if let Some(order) = &mut entry.order {
            if order.front() == Some(&sequence.0) {
                order.pop_front();
            } else if let Ok(at) = order.binary_search(&sequence.0) {
                order.remove(at);
            }
        }
        if sequence.0 != entry.last {
            return;
        }
        let last = match entry.order.as_ref().and_then(|order| order.back()) {
            Some(last) => Read::Found(Sequence(*last)),
            None => previous(Sequence(sequence.0 - 1)),
        };
        match last {
            Read::Found(last) => entry.last = last.0,
            // What cannot be read stays the last: a reader of it is told (DR14).
            Read::Absent | Read::Unreadable(_) => {}
        }
    }

    pub(crate) fn clear(&mut self) {
        self.table.clear();
        self.table.shrink_to(0, |entry| self.hasher.hash_one(&*entry.subject));
    }

    /// Calls `each` for every subject that the filter matches; a filter without wildcards is looked up.
    pub(crate) fn matching(&self, filter: &[u8], each: &mut dyn FnMut(&[u8], SubjectFigures)) {
        if filter.is_empty() || filter == b">" {
            self.for_each(each);
        } else if subject::is_literal(filter) {
            if let Some(found) = self.find(self.hash(filter), filter) {
                each(filter, found);
            }
        } else {
            self.for_each(&mut |name, found| {
                if subject::matches(filter, name) {
                    each(name, found);
                }
            });
        }
    }
}

fn figures(entry: &Entry) -> SubjectFigures {
    SubjectFigures {
        messages: entry.messages,
        first_bound: Sequence(entry.first_bound),
        last: Sequence(entry.last),
    }
}

impl LastBySubject for SubjectIndex {
    fn figures(&self, subject: &[u8]) -> Option<SubjectFigures> {
        self.find(self.hash(subject), subject)
    }

    fn for_each(&self, each: &mut dyn FnMut(&[u8], SubjectFigures)) {
        for entry in &self.table {
            each(&entry.subject, figures(entry));
        }
    }

    fn len(&self) -> usize {
        self.table.len()
    }
}
