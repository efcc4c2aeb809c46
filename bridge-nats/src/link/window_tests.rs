//! The window against a simulated receiver that loses answers, delays and repeats messages, drops
//! connections, forgets ids, refuses for a while, and restarts.

use std::collections::BTreeMap;

use super::*;

/// xorshift; a seed gives one history.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[derive(Clone, Copy, Debug)]
struct Wire {
    sequence: u64,
    after: After,
    asks: bool,
}

/// A stream there: what it stored, and the ids it still remembers.
#[derive(Default)]
struct Receiver {
    /// `None` is a message of somebody else.
    stored: Vec<Option<u64>>,
    remembered: BTreeMap<u64, u64>,
    last_id: Option<u64>,
    full: bool,
    now: u64,
}

const MEMORY: u64 = 40;

/// Everything small: what is rare happens often.
const RUNS: Runs =
    Runs { messages_max: 4, bytes_max: usize::MAX, age_max: 12, careful: 5, bytes_min: 3, quick: 4, slow: 8 };

fn window() -> Window<u64> {
    Window::in_runs(16, usize::MAX, RUNS)
}

impl Receiver {
    fn take(&mut self, wire: Wire) -> Verdict {
        let now = self.now;
        self.remembered.retain(|_, at| now - *at < MEMORY);
        if wire.sequence.is_multiple_of(37) {
            return Verdict::Never;
        }
        if self.remembered.contains_key(&wire.sequence) {
            return Verdict::Arrived;
        }
        let follows = match wire.after {
            After::Anything => true,
            After::Theirs(last) => self.stored.len() as u64 == last,
            After::Ours(last) => self.last_id == Some(last),
        };
        if !follows {
            return Verdict::OutOfOrder;
        }
        if self.full {
            return Verdict::Again;
        }
        self.stored.push(Some(wire.sequence));
        self.remembered.insert(wire.sequence, now);
        self.last_id = Some(wire.sequence);
        Verdict::Stored(self.stored.len() as u64)
    }

    fn restart(&mut self) {
        let now = self.now;
        self.remembered.retain(|_, at| now - *at < MEMORY);
        // What it remembers of the last id is in the window of ids.
        if self.last_id.is_some_and(|id| !self.remembered.contains_key(&id)) {
            self.last_id = None;
        }
    }
}

struct World {
    random: Random,
    window: Window<u64>,
    receiver: Receiver,
    /// On their way there, and back.
    there: VecDeque<Wire>,
    back: VecDeque<(u64, Verdict)>,
    /// Of connections that are gone, still in buffers on the way.
    late: Vec<Wire>,
    others: bool,
    produced: u64,
    cursor: u64,
    parked: Vec<u64>,
    /// How many were sent without asking.
    silent: u64,
    now: u64,
}

impl World {
    fn new(seed: u64, others: bool) -> Self {
        Self {
            random: Random(seed * 2 + 1),
            window: window(),
            receiver: Receiver::default(),
            there: VecDeque::new(),
            back: VecDeque::new(),
            late: Vec::new(),
            others,
            produced: 0,
            cursor: 0,
            parked: Vec::new(),
            silent: 0,
            now: 0,
        }
    }

    fn step(&mut self, faults: bool) {
        self.now += 1;
        self.receiver.now = self.now;
        if faults {
            self.fault();
        }
        if self.window.room() > 0 && self.produced < 400 && self.random.below(2) == 0 {
            self.produced += 1;
            self.window.push(self.produced, 1, self.produced, false);
        }
        match self.window.phase() {
            Phase::Offline => {
                if self.random.below(3) == 0 {
                    self.window.online();
                }
            }
            Phase::Compare => self.compare(),
            Phase::Sending => {
                for _ in 0..self.random.below(4) {
                    let Some(Send { sequence, after, asks, .. }) = self.window.next_send(self.now) else {
                        break;
                    };
                    if sequence.is_multiple_of(11) {
                        // It is not to go there.
                        self.window.done(sequence);
                        continue;
                    }
                    self.silent += u64::from(!asks);
                    self.there.push_back(Wire { sequence, after, asks });
                }
            }
            Phase::Settling { .. } => {}
            Phase::Resting => {
                if self.random.below(5) == 0 {
                    self.window.rested();
                }
            }
        }
        for _ in 0..self.random.below(4) {
            if let Some(wire) = self.there.pop_front() {
                let verdict = self.receiver.take(wire);
                if wire.asks {
                    self.back.push_back((wire.sequence, verdict));
                }
            }
        }
        for _ in 0..self.random.below(4) {
            if let Some((sequence, verdict)) = self.back.pop_front() {
                // An answer may be lost on a connection that stays.
                if faults && self.random.below(40) == 0 {
                    continue;
                }
                let settled = self.window.answered_at(sequence, verdict, self.now);
                if settled.is_some() && verdict == Verdict::Never {
                    self.parked.push(sequence);
                    self.window.done(sequence);
                }
            }
        }
        if self.random.below(4) == 0 {
            self.window.give_up(self.now.saturating_sub(20));
        }
        let receiver = &self.receiver;
        let parked = &self.parked;
        let cursor = self.window.take_done(|sequence, _| {
            let left_out = parked.contains(&sequence) || sequence.is_multiple_of(11);
            let there = receiver.stored.contains(&Some(sequence)) || left_out;
            assert!(there, "the cursor is never ahead: {sequence}");
        });
        self.cursor = self.cursor.max(cursor.unwrap_or(0));
    }

    fn compare(&mut self) {
        let arrived: Vec<u64> = self.receiver.stored.iter().flatten().copied().collect();
        let chain = After::Theirs(self.receiver.stored.len() as u64);
        self.window.compared(|sequence| arrived.contains(&sequence), (!self.others).then_some(chain));
    }

    fn cut(&mut self) {
        // What the connection held arrives late, in part.
        let kept = self.random.below(self.there.len() as u64 + 1);
        self.late.extend(self.there.drain(..).take(usize::try_from(kept).unwrap()));
        self.there.clear();
        self.back.clear();
        self.window.offline();
    }

    fn fault(&mut self) {
        match self.random.below(60) {
            0 => self.cut(),
            1 => {
                self.cut();
                self.receiver.restart();
            }
            2 => self.receiver.full = true,
            3..=6 => self.receiver.full = false,
            7 if self.others => self.receiver.stored.push(None),
            // Copies of connections that are gone come before the ids are forgotten, or, where the
            // chain refuses them, at any time.
            8..=12 => {
                for wire in std::mem::take(&mut self.late) {
                    self.receiver.take(wire);
                }
            }
            13 => {
                // We restart: what is not behind the cursor is read again, and may have been sent.
                self.cut();
                self.window = window();
                for sequence in self.cursor + 1..=self.produced {
                    self.window.push(sequence, 1, sequence, true);
                }
            }
            _ => {}
        }
    }

    fn finish(&mut self) {
        self.receiver.full = false;
        for _ in 0..200_000 {
            if self.produced == 400 && self.window.is_empty() {
                return;
            }
            self.step(false);
        }
        panic!("it does not come to an end: {:?}", self.window.phase());
    }
}

/// Of the others some are never taken there, and some are not to go there.
fn is_carried(sequence: u64) -> bool {
    !sequence.is_multiple_of(37) && !sequence.is_multiple_of(11)
}

#[test]
fn each_message_arrives_once_and_in_order_through_any_faults() {
    let mut silent = 0;
    for seed in 0..400 {
        let mut world = World::new(seed, false);
        for _ in 0..1500 {
            world.step(true);
        }
        world.finish();
        let arrived: Vec<u64> = world.receiver.stored.iter().flatten().copied().collect();
        let expected: Vec<u64> = (1..=400_u64).filter(|&sequence| is_carried(sequence)).collect();
        assert_eq!(arrived, expected, "seed {seed}");
        silent += world.silent;
    }
    assert!(silent > 400 * 20, "silence is part of it: {silent}");
}

/// Others come and go, and with them the chain. What old connections held comes while their ids are remembered, also
/// behind a comparison.
#[test]
fn a_chain_that_comes_and_goes_loses_nothing() {
    for seed in 0..800 {
        let mut world = World::new(seed, false);
        for _ in 0..1500 {
            if world.random.below(30) == 0 {
                world.others = !world.others;
            }
            world.step(true);
            if world.random.below(6) == 0 {
                for wire in std::mem::take(&mut world.late) {
                    world.receiver.take(wire);
                }
            }
        }
        world.late.clear();
        world.others = false;
        world.finish();
        let arrived: std::collections::BTreeSet<u64> =
            world.receiver.stored.iter().flatten().copied().collect();
        let expected = (1..=400_u64).filter(|&sequence| is_carried(sequence)).collect();
        assert_eq!(arrived, expected, "seed {seed}");
    }
}

/// With other writers there is no chain: a refusal in the middle may let others pass, but nothing is lost
/// and nothing doubled.
#[test]
fn among_other_writers_each_message_arrives_once() {
    for seed in 0..400 {
        let mut world = World::new(seed, true);
        for _ in 0..1500 {
            world.step(true);
            // Without the chain, late copies are told by their ids, which are remembered that long.
            for wire in std::mem::take(&mut world.late) {
                world.receiver.take(wire);
            }
        }
        world.finish();
        let mut arrived: Vec<u64> = world.receiver.stored.iter().flatten().copied().collect();
        arrived.sort_unstable();
        let expected: Vec<u64> = (1..=400_u64).filter(|&sequence| is_carried(sequence)).collect();
        assert_eq!(arrived, expected, "seed {seed}");
    }
}

#[test]
fn a_message_that_is_here_or_was_done_is_not_taken_again() {
    let mut window = Window::new(4, usize::MAX);
    assert!(window.push(3, 1, (), false));
    assert!(!window.push(3, 1, (), false));
    window.online();
    window.compared(|_| false, Some(After::Theirs(7)));
    assert_eq!(window.next_send(1).map(|send| (send.sequence, send.after)), Some((3, After::Theirs(7))));
    assert!(window.answered(3, Verdict::Arrived).is_some());
    assert_eq!(window.take_done(|_, ()| {}), Some(3));
    assert!(!window.push(2, 1, (), false));
    assert!(window.is_past(3));
    assert!(window.push(5, 1, (), false));
}

#[test]
fn nothing_is_sent_behind_a_refusal_until_it_is_settled() {
    let mut window = Window::new(4, usize::MAX);
    for sequence in 1..=3 {
        window.push(sequence, 1, (), false);
    }
    window.online();
    window.compared(|_| false, None);
    window.next_send(1).unwrap();
    window.next_send(1).unwrap();
    window.answered(1, Verdict::Again);
    assert!(window.next_send(1).is_none());
    window.answered(2, Verdict::Arrived);
    assert_eq!(window.phase(), Phase::Resting);
    window.rested();
    window.compared(|_| false, None);
    assert_eq!(window.next_send(2).map(|send| send.sequence), Some(1));
}

#[test]
fn what_is_left_out_is_left_out_of_the_chain() {
    let mut window = Window::new(4, usize::MAX);
    for sequence in 1..=3 {
        window.push(sequence, 1, (), false);
    }
    window.online();
    window.compared(|_| false, Some(After::Theirs(9)));
    window.next_send(1).unwrap();
    window.done(1);
    assert_eq!(window.next_send(1).map(|send| send.after), Some(After::Theirs(9)));
    assert_eq!(window.next_send(1).map(|send| send.after), Some(After::Ours(2)));
}

#[test]
fn bytes_bound_it_too() {
    let mut window = Window::new(100, 10);
    window.push(1, 10, (), false);
    assert_eq!(window.room(), 0);
}

fn sent(window: &mut Window<()>) -> Vec<(u64, bool)> {
    std::iter::from_fn(|| window.next_send(1).map(|send| (send.sequence, send.asks))).collect()
}

fn filled(from: u64, to: u64) -> Window<()> {
    let runs = Runs {
        messages_max: 4,
        bytes_max: 100,
        age_max: 10,
        careful: 2,
        bytes_min: 1000,
        quick: 10,
        slow: 20,
    };
    let mut window = Window::in_runs(64, usize::MAX, runs);
    for sequence in from..=to {
        window.push(sequence, 1, (), false);
    }
    window.online();
    window.compared(|_| false, Some(After::Theirs(9)));
    window
}

#[test]
fn one_answer_settles_its_run_if_it_lies_where_it_has_to() {
    let mut window = filled(1, 6);
    let asking = [(1, false), (2, false), (3, false), (4, true), (5, false), (6, true)];
    assert_eq!(sent(&mut window), asking);
    assert_eq!(window.answered(4, Verdict::Stored(13)), Some(Settled { messages: 4, bytes: 4 }));
    assert_eq!(window.take_done(|_, ()| {}), Some(4));
    // Another place: something that is not ours came in between, or ours did not.
    assert_eq!(window.answered(6, Verdict::Stored(14)), Some(Settled { messages: 1, bytes: 1 }));
    assert_eq!((window.phase(), window.in_flight()), (Phase::Compare, 0));
    assert_eq!(window.suspects().map(|(sequence, ())| sequence).collect::<Vec<_>>(), [5]);
    // Now each asks, for a while.
    window.compared(|_| false, Some(After::Theirs(14)));
    for sequence in 7..=12 {
        window.push(sequence, 1, (), false);
    }
    let asking: Vec<bool> = sent(&mut window).into_iter().map(|(_, asks)| asks).collect();
    assert_eq!(asking, [true, true, false, false, false, true, true]);
}

#[test]
fn an_answer_that_says_that_it_was_there_before_says_nothing_of_others() {
    let mut window = filled(1, 4);
    assert_eq!(sent(&mut window).len(), 4);
    assert_eq!(window.answered(4, Verdict::Arrived), Some(Settled { messages: 1, bytes: 1 }));
    assert_eq!(window.phase(), Phase::Compare);
    assert_eq!(window.suspects().count(), 3);
}

#[test]
fn a_run_whose_end_is_left_out_is_asked_for_by_the_next_or_looked_for() {
    let mut window = filled(1, 5);
    for _ in 1..=4 {
        window.next_send(1).unwrap();
    }
    window.done(4);
    assert_eq!(window.next_send(1).map(|send| (send.sequence, send.asks)), Some((5, true)));
    assert_eq!(window.answered(5, Verdict::Stored(13)), Some(Settled { messages: 4, bytes: 4 }));
    let mut window = filled(1, 2);
    sent(&mut window);
    window.done(2);
    assert_eq!((window.phase(), window.suspects().count()), (Phase::Compare, 1));
}

#[test]
fn a_run_that_is_stopped_is_looked_for() {
    let mut window = filled(1, 4);
    window.next_send(1).unwrap();
    window.end_run();
    assert_eq!((window.in_flight(), window.suspects().count()), (0, 1));
    // Long ago begun: the next one asks.
    let mut window = filled(1, 4);
    window.next_send(1).unwrap();
    assert_eq!(window.next_send(20).map(|send| send.asks), Some(true));
}

#[test]
fn as_much_is_on_its_way_as_answers_come_back_in_time() {
    let runs = Runs { bytes_min: 100, quick: 10, slow: 20, ..RUNS };
    let mut window = Window::in_runs(64, 1000, runs);
    for sequence in 1..=64 {
        window.push(sequence, 20, (), false);
    }
    window.online();
    window.compared(|_| false, Some(After::Theirs(0)));
    let send = |window: &mut Window<()>, now| {
        std::iter::from_fn(|| window.next_send(now).map(|send| (send.sequence, send.asks)))
            .collect::<Vec<_>>()
    };
    // The last one that there is room for asks, or nobody would tell of those before it.
    assert_eq!(send(&mut window, 0), [(1, false), (2, false), (3, false), (4, true), (5, true)]);
    // Quickly answered: twice as much.
    window.answered_at(4, Verdict::Stored(4), 5).unwrap();
    window.answered_at(5, Verdict::Stored(5), 5).unwrap();
    assert_eq!(send(&mut window, 5).len(), 10);
    // In time: as it was. Late: half, once for all of them.
    window.answered_at(9, Verdict::Stored(9), 20).unwrap();
    assert_eq!(send(&mut window, 20).len(), 4);
    window.answered_at(13, Verdict::Stored(13), 60).unwrap();
    window.answered_at(15, Verdict::Stored(15), 60).unwrap();
    assert_eq!((window.pace, window.in_flight()), (100, 4));
    // What is larger than all that goes by itself.
    let mut window = Window::in_runs(4, 1000, runs);
    window.push(1, 500, (), false);
    window.push(2, 500, (), false);
    window.online();
    window.compared(|_| false, Some(After::Theirs(0)));
    assert_eq!(send(&mut window, 0), [(1, true)]);
    window.answered_at(1, Verdict::Stored(1), 1).unwrap();
    assert_eq!(send(&mut window, 1), [(2, true)]);
}

/// Less may be on its way than when a run began: its end still asks.
#[test]
fn a_run_that_began_before_the_pace_fell_is_ended() {
    let runs = Runs { messages_max: 2, age_max: 1000, bytes_min: 60, quick: 10, slow: 20, ..RUNS };
    let mut window = Window::in_runs(64, 1000, runs);
    for sequence in 1..=12 {
        window.push(sequence, 20, (), false);
    }
    window.online();
    window.compared(|_| false, Some(After::Theirs(0)));
    assert_eq!(sent(&mut window), [(1, false), (2, true), (3, true)]);
    window.answered_at(2, Verdict::Stored(2), 2).unwrap();
    for (sequence, asks) in [(4, false), (5, true), (6, false)] {
        assert_eq!(window.next_send(2).map(|send| (send.sequence, send.asks)), Some((sequence, asks)));
    }
    window.answered_at(3, Verdict::Stored(3), 40).unwrap();
    assert_eq!((window.pace, window.in_flight_bytes), (60, 60));
    assert_eq!(window.next_send(40).map(|send| (send.sequence, send.asks)), Some((7, true)));
    assert!(window.next_send(40).is_none());
}
