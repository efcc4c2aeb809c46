//! How far back the entries go without a hole, and where in a sealed segment they stand.

use std::{collections::BTreeMap, sync::Weak};

use crate::{
    EntryId, Index, Log, SegmentId, Term,
    format::{
        frame::{FRAME_HEADER_BYTES, FrameHeader},
        segment::{FRAMES_AT, SegmentKey},
    },
    replica::files::{Pin, Pins},
};

/// Bytes between two marks of a sealed segment.
const MARK_EVERY: u64 = 256 * 1024;
/// Sealed segments of which marks are kept.
const MARKED_MAX: usize = 64;

/// What is known of the sealed segments' entries. All of it can be found out again.
#[derive(Debug)]
pub(crate) struct History {
    /// The entry before the oldest one that can be given.
    from: EntryId,
    /// Entries behind this one are not compacted away.
    kept_after: Index,
    /// Files that are being read by others.
    pins: Pins,
    /// The term of the entry before each segment.
    base_terms: BTreeMap<SegmentId, Term>,
    /// Now and then an index and the place of its frame.
    marks: BTreeMap<SegmentId, (SegmentKey, Vec<(Index, u64)>)>,
}

impl Default for History {
    fn default() -> Self {
        Self {
            from: EntryId::default(),
            kept_after: Index(u64::MAX),
            pins: Pins::default(),
            base_terms: BTreeMap::new(),
            marks: BTreeMap::new(),
        }
    }
}

impl History {
    /// A place at or before the frame of `index`, at the beginning of a frame.
    pub(crate) fn place_before(&self, key: SegmentKey, index: Index) -> u64 {
        let Some((_, marks)) = self.marks.get(&key.segment).filter(|(marked, _)| *marked == key) else {
            return FRAMES_AT;
        };
        let behind = marks.partition_point(|(mark, _)| *mark <= index);
        behind.checked_sub(1).map_or(FRAMES_AT, |place| marks[place].1)
    }

    /// Whether upkeep must leave a sealed segment, which ends with this index, as it is.
    pub(crate) fn keeps(&self, key: SegmentKey, last_index: Index) -> bool {
        last_index > self.kept_after || self.pins.has(key)
    }

    /// Changes whenever more may be removed than before.
    pub(crate) fn kept(&self) -> (Index, usize) {
        (self.kept_after, self.pins.count())
    }

    pub(crate) fn pin(&mut self, pin: Weak<Pin>) {
        self.pins.add(pin);
    }

    /// Takes note of where an ordinary frame stands.
    pub(crate) fn mark(&mut self, key: SegmentKey, index: Index, at: u64) {
        if !self.marks.contains_key(&key.segment) && self.marks.len() >= MARKED_MAX {
            self.marks.pop_first();
        }
        let (marked, marks) = self.marks.entry(key.segment).or_insert_with(|| (key, Vec::new()));
        if *marked != key {
            *marked = key;
            marks.clear();
        }
        if marks.last().is_none_or(|(last, before)| *last < index && at >= before + MARK_EVERY) {
            marks.push((index, at));
        }
    }
}

impl Log {
    /// The entry before the oldest one that [`Self::entries`] can give. Goes on with upkeep, which removes and
    /// compacts old segments; see [`Self::keep_entries_after`].
    #[must_use]
    pub const fn history_from(&self) -> EntryId {
        self.history.from
    }

    /// Upkeep leaves the segments alone that hold entries behind this one, so that they can be given to others.
    /// Until told otherwise nothing is kept for that. A caller bounds it: what is kept is never reclaimed.
    pub const fn keep_entries_after(&mut self, index: Index) {
        self.history.kept_after = index;
    }

    /// Finds out again how far back entries go. For whenever a segment was begun, removed or written anew.
    pub(crate) fn refresh_history(&mut self) {
        let mut from = self.base_of_open();
        let mut next = self.open.header.segment;
        let candidates: Vec<(SegmentKey, Index)> = self
            .sealed
            .values()
            .rev()
            .map_while(|sealed| {
                let whole = !sealed.compacted && sealed.damage.is_none();
                sealed.footer.filter(|_| whole).map(|footer| (sealed.key, footer.last_index))
            })
            .collect();
        for (key, last_index) in candidates {
            if last_index.next().0 != next.0 {
                break;
            }
            let Some(term) = self.base_term(key) else { break };
            from = EntryId { index: Index(key.segment.0 - 1), term };
            next = key.segment;
        }
        self.history.from = from;
        let sealed = &self.sealed;
        self.history.base_terms.retain(|segment, _| sealed.contains_key(segment));
        self.history.marks.retain(|segment, _| sealed.contains_key(segment));
    }

    const fn base_of_open(&self) -> EntryId {
        EntryId { index: Index(self.open.header.segment.0 - 1), term: self.open.base_term }
    }

    /// The term of the entry before a sealed segment: its first frame, which takes no index, repeats it.
    fn base_term(&mut self, key: SegmentKey) -> Option<Term> {
        if key.segment.0 <= 1 {
            return Some(Term(0));
        }
        if let Some(term) = self.history.base_terms.get(&key.segment) {
            return Some(*term);
        }
        let mut head = [0; FRAME_HEADER_BYTES];
        self.files.read_segment(key, &mut head, FRAMES_AT).ok()?;
        let header = FrameHeader::decode(&head).ok()?;
        let fits = header.shard == self.shard
            && header.segment == key.segment
            && !header.is_ordinary()
            && header.index.next().0 == key.segment.0;
        if fits {
            self.history.base_terms.insert(key.segment, header.term);
        }
        fits.then_some(header.term)
    }
}
