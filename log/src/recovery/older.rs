//! The segments before the newest one: taken in by their side files, indexed anew without, sealed when a roll
//! was under way, and served as far as they are whole when they are damaged.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Damage, DamageReason, DiskFailed, Log, OpenError, OpenMode, RecoveryReport, SegmentId,
    format::{
        frame::{FRAME_HEADER_BYTES, FrameHeader},
        hash::ContentHash,
        record::{Kind, Records},
        segment::{
            EndFault, FOOTER_BYTES, FORMAT_VERSION, FRAMES_AT, Footer, SEGMENT_HEADER_BYTES, SegmentHeader,
            SegmentKey,
        },
    },
    index::MemoryIndex,
    log::write_footer,
    segment::{Sealed, SealedIndex, index_frame, load_directory},
    tail::{self},
};

use super::{Inventory, read_image};

impl Log {
    /// Takes in the segments before the newest one.
    pub(super) fn adopt_older(
        &mut self,
        inventory: &Inventory,
        expected: &BTreeSet<SegmentId>,
        retired: &BTreeSet<SegmentId>,
        report: &mut RecoveryReport,
    ) -> Result<(), OpenError> {
        let newest = self.open.header.segment;
        let mut superseded = Vec::new();
        for (segment, generations) in &inventory.segments {
            let latest = if *segment == newest {
                self.open.key()
            } else {
                inventory.latest(*segment).expect("a segment of the inventory has a generation")
            };
            for generation in generations {
                let key = SegmentKey { segment: *segment, generation: *generation };
                if key != latest {
                    superseded.push(key);
                }
            }
            if *segment == newest {
                continue;
            }
            if retired.contains(segment) {
                // The record that says so is durable; only the unlinking was not.
                superseded.push(latest);
                continue;
            }
            if !expected.contains(segment) {
                report.unexpected.push(latest.file_name());
                continue;
            }
            let sealed = self.adopt(latest, report)?;
            if let Some(damage) = &sealed.damage {
                report.damaged.push(damage.clone());
            }
            self.add_sealed(sealed);
        }
        for segment in expected {
            if !inventory.segments.contains_key(segment) {
                report.missing.push(*segment);
                let damage = Damage { segment: *segment, offset: 0, reason: DamageReason::Missing };
                self.losses.insert(*segment, damage.clone());
                report.damaged.push(damage);
            }
        }
        // Another generation with the same living messages is installed and synced.
        for key in &superseded {
            self.remove_file(&key.file_name())?;
        }
        for key in &inventory.indexes {
            if self.sealed.get(&key.segment).is_none_or(|sealed| sealed.key != *key) {
                self.remove_file(&key.index_name())?;
            }
        }
        if !superseded.is_empty() {
            self.files.sync_directory()?;
        }
        Ok(())
    }

    pub(crate) fn remove_file(&self, name: &str) -> Result<(), DiskFailed> {
        match self.files.disk().remove(&self.files.path(name)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(self.files.failed("removing", name, source)),
        }
    }

    /// A sealed segment. Damage is no error here: the rest is served.
    fn adopt(&mut self, key: SegmentKey, report: &mut RecoveryReport) -> Result<Sealed, OpenError> {
        let name = key.file_name();
        let ends = match self.read_ends(key) {
            Ok(ends) => ends,
            Err(source) => {
                tracing::error!(segment = key.segment.0, err = %source, "a segment cannot be read");
                let damage = Damage { segment: key.segment, offset: 0, reason: DamageReason::Io };
                return Ok(Sealed {
                    key,
                    bytes: 0,
                    compacted: false,
                    footer: None,
                    index: SealedIndex::Memory(MemoryIndex::default()),
                    damage: Some(damage),
                });
            }
        };
        let (bytes, header, footer) = match ends {
            (_, Err(EndFault::Version(version)), _) => {
                return Err(OpenError::UnknownVersion {
                    path: self.files.path(&name),
                    version,
                    known: FORMAT_VERSION,
                });
            }
            (_, Ok(header), _) if header.shard != self.shard => {
                return Err(OpenError::ForeignShard {
                    path: self.files.path(&name),
                    found: header.shard,
                    expected: self.shard,
                });
            }
            (bytes, header, footer) => (bytes, header.ok().filter(|header| header.key() == key), footer),
        };
        if let (Some(header), Some(footer)) = (&header, footer) {
            if let Some(directory) = load_directory(&mut self.files, key, &footer) {
                return Ok(Sealed {
                    key,
                    bytes,
                    compacted: header.compacted,
                    footer: Some(footer),
                    index: SealedIndex::Side(directory),
                    damage: None,
                });
            }
            report.indexes_rebuilt += 1;
            return Ok(self.salvage(key, Some(*header), Some(footer)));
        }
        if let (Some(header), None) = (&header, footer)
            && key.segment == self.open.header.previous_segment
            && let Some(sealed) = self.finish_roll(key, header)?
        {
            report.finished_roll = true;
            return Ok(sealed);
        }
        Ok(self.salvage(key, header, footer))
    }

    /// Length, header and footer of a segment.
    fn read_ends(
        &mut self,
        key: SegmentKey,
    ) -> std::io::Result<(u64, Result<SegmentHeader, EndFault>, Option<Footer>)> {
        let file = self.files.disk().open(&self.files.path(&key.file_name()), OpenMode::Read)?;
        let bytes = file.len()?;
        let mut header = [0; SEGMENT_HEADER_BYTES];
        let read = file.read_at(&mut header, 0)?;
        let header = SegmentHeader::decode(&header[..read]);
        let mut footer = [0; FOOTER_BYTES];
        let footer = match bytes.checked_sub(FOOTER_BYTES as u64) {
            Some(at) if file.read_at(&mut footer, at)? == FOOTER_BYTES => Footer::decode(&footer),
            Some(_) | None => None,
        };
        let footer = footer.filter(|footer| {
            footer.segment == key.segment && footer.generation == key.generation && footer.shard == self.shard
        });
        Ok((bytes, header, footer))
    }

    /// Seals the segment before the newest one, if it holds what the newest one's header says.
    fn finish_roll(&mut self, key: SegmentKey, header: &SegmentHeader) -> Result<Option<Sealed>, OpenError> {
        let name = key.file_name();
        let open = |mode| {
            self.files
                .disk()
                .open(&self.files.path(&name), mode)
                .map_err(|source| self.files.failed("opening", &name, source))
        };
        let Ok(mut image) = read_image(&*open(OpenMode::Read)?, true) else { return Ok(None) };
        let mut index = MemoryIndex::default();
        let mut in_order = true;
        let scan = tail::scan(&image.bytes, header, &mut |_, offset, body| {
            in_order &= index_frame(&mut index, offset, body);
        });
        let whole = in_order
            && scan.gaps.is_empty()
            && scan.order.last_index.0 + 1 == self.open.header.segment.0
            && scan.order.last_checksum == self.open.header.previous_checksum;
        if !whole {
            return Ok(None);
        }
        let footer = Footer {
            segment: key.segment,
            last_index: scan.order.last_index,
            generation: key.generation,
            last_checksum: scan.order.last_checksum,
            frames: scan.frames,
            shard: self.shard,
            records: scan.records,
            content_hash: ContentHash::of(image.frames_to(scan.end)),
        };
        let bytes = write_footer(&self.files, &*open(OpenMode::ReadWrite)?, key, &footer, scan.end)?;
        let index = self.write_side_file(key, &footer, index);
        Ok(Some(Sealed { key, bytes, compacted: false, footer: Some(footer), index, damage: None }))
    }

    /// Reads a sealed segment whole to index it anew. What is damaged is noted and left as it is.
    pub(crate) fn salvage(
        &mut self,
        key: SegmentKey,
        header: Option<SegmentHeader>,
        footer: Option<Footer>,
    ) -> Sealed {
        let name = key.file_name();
        let lost = |reason, offset| Damage { segment: key.segment, offset, reason };
        let image = self
            .files
            .disk()
            .open(&self.files.path(&name), OpenMode::Read)
            .and_then(|file| read_image(&*file, false));
        let Ok(mut image) = image else {
            return Sealed {
                key,
                bytes: 0,
                compacted: header.is_some_and(|header| header.compacted),
                footer,
                index: SealedIndex::Memory(MemoryIndex::default()),
                damage: Some(lost(DamageReason::Io, 0)),
            };
        };
        let file_bytes = image.file_bytes;
        let mut damage = header.is_none().then(|| lost(DamageReason::Checksum, 0));
        let compacted = header.map_or_else(|| holds_compacted(&image.bytes), |header| header.compacted);
        // Without its header a segment's frames still say whose they are; the order before them is not known.
        let header = header.unwrap_or(SegmentHeader {
            compacted,
            shard: self.shard,
            segment: key.segment,
            generation: key.generation,
            previous_checksum: first_previous(&image.bytes),
            previous_segment: SegmentId(0),
            preallocated: 0,
        });
        let end = file_bytes.saturating_sub(FOOTER_BYTES as u64);
        if footer.is_some() {
            image.bytes.truncate(usize::try_from(end).unwrap_or(usize::MAX));
        }
        let mut index = MemoryIndex::default();
        let mut last = BTreeMap::new();
        let mut misplaced = None;
        let scan = tail::scan(&image.bytes, &header, &mut |_, offset, body| {
            if !index_frame_once(&mut index, &mut last, offset, body) {
                misplaced.get_or_insert(offset);
            }
        });
        damage = damage.or_else(|| scan.gaps.first().cloned()).or(match footer {
            None => Some(lost(DamageReason::Checksum, end)),
            Some(footer)
                if scan.end != end
                    || scan.frames != footer.frames
                    || scan.records != footer.records
                    || ContentHash::of(image.frames_to(scan.end)) != footer.content_hash =>
            {
                Some(lost(DamageReason::Checksum, scan.end))
            }
            Some(_) => misplaced.map(|offset| lost(DamageReason::Misplaced, offset)),
        });
        let index = match (&damage, footer) {
            (None, Some(footer)) => self.write_side_file(key, &footer, index),
            (Some(damage), _) => {
                tracing::error!(segment = key.segment.0, offset = damage.offset, err = %damage, "a segment is damaged");
                SealedIndex::Memory(index)
            }
            (None, None) => SealedIndex::Memory(index),
        };
        Sealed { key, bytes: file_bytes, compacted, footer, index, damage }
    }
}

/// As [`index_frame`], for frames of which one may be missing or stand twice; such a one is left out whole.
fn index_frame_once(
    index: &mut MemoryIndex,
    last: &mut BTreeMap<crate::StreamId, crate::Sequence>,
    offset: u64,
    body: &[u8],
) -> bool {
    let ascends = Records::new(body).map_while(Result::ok).filter(|record| record.kind == Kind::Message).all(
        |record| {
            record.message().is_ok_and(|message| {
                let before = last.insert(message.stream, message.sequence);
                before.is_none_or(|before| before < message.sequence)
            })
        },
    );
    ascends && index_frame(index, offset, body)
}

/// The checksum before the first frame, if a frame's header stands where the first one should.
fn first_previous(image: &[u8]) -> u32 {
    first_header(image).map_or(0, |header| header.previous)
}

fn holds_compacted(image: &[u8]) -> bool {
    first_header(image).is_some_and(|header| header.has(crate::format::frame::COMPACTED))
}

fn first_header(image: &[u8]) -> Option<FrameHeader> {
    let at = usize::try_from(FRAMES_AT).expect("a few thousand");
    FrameHeader::decode(image.get(at..at + FRAME_HEADER_BYTES)?).ok()
}
