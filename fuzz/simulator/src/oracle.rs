//! What clients were promised, kept outside of the system: every publish with what became of it.
//!
//! A time-out is *unknown*: the message may be there or not, once. A definite refusal means that it must
//! not appear. An ack is for ever, as long as nothing removes messages (the workload's stream has no limits).

use std::collections::BTreeMap;

/// What is known of one publish.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// Acked: stored under this sequence.
    Acked { sequence: u64 },
    /// Never answered, or answered in a way that says nothing.
    Unknown,
    /// Refused before anything was stored, every time it was tried.
    Refused,
}

/// A promise that was not kept.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Violation {
    #[error("message {id} was acked with sequence {sequence} and is not there ({there})")]
    Lost { id: u64, sequence: u64, there: String },
    #[error("message {id} is stored twice: {first} and {second}")]
    Twice { id: u64, first: u64, second: u64 },
    #[error("message {id} was acked with sequence {acked} and with {again}")]
    AckedTwice { id: u64, acked: u64, again: u64 },
    #[error("sequence {sequence} holds message {id}, which was refused")]
    Refused { id: u64, sequence: u64 },
    #[error("sequence {sequence} holds {payload:?}, which nobody published")]
    Invented { sequence: u64, payload: String },
    #[error("{0}")]
    Other(String),
}

/// All publishes of a run.
#[derive(Debug, Default)]
pub struct Oracle {
    fates: BTreeMap<u64, Fate>,
    acked: u64,
}

impl Oracle {
    /// A publish is about to be tried for the first time; until told otherwise its fate is unknown.
    pub fn begin(&mut self, id: u64) {
        self.fates.insert(id, Fate::Unknown);
    }

    /// An ack came.
    pub fn acked(&mut self, id: u64, sequence: u64) -> Result<(), Violation> {
        match self.fates.insert(id, Fate::Acked { sequence }) {
            Some(Fate::Acked { sequence: acked }) if acked != sequence => {
                Err(Violation::AckedTwice { id, acked, again: sequence })
            }
            Some(Fate::Acked { .. }) => Ok(()),
            Some(Fate::Unknown | Fate::Refused) | None => {
                self.acked += 1;
                Ok(())
            }
        }
    }

    /// It was refused on its only try.
    pub fn refused(&mut self, id: u64) {
        if self.fates.get(&id) == Some(&Fate::Unknown) {
            self.fates.insert(id, Fate::Refused);
        }
    }

    /// How many were acked.
    #[must_use]
    pub const fn acked_count(&self) -> u64 {
        self.acked
    }

    /// Compares with the messages of a stream, by sequence.
    pub fn check(&self, stored: &BTreeMap<u64, u64>) -> Result<(), Violation> {
        self.check_from(0, stored)
    }

    /// As [`Self::check`]; what was stored before sequence `first` is gone because of a limit.
    pub fn check_from(&self, first: u64, stored: &BTreeMap<u64, u64>) -> Result<(), Violation> {
        let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
        for (sequence, id) in stored {
            if let Some(first) = seen.insert(*id, *sequence) {
                return Err(Violation::Twice { id: *id, first, second: *sequence });
            }
            match self.fates.get(id) {
                None => {
                    return Err(Violation::Invented { sequence: *sequence, payload: id.to_string() });
                }
                Some(Fate::Refused) => return Err(Violation::Refused { id: *id, sequence: *sequence }),
                Some(Fate::Acked { .. } | Fate::Unknown) => {}
            }
        }
        for (id, fate) in &self.fates {
            if let Fate::Acked { sequence } = fate
                && *sequence >= first
                && stored.get(sequence) != Some(id)
            {
                let there =
                    stored.get(sequence).map_or("nothing".to_owned(), |other| format!("message {other}"));
                return Err(Violation::Lost { id: *id, sequence: *sequence, there });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oracle() -> Oracle {
        let mut oracle = Oracle::default();
        for id in 1..=4 {
            oracle.begin(id);
        }
        oracle.acked(1, 10).unwrap();
        oracle.acked(2, 11).unwrap();
        oracle.refused(3);
        oracle
    }

    #[test]
    fn what_was_promised_and_what_may_be_is_accepted() {
        assert_eq!(oracle().check(&[(10, 1), (11, 2)].into()), Ok(()));
        assert_eq!(oracle().check(&[(10, 1), (11, 2), (12, 4)].into()), Ok(()));
        assert_eq!(oracle().acked_count(), 2);
    }

    #[test]
    fn every_broken_promise_is_named() {
        let check = |stored: &[(u64, u64)]| oracle().check(&stored.iter().copied().collect()).unwrap_err();
        assert!(matches!(check(&[(10, 1)]), Violation::Lost { id: 2, .. }));
        assert!(matches!(check(&[(10, 2), (11, 1)]), Violation::Lost { id: 1, .. }));
        assert!(matches!(check(&[(10, 1), (11, 2), (12, 2)]), Violation::Twice { id: 2, .. }));
        assert!(matches!(check(&[(10, 1), (11, 2), (12, 3)]), Violation::Refused { id: 3, .. }));
        assert!(matches!(check(&[(10, 1), (11, 2), (12, 9)]), Violation::Invented { .. }));
        let mut oracle = oracle();
        assert_eq!(oracle.acked(1, 10), Ok(()));
        assert!(matches!(oracle.acked(1, 12), Err(Violation::AckedTwice { id: 1, .. })));
    }
}
