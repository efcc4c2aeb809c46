//! An hour of a link that is cut at random, with the limits and times that links run with: a path with delay, on which
//! answers get lost and copies of gone connections come late; a receiver that crashes and loses what it has not synced;
//! a sender that starts again from its cursor. Time is a number that steps forward.

use std::collections::{BTreeMap, BTreeSet};

use super::tests::Random;
use super::*;
use crate::link::export::{ACK_TIMEOUT, BURST, RUNS, WINDOW_BYTES, WINDOW_MESSAGES};

/// Milliseconds.
const HOUR: u64 = 3_600_000;
const STEP: u64 = 10;
const BYTES: usize = 256;
/// How long the receiver remembers ids; most cuts are shorter and some are longer.
const REMEMBERED: u64 = 20_000;

impl Random {
    fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from)
    }
}

#[derive(Clone, Copy, Debug)]
struct Wire {
    sequence: u64,
    after: After,
    asks: bool,
}

/// The stream there.
#[derive(Default)]
struct Receiver {
    /// In the order in which they were stored.
    stored: Vec<u64>,
    /// How many of them are synced. Only these were answered for.
    synced: usize,
    remembered: BTreeMap<u64, u64>,
}

impl Receiver {
    fn take(&mut self, wire: Wire, now: u64) -> Verdict {
        self.remembered.retain(|_, at| now - *at < REMEMBERED);
        if self.remembered.contains_key(&wire.sequence) {
            return Verdict::Arrived;
        }
        let follows = match wire.after {
            After::Anything => true,
            After::Theirs(last) => self.stored.len() as u64 == last,
            After::Ours(last) => self.stored.last() == Some(&last) && self.remembered.contains_key(&last),
        };
        if !follows {
            return Verdict::OutOfOrder;
        }
        self.stored.push(wire.sequence);
        self.remembered.insert(wire.sequence, now);
        Verdict::Stored(self.stored.len() as u64)
    }

    /// What was not synced is gone, some of it.
    fn crash(&mut self, random: &mut Random) {
        let unsynced = self.stored.len() - self.synced;
        let kept = self.synced + usize::try_from(random.below(unsynced as u64 + 1)).unwrap();
        for lost in self.stored.drain(kept..) {
            self.remembered.remove(&lost);
        }
        self.synced = self.stored.len();
    }
}

/// In order, and each after its time on the way.
struct Path<T>(VecDeque<(u64, T)>);

impl<T> Path<T> {
    fn new() -> Self {
        Self(VecDeque::new())
    }

    fn put(&mut self, at: u64, what: T) {
        let at = self.0.back().map_or(at, |(last, _)| at.max(*last));
        self.0.push_back((at, what));
    }

    fn arrived(&mut self, now: u64) -> Option<T> {
        let (at, _) = self.0.front()?;
        if *at <= now { self.0.pop_front().map(|(_, what)| what) } else { None }
    }
}

#[derive(Debug, Default)]
struct Happened {
    cuts: u64,
    crashes: u64,
    restarts: u64,
    late: u64,
    answers_lost: u64,
    duplicates_found: u64,
}

/// A sync of the receiver: what is stored by then, and the answers that wait for it.
struct Syncing {
    done_at: u64,
    synced: usize,
    answers: Vec<(u64, Verdict)>,
}

struct World {
    random: Random,
    now: u64,
    window: Window<u64>,
    receiver: Receiver,
    there: Path<Wire>,
    back: Path<(u64, Verdict)>,
    syncing: Option<Syncing>,
    unsynced: Vec<(u64, Verdict)>,
    /// Of connections that are gone.
    late: Vec<(u64, Wire)>,
    /// What a comparison found, and when that is known.
    compared: Option<(u64, BTreeSet<u64>, u64)>,
    rested: Option<u64>,
    is_up: bool,
    changes_at: u64,
    /// Stored at the sender, taken into the window, and acked by its cursor.
    produced: u64,
    taken: u64,
    cursor: u64,
    happened: Happened,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed * 2 + 1),
            now: 0,
            window: Window::in_runs(WINDOW_MESSAGES, WINDOW_BYTES, RUNS),
            receiver: Receiver::default(),
            there: Path::new(),
            back: Path::new(),
            syncing: None,
            unsynced: Vec::new(),
            late: Vec::new(),
            compared: None,
            rested: None,
            is_up: false,
            changes_at: 0,
            produced: 0,
            taken: 0,
            cursor: 0,
            happened: Happened::default(),
        }
    }

    fn delay(&mut self) -> u64 {
        // Mostly near; now and then a queue on the way.
        if self.random.below(50) == 0 { self.random.between(100, 900) } else { self.random.between(15, 60) }
    }

    fn step(&mut self, faults: bool) {
        self.now += STEP;
        if faults {
            // Four a second, in bursts.
            if self.random.below(250) == 0 {
                self.produced += self.random.below(20);
            }
            if self.random.below(40_000) == 0 {
                self.crash();
            }
            if self.random.below(40_000) == 0 {
                self.restart();
            }
        }
        if self.now >= self.changes_at {
            if self.is_up && faults {
                self.cut();
            } else if !self.is_up {
                self.is_up = true;
                self.changes_at = self.now + self.random.between(200, 40_000);
                self.window.online();
            }
        }
        while self.window.room() > 0 && self.taken < self.produced {
            self.taken += 1;
            self.window.push(self.taken, BYTES, self.taken, false);
        }
        self.sender();
        self.receiver();
        while let Some((sequence, verdict)) = self.back.arrived(self.now) {
            if faults && self.random.below(3_000) == 0 {
                self.happened.answers_lost += 1;
                continue;
            }
            self.window.answered_at(sequence, verdict, self.now);
        }
        if self.now.is_multiple_of(500) {
            self.window.give_up(self.now.saturating_sub(ACK_TIMEOUT.as_millis().try_into().unwrap()));
        }
        let synced: &[u64] = &self.receiver.stored[..self.receiver.synced];
        let cursor = self.window.take_done(|sequence, _| {
            // One that is stored is answered for when it is synced, and never lost after that.
            assert!(synced.binary_search(&sequence).is_ok(), "the cursor is never ahead: {sequence}");
        });
        self.cursor = self.cursor.max(cursor.unwrap_or(0));
    }

    fn sender(&mut self) {
        match self.window.phase() {
            Phase::Compare => match self.compared.take() {
                None => {
                    let (there, back) = (self.delay(), self.delay());
                    // Looked at when the question is there; known when the answer is back. What is not synced is
                    // not shown.
                    let arrived = self.receiver.stored[..self.receiver.synced].iter().copied().collect();
                    self.compared = Some((self.now + there + back, arrived, self.receiver.synced as u64));
                }
                Some((at, arrived, last)) if at <= self.now => {
                    let found = self.window.compared(|at| arrived.contains(&at), Some(After::Theirs(last)));
                    self.happened.duplicates_found += found;
                }
                waiting => self.compared = waiting,
            },
            Phase::Sending => {
                for _ in 0..BURST {
                    let Some(Send { sequence, after, asks, .. }) = self.window.next_send(self.now) else {
                        return;
                    };
                    let at = self.now + self.delay();
                    self.there.put(at, Wire { sequence, after, asks });
                }
            }
            Phase::Resting => match self.rested {
                None => self.rested = Some(self.now + self.random.between(50, 5_000)),
                Some(at) if at <= self.now => {
                    self.rested = None;
                    self.window.rested();
                }
                Some(_) => {}
            },
            Phase::Offline | Phase::Settling { .. } => {}
        }
    }

    /// Stores what has come, syncs, and answers behind the sync.
    fn receiver(&mut self) {
        while let Some(wire) = self.there.arrived(self.now) {
            let verdict = self.receiver.take(wire, self.now);
            if wire.asks {
                self.unsynced.push((wire.sequence, verdict));
            }
        }
        let due = |at: &u64| *at <= self.now;
        let (come, wait) = std::mem::take(&mut self.late).into_iter().partition(|(at, _)| due(at));
        self.late = wait;
        let come: Vec<(u64, Wire)> = come;
        for (_, wire) in come {
            self.happened.late += 1;
            self.receiver.take(wire, self.now);
        }
        if let Some(syncing) = self.syncing.take() {
            if syncing.done_at > self.now {
                self.syncing = Some(syncing);
            } else {
                self.receiver.synced = syncing.synced;
                for answer in syncing.answers {
                    let at = self.now + self.delay();
                    if self.is_up {
                        self.back.put(at, answer);
                    }
                }
            }
        }
        let is_behind = self.receiver.synced < self.receiver.stored.len() || !self.unsynced.is_empty();
        if self.syncing.is_none() && is_behind {
            let takes = self.random.between(1, 60);
            let answers = std::mem::take(&mut self.unsynced);
            let (done_at, synced) = (self.now + takes, self.receiver.stored.len());
            self.syncing = Some(Syncing { done_at, synced, answers });
        }
    }

    fn cut(&mut self) {
        self.happened.cuts += 1;
        self.is_up = false;
        // Most are short; some are longer than ids are remembered.
        let most = if self.random.below(4) == 0 { 60_000 } else { 3_000 };
        self.changes_at = self.now + self.random.between(50, most);
        for (at, wire) in std::mem::take(&mut self.there.0) {
            // What lay in buffers on the way may come yet: soon, or long after.
            if self.random.below(3) == 0 {
                let later = if self.random.below(5) == 0 { 60_000 } else { 500 };
                self.late.push((at + self.random.below(later), wire));
            }
        }
        self.back.0.clear();
        self.unsynced.clear();
        if let Some(syncing) = &mut self.syncing {
            syncing.answers.clear();
        }
        self.lose();
    }

    fn lose(&mut self) {
        (self.compared, self.rested) = (None, None);
        self.window.offline();
    }

    fn crash(&mut self) {
        if self.is_up {
            self.cut();
        }
        self.happened.crashes += 1;
        self.syncing = None;
        self.receiver.crash(&mut self.random);
    }

    /// What is not behind the cursor is read again, and may have been sent.
    fn restart(&mut self) {
        if self.is_up {
            self.cut();
        }
        self.happened.restarts += 1;
        self.window = Window::in_runs(WINDOW_MESSAGES, WINDOW_BYTES, RUNS);
        for sequence in self.cursor + 1..=self.taken {
            self.window.push(sequence, BYTES, sequence, true);
        }
    }
}

#[test]
fn an_hour_of_random_cuts_loses_nothing_and_doubles_nothing() {
    let mut all = Happened::default();
    for seed in 0..4 {
        let mut world = World::new(seed);
        while world.now < HOUR {
            world.step(true);
        }
        // And then peace: a quarter of an hour is far more than the backlog takes.
        let end = world.now + HOUR / 4;
        while world.taken < world.produced || !world.window.is_empty() {
            assert!(world.now < end, "seed {seed}: {:?}, {:?}", world.window.phase(), world.happened);
            world.step(false);
        }
        let expected: Vec<u64> = (1..=world.produced).collect();
        assert!(world.produced > 8_000, "seed {seed}: {}", world.produced);
        assert!(world.receiver.stored == expected, "seed {seed}: {:?}", world.happened);
        for (sum, one) in [
            (&mut all.cuts, world.happened.cuts),
            (&mut all.crashes, world.happened.crashes),
            (&mut all.restarts, world.happened.restarts),
            (&mut all.late, world.happened.late),
            (&mut all.answers_lost, world.happened.answers_lost),
            (&mut all.duplicates_found, world.happened.duplicates_found),
        ] {
            *sum += one;
        }
    }
    println!("4 hours: {all:?}");
    let counts = [all.cuts, all.crashes, all.restarts, all.late, all.answers_lost, all.duplicates_found];
    assert!(counts.iter().all(|count| *count > 5), "everything happens: {all:?}");
}
