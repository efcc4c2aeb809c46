//! Which messages are dead, by stream.

use std::{collections::BTreeMap, ops::RangeInclusive};

use roaring::RoaringTreemap;

use crate::{Sequence, StreamId};

/// The dead of one stream: everything up to a floor, and holes above it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Released {
    floor: Sequence,
    holes: RoaringTreemap,
}

impl Released {
    fn add(&mut self, sequences: RangeInclusive<Sequence>) {
        let (first, last) = (sequences.start().0, sequences.end().0);
        if first > last || last <= self.floor.0 {
            return;
        }
        if first > self.floor.0.saturating_add(1) {
            self.holes.insert_range(first..=last);
            return;
        }
        self.floor = Sequence(last);
        self.holes.remove_range(..=last);
        while self.holes.min() == self.floor.0.checked_add(1) && !self.holes.is_empty() {
            self.floor = self.floor.next();
            self.holes.remove(self.floor.0);
        }
    }

    fn add_all(&mut self) {
        self.floor = Sequence(u64::MAX);
        self.holes.clear();
    }

    pub(crate) fn has(&self, sequence: Sequence) -> bool {
        sequence <= self.floor || self.holes.contains(sequence.0)
    }

    /// The first sequence that may live.
    pub(crate) const fn living_from(&self) -> Sequence {
        Sequence(self.floor.0.saturating_add(1))
    }

    /// How many of `first..=last` are dead.
    fn count(&self, first: Sequence, last: Sequence) -> u64 {
        if last <= self.floor {
            return last.0 - first.0 + 1;
        }
        let below_floor = (self.floor.0 + 1).saturating_sub(first.0);
        let from = first.0.max(self.floor.0 + 1);
        let before = from.checked_sub(1).map_or(0, |before| self.holes.rank(before));
        below_floor + (self.holes.rank(last.0) - before)
    }
}

/// The dead of all streams.
#[derive(Clone, Debug, Default)]
pub(crate) struct Releases {
    streams: BTreeMap<StreamId, Released>,
    /// Counts changes, so that a survey knows when there is nothing new.
    changes: u64,
}

impl Releases {
    pub(crate) fn release(&mut self, stream: StreamId, sequences: RangeInclusive<Sequence>) {
        self.streams.entry(stream).or_default().add(sequences);
        self.changes += 1;
    }

    pub(crate) fn release_stream(&mut self, stream: StreamId) {
        self.streams.entry(stream).or_default().add_all();
        self.changes += 1;
    }

    /// As if nothing had been released.
    pub(crate) fn clear(&mut self) {
        self.streams.clear();
        self.changes += 1;
    }

    pub(crate) fn of(&self, stream: StreamId) -> Option<&Released> {
        self.streams.get(&stream)
    }

    pub(crate) fn has(&self, stream: StreamId, sequence: Sequence) -> bool {
        self.of(stream).is_some_and(|released| released.has(sequence))
    }

    pub(crate) const fn changes(&self) -> u64 {
        self.changes
    }

    /// How many of a stream's `first..=last` live at most.
    pub(crate) fn living(&self, stream: StreamId, first: Sequence, last: Sequence) -> u64 {
        let span = last.0 - first.0 + 1;
        self.of(stream).map_or(span, |released| span - released.count(first, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SeededRandom;
    use std::collections::BTreeSet;

    #[test]
    fn the_floor_swallows_holes_it_meets() {
        let mut released = Released::default();
        released.add(Sequence(3)..=Sequence(4));
        released.add(Sequence(7)..=Sequence(7));
        assert_eq!(released.living_from(), Sequence(1));
        released.add(Sequence(1)..=Sequence(2));
        assert_eq!(released.living_from(), Sequence(5));
        assert!(released.has(Sequence(7)) && !released.has(Sequence(5)));
    }

    #[test]
    fn counts_as_a_set_does() {
        let mut random = SeededRandom::new(1);
        for _ in 0..200 {
            let mut releases = Releases::default();
            let mut set = BTreeSet::new();
            for _ in 0..random.below(12) {
                let first = 1 + random.below(60);
                let last = first + random.below(10);
                releases.release(StreamId(1), Sequence(first)..=Sequence(last));
                set.extend(first..=last);
            }
            for number in 1..80 {
                assert_eq!(releases.has(StreamId(1), Sequence(number)), set.contains(&number));
            }
            let first = 1 + random.below(70);
            let last = first + random.below(20);
            let living = (first..=last).filter(|number| !set.contains(number)).count() as u64;
            assert_eq!(releases.living(StreamId(1), Sequence(first), Sequence(last)), living);
        }
    }

    #[test]
    fn a_dropped_stream_is_all_dead() {
        let mut releases = Releases::default();
        releases.release_stream(StreamId(4));
        assert!(releases.has(StreamId(4), Sequence(u64::MAX)));
        assert_eq!(releases.living(StreamId(4), Sequence(5), Sequence(9)), 0);
        assert_eq!(releases.living(StreamId(5), Sequence(5), Sequence(9)), 5);
    }
}
