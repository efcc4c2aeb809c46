//! The side file of a sealed segment: `docs/design/format.md`, "Side index".
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::sync::Arc;

use crate::{
    SegmentId, Sequence, ShardId, StreamId, Timestamp,
    format::{
        fields::{Fields, Filler},
        segment::{FORMAT_VERSION, SegmentKey},
    },
    index::{MemoryIndex, PAGE_SLOTS, RunTotals, Slot, SubjectTotals, memory::MemoryRun},
};

pub(crate) const SIDE_HEADER_BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"BEAMIDX\0";
const SLOT_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 4;
/// Of a subject, without its name.
const SUBJECT_BYTES: usize = 34;
/// Of a directory row, without the first sequences of its pages.
const ROW_BYTES: usize = 76;

/// A run of a sealed segment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct RunRow {
    pub(crate) totals: RunTotals,
    pages_at: u64,
    subjects_at: u64,
    subjects_bytes: u32,
    subjects: u32,
    subjects_checksum: u32,
    /// The first sequence of each page.
    page_firsts: Box<[Sequence]>,
}

/// What is kept in memory of a side file: its runs, in the order of their streams.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct SideDirectory {
    pub(crate) runs: Vec<RunRow>,
}

/// The subjects of a run, loaded.
#[derive(Debug)]
pub(crate) struct Subjects {
    rows: Vec<(usize, usize, SubjectTotals)>,
    names: Box<[u8]>,
}

impl Subjects {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn name(&self, place: u32) -> Option<&[u8]> {
        let (from, to, _) = self.rows.get(usize::try_from(place).ok()?)?;
        self.names.get(*from..*to)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], SubjectTotals)> {
        self.rows.iter().map(|(from, to, totals)| (self.names.get(*from..*to).unwrap_or_default(), *totals))
    }

    /// Bytes it takes in memory.
    pub(crate) fn memory(&self) -> usize {
        self.rows
            .len()
            .saturating_mul(size_of::<(usize, usize, SubjectTotals)>())
            .saturating_add(self.names.len())
    }
}

/// A page, loaded.
pub(crate) type Page = Arc<[Slot]>;

/// The bytes of a segment's side file.
#[expect(clippy::arithmetic_side_effects, reason = "sums of lengths in memory")]
pub(crate) fn encode(index: &MemoryIndex, shard: ShardId, key: SegmentKey, content_hash: u64) -> Vec<u8> {
    let mut runs: Vec<&MemoryRun> = index.runs().iter().collect();
    runs.sort_by_key(|run| run.stream());
    let directory_bytes: usize =
        runs.iter().map(|run| ROW_BYTES + 8 * run.slots().len().div_ceil(PAGE_SLOTS)).sum();
    let mut directory = Vec::with_capacity(directory_bytes);
    // Header and directory are known last and stand first: room for them, then the rest behind it.
    let body_at = SIDE_HEADER_BYTES + directory_bytes;
    let body_bytes: usize = runs.iter().map(|run| run_bytes(run)).sum();
    let mut out = Vec::with_capacity(body_at + body_bytes);
    out.resize(body_at, 0);
    for run in &runs {
        let pages_at = out.len();
        for page in run.slots().chunks(PAGE_SLOTS) {
            put_page(&mut out, page);
        }
        let subjects_at = out.len();
        for (name, totals) in run.subjects().iter() {
            Filler::new(&mut out)
                .u64(totals.first.0)
                .u64(totals.last.0)
                .u64(totals.count)
                .u64(totals.bytes)
                .u16(u16::try_from(name.len()).expect("a subject is at most 65535 bytes"))
                .bytes(name);
        }
        let subjects = out.get(subjects_at..).expect("it only grew");
        let totals = run.totals();
        Filler::new(&mut directory)
            .u32(totals.stream.0)
            .u32(totals.with_message_id)
            .u64(totals.first.0)
            .u64(totals.last.0)
            .u64(totals.count)
            .u64(totals.bytes)
            .u64(totals.newest.0)
            .u64(pages_at as u64)
            .u64(subjects_at as u64)
            .u32(u32::try_from(subjects.len()).expect("subjects take less than their segment, below 4 GiB"))
            .u32(u32::try_from(run.subjects().len()).expect("fewer subjects than bytes"))
            .u32(crc32fast::hash(subjects));
        for page in run.slots().chunks(PAGE_SLOTS) {
            let first = page.first().expect("chunks are not empty");
            Filler::new(&mut directory).u64(first.sequence.0);
        }
    }
    assert_eq!(directory.len(), directory_bytes, "the places in the directory were computed from its length");
    let mut header = Vec::with_capacity(SIDE_HEADER_BYTES);
    Filler::new(&mut header)
        .bytes(&MAGIC)
        .u16(FORMAT_VERSION)
        .u16(0)
        .u32(shard.0)
        .u64(key.segment.0)
        .u32(key.generation)
        .u32(u32::try_from(runs.len()).expect("fewer runs than bytes"))
        .u64(content_hash)
        .u32(u32::try_from(directory.len()).expect("a directory is far below 4 GiB"))
        .u32(crc32fast::hash(&directory))
        .u64(out.len() as u64)
        .u32(0);
    let own = crc32fast::hash(&header);
    Filler::new(&mut header).u32(own);
    let (room, rest) = out.split_at_mut(SIDE_HEADER_BYTES);
    room.copy_from_slice(&header);
    let (room, _) = rest.split_at_mut(directory_bytes);
    room.copy_from_slice(&directory);
    out
}

/// What the pages and the subject table of a run take.
#[expect(clippy::arithmetic_side_effects, reason = "sums of lengths in memory")]
fn run_bytes(run: &MemoryRun) -> usize {
    let slots = run.slots().len();
    let pages = slots * SLOT_BYTES + slots.div_ceil(PAGE_SLOTS) * CHECKSUM_BYTES;
    let subjects: usize = run.subjects().iter().map(|(name, _)| SUBJECT_BYTES + name.len()).sum();
    pages + subjects
}

fn put_page(out: &mut Vec<u8>, slots: &[Slot]) {
    let from = out.len();
    for slot in slots {
        let mut bytes = [0; SLOT_BYTES];
        let (words, rest) = bytes.split_at_mut(16);
        let (sequence, timestamp) = words.split_at_mut(8);
        sequence.copy_from_slice(&slot.sequence.0.to_le_bytes());
        timestamp.copy_from_slice(&slot.timestamp.0.to_le_bytes());
        let (fields, _) = rest.as_chunks_mut::<4>();
        for (field, value) in fields.iter_mut().zip([slot.offset, slot.len, slot.subject, slot.headers_bytes])
        {
            *field = value.to_le_bytes();
        }
        out.extend_from_slice(&bytes);
    }
    let checksum = crc32fast::hash(out.get(from..).expect("the page was just put there"));
    Filler::new(out).u32(checksum);
}

/// The length of the directory, if this is the header of that segment's side file.
pub(crate) fn decode_header(
    bytes: &[u8],
    shard: ShardId,
    key: SegmentKey,
    content_hash: u64,
    file_bytes: u64,
) -> Option<SideHeader> {
    let bytes: &[u8; SIDE_HEADER_BYTES] = bytes.first_chunk()?;
    let (checked, own) = bytes.split_at(60);
    if crc32fast::hash(checked).to_le_bytes() != *own {
        return None;
    }
    let mut fields = Fields::new(checked);
    let ours = fields.array()? == MAGIC
        && fields.u16()? == FORMAT_VERSION
        && fields.u16()? == 0
        && ShardId(fields.u32()?) == shard
        && SegmentId(fields.u64()?) == key.segment
        && fields.u32()? == key.generation;
    let runs = fields.u32()?;
    let ours = ours && fields.u64()? == content_hash;
    let directory_bytes = fields.u32()?;
    let directory_checksum = fields.u32()?;
    let ours = ours && fields.u64()? == file_bytes && u64::from(directory_bytes) <= file_bytes;
    ours.then_some(SideHeader { runs, directory_bytes, directory_checksum })
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct SideHeader {
    runs: u32,
    pub(crate) directory_bytes: u32,
    directory_checksum: u32,
}

/// The directory that follows this header.
pub(crate) fn decode_directory(header: SideHeader, bytes: &[u8]) -> Option<SideDirectory> {
    if crc32fast::hash(bytes) != header.directory_checksum {
        return None;
    }
    let mut fields = Fields::new(bytes);
    let mut runs = Vec::new();
    for _ in 0..header.runs {
        let stream = StreamId(fields.u32()?);
        let with_message_id = fields.u32()?;
        let totals = RunTotals {
            stream,
            with_message_id,
            first: Sequence(fields.u64()?),
            last: Sequence(fields.u64()?),
            count: fields.u64()?,
            bytes: fields.u64()?,
            newest: Timestamp(fields.u64()?),
        };
        let (pages_at, subjects_at) = (fields.u64()?, fields.u64()?);
        let (subjects_bytes, subjects, subjects_checksum) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let pages = usize::try_from(totals.count).ok()?.div_ceil(PAGE_SLOTS);
        let (firsts, _) = fields.take(pages.checked_mul(8)?)?.as_chunks::<8>();
        let page_firsts = firsts.iter().map(|first| Sequence(u64::from_le_bytes(*first))).collect();
        runs.push(RunRow {
            totals,
            pages_at,
            subjects_at,
            subjects_bytes,
            subjects,
            subjects_checksum,
            page_firsts,
        });
    }
    fields.rest().is_empty().then_some(SideDirectory { runs })
}

impl SideDirectory {
    /// The place of a stream's run.
    pub(crate) fn place(&self, stream: StreamId) -> Option<usize> {
        self.runs.binary_search_by_key(&stream, |row| row.totals.stream).ok()
    }
}

impl RunRow {
    /// Where page `page` is in the file, and how long with its checksum.
    pub(crate) fn page_range(&self, page: usize) -> Option<(u64, usize)> {
        let before = page.checked_mul(PAGE_SLOTS)?;
        let slots = usize::try_from(self.totals.count).ok()?.checked_sub(before)?.min(PAGE_SLOTS);
        let whole = PAGE_SLOTS.checked_mul(SLOT_BYTES)?.checked_add(CHECKSUM_BYTES)?;
        let at = self.pages_at.checked_add(u64::try_from(page.checked_mul(whole)?).ok()?)?;
        Some((at, slots.checked_mul(SLOT_BYTES)?.checked_add(CHECKSUM_BYTES)?))
    }

    /// The page on which `sequence` stands, or would stand.
    pub(crate) fn page_of(&self, sequence: Sequence) -> usize {
        self.page_firsts.partition_point(|first| *first <= sequence).saturating_sub(1)
    }

    pub(crate) const fn subjects_range(&self) -> (u64, u32) {
        (self.subjects_at, self.subjects_bytes)
    }
}

pub(crate) fn decode_page(bytes: &[u8]) -> Option<Page> {
    let (slots, own) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
    if crc32fast::hash(slots).to_le_bytes() != *own {
        return None;
    }
    let (slots, _) = slots.as_chunks::<SLOT_BYTES>();
    slots
        .iter()
        .map(|slot| {
            let mut fields = Fields::new(slot);
            Some(Slot {
                sequence: Sequence(fields.u64()?),
                timestamp: Timestamp(fields.u64()?),
                offset: fields.u32()?,
                len: fields.u32()?,
                subject: fields.u32()?,
                headers_bytes: fields.u32()?,
            })
        })
        .collect()
}

pub(crate) fn decode_subjects(row: &RunRow, bytes: &[u8]) -> Option<Subjects> {
    if crc32fast::hash(bytes) != row.subjects_checksum {
        return None;
    }
    let mut fields = Fields::new(bytes);
    let mut rows = Vec::new();
    let mut names = Vec::new();
    for _ in 0..row.subjects {
        let totals = SubjectTotals {
            first: Sequence(fields.u64()?),
            last: Sequence(fields.u64()?),
            count: fields.u64()?,
            bytes: fields.u64()?,
        };
        let len = usize::from(fields.u16()?);
        let from = names.len();
        names.extend_from_slice(fields.take(len)?);
        rows.push((from, names.len(), totals));
    }
    fields.rest().is_empty().then(|| Subjects { rows, names: names.into() })
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "tests")]
mod tests {
    use super::*;
    use crate::format::record::MessageView;

    const KEY: SegmentKey = SegmentKey { segment: SegmentId(5), generation: 1 };

    fn index(messages: u64) -> MemoryIndex {
        let mut index = MemoryIndex::default();
        for number in 1..=messages {
            let subject = format!("s.{}", number % 5);
            for stream in [9, 2] {
                let message = MessageView {
                    stream: StreamId(stream),
                    sequence: Sequence(number),
                    timestamp: Timestamp(number * 10),
                    subject: subject.as_bytes(),
                    headers: b"",
                    payload: b"",
                };
                index.push(&message, number * 40, 39, false);
            }
        }
        index
    }

    fn decode(bytes: &[u8]) -> Option<SideDirectory> {
        let header = decode_header(bytes, ShardId(1), KEY, 77, bytes.len() as u64)?;
        let end = SIDE_HEADER_BYTES + header.directory_bytes as usize;
        decode_directory(header, bytes.get(SIDE_HEADER_BYTES..end)?)
    }

    #[test]
    fn runs_pages_and_subjects_come_back() {
        let index = index(5000);
        let bytes = encode(&index, ShardId(1), KEY, 77);
        let directory = decode(&bytes).unwrap();
        assert_eq!(directory.runs.iter().map(|run| run.totals.stream.0).collect::<Vec<_>>(), [2, 9]);
        let row = &directory.runs[directory.place(StreamId(9)).unwrap()];
        let run = index.run(StreamId(9)).unwrap();
        assert_eq!(row.totals, run.totals());
        let mut slots = Vec::new();
        for page in 0..10 {
            let (at, len) = row.page_range(page).unwrap();
            let at = usize::try_from(at).unwrap();
            slots.extend_from_slice(&decode_page(&bytes[at..at + len]).unwrap());
        }
        assert_eq!(slots, run.slots());
        assert_eq!(row.page_of(Sequence(512)), 0);
        assert_eq!(row.page_of(Sequence(513)), 1);
        let (at, len) = row.subjects_range();
        let at = usize::try_from(at).unwrap();
        let subjects = decode_subjects(row, &bytes[at..at + len as usize]).unwrap();
        assert!(subjects.iter().eq(run.subjects().iter()));
    }

    #[test]
    fn a_foreign_side_file_is_not_ours() {
        let bytes = encode(&index(3), ShardId(1), KEY, 77);
        let len = bytes.len() as u64;
        let other = SegmentKey { generation: 2, ..KEY };
        assert!(decode_header(&bytes, ShardId(1), KEY, 77, len).is_some());
        assert!(decode_header(&bytes, ShardId(2), KEY, 77, len).is_none());
        assert!(decode_header(&bytes, ShardId(1), other, 77, len).is_none());
        assert!(decode_header(&bytes, ShardId(1), KEY, 78, len).is_none());
        assert!(decode_header(&bytes, ShardId(1), KEY, 77, len - 1).is_none());
    }

    #[test]
    fn every_flipped_bit_is_noticed_where_it_is_used() {
        let bytes = encode(&index(3), ShardId(1), KEY, 77);
        let all = |bytes: &[u8]| -> Option<()> {
            let directory = decode(bytes)?;
            for row in &directory.runs {
                let (at, len) = row.page_range(0)?;
                let at = usize::try_from(at).ok()?;
                decode_page(bytes.get(at..at + len)?)?;
                let (at, len) = row.subjects_range();
                let at = usize::try_from(at).ok()?;
                decode_subjects(row, bytes.get(at..at + len as usize)?)?;
            }
            Some(())
        };
        all(&bytes).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(all(&flipped), None, "bit {bit}");
        }
    }
}
