//! What is on its way to the other side, in order, until the other side has it for good. Pure: told what was
//! sent, what was answered and that the connection went; says what to send next and how far the cursor may
//! move. Exports and imports share it; they differ in whom they ask.
//!
//! Invariants: entries ascend; the cursor moves over entries that are done and never over one that is not;
//! nothing of which it is unknown whether it arrived is sent again before the sides were compared.
//!
//! **Chain.** Where nobody else writes, each message names the one before it, and the receiver refuses it if
//! that is not what it has last. So a message that was refused for now is not overtaken by those that were
//! sent behind it, and a copy that comes late does nothing, however late it comes.
//!
//! **Silence.** In a chain not every message needs an answer: that the last one of a run was stored, where it had to
//! come to lie, says that those before it were. So most are sent without asking. Only such as were never sent before
//! (no copy of them is under way that could stand in for another), and after any trouble all ask for a while. What
//! an answer does not settle is compared.
//!
//! **Pace.** What is on its way is as much as the path carries in about a second, told by how long answers take: what
//! waits in buffers on a narrow path is in the way of everything else, and is not answered in time.

use std::collections::VecDeque;

/// What the other side said of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// It has it, from now on or since before.
    Arrived,
    /// It has stored it now, under this sequence of theirs.
    Stored(u64),
    /// Not now; the same message may be taken later.
    Again,
    /// It did not come behind the one before it.
    OutOfOrder,
    /// Never. The message is to be put aside, and [`Window::done`] called then.
    Never,
}

/// What must be the last message there, or this one is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum After {
    Anything,
    /// The message there with this sequence of theirs.
    Theirs(u64),
    /// The message with this sequence of ours.
    Ours(u64),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Waiting,
    InFlight {
        since: u64,
        /// The sequence it gets there, in a chain that nobody else writes into.
        place: Option<u64>,
        asks: bool,
    },
    /// Being put aside.
    Parking,
    Done,
}

#[derive(Debug)]
struct Entry<M> {
    sequence: u64,
    bytes: usize,
    message: M,
    state: State,
    /// It was sent and nobody knows whether it arrived.
    suspect: bool,
    /// It was sent before now, by whomever.
    was_sent: bool,
}

/// How a chain is sent: in runs, of which the last message asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs {
    pub(crate) messages_max: usize,
    pub(crate) bytes_max: usize,
    /// How old a run may get, in the unit of the window's time.
    pub(crate) age_max: u64,
    /// So many messages ask after something was amiss.
    pub(crate) careful: usize,
    /// Bytes that may always be on their way.
    pub(crate) bytes_min: usize,
    /// An answer that takes less lets more be on its way; one that takes more, less.
    pub(crate) quick: u64,
    pub(crate) slow: u64,
}

/// What the window wants next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// There is no connection.
    Offline,
    /// Both sides are to be compared: [`Window::compared`].
    Compare,
    Sending,
    /// Something was refused: what is in flight is awaited first.
    Settling {
        rest: bool,
    },
    /// A pause before it is tried again: [`Window::rested`].
    Resting,
}

#[derive(Debug)]
pub(crate) struct Window<M> {
    entries: VecDeque<Entry<M>>,
    messages_max: usize,
    bytes_max: usize,
    bytes: usize,
    in_flight: usize,
    in_flight_bytes: usize,
    /// What may be on its way now; always within `bytes_max`.
    pace: usize,
    /// When it was made less.
    slowed: Option<u64>,
    phase: Phase,
    chained: bool,
    /// `None`: every message asks.
    runs: Option<Runs>,
    /// The last place there that is taken, as far as what was sent arrives.
    place: Option<u64>,
    /// What was sent since one asked.
    run: Run,
    /// Messages that still ask, whatever the run.
    careful: usize,
    /// The next one asks.
    must_ask: bool,
    /// What the next message follows, and what the one before it followed.
    after: After,
    after_before: After,
    /// No entry before this one is waiting.
    next: usize,
    /// Everything up to here is done and has left.
    floor: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Run {
    messages: usize,
    bytes: usize,
    since: u64,
}

/// A message to be sent now.
#[derive(Debug)]
pub(crate) struct Send<'a, M> {
    pub(crate) sequence: u64,
    pub(crate) message: &'a M,
    /// The message that must be the last one there.
    pub(crate) after: After,
    /// Whether an answer is wanted.
    pub(crate) asks: bool,
}

/// What an answer settled.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Settled {
    /// Messages that arrived, which this answer told of.
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

impl<M> Window<M> {
    /// One in which every message asks.
    pub(crate) fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            messages_max,
            bytes_max,
            bytes: 0,
            in_flight: 0,
            in_flight_bytes: 0,
            pace: bytes_max,
            slowed: None,
            phase: Phase::Offline,
            chained: false,
            runs: None,
            place: None,
            run: Run::default(),
            careful: 0,
            must_ask: false,
            after: After::Anything,
            after_before: After::Anything,
            next: 0,
            floor: 0,
        }
    }

    /// One in which most messages of a chain are sent without asking.
    pub(crate) fn in_runs(messages_max: usize, bytes_max: usize, runs: Runs) -> Self {
        let pace = runs.bytes_min.min(bytes_max);
        Self { runs: Some(runs), pace, ..Self::new(messages_max, bytes_max) }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many more messages it takes.
    pub(crate) fn room(&self) -> usize {
        if self.bytes >= self.bytes_max { 0 } else { self.messages_max.saturating_sub(self.entries.len()) }
    }

    pub(crate) fn get(&self, sequence: u64) -> Option<&M> {
        let at = self.entries.binary_search_by_key(&sequence, |entry| entry.sequence).ok()?;
        self.entries.get(at).map(|entry| &entry.message)
    }

    /// The first message that is not done yet.
    pub(crate) fn oldest(&self) -> Option<&M> {
        self.entries.front().map(|entry| &entry.message)
    }

    /// Takes a message in; `false`, and nothing changes, if it is here or was done already. With `suspect`
    /// it may have been sent before.
    pub(crate) fn push(&mut self, sequence: u64, bytes: usize, message: M, suspect: bool) -> bool {
        if sequence <= self.floor || self.entries.back().is_some_and(|last| sequence <= last.sequence) {
            return false;
        }
        self.bytes += bytes;
        let (state, was_sent) = (State::Waiting, suspect);
        self.entries.push_back(Entry { sequence, bytes, message, state, suspect, was_sent });
        if suspect && self.phase == Phase::Sending {
            self.phase = Phase::Settling { rest: false };
            self.settle();
        }
        true
    }

    /// Whether a message that came again was done before.
    pub(crate) fn is_past(&self, sequence: u64) -> bool {
        sequence <= self.floor
    }

    /// A connection is there: the sides are compared first.
    pub(crate) fn online(&mut self) {
        self.offline();
        self.phase = Phase::Compare;
    }

    /// The connection is gone: whether what was in flight arrived is unknown.
    pub(crate) fn offline(&mut self) {
        self.doubt(|_| true);
        // The next path may be another one.
        self.pace = self.runs.map_or(self.bytes_max, |runs| runs.bytes_min.min(self.bytes_max));
        self.slowed = None;
        self.phase = Phase::Offline;
    }

    /// What has been in flight since before `since` will not be answered any more.
    /// Returns whether there was anything.
    pub(crate) fn give_up(&mut self, since: u64) -> bool {
        if self.doubt(|at| at < since) {
            self.phase = Phase::Settling { rest: true };
            self.settle();
            return true;
        }
        false
    }

    fn doubt(&mut self, of: impl Fn(u64) -> bool) -> bool {
        let mut any = false;
        for entry in &mut self.entries {
            if let State::InFlight { since, .. } = entry.state
                && of(since)
            {
                (entry.state, entry.suspect) = (State::Waiting, true);
                self.in_flight -= 1;
                self.in_flight_bytes -= entry.bytes;
                any = true;
            }
        }
        self.next = 0;
        if any {
            self.beware();
        }
        any
    }

    /// Something was amiss: for a while all ask.
    fn beware(&mut self) {
        self.careful = self.runs.map_or(0, |runs| runs.careful);
        self.run = Run::default();
    }

    /// The messages of which it is unknown whether they arrived.
    pub(crate) fn suspects(&self) -> impl Iterator<Item = (u64, &M)> {
        self.entries
            .iter()
            .filter(|entry| entry.suspect && entry.state == State::Waiting)
            .map(|entry| (entry.sequence, &entry.message))
    }

    /// The sides were compared. `chain`: nobody else writes there, and that is the last message there; the
    /// receiver may have forgotten its id, but not its sequence. Returns how many had arrived.
    pub(crate) fn compared(&mut self, arrived: impl Fn(u64) -> bool, chain: Option<After>) -> u64 {
        assert_eq!(self.phase, Phase::Compare, "sides are compared when asked");
        let mut count = 0;
        for entry in &mut self.entries {
            if std::mem::take(&mut entry.suspect) && entry.state == State::Waiting && arrived(entry.sequence)
            {
                entry.state = State::Done;
                count += 1;
            }
        }
        self.chained = chain.is_some();
        self.after = chain.unwrap_or(After::Anything);
        self.place = match self.after {
            After::Theirs(last) => Some(last),
            After::Anything | After::Ours(_) => None,
        };
        self.run = Run::default();
        self.next = 0;
        self.phase = Phase::Sending;
        count
    }

    /// The next message to send, at the time `now`.
    pub(crate) fn next_send(&mut self, now: u64) -> Option<Send<'_, M>> {
        // Not in the middle of a run: whoever asks would be missing.
        let is_full = self.in_flight_bytes >= self.pace && self.in_flight > 0 && self.run.messages == 0;
        if self.phase != Phase::Sending || is_full {
            return None;
        }
        while self.entries.get(self.next).is_some_and(|entry| entry.state != State::Waiting) {
            self.next += 1;
        }
        let is_last = self.next + 1 == self.entries.len();
        let entry = self.entries.get_mut(self.next)?;
        if self.run.messages == 0 {
            self.run.since = now;
        }
        self.run.messages += 1;
        self.run.bytes += entry.bytes;
        let run = self.run;
        let goes_on = self.runs.is_some_and(|runs| {
            run.messages < runs.messages_max
                && run.bytes < runs.bytes_max
                && now.saturating_sub(run.since) < runs.age_max
        });
        self.place = self.place.map(|last| last + 1);
        let may_be_silent = self.careful == 0 && !entry.was_sent && self.place.is_some();
        self.in_flight_bytes += entry.bytes;
        let is_full = self.in_flight_bytes >= self.pace;
        let asks = is_last || is_full || self.must_ask || !goes_on || !may_be_silent;
        self.must_ask = false;
        if asks {
            self.run = Run::default();
        }
        self.careful = self.careful.saturating_sub(1);
        entry.was_sent = true;
        entry.state = State::InFlight { since: now, place: self.place, asks };
        self.next += 1;
        self.in_flight += 1;
        let after = self.after;
        self.after_before = after;
        if self.chained {
            self.after = After::Ours(entry.sequence);
        }
        Some(Send { sequence: entry.sequence, message: &entry.message, after, asks })
    }

    /// As [`Self::answered`], at the time `now`: how long it took tells how much the path carries.
    pub(crate) fn answered_at(&mut self, sequence: u64, verdict: Verdict, now: u64) -> Option<Settled> {
        let at = self.entries.binary_search_by_key(&sequence, |entry| entry.sequence).ok()?;
        let took = self.entries.get(at).and_then(|entry| match entry.state {
            State::InFlight { since, .. } => Some(now.saturating_sub(since)),
            State::Waiting | State::Parking | State::Done => None,
        });
        let settled = self.answered(sequence, verdict)?;
        if let (Some(took), Some(runs)) = (took, self.runs) {
            if took < runs.quick {
                let more = usize::try_from(settled.bytes).unwrap_or(usize::MAX);
                self.pace = self.pace.saturating_add(more).min(self.bytes_max);
            } else if took > runs.slow && self.slowed.is_none_or(|at| now.saturating_sub(at) > runs.slow) {
                // Once for all that was on its way together.
                self.slowed = Some(now);
                self.pace = (self.pace / 2).max(runs.bytes_min.min(self.bytes_max));
            }
        }
        Some(settled)
    }

    /// The other side answered. `None`: nobody asked, or it was given up.
    pub(crate) fn answered(&mut self, sequence: u64, verdict: Verdict) -> Option<Settled> {
        let at = self.entries.binary_search_by_key(&sequence, |entry| entry.sequence).ok()?;
        let entry = self.entries.get_mut(at)?;
        // Otherwise an answer to what was given up: a comparison tells.
        let State::InFlight { place, .. } = entry.state else { return None };
        let mut settled = Settled::default();
        match verdict {
            Verdict::Arrived | Verdict::Stored(_) => {
                entry.state = State::Done;
                settled = Settled { messages: 1, bytes: entry.bytes as u64 };
            }
            Verdict::Never => entry.state = State::Parking,
            Verdict::Again => entry.state = State::Waiting,
            Verdict::OutOfOrder => (entry.state, entry.suspect) = (State::Waiting, true),
        }
        self.in_flight -= 1;
        self.in_flight_bytes -= entry.bytes;
        let tells = match verdict {
            Verdict::Stored(there) => place == Some(there),
            Verdict::Arrived | Verdict::Again | Verdict::OutOfOrder | Verdict::Never => false,
        };
        let silent = self.silent_before(at, tells, &mut settled);
        match (verdict, self.phase) {
            (Verdict::Again, _) => self.phase = Phase::Settling { rest: true },
            (Verdict::OutOfOrder, Phase::Sending) => self.phase = Phase::Settling { rest: false },
            (Verdict::Arrived | Verdict::Stored(_) | Verdict::Never, Phase::Sending) if silent && !tells => {
                self.phase = Phase::Settling { rest: false };
            }
            (Verdict::Arrived | Verdict::Stored(_) | Verdict::Never | Verdict::OutOfOrder, _) => {}
        }
        if matches!(verdict, Verdict::Again | Verdict::OutOfOrder | Verdict::Never) || (silent && !tells) {
            self.beware();
        }
        self.settle();
        Some(settled)
    }

    /// Those that did not ask, before the one that was answered: they arrived, or are to be looked for.
    /// Returns whether there were any.
    fn silent_before(&mut self, at: usize, arrived: bool, settled: &mut Settled) -> bool {
        let mut any = false;
        for entry in self.entries.range_mut(..at).rev() {
            match entry.state {
                State::InFlight { asks: false, .. } => {}
                // It is answered for itself and for what is before it.
                State::InFlight { asks: true, .. } => break,
                State::Done | State::Parking | State::Waiting => continue,
            }
            any = true;
            self.in_flight -= 1;
            self.in_flight_bytes -= entry.bytes;
            if arrived {
                entry.state = State::Done;
                settled.messages += 1;
                settled.bytes += entry.bytes as u64;
            } else {
                (entry.state, entry.suspect) = (State::Waiting, true);
            }
        }
        any
    }

    /// A message that is not to go there (known before another one was asked for), or was put aside.
    pub(crate) fn done(&mut self, sequence: u64) {
        let Some(entry) = self.entry(sequence) else { return };
        let (was, bytes) = (std::mem::replace(&mut entry.state, State::Done), entry.bytes);
        if let State::InFlight { asks, .. } = was {
            self.in_flight -= 1;
            self.in_flight_bytes -= bytes;
            // It never left: the next one follows what this one was to follow.
            self.after = self.after_before;
            self.place = self.place.map(|last| last.saturating_sub(1));
            self.must_ask |= asks;
            if asks && self.next == self.entries.len() {
                // Nobody asks any more for those before it.
                self.end_run();
            }
        }
        self.settle();
    }

    /// Nothing more is sent for now: what was sent behind the last one that asked is to be looked for.
    pub(crate) fn end_run(&mut self) {
        let asked = |entry: &Entry<M>| matches!(entry.state, State::InFlight { asks: true, .. });
        let from = self.entries.iter().rposition(asked).map_or(0, |at| at + 1);
        let mut any = false;
        for entry in self.entries.range_mut(from..) {
            if matches!(entry.state, State::InFlight { .. }) {
                (entry.state, entry.suspect) = (State::Waiting, true);
                self.in_flight -= 1;
                self.in_flight_bytes -= entry.bytes;
                any = true;
            }
        }
        if any && self.phase == Phase::Sending {
            self.phase = Phase::Settling { rest: false };
        }
        self.run = Run::default();
    }

    /// The pause is over.
    pub(crate) fn rested(&mut self) {
        if self.phase == Phase::Resting {
            self.phase = Phase::Compare;
        }
    }

    fn settle(&mut self) {
        if matches!(self.phase, Phase::Settling { .. }) && self.in_flight > 0 {
            self.end_run();
        }
        if self.in_flight == 0
            && let Phase::Settling { rest } = self.phase
        {
            self.phase = if rest { Phase::Resting } else { Phase::Compare };
            self.next = 0;
        }
    }

    fn entry(&mut self, sequence: u64) -> Option<&mut Entry<M>> {
        let at = self.entries.binary_search_by_key(&sequence, |entry| entry.sequence).ok()?;
        self.entries.get_mut(at)
    }

    /// Lets the messages go that are done and have only such before them, each through `left`.
    pub(crate) fn take_done(&mut self, mut left: impl FnMut(u64, M)) -> Option<u64> {
        let mut cursor = None;
        while self.entries.front().is_some_and(|entry| entry.state == State::Done)
            && let Some(entry) = self.entries.pop_front()
        {
            self.bytes -= entry.bytes;
            self.next = self.next.saturating_sub(1);
            self.floor = entry.sequence;
            cursor = Some(entry.sequence);
            left(entry.sequence, entry.message);
        }
        cursor
    }
}

#[cfg(test)]
#[path = "window_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "window_hour_tests.rs"]
mod hour_tests;
