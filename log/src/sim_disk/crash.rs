//! What a power cut leaves of the changes that were not synced.

use crate::SeededRandom;

use super::{
    file::{Change, What, apply},
    tree::{Node, State},
};

/// What survives of unsynced changes. What was synced survives always.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Crash {
    /// Nothing.
    LoseUnsynced,
    /// Everything: the system had written it back by itself.
    KeepUnsynced,
    /// Changes up to a moment, the last of them torn at some byte.
    KeepPrefix { seed: u64 },
    /// Each name, each length and each sector for itself, in any state it went through.
    Scatter { seed: u64 },
    /// Names and lengths; the bytes read as zeros where nothing older was.
    ZeroExtend,
    /// Everything but the end of the last write, of which this many bytes survive.
    TearLast { bytes: usize },
    /// Names and lengths, and of the unsynced sectors, counted by file and position, those whose bit is set.
    Sectors { mask: u64 },
}

impl Crash {
    /// One of each kind, the random ones several times, for loops over all of them.
    #[must_use]
    pub fn sample(seed: u64) -> Vec<Self> {
        let mut random = SeededRandom::new(seed);
        let mut crashes = vec![Self::LoseUnsynced, Self::KeepUnsynced, Self::ZeroExtend];
        for _ in 0..4 {
            crashes.push(Self::KeepPrefix { seed: random.next() });
            crashes.push(Self::Scatter { seed: random.next() });
            crashes.push(Self::Sectors { mask: random.next() });
        }
        for bytes in [0, 1, 511, 512, 513, 1024, 4096] {
            crashes.push(Self::TearLast { bytes });
        }
        crashes
    }
}

impl State {
    pub(super) fn crash(&mut self, crash: Crash) {
        match crash {
            Crash::LoseUnsynced => {}
            Crash::KeepUnsynced => self.keep_until(u64::MAX, None),
            Crash::KeepPrefix { seed } => {
                let mut random = SeededRandom::new(seed);
                let moments = self.moments();
                if let Some(&moment) = moments.get(random.index(moments.len() + 1)) {
                    let torn = random.index(self.write_len(moment) + 1);
                    self.keep_until(moment, Some((moment, torn)));
                } else {
                    self.keep_until(u64::MAX, None);
                }
            }
            Crash::Scatter { seed } => self.scatter(&mut SeededRandom::new(seed)),
            Crash::ZeroExtend => self.keep_sectors(|_| false),
            Crash::TearLast { bytes } => {
                let last = self.last_write();
                self.keep_until(u64::MAX, last.map(|at| (at, bytes)));
            }
            Crash::Sectors { mask } => {
                self.keep_sectors(|position| position < 64 && mask >> position & 1 == 1);
            }
        }
        self.restart();
    }

    /// The places of all unsynced changes, in order.
    fn moments(&self) -> Vec<u64> {
        let names = self.name_changes.iter().map(|change| change.at);
        let bytes = self.files().flat_map(|file| file.changes.iter().map(|change| change.at));
        let mut moments: Vec<u64> = names.chain(bytes).collect();
        moments.sort_unstable();
        moments
    }

    fn write_len(&self, moment: u64) -> usize {
        self.files().flat_map(|file| &file.changes).find(|change| change.at == moment).map_or(0, |change| {
            match &change.what {
                What::Write { bytes, .. } => bytes.len(),
                What::Length(_) => 0,
            }
        })
    }

    fn last_write(&self) -> Option<u64> {
        self.files()
            .flat_map(|file| &file.changes)
            .filter(|change| matches!(change.what, What::Write { .. }))
            .map(|change| change.at)
            .max()
    }

    /// Keeps changes up to and with `moment`; of the write at `torn.0` only the first `torn.1` bytes.
    fn keep_until(&mut self, moment: u64, torn: Option<(u64, usize)>) {
        self.keep_names(|at| at <= moment);
        for node in &mut self.nodes {
            let Node::File(file) = node else { continue };
            for Change { at, what } in file.changes.drain(..) {
                if at > moment {
                    continue;
                }
                match (what, torn) {
                    (What::Write { offset, mut bytes }, Some((torn_at, kept))) if torn_at == at => {
                        bytes.truncate(kept);
                        apply(&mut file.medium, &What::Write { offset, bytes });
                    }
                    (what, _) => apply(&mut file.medium, &what),
                }
            }
        }
    }

    fn scatter(&mut self, random: &mut SeededRandom) {
        let mut kept = SeededRandom::new(random.next());
        self.keep_names(|_| kept.one_in(2));
        for node in &mut self.nodes {
            let Node::File(file) = node else { continue };
            let versions = file.versions();
            if versions.lengths.is_empty() {
                continue;
            }
            let mut sectors = Vec::new();
            for (sector, states) in &versions.sectors {
                // One past the end: the state on the medium.
                if let Some(bytes) = states.get(random.index(states.len() + 1)) {
                    sectors.push((*sector, bytes.as_slice()));
                }
            }
            let len = versions
                .lengths
                .get(random.index(versions.lengths.len() + 1))
                .copied()
                .unwrap_or(file.medium.len());
            file.persist(sectors.into_iter(), len);
        }
    }

    /// Keeps names, lengths, and the newest state of those unsynced sectors that `kept` chooses.
    fn keep_sectors(&mut self, kept: impl Fn(usize) -> bool) {
        self.keep_names(|_| true);
        let mut position = 0;
        for node in &mut self.nodes {
            let Node::File(file) = node else { continue };
            let versions = file.versions();
            let Some(&len) = versions.lengths.last() else {
                continue;
            };
            let mut sectors = Vec::new();
            for (sector, states) in &versions.sectors {
                if let Some(bytes) = states.last().filter(|_| kept(position)) {
                    sectors.push((*sector, bytes.as_slice()));
                }
                position += 1;
            }
            file.persist(sectors.into_iter(), len);
        }
    }

    pub(super) fn unsynced_sectors(&self) -> usize {
        self.files().map(|file| file.versions().sectors.len()).sum()
    }
}
