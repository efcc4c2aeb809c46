//! Pages and subject tables of side files, loaded when asked for and kept within a bound.

use std::{collections::BTreeMap, sync::Arc};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::{
    Sequence,
    files::Files,
    format::segment::SegmentKey,
    index::{
        PAGE_SLOTS, Run, SideFault, Slot, SubjectTotals,
        side::{Page, RunRow, Subjects, decode_page, decode_subjects},
    },
};

/// What was loaded, by where it came from. The one used longest ago goes first.
#[derive(Debug)]
pub(crate) struct IndexCache {
    parts: HashMap<PartKey, Kept, FixedState>,
    /// When each was used last.
    by_use: BTreeMap<u64, PartKey>,
    bytes: usize,
    bytes_max: usize,
    clock: u64,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct PartKey {
    segment: SegmentKey,
    run: usize,
    part: PartName,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum PartName {
    Page(usize),
    Subjects,
}

#[derive(Debug)]
struct Kept {
    used: u64,
    bytes: usize,
    part: Part,
}

#[derive(Clone, Debug)]
enum Part {
    Page(Page),
    Subjects(Arc<Subjects>),
}

impl IndexCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { parts: HashMap::default(), by_use: BTreeMap::new(), bytes: 0, bytes_max, clock: 0 }
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets what was loaded of a segment.
    pub(crate) fn forget(&mut self, segment: SegmentKey) {
        let (bytes, by_use) = (&mut self.bytes, &mut self.by_use);
        self.parts.retain(|key, kept| {
            let keep = key.segment != segment;
            if !keep {
                *bytes -= kept.bytes;
                by_use.remove(&kept.used);
            }
            keep
        });
    }

    fn get(&mut self, key: PartKey) -> Option<Part> {
        let kept = self.parts.get_mut(&key)?;
        // Used last already: in a walk through one page most are.
        if kept.used != self.clock {
            self.by_use.remove(&kept.used);
            self.clock += 1;
            kept.used = self.clock;
            self.by_use.insert(kept.used, key);
        }
        Some(kept.part.clone())
    }

    fn put(&mut self, key: PartKey, part: Part, bytes: usize) {
        while self.bytes + bytes > self.bytes_max
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            let gone = self.parts.remove(&oldest).expect("what was used is kept");
            self.bytes -= gone.bytes;
        }
        self.clock += 1;
        self.bytes += bytes;
        self.by_use.insert(self.clock, key);
        let replaced = self.parts.insert(key, Kept { used: self.clock, bytes, part });
        assert!(replaced.is_none(), "a part is loaded when it is not kept");
    }
}

/// A run of a sealed segment, to be searched.
pub(crate) struct SideRun<'a> {
    pub(crate) files: &'a mut Files,
    pub(crate) cache: &'a mut IndexCache,
    pub(crate) segment: SegmentKey,
    pub(crate) place: usize,
    pub(crate) row: &'a RunRow,
    page: Option<(usize, Page)>,
}

impl<'a> SideRun<'a> {
    pub(crate) const fn new(
        files: &'a mut Files,
        cache: &'a mut IndexCache,
        segment: SegmentKey,
        place: usize,
        row: &'a RunRow,
    ) -> Self {
        Self { files, cache, segment, place, row, page: None }
    }

    fn page(&mut self, number: usize) -> Result<&Page, SideFault> {
        let key = PartKey { segment: self.segment, run: self.place, part: PartName::Page(number) };
        if self.page.as_ref().is_none_or(|(current, _)| *current != number) {
            let page = match self.cache.get(key) {
                Some(Part::Page(page)) => page,
                Some(Part::Subjects(_)) | None => {
                    let (at, len) = self.row.page_range(number).ok_or(SideFault)?;
                    let bytes = self.read(at, len)?;
                    let page = decode_page(&bytes).ok_or(SideFault)?;
                    self.cache.put(key, Part::Page(Arc::clone(&page)), page.len() * size_of::<Slot>());
                    page
                }
            };
            self.page = Some((number, page));
        }
        self.page.as_ref().map(|(_, page)| page).ok_or(SideFault)
    }

    fn subjects(&mut self) -> Result<Arc<Subjects>, SideFault> {
        let key = PartKey { segment: self.segment, run: self.place, part: PartName::Subjects };
        if let Some(Part::Subjects(subjects)) = self.cache.get(key) {
            return Ok(subjects);
        }
        let (at, len) = self.row.subjects_range();
        let bytes = self.read(at, len as usize)?;
        let subjects = Arc::new(decode_subjects(self.row, &bytes).ok_or(SideFault)?);
        self.cache.put(key, Part::Subjects(Arc::clone(&subjects)), subjects.memory());
        Ok(subjects)
    }

    fn read(&mut self, at: u64, len: usize) -> Result<Vec<u8>, SideFault> {
        let mut bytes = vec![0; len];
        match self.files.read_index(self.segment, &mut bytes, at) {
            Ok(read) if read == len => Ok(bytes),
            Ok(_) | Err(_) => Err(SideFault),
        }
    }
}

impl Run for SideRun<'_> {
    fn count(&self) -> usize {
        usize::try_from(self.row.totals.count).expect("a run has fewer messages than its segment bytes")
    }

    fn slot(&mut self, place: usize) -> Result<Slot, SideFault> {
        self.page(place / PAGE_SLOTS)?.get(place % PAGE_SLOTS).copied().ok_or(SideFault)
    }

    fn place_from(&mut self, sequence: Sequence) -> Result<usize, SideFault> {
        let number = self.row.page_of(sequence);
        let page = self.page(number)?;
        let within = match page.first() {
            Some(first) if first.sequence < sequence => {
                // Without gaps the place is known.
                let guess = usize::try_from(sequence.0 - first.sequence.0).unwrap_or(usize::MAX);
                match page.get(guess) {
                    Some(slot) if slot.sequence == sequence => guess,
                    Some(_) | None => page.partition_point(|slot| slot.sequence < sequence),
                }
            }
            Some(_) | None => 0,
        };
        Ok(number * PAGE_SLOTS + within)
    }

    fn subject_count(&mut self) -> Result<usize, SideFault> {
        Ok(self.subjects()?.len())
    }

    fn with_subject(&mut self, subject: u32, f: &mut dyn FnMut(&[u8])) -> Result<(), SideFault> {
        f(self.subjects()?.name(subject).ok_or(SideFault)?);
        Ok(())
    }

    fn for_subjects(&mut self, f: &mut dyn FnMut(&[u8], SubjectTotals)) -> Result<(), SideFault> {
        self.subjects()?.iter().for_each(|(name, totals)| f(name, totals));
        Ok(())
    }
}
