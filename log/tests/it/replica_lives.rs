//! Lives of a replica: own and foreign entries, tails that are cut, segments that begin and go, restarts; held
//! against a list of entries. Then the same with a power cut before every change, and with every operation
//! failing.

use std::{collections::BTreeMap, sync::Arc};

use beamlog_log::{
    EntryId, Index, Journal, Log, LogEntry, LogOptions, Read, RollError, SeededRandom, Sequence, SimDisk,
    StreamId, SuspectTail, Tail, Term, Timestamp, TruncateError, VoteError, VoteFile, inspect,
    sim_disk::{Crash, Failure, Fault, Operation, Repeat},
};

use crate::world::{SHARD, directory, new_disk, open, payload, push};

const STREAMS: u32 = 3;

/// The list that the log must hold.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Model {
    pub(crate) entries: Vec<LogEntry>,
    /// The last sequence of each stream after each entry.
    pub(crate) lasts: Vec<BTreeMap<u32, u64>>,
    /// What is dead of each stream: everything up to here.
    pub(crate) floors: BTreeMap<u32, u64>,
}

impl Model {
    pub(crate) fn last(&self) -> EntryId {
        self.entries.last().map_or_else(EntryId::default, |entry| entry.id)
    }

    pub(crate) fn lasts(&self) -> BTreeMap<u32, u64> {
        self.lasts.last().cloned().unwrap_or_default()
    }

    fn truncate(&mut self, index: Index) {
        let stays = usize::try_from(index.0).unwrap();
        self.entries.truncate(stays);
        self.lasts.truncate(stays);
    }
}

pub(crate) struct Replica {
    pub(crate) disk: SimDisk,
    pub(crate) options: LogOptions,
    pub(crate) log: Log,
    /// Where bodies of foreign entries are gathered.
    pub(crate) scratch: Log,
    pub(crate) model: Model,
    /// What the operation under way makes of it.
    pub(crate) wanted: Model,
    /// Everything up to here was decided when the newest segment began.
    pub(crate) decided: Index,
    pub(crate) term: u64,
    pub(crate) time: u64,
}

/// The log failed as it may.
#[derive(Debug)]
pub(crate) struct Stopped;

fn stopped<E: std::fmt::Debug>(_error: E) -> Stopped {
    Stopped
}

impl Replica {
    pub(crate) fn new(disk: &SimDisk, options: &LogOptions) -> Result<Self, Stopped> {
        let log = open(disk, options.clone()).map_err(stopped)?.log;
        let scratch = open(&new_disk(), LogOptions::for_simulation()).unwrap().log;
        Ok(Self {
            disk: disk.clone(),
            options: options.clone(),
            log,
            scratch,
            model: Model::default(),
            wanted: Model::default(),
            decided: Index(0),
            term: 1,
            time: 1,
        })
    }

    /// Gathers some records; says what the streams' last sequences are with them.
    fn gather(&mut self, random: &mut SeededRandom, own: bool) -> BTreeMap<u32, u64> {
        let mut lasts = self.wanted.lasts();
        let log = if own { &mut self.log } else { &mut self.scratch };
        for _ in 0..1 + random.below(6) {
            // What is gathered here and what others append never have a stream in common.
            let stream = if own { STREAMS } else { 1 + u32::try_from(random.below(2)).unwrap() };
            let last = lasts.entry(stream).or_default();
            *last += 1;
            push(log, StreamId(stream), Sequence(*last));
        }
        log.push_replication(&random.next().to_le_bytes());
        lasts
    }

    fn next_id(&self) -> EntryId {
        EntryId { index: self.wanted.last().index.next(), term: Term(self.term) }
    }

    fn foreign(&mut self, random: &mut SeededRandom) -> (LogEntry, BTreeMap<u32, u64>) {
        let lasts = self.gather(random, false);
        let (records, body) = self.scratch.pending_body().unwrap();
        self.scratch.discard_pending();
        self.time += random.below(5);
        (LogEntry { id: self.next_id(), timestamp: Timestamp(self.time), records, body }, lasts)
    }

    fn confirm(&mut self) {
        self.model = self.wanted.clone();
    }

    pub(crate) fn append(&mut self, random: &mut SeededRandom) -> Result<(), Stopped> {
        let (entry, lasts) = self.foreign(random);
        self.wanted.entries.push(entry.clone());
        self.wanted.lasts.push(lasts);
        self.log.append_entry(&entry).map_err(stopped)?;
        self.log.sync().map_err(stopped)?;
        self.confirm();
        Ok(())
    }

    /// As a leader does; now and then somebody else's entry comes between.
    fn write_own(&mut self, random: &mut SeededRandom) -> Result<(), Stopped> {
        let lasts = self.gather(random, true);
        let own_last = lasts[&STREAMS];
        let (records, body) = self.log.pending_body().unwrap();
        let timestamp = self.log.pending_time();
        if random.one_in(4) {
            self.append(random)?;
        }
        if random.one_in(5) {
            self.log.discard_pending();
            return Ok(());
        }
        let id = self.next_id();
        self.wanted.entries.push(LogEntry { id, timestamp, records, body });
        let mut lasts = self.wanted.lasts();
        lasts.insert(STREAMS, own_last);
        self.wanted.lasts.push(lasts);
        self.log.write_at(id).map_err(stopped)?;
        self.log.sync().map_err(stopped)?;
        self.confirm();
        Ok(())
    }

    fn truncate(&mut self, random: &mut SeededRandom) -> Result<(), Stopped> {
        let last = self.model.last().index;
        let after = Index(self.decided.0 + random.below(last.0 - self.decided.0 + 1));
        self.wanted.truncate(after);
        self.log.truncate_after(after).map_err(stopped)?;
        self.confirm();
        self.term += 1;
        Ok(())
    }

    pub(crate) fn roll(&mut self) -> Result<(), Stopped> {
        match self.log.roll(&mut [b"state".to_vec()].into_iter()) {
            Ok(()) => self.decided = self.model.last().index,
            Err(RollError::Full) => {}
            Err(error) => return Err(stopped(error)),
        }
        Ok(())
    }

    /// Only what was decided dies.
    pub(crate) fn release(&mut self, random: &mut SeededRandom) {
        if self.decided == Index(0) {
            return;
        }
        let stream = 1 + u32::try_from(random.below(u64::from(STREAMS))).unwrap();
        let lasts = &self.model.lasts[usize::try_from(self.decided.0).unwrap() - 1];
        let Some(last) = lasts.get(&stream) else { return };
        let floor = self.model.floors.get(&stream).copied().unwrap_or(0);
        let floor = floor + random.below(last - floor + 1);
        self.model.floors.insert(stream, floor);
        self.wanted.floors.insert(stream, floor);
        self.tell_floors();
    }

    pub(crate) fn tell_floors(&mut self) {
        for (stream, floor) in &self.model.floors {
            self.log.release(StreamId(*stream), Sequence(1)..=Sequence(*floor));
        }
    }

    pub(crate) fn live(&mut self, random: &mut SeededRandom, steps: usize) -> Result<(), Stopped> {
        for _ in 0..steps {
            match random.below(16) {
                0..=6 => self.append(random)?,
                7..=10 => self.write_own(random)?,
                11 => self.truncate(random)?,
                12 => self.release(random),
                13 => {
                    for _ in 0..4 {
                        self.log.maintain().map_err(stopped)?;
                    }
                }
                14 => {
                    if random.one_in(2) {
                        self.log.seal_tail().map_err(stopped)?;
                    } else {
                        self.term += 1;
                    }
                }
                _ => {
                    if random.one_in(2) {
                        self.roll()?;
                    }
                }
            }
            if self.log.needs_roll() {
                self.roll()?;
            }
        }
        Ok(())
    }

    /// The log holds the model's entries, as far back as it says, and its messages.
    pub(crate) fn check(&mut self) {
        let last = self.model.last();
        assert_eq!(self.log.last_id(), last);
        let from = self.log.history_from();
        assert!(from.index <= self.decided);
        let entries = self.log.entries(from.index.next(), Index(u64::MAX), usize::MAX).unwrap();
        let known = usize::try_from(from.index.0).unwrap();
        assert_eq!(entries, self.model.entries[known..]);
        if known > 0 {
            assert_eq!(from, self.model.entries[known - 1].id);
            let before = self.log.entries(from.index, Index(u64::MAX), usize::MAX);
            assert!(before.is_err(), "{before:?}");
            assert_eq!(self.log.id_at(Index(from.index.0 - 1)).unwrap(), None);
        }
        for entry in &self.model.entries[known..] {
            assert_eq!(self.log.id_at(entry.id.index).unwrap(), Some(entry.id));
        }
        for (stream, last) in self.model.lasts() {
            let floor = self.model.floors.get(&stream).copied().unwrap_or(0);
            for sequence in (1..=last).map(Sequence) {
                match self.log.read(StreamId(stream), sequence) {
                    Read::Found(message) => {
                        assert!(sequence.0 > floor);
                        assert_eq!(message.payload, payload(StreamId(stream), sequence));
                    }
                    Read::Absent => assert!(sequence.0 <= floor, "stream {stream} sequence {sequence}"),
                    Read::Unreadable(damage) => panic!("{damage}"),
                }
            }
            assert_eq!(self.log.read(StreamId(stream), Sequence(last + 1)), Read::Absent);
        }
    }

    pub(crate) fn reopen(&mut self) {
        let opened = open(&self.disk, self.options.clone()).unwrap();
        assert!(opened.report.missing.is_empty(), "{:?}", opened.report);
        assert!(opened.report.damaged.is_empty(), "{:?}", opened.report);
        self.log = opened.log;
        self.tell_floors();
    }
}

#[test]
fn lives_of_a_replica_hold_what_the_list_holds() {
    let mut shipped = 0;
    let (mut removed, mut compacted) = (0, 0);
    for seed in 0..30 {
        let mut random = SeededRandom::new(seed);
        let mut replica = Replica::new(&new_disk(), &LogOptions::for_simulation()).unwrap();
        for _ in 0..5 {
            replica.live(&mut random, 150).unwrap();
            replica.check();
            let report = inspect::check(&replica.disk, directory()).unwrap();
            assert!(report.is_sound(), "seed {seed}: {report:#?}");
            let stats = replica.log.stats();
            removed += stats.segments_removed;
            compacted += stats.segments_compacted;
            replica.reopen();
            replica.check();
        }
        shipped += replica.model.entries.len();
    }
    assert!(shipped > 5000 && removed > 0 && compacted > 0, "{shipped} {removed} {compacted}");
}

/// What a crash left is what was there before the operation under way, or after it.
fn recover(disk: &SimDisk, dead: &Replica, context: &str) -> bool {
    let report = LogOptions { suspect_tail: SuspectTail::Report, ..dead.options.clone() };
    let mut opened = open(disk, report).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    assert!(opened.report.missing.is_empty(), "{context}: {:?}", opened.report);
    let in_doubt = matches!(opened.report.tail, Tail::Suspect { .. });
    if in_doubt {
        // Only what was under way, never what was confirmed.
        let doubt = opened.log.doubt().unwrap().clone();
        assert!(doubt.first > dead.model.last().index, "{context}: {doubt:?}");
        assert!(opened.log.append_entry(&dead.wanted.entries[0]).is_err());
        opened.log.cut_suspect_tail().unwrap();
        assert_eq!(opened.log.doubt(), None);
    }
    assert_eq!(opened.report.damaged, [], "{context}");
    let last = opened.log.last_id();
    let model = if last == dead.wanted.last() { &dead.wanted } else { &dead.model };
    let mut replica = Replica {
        disk: disk.clone(),
        options: dead.options.clone(),
        log: opened.log,
        scratch: open(&new_disk(), LogOptions::for_simulation()).unwrap().log,
        model: model.clone(),
        wanted: model.clone(),
        // The newest segment may have begun just before the cut.
        decided: dead.model.last().index,
        term: dead.term + 1,
        time: dead.time,
    };
    replica.tell_floors();
    replica.check();
    replica.append(&mut SeededRandom::new(1)).unwrap();
    replica.check();
    replica.reopen();
    replica.check();
    in_doubt
}

#[test]
fn a_cut_before_every_change_leaves_the_old_tail_or_the_new_one() {
    let (mut states, mut doubts) = (0, 0);
    for seed in 0..4 {
        for cut in 1.. {
            let disk = new_disk();
            disk.power_off_at(cut);
            let mut random = SeededRandom::new(seed);
            let Ok(mut replica) = Replica::new(&disk, &LogOptions::for_simulation()) else { continue };
            if replica.live(&mut random, 50).is_ok() {
                break;
            }
            for crash in Crash::sample(seed ^ cut) {
                let after = disk.fork();
                after.crash(crash);
                states += 1;
                doubts += u64::from(recover(&after, &replica, &format!("seed {seed}, cut {cut}, {crash:?}")));
            }
        }
    }
    assert!(states > 3000, "{states}");
    assert!(doubts * 100 < states, "{doubts} of {states}");
}

#[test]
fn every_operation_of_a_replica_fails_and_nothing_confirmed_is_lost() {
    let mut runs = 0;
    for operation in Operation::ALL.into_iter().filter(|operation| operation.is_change()) {
        for failure in [Failure::Io, Failure::NoSpace, Failure::PartialIo] {
            for nth in 1.. {
                let disk = new_disk();
                let Ok(mut replica) = Replica::new(&disk, &LogOptions::for_simulation()) else { panic!() };
                let before = disk.count(operation);
                disk.fail(Fault { operation: Some(operation), nth, failure, repeat: Repeat::Once });
                let mut random = SeededRandom::new(7);
                drop(replica.live(&mut random, 60));
                if disk.count(operation) - before < nth {
                    break;
                }
                runs += 1;
                let context = format!("{operation:?} {nth} {failure:?}");
                recover(&disk.fork(), &replica, &context);
                let cut = disk.fork();
                cut.crash(Crash::LoseUnsynced);
                recover(&cut, &replica, &context);
            }
        }
    }
    assert!(runs > 300, "{runs}");
}

#[test]
fn what_was_decided_is_not_cut() {
    let disk = new_disk();
    let mut replica = Replica::new(&disk, &LogOptions::for_simulation()).unwrap();
    let mut random = SeededRandom::new(1);
    for _ in 0..6 {
        replica.append(&mut random).unwrap();
    }
    replica.roll().unwrap();
    replica.append(&mut random).unwrap();
    let refused = replica.log.truncate_after(Index(5));
    assert!(matches!(refused, Err(TruncateError::Decided { base: Index(6) })), "{refused:?}");
    replica.check();
    replica.log.truncate_after(Index(6)).unwrap();
    replica.wanted.truncate(Index(6));
    replica.confirm();
    replica.check();
    replica.reopen();
    replica.check();
}

#[test]
fn a_suspect_tail_is_replaced_by_a_peers_entry_at_once() {
    let disk = new_disk();
    let mut replica = Replica::new(&disk, &LogOptions::for_simulation()).unwrap();
    let mut random = SeededRandom::new(3);
    for _ in 0..6 {
        replica.append(&mut random).unwrap();
    }
    let peers = replica.model.entries.last().unwrap().clone();
    let name =
        disk.files().into_keys().find(|path| path.extension().is_some_and(|kind| kind == "seg")).unwrap();
    let bytes = disk.files()[&name].clone();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    disk.flip_bit(&name, u64::try_from(end - 3).unwrap() * 8).unwrap();
    assert!(open(&disk, replica.options.clone()).is_err());
    let options = LogOptions { suspect_tail: SuspectTail::Report, ..replica.options.clone() };
    let opened = open(&disk, options.clone()).unwrap();
    let doubt = opened.log.doubt().unwrap().clone();
    assert_eq!((doubt.first, doubt.term, doubt.is_one), (peers.id.index, Some(peers.id.term), true));
    assert!(matches!(opened.report.tail, Tail::Suspect { .. }));
    drop(opened);
    // Cut before each change of the replacing: in doubt still, or with the entry.
    let mut replaced = 0;
    for cut in 1.. {
        let disk = disk.fork();
        let mut log = open(&disk, options.clone()).unwrap().log;
        assert_eq!(log.last_id().index.next(), peers.id.index);
        disk.power_off_at(cut);
        let done = log.replace_suspect_tail(&peers).is_ok();
        if done {
            assert_eq!(log.last_id(), peers.id);
        }
        drop(log);
        for crash in Crash::sample(cut) {
            let after = disk.fork();
            after.crash(crash);
            let opened = open(&after, options.clone()).unwrap();
            match opened.report.tail {
                Tail::Suspect { .. } => assert!(!done && opened.log.last_id() != peers.id),
                Tail::New
                | Tail::Clean
                | Tail::Whole
                | Tail::Torn { .. }
                | Tail::LossAccepted { .. }
                | Tail::Fenced => {
                    assert_eq!(opened.log.last_id(), peers.id);
                    replaced += 1;
                }
            }
        }
        if done {
            break;
        }
    }
    assert!(replaced > 10, "{replaced}");
}

#[test]
fn a_vote_is_the_old_one_or_the_new_one_after_every_cut() {
    let mut states = 0;
    for cut in 1.. {
        let disk = new_disk();
        disk.power_off_at(cut);
        let open = |disk: &SimDisk, must_exist| {
            VoteFile::open(Arc::new(disk.clone()), directory(), SHARD, must_exist)
        };
        let mut saved: Option<Vec<u8>> = None;
        let mut wanted = None;
        let mut begun = false;
        let lived = (|| {
            let (mut file, vote) = open(&disk, false)?;
            assert_eq!(vote, None);
            begun = true;
            for number in 0..4_u8 {
                wanted = Some(vec![number; 40]);
                file.save(&[number; 40])?;
                saved.clone_from(&wanted);
            }
            Ok::<(), VoteError>(())
        })();
        if lived.is_ok() {
            break;
        }
        for crash in Crash::sample(cut) {
            let after = disk.fork();
            after.crash(crash);
            let (mut file, vote) =
                open(&after, begun).unwrap_or_else(|error| panic!("{cut} {crash:?} {error}"));
            assert!(vote == saved || vote == wanted, "{cut} {crash:?} {vote:?}");
            states += 1;
            // One copy is damaged, and every change of its repair cut.
            for slot in 0..2 {
                let damaged = after.fork();
                damaged.flip_bit(&directory().join("vote"), slot * 4096 * 8 + 9).unwrap();
                for cut in 1.. {
                    let again = damaged.fork();
                    again.power_off_at(cut);
                    let repaired = open(&again, true).is_ok();
                    again.crash(Crash::Scatter { seed: cut });
                    assert_eq!(open(&again, true).unwrap().1, vote);
                    states += 1;
                    if repaired {
                        break;
                    }
                }
            }
            file.save(b"later").unwrap();
            let (_, vote) = open(&after, true).unwrap();
            assert_eq!(vote.as_deref(), Some(&b"later"[..]));
        }
    }
    assert!(states > 200, "{states}");
}
