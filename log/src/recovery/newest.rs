//! The newest segment: read whole, past the page cache, and gone on with.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::{
    Damage, DamageReason, Index, LogOptions, OpenError, OpenMode, SegmentId, ShardId, Snapshot, SuspectTail,
    Tail, TailDoubt, Term, Timestamp,
    files::Files,
    format::{
        frame::{FrameHeader, SNAPSHOT, SNAPSHOT_END},
        hash::ContentHash,
        record::{Kind, Records, segments_of},
        segment::{EndFault, FOOTER_BYTES, FORMAT_VERSION, FRAMES_AT, Footer, SegmentHeader, SegmentKey},
    },
    index::MemoryIndex,
    rewrite::NewFile,
    segment::{OpenSegment, index_frame},
    tail::{self, End, Scan},
};

use super::{Image, quarantine, read_image};

/// The newest segment, read past the page cache.
pub(crate) struct Newest {
    key: SegmentKey,
    header: SegmentHeader,
    pub(super) image: Image,
    pub(super) scan: Scan,
    index: MemoryIndex,
    pub(super) term: Term,
    pub(super) now: Timestamp,
    /// Where the frames behind the snapshot begin.
    frames_from: u64,
    pub(super) records: Collected,
    marks: Vec<(Index, u64)>,
}

/// Records of the newest segment that the log itself needs.
#[derive(Default)]
pub(super) struct Collected {
    snapshot: Vec<Bytes>,
    snapshot_ended: bool,
    manifest: Vec<SegmentId>,
    pub(super) retired: Vec<SegmentId>,
}

/// The planted bug: what stands behind a place that cannot be read is not there.
#[cfg(any(test, feature = "planted-bugs"))]
fn without_holes(mut image: Image) -> Image {
    let Ok(header) = SegmentHeader::decode(&image.bytes) else { return image };
    let scan = tail::scan(&image.bytes, &header, &mut |_, _, _| {});
    let hole = scan.gaps.first().map(|gap| gap.offset);
    let suspect = (scan.ending == End::Suspect).then_some(scan.end);
    if let Some(cut) = hole.or(suspect) {
        image.bytes.truncate(usize::try_from(cut).expect("a place in an image that is in memory"));
    }
    image
}

impl Newest {
    pub(crate) fn read(
        files: &Files,
        key: SegmentKey,
        shard: ShardId,
        options: &LogOptions,
    ) -> Result<Self, OpenError> {
        let name = key.file_name();
        let file = files
            .disk()
            .open(&files.path(&name), OpenMode::Read)
            .map_err(|source| files.failed("opening", &name, source))?;
        let image = read_image(&*file, true).map_err(|source| files.failed("reading", &name, source))?;
        #[cfg(any(test, feature = "planted-bugs"))]
        let image = if options.planted_bug == Some(crate::options::PlantedBug::HoleCut) {
            without_holes(image)
        } else {
            image
        };
        let corrupt = |offset, reason| OpenError::Corrupt {
            damage: Damage { segment: key.segment, offset, reason },
            quarantined: quarantine(files, key, 0, &image.bytes),
        };
        let header = SegmentHeader::decode(&image.bytes).map_err(|fault| match fault {
            EndFault::Version(version) => {
                OpenError::UnknownVersion { path: files.path(&name), version, known: FORMAT_VERSION }
            }
            EndFault::Bytes => corrupt(0, DamageReason::Checksum),
        })?;
        if header.shard != shard {
            return Err(OpenError::ForeignShard {
                path: files.path(&name),
                found: header.shard,
                expected: shard,
            });
        }
        if header.key() != key || header.compacted {
            return Err(corrupt(0, DamageReason::Misplaced));
        }
        if image.file_bytes < header.preallocated {
            // Sealed, so there was a newer segment; or cut short.
            let reason = if footer_of(&image, key, shard).is_some() {
                DamageReason::Missing
            } else {
                DamageReason::Length
            };
            return Err(corrupt(image.file_bytes, reason));
        }
        let mut index = MemoryIndex::default();
        let mut collected = Collected::default();
        let mut frames_from = FRAMES_AT;
        let mut marks = Vec::new();
        let (mut term, mut now) = (Term(1), Timestamp(0));
        let mut misplaced = None;
        let scan = tail::scan(&image.bytes, &header, &mut |frame, offset, body| {
            if frame.has(SNAPSHOT) {
                frames_from = offset + frame.frame_bytes();
                collected.snapshot_ended = frame.has(SNAPSHOT_END);
            }
            if frame.is_ordinary() {
                marks.push((frame.index, offset));
            }
            term = term.max(frame.term);
            now = now.max(frame.timestamp);
            collected.take(body);
            if !index_frame(&mut index, offset, body) {
                misplaced.get_or_insert(offset);
            }
        });
        if let Some(offset) = misplaced {
            return Err(corrupt(offset, DamageReason::Misplaced));
        }
        let begins_with_state = header.previous_segment == SegmentId(0) || collected.snapshot_ended;
        match scan.ending {
            End::Version(version) => {
                return Err(OpenError::UnknownVersion {
                    path: files.path(&name),
                    version: u16::from(version),
                    known: FORMAT_VERSION,
                });
            }
            // Damage before the end of the snapshot: there is no state.
            End::Here | End::Torn | End::Suspect if !begins_with_state => {
                return Err(corrupt(scan.end, DamageReason::Checksum));
            }
            End::Suspect if !options.accept_tail_loss && options.suspect_tail == SuspectTail::Refuse => {
                return Err(OpenError::SuspectTail {
                    segment: key.segment,
                    offset: scan.end,
                    first: scan.order.last_index.next(),
                });
            }
            End::Here | End::Torn | End::Suspect => {}
        }
        if let Some(damage) = scan.gaps.iter().find(|gap| gap.offset < frames_from) {
            return Err(corrupt(damage.offset, damage.reason));
        }
        Ok(Self { key, header, image, scan, index, term, now, frames_from, records: collected, marks })
    }

    pub(super) fn tail(&self, options: &LogOptions) -> Tail {
        let bytes = (self.image.bytes.len() as u64).saturating_sub(self.scan.end);
        if !self.scan.gaps.is_empty() {
            return Tail::Fenced;
        }
        match self.scan.ending {
            End::Here if self.scan.sealed => Tail::Clean,
            End::Here | End::Version(_) => Tail::Whole,
            End::Torn => Tail::Torn { bytes },
            End::Suspect if options.accept_tail_loss => Tail::LossAccepted { bytes },
            End::Suspect => Tail::Suspect { bytes },
        }
    }

    /// The older segments that should be there.
    pub(super) fn expected_segments(&self) -> BTreeSet<SegmentId> {
        let mut expected: BTreeSet<SegmentId> = self.records.manifest.iter().copied().collect();
        for retired in &self.records.retired {
            expected.remove(retired);
        }
        expected
    }

    pub(super) fn snapshot(&self) -> Option<Snapshot> {
        self.records.snapshot_ended.then(|| Snapshot {
            index: Index(self.header.segment.0 - 1),
            records: self.records.snapshot.clone(),
        })
    }

    /// What the next frame must say of itself.
    pub(crate) const fn order(&self) -> tail::Order {
        self.scan.order
    }

    /// What is known of a tail that was opened in doubt.
    pub(super) fn doubt(&self) -> TailDoubt {
        let behind = usize::try_from(self.scan.end).ok().and_then(|end| self.image.bytes.get(end..));
        let behind = behind.unwrap_or_default();
        let named = FrameHeader::decode(behind).ok().filter(|header| self.scan.order.accepts(header));
        let is_last = |header: &FrameHeader| {
            let len = usize::try_from(header.frame_bytes()).unwrap_or(usize::MAX);
            behind.get(len..).unwrap_or_default().iter().all(|byte| *byte == 0)
        };
        TailDoubt {
            segment: self.key.segment,
            offset: self.scan.end,
            bytes: behind.len() as u64,
            first: self.scan.order.last_index.next(),
            term: named.map(|header| header.term),
            is_one: named.is_some_and(|header| is_last(&header)),
        }
    }

    /// Goes on with this segment in its file, which was written and read back just now.
    pub(crate) fn into_open_as_it_is(self, files: &Files) -> Result<OpenSegment, OpenError> {
        Ok(self.into_open(files, true)?.0)
    }

    /// Goes on with this segment: as it is, or in a new generation. Says which.
    pub(super) fn into_open(
        mut self,
        files: &Files,
        as_it_is: bool,
    ) -> Result<(OpenSegment, bool), OpenError> {
        let frames = self.image.frames_to(self.scan.end);
        let name = self.key.file_name();
        let (header, file) = if as_it_is {
            let file = files
                .disk()
                .open(&files.path(&name), OpenMode::ReadWrite)
                .map_err(|source| files.failed("opening", &name, source))?;
            (self.header, file)
        } else {
            // The page cache may hold bytes that the disk does not, and a later sync would not write them
            // (DR2): what the disk holds is written again, elsewhere.
            let header = SegmentHeader { generation: self.header.generation + 1, ..self.header };
            let mut new = NewFile::create(files, "tail.tmp")?;
            let mut front = header.encode();
            front.resize(usize::try_from(FRAMES_AT).expect("a few thousand"), 0);
            new.append(files, &front)?;
            new.append(files, frames)?;
            new.preallocate(files, header.preallocated)?;
            let file = new.settle(files)?.install(files, &header.key().file_name(), true)?;
            (header, file)
        };
        let mut hash = ContentHash::new();
        hash.update(frames);
        let mut open = OpenSegment::new(header, file, self.frames_from);
        open.end = self.scan.end;
        open.hash = hash;
        open.frames = self.scan.frames;
        open.ordinary = self.scan.ordinary;
        open.records = self.scan.records;
        open.sealed = self.scan.sealed;
        open.base_term = self.scan.base_term;
        open.index = self.index;
        for (index, at) in self.marks {
            open.mark(index, at);
        }
        Ok((open, !as_it_is))
    }
}

impl Collected {
    fn take(&mut self, body: &[u8]) {
        for record in Records::new(body).map_while(Result::ok) {
            match record.kind {
                Kind::Message | Kind::Control | Kind::Replication => {}
                Kind::Snapshot => self.snapshot.push(Bytes::copy_from_slice(record.body())),
                Kind::Manifest => self.manifest = segments_of(record.body()),
                Kind::Retired => self.retired.extend(segments_of(record.body())),
            }
        }
    }
}

/// The footer at the end of a file, if one of this segment stands there.
fn footer_of(image: &Image, key: SegmentKey, shard: ShardId) -> Option<Footer> {
    let at = usize::try_from(image.file_bytes).ok()?.checked_sub(FOOTER_BYTES)?;
    let mut bytes = image.bytes.get(at..)?.to_vec();
    bytes.resize(FOOTER_BYTES, 0);
    Footer::decode(&bytes).filter(|footer| {
        footer.segment == key.segment && footer.generation == key.generation && footer.shard == shard
    })
}
