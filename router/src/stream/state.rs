//! A stream with its consumers: what happens to both when a message comes or goes.

use std::collections::BTreeMap;
use std::sync::Arc;

use beamlog_log::{Damage, Journal, Read, Sequence, Timestamp};
use bytes::Bytes;

use crate::consumer::{Consumer, ConsumerId};
use crate::engine::rows::StreamRow;
use crate::stream::batches::Batches;
use crate::stream::body::{StreamBody, stored_bytes};
use crate::stream::subjects::SubjectHash;
use crate::stream::{Retention, StreamView};

/// Who delivers: names for ack subjects and advisories, shared with deliveries on their way.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConsumerNames {
    pub stream: String,
    pub consumer: String,
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) consumer: Consumer,
    pub(crate) names: Arc<ConsumerNames>,
    /// The earliest deadline the engine's table holds for it.
    pub(crate) armed: Option<Timestamp>,
    /// It is in the engine's queue of consumers with something to deliver.
    pub(crate) ready: bool,
    /// It is in the engine's list of consumers with something to log.
    pub(crate) unflushed: bool,
    /// Deliver subject and group the engine is told interest of.
    pub(crate) watched: Option<(Bytes, Bytes)>,
    /// Changed since the last checkpoint.
    pub(crate) dirty: bool,
}

#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) body: StreamBody,
    pub(crate) consumers: BTreeMap<ConsumerId, Slot>,
    pub(crate) by_name: BTreeMap<String, ConsumerId>,
    /// The earliest deadline the engine's table holds for it.
    pub(crate) armed: Option<Timestamp>,
    /// It is in the engine's list of streams with removals to log.
    pub(crate) unflushed: bool,
    /// Atomic batches that gather.
    pub(crate) batches: Batches,
    /// Of a copy that arrives: what the other one says of itself. In memory only: who was stopped asks again.
    pub(crate) original: Option<Box<Original>>,
}

/// A stream as the shard has it that it comes from.
#[derive(Debug)]
pub(crate) struct Original {
    pub(crate) row: StreamRow,
    /// The numbers of its consumers there, and here.
    pub(crate) consumers: BTreeMap<ConsumerId, ConsumerId>,
}

/// What could be learned of a message that is to go.
pub(crate) struct Measured {
    pub(crate) subject: Option<Bytes>,
    pub(crate) bytes: u64,
}

impl Stream {
    pub(crate) fn new(body: StreamBody) -> Self {
        Self {
            body,
            consumers: BTreeMap::new(),
            by_name: BTreeMap::new(),
            armed: None,
            unflushed: false,
            batches: Batches::default(),
            original: None,
        }
    }

    /// The stream as its consumers see it, and the consumers.
    pub(crate) fn parts<'a>(
        &'a mut self,
        journal: &'a mut dyn Journal,
        has_interest: &'a dyn Fn(&[u8]) -> bool,
    ) -> (StreamView<'a>, &'a mut BTreeMap<ConsumerId, Slot>) {
        (self.body.view(journal, has_interest), &mut self.consumers)
    }

    /// Retention by interest: whether some consumer still needs the message.
    pub(crate) fn is_wanted(&self, sequence: Sequence, subject: &[u8]) -> bool {
        self.consumers.values().any(|slot| slot.consumer.wants(sequence, subject))
    }

    fn measure(&self, journal: &mut dyn Journal, sequence: Sequence) -> Measured {
        match journal.entry(self.body.id, sequence) {
            Read::Found(entry) => Measured {
                bytes: stored_bytes(
                    entry.subject.len(),
                    entry.headers_bytes as usize,
                    entry.payload_bytes as usize,
                ),
                subject: Some(entry.subject),
            },
            // A command removes it all the same; what cannot be read cannot be measured.
            Read::Absent | Read::Unreadable(_) => Measured { subject: None, bytes: 0 },
        }
    }

    /// Removes one living message by a decision just made.
    pub(crate) fn remove(&mut self, journal: &mut dyn Journal, sequence: Sequence) {
        let measured = self.measure(journal, sequence);
        self.remove_measured(journal, sequence, &measured);
    }

    pub(crate) fn remove_measured(
        &mut self,
        journal: &mut dyn Journal,
        sequence: Sequence,
        measured: &Measured,
    ) {
        let subject = measured.subject.as_deref();
        let hashed = subject.map(|subject| (self.body.subjects.hash(subject), subject));
        self.body.remove(journal, sequence, hashed, measured.bytes);
        if let Some(subject) = subject {
            for slot in self.consumers.values_mut() {
                slot.consumer.removed(sequence, subject);
                slot.dirty = true;
            }
        } else {
            self.recount(journal);
        }
    }

    /// Many messages went: consumers count again.
    pub(crate) fn recount(&mut self, journal: &mut dyn Journal) {
        let (mut view, consumers) = self.parts(journal, &|_| true);
        for slot in consumers.values_mut() {
            slot.consumer.purged(&mut view);
            slot.dirty = true;
        }
    }

    /// Removes everything at once. Returns how many messages that were.
    pub(crate) fn remove_all(&mut self, journal: &mut dyn Journal) -> u64 {
        let removed = self.body.messages;
        if removed > 0 {
            self.body.remove_prefix(journal, self.body.last, removed, self.body.bytes);
            self.recount(journal);
        }
        removed
    }

    /// Roll-up of everything: only the message just stored stays.
    pub(crate) fn remove_all_before_last(&mut self, journal: &mut dyn Journal, subject: &[u8], bytes: u64) {
        let (last, older) = (self.body.last, self.body.messages - 1);
        if older == 0 {
            return;
        }
        self.body.remove_prefix(journal, Sequence(last.0 - 1), older, self.body.bytes - bytes);
        self.body.subjects.clear();
        let hash = self.body.subjects.hash(subject);
        self.body.subjects.stored(hash, subject, last);
        self.recount(journal);
    }

    /// Removes up to `budget` messages of one subject before `end`. Returns whether more are left.
    pub(crate) fn remove_older_on(
        &mut self,
        journal: &mut dyn Journal,
        subject: &[u8],
        hash: SubjectHash,
        end: Sequence,
        budget: usize,
    ) -> Result<bool, Damage> {
        for _ in 0..budget {
            match self.body.oldest_on(journal, subject, hash)? {
                Some(oldest) if oldest < end => self.remove(journal, oldest),
                Some(_) | None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Enforces the limit per subject on the subject of the message just stored.
    pub(crate) fn enforce_subject_limit(
        &mut self,
        journal: &mut dyn Journal,
        subject: &[u8],
        hash: SubjectHash,
    ) {
        let Some(max) = self.body.config.max_messages_per_subject else { return };
        while let Some(found) = self.body.subjects.find(hash, subject)
            && found.messages > max
        {
            match self.body.oldest_on(journal, subject, hash) {
                Ok(Some(oldest)) => self.remove(journal, oldest),
                // Unreadable bytes hide which one is the oldest: it stays until it can be told.
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Enforces the limits of the whole stream, removing at most `budget` messages from its front.
    /// Returns whether it is within them.
    pub(crate) fn enforce_limits(&mut self, journal: &mut dyn Journal, budget: usize) -> bool {
        for _ in 0..budget {
            let over_messages = self.body.config.max_messages.is_some_and(|max| self.body.messages > max);
            let over_bytes = self.body.config.max_bytes.is_some_and(|max| self.body.bytes > max);
            if self.body.messages == 0 || !(over_messages || over_bytes) {
                return true;
            }
            self.remove(journal, self.body.first);
        }
        false
    }

    /// A message is done at one consumer: streams that keep messages for their consumers let it go.
    pub(crate) fn acked(&mut self, journal: &mut dyn Journal, sequence: Sequence) {
        if self.body.config.retention == Retention::Limits || !self.body.lives(sequence) {
            return;
        }
        let measured = self.measure(journal, sequence);
        // Who wants it depends on its subject: what cannot be read stays.
        let Some(subject) = &measured.subject else { return };
        if !self.is_wanted(sequence, subject) {
            self.remove_measured(journal, sequence, &measured);
        }
    }
}
