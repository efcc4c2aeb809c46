//! A journal in memory, for tests of what stands on one.

use std::{collections::BTreeMap, ops::RangeInclusive};

use bytes::Bytes;

use crate::{Entry, Journal, Message, MessageRef, Read, Sequence, StreamId};

/// A [`Journal`] that keeps everything it was given and was not told to release.
#[derive(Clone, Debug, Default)]
pub struct MemoryJournal {
    streams: BTreeMap<StreamId, BTreeMap<Sequence, Message>>,
    pushed: Vec<Pushed>,
}

/// A record in the order in which it was pushed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Pushed {
    Message(Message),
    Control(Bytes),
}

impl MemoryJournal {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything that was pushed, released or not: what a replay would give.
    #[must_use]
    pub fn pushed(&self) -> &[Pushed] {
        &self.pushed
    }

    /// Messages of a stream that were not released.
    #[must_use]
    pub fn living(&self, stream: StreamId) -> usize {
        self.streams.get(&stream).map_or(0, BTreeMap::len)
    }

    fn message(&self, stream: StreamId, sequence: Sequence) -> Option<&Message> {
        self.streams.get(&stream)?.get(&sequence)
    }
}

impl Journal for MemoryJournal {
    fn push_message(&mut self, message: &MessageRef<'_>) {
        let message = Message {
            stream: message.stream,
            sequence: message.sequence,
            timestamp: message.timestamp,
            subject: Bytes::copy_from_slice(message.subject),
            headers: Bytes::copy_from_slice(message.headers),
            payload: Bytes::copy_from_slice(message.payload),
        };
        self.pushed.push(Pushed::Message(message.clone()));
        let stream = self.streams.entry(message.stream).or_default();
        assert!(
            stream.last_key_value().is_none_or(|(last, _)| *last < message.sequence),
            "sequences of a stream ascend"
        );
        stream.insert(message.sequence, message);
    }

    fn push_control(&mut self, body: &[u8]) {
        self.pushed.push(Pushed::Control(Bytes::copy_from_slice(body)));
    }

    fn read(&mut self, stream: StreamId, sequence: Sequence) -> Read<Message> {
        self.message(stream, sequence).map_or(Read::Absent, |message| Read::Found(message.clone()))
    }

    fn entry(&mut self, stream: StreamId, sequence: Sequence) -> Read<Entry> {
        self.message(stream, sequence).map_or(Read::Absent, |message| {
            Read::Found(Entry {
                sequence,
                timestamp: message.timestamp,
                subject: message.subject.clone(),
                headers_bytes: u32::try_from(message.headers.len()).expect("a message is far below 4 GiB"),
                payload_bytes: u32::try_from(message.payload.len()).expect("a message is far below 4 GiB"),
            })
        })
    }

    fn next(
        &mut self,
        stream: StreamId,
        from: Sequence,
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Read<Sequence> {
        self.streams
            .get(&stream)
            .and_then(|messages| messages.range(from..).find(|(_, message)| wanted(&message.subject)))
            .map_or(Read::Absent, |(sequence, _)| Read::Found(*sequence))
    }

    fn previous(
        &mut self,
        stream: StreamId,
        from: Sequence,
        wanted: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Read<Sequence> {
        self.streams
            .get(&stream)
            .and_then(|messages| messages.range(..=from).rev().find(|(_, message)| wanted(&message.subject)))
            .map_or(Read::Absent, |(sequence, _)| Read::Found(*sequence))
    }

    fn release(&mut self, stream: StreamId, sequences: RangeInclusive<Sequence>) {
        if let Some(messages) = self.streams.get_mut(&stream) {
            let mut rest = messages.split_off(sequences.start());
            messages.append(&mut rest.split_off(&sequences.end().next()));
        }
    }

    fn release_stream(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timestamp;

    fn journal(subjects: &[&str]) -> MemoryJournal {
        let mut journal = MemoryJournal::new();
        for (number, subject) in (1..).zip(subjects) {
            journal.push_message(&MessageRef {
                stream: StreamId(1),
                sequence: Sequence(number),
                timestamp: Timestamp(number),
                subject: subject.as_bytes(),
                headers: b"",
                payload: b"x",
            });
        }
        journal
    }

    #[test]
    fn next_and_previous_skip_released_and_unwanted() {
        let mut journal = journal(&["a", "b", "a", "b", "a"]);
        journal.release(StreamId(1), Sequence(3)..=Sequence(3));
        assert_eq!(journal.next(StreamId(1), Sequence(2), &mut |s| s == b"a"), Read::Found(Sequence(5)));
        assert_eq!(journal.previous(StreamId(1), Sequence(4), &mut |s| s == b"a"), Read::Found(Sequence(1)));
        assert_eq!(journal.next(StreamId(1), Sequence(6), &mut |_| true), Read::Absent);
    }

    #[test]
    fn release_takes_a_range_out_of_the_middle() {
        let mut journal = journal(&["a"; 6]);
        journal.release(StreamId(1), Sequence(2)..=Sequence(4));
        assert_eq!(journal.living(StreamId(1)), 3);
        assert_eq!(journal.read(StreamId(1), Sequence(2)), Read::Absent);
        assert_eq!(journal.next(StreamId(1), Sequence(2), &mut |_| true), Read::Found(Sequence(5)));
        assert_eq!(journal.pushed().len(), 6);
    }
}
