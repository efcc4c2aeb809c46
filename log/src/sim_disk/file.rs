//! One file: what reads see, what the medium has, and the changes between them.

use std::{collections::BTreeMap, ops::Range};

/// What a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// A change that is in the cache and not yet on the medium.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// Its place among all changes of the disk.
    pub(super) at: u64,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    Write {
        offset: usize,
        bytes: Vec<u8>,
    },
    /// Cut or extended with zeros.
    Length(usize),
}

#[derive(Clone, Debug, Default)]
pub(super) struct File {
    pub(super) cached: Vec<u8>,
    pub(super) medium: Vec<u8>,
    pub(super) changes: Vec<Change>,
    /// Bytes for which there is space.
    pub(super) reserved: usize,
    /// Where reading fails.
    pub(super) broken: Vec<Range<u64>>,
}

/// The states in which a power cut may find the sectors and the length of a file.
#[derive(Debug, Default)]
pub(super) struct Versions {
    pub(super) sectors: BTreeMap<usize, Vec<Vec<u8>>>,
    pub(super) lengths: Vec<usize>,
}

impl File {
    pub(super) fn change(&mut self, change: Change) {
        apply(&mut self.cached, &change.what);
        if let What::Length(len) = change.what {
            self.reserved = self.reserved.min(len);
        }
        self.changes.push(change);
    }

    /// Everything in the list of changes reaches the medium. What a failed sync dropped does not.
    pub(super) fn settle(&mut self) {
        for change in self.changes.drain(..) {
            apply(&mut self.medium, &change.what);
        }
    }

    /// The medium as a read past the cache finds it: dirty pages are written first.
    pub(super) fn settled(&self) -> Vec<u8> {
        let mut image = self.medium.clone();
        for change in &self.changes {
            apply(&mut image, &change.what);
        }
        image
    }

    pub(super) fn is_broken(&self, offset: u64, len: usize) -> bool {
        let end = offset.saturating_add(len as u64);
        self.broken.iter().any(|range| range.start < end && offset < range.end)
    }

    /// Every state that a sector and the length went through since the last sync, oldest first.
    pub(super) fn versions(&self) -> Versions {
        let mut versions = Versions::default();
        let mut image = self.medium.clone();
        for change in &self.changes {
            let before = image.len();
            apply(&mut image, &change.what);
            let touched = match &change.what {
                What::Write { offset, bytes } => *offset..offset + bytes.len(),
                What::Length(len) => *len..before, // empty when it grew
            };
            if !touched.is_empty() {
                for sector in touched.start / SECTOR_BYTES..touched.end.div_ceil(SECTOR_BYTES) {
                    versions.sectors.entry(sector).or_default().push(sector_of(&image, sector));
                }
            }
            versions.lengths.push(image.len());
        }
        versions
    }

    /// Puts sectors and a length onto the medium.
    pub(super) fn persist<'a>(&mut self, sectors: impl Iterator<Item = (usize, &'a [u8])>, len: usize) {
        for (sector, bytes) in sectors {
            let start = sector * SECTOR_BYTES;
            apply(&mut self.medium, &What::Write { offset: start, bytes: bytes.to_vec() });
        }
        self.medium.resize(len, 0);
    }

    /// The cache is lost: reads see the medium.
    pub(super) fn restart(&mut self) {
        self.changes.clear();
        self.cached.clone_from(&self.medium);
        self.reserved = self.reserved.max(self.medium.len());
    }
}

pub(super) fn apply(image: &mut Vec<u8>, what: &What) {
    match what {
        What::Write { offset, bytes } => {
            let end = offset + bytes.len();
            if image.len() < end {
                image.resize(end, 0);
            }
            image[*offset..end].copy_from_slice(bytes);
        }
        What::Length(len) => image.resize(*len, 0),
    }
}

fn sector_of(image: &[u8], sector: usize) -> Vec<u8> {
    let start = (sector * SECTOR_BYTES).min(image.len());
    let end = (start + SECTOR_BYTES).min(image.len());
    let mut bytes = image[start..end].to_vec();
    bytes.resize(SECTOR_BYTES, 0);
    bytes
}
