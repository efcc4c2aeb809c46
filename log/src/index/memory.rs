//! The index of the segment that is being written, and of one whose side file cannot be trusted.

use foldhash::fast::FixedState;
use hashbrown::{HashMap, HashTable};
use std::hash::BuildHasher;

use crate::{
    Sequence, StreamId, Timestamp,
    format::record::{Kind, MESSAGE_HEADER_BYTES, MessageView, Records, WITH_MESSAGE_ID},
    index::{RunTotals, Slot, SubjectTotals},
};

/// Runs by stream. Pushing a message of a known stream and subject allocates nothing but, now and then,
/// room for more slots.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryIndex {
    runs: Vec<MemoryRun>,
    by_stream: HashMap<StreamId, usize, FixedState>,
    /// The run that was pushed to last.
    latest: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct MemoryRun {
    stream: StreamId,
    slots: Vec<Slot>,
    subjects: SubjectTable,
    with_message_id: u32,
    bytes: u64,
    newest: Timestamp,
}

impl MemoryIndex {
    pub(crate) fn run(&self, stream: StreamId) -> Option<&MemoryRun> {
        let latest = self.runs.get(self.latest)?;
        if latest.stream == stream {
            return Some(latest);
        }
        self.by_stream.get(&stream).map(|place| &self.runs[*place])
    }

    /// In the order in which the streams first appeared.
    pub(crate) fn runs(&self) -> &[MemoryRun] {
        &self.runs
    }

    /// Whether a message continues its stream's run, with a sequence that has one before and one after it.
    /// What was written by us does; a file may say anything.
    pub(crate) fn accepts(&self, stream: StreamId, sequence: Sequence) -> bool {
        let last =
            self.run(stream).and_then(|run| run.slots.last()).map_or(Sequence(0), |last| last.sequence);
        last < sequence && sequence < Sequence(u64::MAX)
    }

    /// Notes a message whose record stands at `offset` with this length. Sequences of a stream ascend.
    pub(crate) fn push(&mut self, message: &MessageView<'_>, offset: u64, len: u32, with_message_id: bool) {
        let place = match self.runs.get(self.latest) {
            Some(run) if run.stream == message.stream => self.latest,
            Some(_) | None => {
                let runs = &mut self.runs;
                *self.by_stream.entry(message.stream).or_insert_with(|| {
                    runs.push(MemoryRun::new(message.stream));
                    runs.len() - 1
                })
            }
        };
        self.latest = place;
        self.runs[place].push(message, offset, len, with_message_id);
    }
}

impl MemoryIndex {
    /// Records that stand at `from` or behind it will stand `by` bytes further back.
    pub(crate) fn move_back(&mut self, from: u64, by: u64) {
        for run in &mut self.runs {
            for slot in run.slots.iter_mut().rev().take_while(|slot| u64::from(slot.offset) >= from) {
                slot.offset = u32::try_from(u64::from(slot.offset) + by).expect("a segment is below 4 GiB");
            }
        }
    }
}

impl MemoryIndex {
    /// Forgets the records that stand at `from` or behind it. `bodies` are their bytes.
    pub(crate) fn remove_from(&mut self, from: u64, bodies: &[u8]) {
        for run in &mut self.runs {
            let stays = run.slots.partition_point(|slot| u64::from(slot.offset) < from);
            if stays < run.slots.len() {
                run.slots.truncate(stays);
                run.sum_up();
            }
        }
        for record in Records::new(bodies).map_while(Result::ok) {
            if record.kind == Kind::Message
                && record.flags & WITH_MESSAGE_ID != 0
                && let Ok(message) = record.message()
                && let Some(place) = self.by_stream.get(&message.stream)
            {
                self.runs[*place].with_message_id -= 1;
            }
        }
        // A run without a slot is one that was never there.
        self.runs.retain(|run| !run.slots.is_empty());
        self.by_stream.clear();
        self.by_stream.extend(self.runs.iter().enumerate().map(|(place, run)| (run.stream, place)));
        self.latest = 0;
    }
}

impl MemoryRun {
    /// Makes the sums right again after slots went.
    fn sum_up(&mut self) {
        self.bytes = self.slots.iter().map(|slot| u64::from(slot.len)).sum();
        self.newest = self.slots.iter().map(|slot| slot.timestamp).max().unwrap_or_default();
        let old = std::mem::take(&mut self.subjects);
        for slot in &mut self.slots {
            let content = u64::from(slot.len) - MESSAGE_HEADER_BYTES as u64;
            slot.subject = self.subjects.intern(old.name(slot.subject), slot.sequence, content);
        }
    }

    fn new(stream: StreamId) -> Self {
        Self {
            stream,
            slots: Vec::new(),
            subjects: SubjectTable::default(),
            with_message_id: 0,
            bytes: 0,
            newest: Timestamp(0),
        }
    }

    fn push(&mut self, message: &MessageView<'_>, offset: u64, len: u32, with_message_id: bool) {
        if let Some(last) = self.slots.last() {
            assert!(
                last.sequence < message.sequence,
                "sequence {} of stream {} after {}",
                message.sequence,
                message.stream,
                last.sequence
            );
        }
        let content = u64::from(len) - MESSAGE_HEADER_BYTES as u64;
        let subject = self.subjects.intern(message.subject, message.sequence, content);
        self.slots.push(Slot {
            sequence: message.sequence,
            timestamp: message.timestamp,
            offset: u32::try_from(offset).expect("a segment is below 4 GiB"),
            len,
            subject,
            headers_bytes: u32::try_from(message.headers.len()).expect("less than the record's length"),
        });
        self.with_message_id += u32::from(with_message_id);
        self.bytes += u64::from(len);
        self.newest = self.newest.max(message.timestamp);
    }

    pub(crate) const fn stream(&self) -> StreamId {
        self.stream
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(crate) const fn subjects(&self) -> &SubjectTable {
        &self.subjects
    }

    pub(crate) fn totals(&self) -> RunTotals {
        RunTotals {
            stream: self.stream,
            first: self.slots.first().map_or(Sequence(0), |slot| slot.sequence),
            last: self.slots.last().map_or(Sequence(0), |slot| slot.sequence),
            count: self.slots.len() as u64,
            with_message_id: self.with_message_id,
            bytes: self.bytes,
            newest: self.newest,
        }
    }
}

/// The distinct subjects of a run, by number in the order of their appearance.
#[derive(Clone, Debug, Default)]
pub(crate) struct SubjectTable {
    by_name: HashTable<u32>,
    rows: Vec<SubjectRow>,
    names: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct SubjectRow {
    name_at: usize,
    name_bytes: u16,
    totals: SubjectTotals,
}

impl SubjectTable {
    fn intern(&mut self, name: &[u8], sequence: Sequence, bytes: u64) -> u32 {
        let hasher = FixedState::default();
        let hash = hasher.hash_one(name);
        let found = self.by_name.find(hash, |place| self.name(*place) == name).copied();
        if let Some(place) = found {
            let totals = &mut self.rows[place as usize].totals;
            totals.last = sequence;
            totals.count += 1;
            totals.bytes += bytes;
            return place;
        }
        let place = u32::try_from(self.rows.len()).expect("fewer subjects than bytes of a segment");
        self.rows.push(SubjectRow {
            name_at: self.names.len(),
            name_bytes: u16::try_from(name.len()).expect("a subject is at most 65535 bytes"),
            totals: SubjectTotals { first: sequence, last: sequence, count: 1, bytes },
        });
        self.names.extend_from_slice(name);
        let (rows, names) = (&self.rows, &self.names);
        self.by_name.insert_unique(hash, place, |place| {
            let row = &rows[*place as usize];
            hasher.hash_one(&names[row.name_at..row.name_at + usize::from(row.name_bytes)])
        });
        place
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The name of a subject that [`Self::intern`] numbered.
    pub(crate) fn name(&self, place: u32) -> &[u8] {
        let row = &self.rows[place as usize];
        &self.names[row.name_at..row.name_at + usize::from(row.name_bytes)]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], SubjectTotals)> {
        self.rows
            .iter()
            .map(|row| (&self.names[row.name_at..row.name_at + usize::from(row.name_bytes)], row.totals))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_kept_once_and_summed() {
        let mut index = MemoryIndex::default();
        for number in 1..=100u64 {
            let subject = format!("s.{}", number % 3);
            let message = MessageView {
                stream: StreamId(1),
                sequence: Sequence(number),
                timestamp: Timestamp(number),
                subject: subject.as_bytes(),
                headers: b"",
                payload: b"",
            };
            index.push(&message, number * 40, 39, number == 4);
        }
        let run = index.run(StreamId(1)).unwrap();
        assert_eq!(run.subjects().len(), 3);
        assert_eq!(run.totals().with_message_id, 1);
        let (name, totals) = run.subjects().iter().nth(1).unwrap();
        assert_eq!(name, b"s.2");
        assert_eq!(totals, SubjectTotals { first: Sequence(2), last: Sequence(98), count: 33, bytes: 99 });
        assert!(index.run(StreamId(2)).is_none());
    }
}
