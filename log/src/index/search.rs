//! Finding messages in a run, wherever its slots are.

use crate::{
    Sequence,
    index::{Slot, SubjectTotals, memory::MemoryRun},
};

/// The side file does not hold what it should. It is derived: build it again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct SideFault;

/// Slots by place, in the order of their sequences.
pub(crate) trait Run {
    fn count(&self) -> usize;
    /// The slot at a place below [`Self::count`].
    fn slot(&mut self, place: usize) -> Result<Slot, SideFault>;
    /// The first place whose sequence is not before this one; [`Self::count`] if there is none.
    fn place_from(&mut self, sequence: Sequence) -> Result<usize, SideFault>;
    fn subject_count(&mut self) -> Result<usize, SideFault>;
    /// Calls with the name of a subject.
    fn with_subject(&mut self, subject: u32, f: &mut dyn FnMut(&[u8])) -> Result<(), SideFault>;
    /// Calls with each subject in the order of their numbers.
    fn for_subjects(&mut self, f: &mut dyn FnMut(&[u8], SubjectTotals)) -> Result<(), SideFault>;
}

impl Run for &MemoryRun {
    fn count(&self) -> usize {
        self.slots().len()
    }

    fn slot(&mut self, place: usize) -> Result<Slot, SideFault> {
        Ok(self.slots()[place])
    }

    fn place_from(&mut self, sequence: Sequence) -> Result<usize, SideFault> {
        let slots = self.slots();
        let Some(first) = slots.first() else { return Ok(0) };
        // Without gaps the place is known.
        if let Some(guess) =
            sequence.0.checked_sub(first.sequence.0).and_then(|place| usize::try_from(place).ok())
            && slots.get(guess).is_some_and(|slot| slot.sequence == sequence)
        {
            return Ok(guess);
        }
        Ok(slots.partition_point(|slot| slot.sequence < sequence))
    }

    fn subject_count(&mut self) -> Result<usize, SideFault> {
        Ok(self.subjects().len())
    }

    fn with_subject(&mut self, subject: u32, f: &mut dyn FnMut(&[u8])) -> Result<(), SideFault> {
        f(self.subjects().name(subject));
        Ok(())
    }

    fn for_subjects(&mut self, f: &mut dyn FnMut(&[u8], SubjectTotals)) -> Result<(), SideFault> {
        self.subjects().iter().for_each(|(name, totals)| f(name, totals));
        Ok(())
    }
}

/// The slot of a sequence.
pub(crate) fn slot_of(run: &mut dyn Run, sequence: Sequence) -> Result<Option<Slot>, SideFault> {
    let place = run.place_from(sequence)?;
    if place == run.count() {
        return Ok(None);
    }
    let slot = run.slot(place)?;
    Ok((slot.sequence == sequence).then_some(slot))
}

/// Slots that are looked at one by one before all subjects of the run are.
const PATIENCE: usize = 64;

/// The first slot at or after `from` that lives and whose subject is wanted.
pub(crate) fn find_next(
    run: &mut dyn Run,
    from: Sequence,
    lives: &dyn Fn(Sequence) -> bool,
    wanted: &mut dyn FnMut(&[u8]) -> bool,
) -> Result<Option<Sequence>, SideFault> {
    let mut place = run.place_from(from)?;
    let patience = place.saturating_add(PATIENCE).min(run.count());
    while place < patience {
        let slot = run.slot(place)?;
        if lives(slot.sequence) && is_wanted(run, slot.subject, wanted)? {
            return Ok(Some(slot.sequence));
        }
        place += 1;
    }
    if place == run.count() {
        return Ok(None);
    }
    let here = run.slot(place)?.sequence;
    let choice = Choice::of(run, wanted)?;
    let Some(first) = choice.first_from(here) else { return Ok(None) };
    place = run.place_from(first)?;
    while place < run.count() {
        let slot = run.slot(place)?;
        if slot.sequence > choice.last {
            return Ok(None);
        }
        if choice.has(slot.subject) && lives(slot.sequence) {
            return Ok(Some(slot.sequence));
        }
        place += 1;
    }
    Ok(None)
}

/// The last slot at or before `from` that lives and whose subject is wanted.
pub(crate) fn find_previous(
    run: &mut dyn Run,
    from: Sequence,
    lives: &dyn Fn(Sequence) -> bool,
    wanted: &mut dyn FnMut(&[u8]) -> bool,
) -> Result<Option<Sequence>, SideFault> {
    let mut end = run.place_from(from.next())?;
    let patience = end.saturating_sub(PATIENCE);
    while end > patience {
        let slot = run.slot(end - 1)?;
        if lives(slot.sequence) && is_wanted(run, slot.subject, wanted)? {
            return Ok(Some(slot.sequence));
        }
        end -= 1;
    }
    if end == 0 {
        return Ok(None);
    }
    let choice = Choice::of(run, wanted)?;
    end = end.min(run.place_from(choice.last.next())?);
    while end > 0 {
        let slot = run.slot(end - 1)?;
        if slot.sequence < choice.first {
            return Ok(None);
        }
        if choice.has(slot.subject) && lives(slot.sequence) {
            return Ok(Some(slot.sequence));
        }
        end -= 1;
    }
    Ok(None)
}

fn is_wanted(
    run: &mut dyn Run,
    subject: u32,
    wanted: &mut dyn FnMut(&[u8]) -> bool,
) -> Result<bool, SideFault> {
    let mut answer = false;
    run.with_subject(subject, &mut |name| answer = wanted(name))?;
    Ok(answer)
}

/// Which subjects of a run are wanted, and between which sequences they occur.
struct Choice {
    wanted: Vec<bool>,
    spans: Vec<(Sequence, Sequence)>,
    first: Sequence,
    last: Sequence,
}

impl Choice {
    fn of(run: &mut dyn Run, wanted: &mut dyn FnMut(&[u8]) -> bool) -> Result<Self, SideFault> {
        let mut choice = Self {
            wanted: Vec::with_capacity(run.subject_count()?),
            spans: Vec::new(),
            first: Sequence(u64::MAX),
            last: Sequence(0),
        };
        run.for_subjects(&mut |name, totals| {
            let is_wanted = wanted(name);
            choice.wanted.push(is_wanted);
            if is_wanted {
                choice.spans.push((totals.first, totals.last));
                choice.first = choice.first.min(totals.first);
                choice.last = choice.last.max(totals.last);
            }
        })?;
        Ok(choice)
    }

    fn has(&self, subject: u32) -> bool {
        self.wanted.get(subject as usize) == Some(&true)
    }

    /// Nothing wanted occurs in `here..` before this sequence.
    fn first_from(&self, here: Sequence) -> Option<Sequence> {
        self.spans.iter().filter(|(_, last)| *last >= here).map(|(first, _)| (*first).max(here)).min()
    }
}
