//! A small world for the tests that fail, crash and damage: a log on a simulated disk, driven by a script, and
//! a model that knows what must be there afterwards.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use beamlog_log::{
    Disk, Index, Journal, Log, LogOptions, MessageRef, OpenError, Opened, Read, Replayed, ReplayedRecord,
    RollError, SeededRandom, Sequence, ShardId, SimDisk, StreamId, Timestamp,
};

pub(crate) const SHARD: ShardId = ShardId(3);
pub(crate) const DIRECTORY: &str = "/log";

pub(crate) fn directory() -> &'static Path {
    Path::new(DIRECTORY)
}

pub(crate) fn new_disk() -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir(directory()).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    disk
}

pub(crate) fn open(disk: &SimDisk, options: LogOptions) -> Result<Opened, OpenError> {
    Log::open(Arc::new(disk.clone()), directory(), SHARD, options)
}

/// A message's content follows from its place, so that reading it proves that it is the right one.
pub(crate) fn payload(stream: StreamId, sequence: Sequence) -> Vec<u8> {
    let mut random = SeededRandom::new(u64::from(stream.0) << 32 | sequence.0);
    // Some are all zeros, some end in zeros, some are large.
    let len_max = if random.one_in(20) { 3000 } else { 120 };
    let len = random.index(len_max);
    let mut payload = vec![0; len];
    if !random.one_in(8) {
        random.fill(&mut payload);
    }
    payload
}

pub(crate) fn subject(stream: StreamId, sequence: Sequence) -> String {
    format!("s{}.{}", stream.0, sequence.0 % 5)
}

pub(crate) fn push(log: &mut Log, stream: StreamId, sequence: Sequence) {
    log.push_message(&MessageRef {
        stream,
        sequence,
        timestamp: Timestamp(sequence.0 * 1000),
        subject: subject(stream, sequence).as_bytes(),
        headers: if sequence.0.is_multiple_of(3) { b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n" } else { b"" },
        payload: &payload(stream, sequence),
    });
}

/// What an engine would know. It is logged as control records and snapshots, and comes back by replaying them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct State {
    pub(crate) streams: BTreeMap<u32, StreamState>,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct StreamState {
    pub(crate) last: u64,
    pub(crate) removed: std::collections::BTreeSet<u64>,
}

impl State {
    pub(crate) fn encode(&self) -> Vec<Vec<u8>> {
        self.streams
            .iter()
            .map(|(stream, state)| {
                let mut row = stream.to_le_bytes().to_vec();
                row.extend_from_slice(&state.last.to_le_bytes());
                for removed in &state.removed {
                    row.extend_from_slice(&removed.to_le_bytes());
                }
                row
            })
            .collect()
    }

    pub(crate) fn decode<'a>(rows: impl Iterator<Item = &'a [u8]>) -> Self {
        let streams = rows
            .map(|row| {
                let (stream, rest) = row.split_first_chunk::<4>().unwrap();
                let (words, _) = rest.as_chunks::<8>();
                let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
                let last = words.next().unwrap();
                (u32::from_le_bytes(*stream), StreamState { last, removed: words.collect() })
            })
            .collect();
        Self { streams }
    }

    pub(crate) fn apply(&mut self, replayed: &Replayed) {
        match &replayed.record {
            ReplayedRecord::Message(message) => {
                let stream = self.streams.entry(message.stream.0).or_default();
                assert_eq!(stream.last + 1, message.sequence.0, "replayed in order, without a hole");
                stream.last = message.sequence.0;
            }
            ReplayedRecord::Control(body) => {
                let (stream, rest) = body.split_first_chunk::<4>().unwrap();
                let stream = self.streams.get_mut(&u32::from_le_bytes(*stream)).unwrap();
                let (words, _) = rest.as_chunks::<8>();
                stream.removed.extend(words.iter().map(|word| u64::from_le_bytes(*word)));
            }
            ReplayedRecord::Replication(_) => {}
        }
    }
}

/// The driver of a log, and what it knows.
pub(crate) struct World {
    pub(crate) disk: SimDisk,
    pub(crate) log: Log,
    /// With everything that was pushed.
    pub(crate) state: State,
    /// As of the last commit that was confirmed.
    pub(crate) confirmed: State,
}

/// The log failed as it may: it was told so, and nothing more is confirmed.
#[derive(Debug)]
pub(crate) struct Stopped;

impl World {
    pub(crate) fn new(disk: &SimDisk, options: &LogOptions) -> Result<Self, Stopped> {
        let opened = open(disk, options.clone()).map_err(|_error| Stopped)?;
        Ok(Self::over(disk, opened))
    }

    /// Recovers as a router does: snapshot, replay, and the dead released again.
    pub(crate) fn over(disk: &SimDisk, opened: Opened) -> Self {
        Self::try_over(disk, opened).unwrap()
    }

    /// As [`Self::over`]; `None` when the replay meets damage.
    pub(crate) fn try_over(disk: &SimDisk, mut opened: Opened) -> Option<Self> {
        let (mut state, base) = opened.snapshot.map_or_else(
            || (State::default(), Index(0)),
            |snapshot| (State::decode(snapshot.records.iter().map(|row| row.as_ref())), snapshot.index),
        );
        let mut index = base;
        for replayed in opened.log.replay(base) {
            let replayed = replayed.ok()?;
            // A frame that held nothing but the log's own records gives none.
            assert!(replayed.index >= index);
            index = replayed.index;
            state.apply(&replayed);
        }
        for (stream, known) in &state.streams {
            for removed in &known.removed {
                opened.log.release(StreamId(*stream), Sequence(*removed)..=Sequence(*removed));
            }
        }
        Some(Self { disk: disk.clone(), log: opened.log, confirmed: state.clone(), state })
    }

    pub(crate) fn publish(&mut self, stream: u32) {
        let state = self.state.streams.entry(stream).or_default();
        state.last += 1;
        push(&mut self.log, StreamId(stream), Sequence(state.last));
    }

    pub(crate) fn remove(&mut self, stream: u32, sequences: std::ops::RangeInclusive<u64>) {
        let Some(state) = self.state.streams.get_mut(&stream) else { return };
        let mut body = stream.to_le_bytes().to_vec();
        for sequence in sequences {
            if sequence >= 1 && sequence <= state.last && state.removed.insert(sequence) {
                body.extend_from_slice(&sequence.to_le_bytes());
                self.log.release(StreamId(stream), Sequence(sequence)..=Sequence(sequence));
            }
        }
        self.log.push_control(&body);
    }

    pub(crate) fn commit(&mut self) -> Result<(), Stopped> {
        self.log.write().map_err(|_error| Stopped)?;
        // What is durable may be confirmed: so the index decides, and not that the call came back.
        if self.log.durable_index() == self.log.last_index() {
            self.confirm();
        }
        self.log.sync().map_err(|_error| Stopped)?;
        self.confirm();
        Ok(())
    }

    fn confirm(&mut self) {
        self.confirmed = self.state.clone();
        self.disk.mark("confirmed");
    }

    pub(crate) fn roll(&mut self) -> Result<(), Stopped> {
        match self.log.roll(&mut self.state.encode().into_iter()) {
            Ok(()) | Err(RollError::Full) => Ok(()),
            Err(RollError::Poisoned | RollError::Fenced(_) | RollError::Disk(_)) => Err(Stopped),
        }
    }

    /// Publishing, removing, committing, rolling and upkeep, as the seed decides.
    pub(crate) fn live(&mut self, random: &mut SeededRandom, steps: usize) -> Result<(), Stopped> {
        for _ in 0..steps {
            let stream = 1 + u32::try_from(random.below(3)).unwrap();
            match random.below(12) {
                0..=5 => {
                    for _ in 0..=random.below(12) {
                        self.publish(stream);
                    }
                }
                6 => {
                    let last = self.state.streams.get(&stream).map_or(0, |state| state.last);
                    let from = 1 + random.below(last + 1);
                    self.remove(stream, from..=from + random.below(60));
                }
                7..=9 => self.commit()?,
                10 => {
                    self.commit()?;
                    for _ in 0..3 {
                        self.log.maintain().map_err(|_error| Stopped)?;
                        self.commit()?;
                    }
                }
                _ => {
                    self.commit()?;
                    if random.one_in(3) {
                        self.roll()?;
                    }
                }
            }
            if self.log.needs_roll() {
                self.commit()?;
                self.roll()?;
            }
        }
        self.commit()
    }

    /// Everything that the state says is there, is there; nothing else is.
    pub(crate) fn check_reads(&mut self) {
        let state = self.state.clone();
        for (stream, known) in &state.streams {
            let id = StreamId(*stream);
            for sequence in (1..=known.last).map(Sequence) {
                let read = self.log.read(id, sequence);
                if known.removed.contains(&sequence.0) {
                    assert_eq!(read, Read::Absent, "stream {stream} sequence {sequence}");
                } else {
                    let Read::Found(message) = read else {
                        panic!("stream {stream} sequence {sequence}: {read:?}")
                    };
                    assert_eq!(message.payload, payload(id, sequence));
                    assert_eq!(message.subject, subject(id, sequence).as_bytes());
                }
            }
            assert_eq!(self.log.read(id, Sequence(known.last + 1)), Read::Absent);
            self.check_order(id, known);
        }
    }

    fn check_order(&mut self, stream: StreamId, known: &StreamState) {
        let name = subject(stream, Sequence(2)).into_bytes();
        let living = (1..=known.last).filter(|sequence| !known.removed.contains(sequence));
        let expected: Vec<u64> = living.filter(|sequence| sequence % 5 == 2).collect();
        let mut found = Vec::new();
        let mut from = Sequence(1);
        while let Read::Found(sequence) = self.log.next(stream, from, &mut |subject| subject == name) {
            found.push(sequence.0);
            from = sequence.next();
        }
        assert_eq!(found, expected);
        let mut backwards = Vec::new();
        let mut from = Sequence(u64::MAX);
        while let Read::Found(sequence) = self.log.previous(stream, from, &mut |subject| subject == name) {
            backwards.push(sequence.0);
            from = Sequence(sequence.0 - 1);
        }
        backwards.reverse();
        assert_eq!(backwards, expected);
    }
}

/// Whether one state has everything of another: it is what the other was, and perhaps some more.
pub(crate) fn continues(now: &State, before: &State) -> bool {
    before.streams.iter().all(|(stream, before)| {
        now.streams
            .get(stream)
            .is_some_and(|now| now.last >= before.last && now.removed.is_superset(&before.removed))
    })
}
