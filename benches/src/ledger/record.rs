//! The ledger: a file that is appended to, one line an entry, and the same in memory.
//!
//! The file must not lie on the filesystem that is being cut. It is not synced: the writing process
//! outlives the server.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use roaring::RoaringTreemap;

use super::LedgerError;

/// How the load is laid out; the same for the whole life of a ledger.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shape {
    pub streams: u32,
    /// Publisher `p` publishes into stream `p % streams`.
    pub publishers: u32,
    pub message_bytes: usize,
}

impl Shape {
    #[must_use]
    pub fn stream_of(&self, publisher: u32) -> u32 {
        publisher % self.streams
    }

    fn line(&self) -> String {
        format!(
            "ledger 1 streams {} publishers {} message-bytes {}",
            self.streams, self.publishers, self.message_bytes
        )
    }
}

/// An entry to be added.
#[derive(Clone, Copy, Debug)]
pub enum Entry {
    /// The client read the publish ack of this message, with this sequence.
    Acked { publisher: u32, number: u64, sequence: u64 },
    /// The client read the confirmation of its ack of this message.
    Confirmed { stream: u32, sequence: u64 },
}

pub struct Ledger {
    path: PathBuf,
    shape: Shape,
    state: Mutex<State>,
}

pub(super) struct State {
    file: File,
    /// By publisher and number: the acked sequence, 0 for none.
    pub(super) acked: Vec<Vec<u64>>,
    /// By stream: the sequences whose consumer acks were confirmed.
    pub(super) confirmed: Vec<RoaringTreemap>,
    /// By stream: what this process's consumers were sent. Not in the file.
    pub(super) delivered: Vec<RoaringTreemap>,
    /// What clients saw that must not be.
    pub(super) violations: Vec<String>,
}

impl Ledger {
    /// Opens a ledger and reads it, or begins one.
    pub fn open(path: &Path, shape: Shape) -> Result<Self, LedgerError> {
        let failed = |source| LedgerError::File { path: path.to_path_buf(), source };
        let file = File::options().create(true).append(true).read(true).open(path).map_err(failed)?;
        let mut state = State {
            file,
            acked: vec![Vec::new(); shape.publishers as usize],
            confirmed: vec![RoaringTreemap::new(); shape.streams as usize],
            delivered: vec![RoaringTreemap::new(); shape.streams as usize],
            violations: Vec::new(),
        };
        let lines = BufReader::new(state.file.try_clone().map_err(failed)?).lines();
        let mut count = 0;
        for (number, line) in lines.enumerate() {
            let line = line.map_err(failed)?;
            count += 1;
            if number == 0 {
                if line != shape.line() {
                    let (found, wanted) = (line, shape.line());
                    return Err(LedgerError::OtherShape { path: path.to_path_buf(), found, wanted });
                }
            } else {
                state.read(&line).ok_or_else(|| LedgerError::Malformed {
                    path: path.to_path_buf(),
                    line: number + 1,
                    text: line,
                })?;
            }
        }
        if count == 0 {
            writeln!(state.file, "{}", shape.line()).map_err(failed)?;
        }
        Ok(Self { path: path.to_path_buf(), shape, state: Mutex::new(state) })
    }

    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// How many publish acks there are.
    #[must_use]
    pub fn acked(&self) -> u64 {
        let state = self.state();
        state.acked.iter().map(|of| of.iter().filter(|sequence| **sequence != 0).count() as u64).sum()
    }

    /// How many consumer acks were confirmed.
    #[must_use]
    pub fn confirmed(&self) -> u64 {
        self.state().confirmed.iter().map(RoaringTreemap::len).sum()
    }

    /// The number after the highest that was acked to this publisher.
    #[must_use]
    pub fn next_number(&self, publisher: u32) -> u64 {
        self.state().acked[publisher as usize].len() as u64
    }

    /// Whether the consumer ack of this message was confirmed to a client.
    #[must_use]
    pub fn is_confirmed(&self, stream: u32, sequence: u64) -> bool {
        self.state().confirmed[stream as usize].contains(sequence)
    }

    /// How many acked messages were never sent to a consumer of this process. (A confirmation may be on
    /// its way when the server dies, so that fewer are confirmed than were delivered.)
    #[must_use]
    pub fn undelivered(&self) -> u64 {
        let state = self.state();
        let mut count = 0;
        for (publisher, acked) in (0..self.shape.publishers).zip(&state.acked) {
            let delivered = &state.delivered[self.shape.stream_of(publisher) as usize];
            let missing = |sequence: &&u64| **sequence != 0 && !delivered.contains(**sequence);
            count += acked.iter().filter(missing).count() as u64;
        }
        count
    }

    pub(super) fn note_delivery(&self, stream: u32, sequence: u64) {
        self.state().delivered[stream as usize].insert(sequence);
    }

    /// Adds entries, in one write.
    pub fn add(&self, entries: &[Entry]) -> Result<(), LedgerError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut text = String::with_capacity(entries.len() * 32);
        let mut state = self.state();
        for entry in entries {
            // Writing to a String cannot fail.
            match *entry {
                Entry::Acked { publisher, number, sequence } => {
                    state.acknowledge(publisher, number, sequence);
                    writeln!(text, "acked {publisher} {number} {sequence}").ok();
                }
                Entry::Confirmed { stream, sequence } => {
                    state.confirmed[stream as usize].insert(sequence);
                    writeln!(text, "confirmed {stream} {sequence}").ok();
                }
            }
        }
        self.append(&mut state, &text)
    }

    /// Notes something a client saw that must not be.
    pub fn violation(&self, text: String) -> Result<(), LedgerError> {
        let mut state = self.state();
        let line = format!("violation {}\n", text.replace('\n', " "));
        state.violations.push(text);
        self.append(&mut state, &line)
    }

    fn append(&self, state: &mut State, text: &str) -> Result<(), LedgerError> {
        state
            .file
            .write_all(text.as_bytes())
            .map_err(|source| LedgerError::File { path: self.path.clone(), source })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn acknowledge(&mut self, publisher: u32, number: u64, sequence: u64) {
        let acked = &mut self.acked[publisher as usize];
        let at = usize::try_from(number).expect("a number counts what one publisher has in memory");
        if acked.len() <= at {
            acked.resize(at + 1, 0);
        }
        if acked[at] != 0 && acked[at] != sequence {
            let text = format!(
                "message {number} of publisher {publisher} was acked as {} and as {sequence}",
                acked[at]
            );
            self.violations.push(text);
        }
        acked[at] = sequence;
    }

    /// Takes in a line of the file.
    fn read(&mut self, line: &str) -> Option<()> {
        if let Some(text) = line.strip_prefix("violation ") {
            self.violations.push(text.to_owned());
            return Some(());
        }
        let mut words = line.split(' ');
        let kind = words.next()?;
        let numbers = words.map(|word| word.parse().ok()).collect::<Option<Vec<u64>>>()?;
        match (kind, numbers.as_slice()) {
            ("acked", [publisher, number, sequence]) => {
                let publisher = u32::try_from(*publisher).ok()?;
                self.acked.get(publisher as usize)?;
                self.acknowledge(publisher, *number, *sequence);
            }
            ("confirmed", [stream, sequence]) => {
                self.confirmed.get_mut(usize::try_from(*stream).ok()?)?.insert(*sequence);
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { streams: 2, publishers: 3, message_bytes: 64 };

    #[test]
    fn what_was_added_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let ledger = Ledger::open(&path, SHAPE).unwrap();
        ledger.add(&[Entry::Acked { publisher: 2, number: 0, sequence: 7 }]).unwrap();
        ledger.add(&[Entry::Acked { publisher: 2, number: 1, sequence: 9 }]).unwrap();
        ledger.add(&[Entry::Confirmed { stream: 1, sequence: 7 }]).unwrap();
        ledger.violation("something\nbad".into()).unwrap();
        drop(ledger);
        let ledger = Ledger::open(&path, SHAPE).unwrap();
        assert_eq!((ledger.acked(), ledger.confirmed(), ledger.next_number(2)), (2, 1, 2));
        assert!(ledger.is_confirmed(1, 7) && !ledger.is_confirmed(0, 7));
        assert_eq!(ledger.state().violations, ["something bad"]);
    }

    #[test]
    fn one_message_acked_twice_with_other_sequences_is_a_violation() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&folder.path().join("ledger"), SHAPE).unwrap();
        for sequence in [5, 5, 6] {
            ledger.add(&[Entry::Acked { publisher: 0, number: 3, sequence }]).unwrap();
        }
        assert_eq!(ledger.state().violations.len(), 1);
    }
}
