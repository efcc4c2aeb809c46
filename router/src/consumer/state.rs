//! What of a consumer survives a restart: a fold over its records, with the same functions live and in
//! replay.
//!
//! A message at or below `delivered` that is neither pending, exhausted nor chosen is done. So the ack
//! floor needs no memory of its own, and cannot move back: the first pending message only ever moves up.

use beamlog_log::{Sequence, Timestamp};
use roaring::RoaringTreemap;

use crate::consumer::pending::PendingSet;
use crate::consumer::{
    AckPolicy, ConsumerConfig, ConsumerId, ConsumerRecord, ConsumerSnapshot, DeliveryRun, PendingRow,
    SequenceRun,
};

/// Rows of a snapshot in one record, so that none outgrows a frame.
const SNAPSHOT_ROWS_MAX: usize = 16 * 1024;

#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) consumer_sequence: u64,
    pub(super) delivered: Sequence,
    pub(super) delivered_at: Timestamp,
    pub(super) acked_at: Timestamp,
    pub(super) resume: Sequence,
    pub(super) pending: PendingSet,
    /// The message that was delivered when none was pending, and the one delivered before it: the floor
    /// moves by acks, and not because messages that do not match lie in between.
    opened: Option<(Sequence, Sequence)>,
    pub(super) exhausted: RoaringTreemap,
    pub(super) chosen: RoaringTreemap,
}

/// How long the ack of the delivery with this count is awaited.
pub(super) fn ack_wait_nanos(config: &ConsumerConfig, delivery_count: u64) -> u64 {
    let last = config.backoff_nanos.len().saturating_sub(1);
    let step = usize::try_from(delivery_count.saturating_sub(1)).unwrap_or(usize::MAX).min(last);
    config.backoff_nanos.get(step).copied().or(config.ack_wait_nanos).unwrap_or(u64::MAX)
}

pub(super) fn due(config: &ConsumerConfig, at: Timestamp, delivery_count: u64) -> Timestamp {
    Timestamp(at.0.saturating_add(ack_wait_nanos(config, delivery_count)))
}

impl State {
    pub(super) fn new(start: Sequence, chosen: RoaringTreemap) -> Self {
        let first = chosen.min().map_or(start, Sequence);
        Self {
            consumer_sequence: 0,
            delivered: Sequence(first.0.saturating_sub(1)),
            delivered_at: Timestamp(0),
            acked_at: Timestamp(0),
            resume: start,
            pending: PendingSet::default(),
            opened: None,
            exhausted: RoaringTreemap::new(),
            chosen,
        }
    }

    /// Positions up to which everything is done.
    pub(super) fn floor(&self) -> (u64, Sequence) {
        let floor = match self.pending.first() {
            Some((sequence, row)) => {
                let below = match self.opened {
                    Some((opened, before)) if opened == sequence => before,
                    Some(_) | None => Sequence(sequence.0 - 1),
                };
                (row.consumer - 1, below)
            }
            None => (self.consumer_sequence, self.delivered),
        };
        assert!(floor.0 <= self.consumer_sequence && floor.1 <= self.delivered, "ack floor beyond delivered");
        floor
    }

    /// Where reading goes on, but for what is still chosen.
    pub(super) fn next(&self) -> Sequence {
        self.resume.max(self.delivered.next())
    }

    pub(super) fn deliver(
        &mut self,
        config: &ConsumerConfig,
        at: Timestamp,
        stream: Sequence,
        consumer: u64,
    ) {
        self.chosen.remove(stream.0);
        if self.pending.len() == 0 {
            self.opened = Some((stream, self.delivered));
        }
        self.delivered = self.delivered.max(stream);
        self.consumer_sequence = self.consumer_sequence.max(consumer);
        self.delivered_at = at;
        if config.ack_policy != AckPolicy::None {
            self.pending.insert(stream, consumer, 1, due(config, at, 1));
        }
    }

    pub(super) fn redeliver(
        &mut self,
        config: &ConsumerConfig,
        at: Timestamp,
        stream: Sequence,
        delivery_count: u64,
    ) {
        self.delivered_at = at;
        self.pending.redelivered_again(stream, delivery_count, due(config, at, delivery_count));
    }

    /// What an ack of `last` finishes when acks cover everything before them.
    pub(super) fn covered(&self, last: Sequence) -> Vec<Sequence> {
        let mut covered = self.pending.within(Sequence(0), last);
        if !self.exhausted.is_empty() {
            covered.extend(self.exhausted.iter().take_while(|given_up| *given_up <= last.0).map(Sequence));
            covered.sort_unstable();
        }
        covered
    }

    /// Everything from `first` to `last` is done.
    pub(super) fn done(&mut self, first: Sequence, last: Sequence) {
        if first == last {
            self.pending.remove(first);
        } else {
            for sequence in self.pending.within(first, last) {
                self.pending.remove(sequence);
            }
        }
        if !self.exhausted.is_empty() {
            self.exhausted.remove_range(first.0..=last.0);
        }
    }

    pub(super) fn exhaust(&mut self, sequence: Sequence) {
        if self.pending.remove(sequence).is_some() {
            self.exhausted.insert(sequence.0);
        }
    }

    /// The message is gone: nothing is to be delivered or acked of it.
    pub(super) fn forget(&mut self, sequence: Sequence) -> bool {
        self.pending.remove(sequence);
        self.exhausted.remove(sequence.0);
        self.chosen.remove(sequence.0)
    }

    /// Nothing up to here will ever be delivered; what is still chosen comes first.
    pub(super) fn skip(&mut self, to: Sequence) -> bool {
        let moves = self.chosen.is_empty() && self.delivered < to;
        if moves {
            self.delivered = to;
        }
        moves
    }

    pub(super) fn apply(&mut self, config: &ConsumerConfig, record: &ConsumerRecord) {
        match record {
            ConsumerRecord::Progress { at, runs, redelivered, consumer_sequence } => {
                for run in runs {
                    self.apply_run(config, *at, *run);
                }
                for row in redelivered {
                    self.redeliver(config, *at, row.stream, row.delivery_count);
                }
                self.consumer_sequence = self.consumer_sequence.max(*consumer_sequence);
            }
            ConsumerRecord::Acked { at, runs } => {
                for run in runs {
                    self.done(run.first, run.last);
                }
                self.acked_at = *at;
            }
            ConsumerRecord::Exhausted { sequences } => {
                for sequence in sequences {
                    self.exhaust(*sequence);
                }
            }
            ConsumerRecord::Deferred { sequence, until } => {
                self.pending.postpone(*sequence, *until);
            }
            ConsumerRecord::Skipped { to } => {
                self.skip(*to);
            }
            ConsumerRecord::Updated { .. } => {}
            ConsumerRecord::More { pending, exhausted, chosen } => {
                self.insert_rows(pending);
                insert_runs(&mut self.exhausted, exhausted);
                insert_runs(&mut self.chosen, chosen);
            }
        }
    }

    fn apply_run(&mut self, config: &ConsumerConfig, at: Timestamp, run: DeliveryRun) {
        for step in 0..u64::from(run.count) {
            let (Some(stream), Some(consumer)) =
                (run.stream.0.checked_add(step), run.consumer.checked_add(step))
            else {
                return;
            };
            // Told before: a snapshot already has this delivery.
            if consumer > self.consumer_sequence {
                self.deliver(config, at, Sequence(stream), consumer);
            }
        }
    }

    fn insert_rows(&mut self, rows: &[PendingRow]) {
        for row in rows {
            self.pending.insert(row.stream, row.consumer, row.delivery_count, row.due);
        }
    }

    fn rows(&self) -> Vec<PendingRow> {
        let row = |(stream, row): (Sequence, &super::pending::Row)| PendingRow {
            stream,
            consumer: row.consumer,
            delivery_count: row.delivery_count,
            due: row.due,
        };
        self.pending.iter().map(row).collect()
    }

    pub(super) fn snapshot(
        &self,
        id: ConsumerId,
        config: ConsumerConfig,
        created: Timestamp,
    ) -> ConsumerSnapshot {
        let (mut pending, mut exhausted, mut chosen) =
            (self.rows(), runs(&self.exhausted), runs(&self.chosen));
        pending.truncate(SNAPSHOT_ROWS_MAX);
        exhausted.truncate(SNAPSHOT_ROWS_MAX);
        chosen.truncate(SNAPSHOT_ROWS_MAX);
        ConsumerSnapshot {
            id,
            config,
            created,
            consumer_sequence: self.consumer_sequence,
            delivered_at: self.delivered_at,
            delivered: self.delivered,
            resume: self.resume,
            acked_at: self.acked_at,
            pending,
            exhausted,
            chosen,
        }
    }

    /// What of the state the snapshot has no room for.
    pub(super) fn snapshot_rest(&self) -> Vec<ConsumerRecord> {
        let mut rest = Vec::new();
        if self.pending.len() > SNAPSHOT_ROWS_MAX {
            for rows in self.rows()[SNAPSHOT_ROWS_MAX..].chunks(SNAPSHOT_ROWS_MAX) {
                rest.push(ConsumerRecord::More {
                    pending: rows.to_vec(),
                    exhausted: Vec::new(),
                    chosen: Vec::new(),
                });
            }
        }
        for part in runs(&self.exhausted).chunks(SNAPSHOT_ROWS_MAX).skip(1) {
            let exhausted = part.to_vec();
            rest.push(ConsumerRecord::More { pending: Vec::new(), exhausted, chosen: Vec::new() });
        }
        for part in runs(&self.chosen).chunks(SNAPSHOT_ROWS_MAX).skip(1) {
            let chosen = part.to_vec();
            rest.push(ConsumerRecord::More { pending: Vec::new(), exhausted: Vec::new(), chosen });
        }
        rest
    }

    pub(super) fn restore(snapshot: &ConsumerSnapshot) -> Self {
        let mut state = Self {
            consumer_sequence: snapshot.consumer_sequence,
            delivered: snapshot.delivered,
            delivered_at: snapshot.delivered_at,
            acked_at: snapshot.acked_at,
            resume: snapshot.resume,
            pending: PendingSet::default(),
            opened: None,
            exhausted: RoaringTreemap::new(),
            chosen: RoaringTreemap::new(),
        };
        state.insert_rows(&snapshot.pending);
        insert_runs(&mut state.exhausted, &snapshot.exhausted);
        insert_runs(&mut state.chosen, &snapshot.chosen);
        state
    }
}

/// The set as runs of neighbours.
fn runs(set: &RoaringTreemap) -> Vec<SequenceRun> {
    let mut runs: Vec<SequenceRun> = Vec::new();
    for sequence in set.iter().map(Sequence) {
        match runs.last_mut() {
            Some(run) if run.last.next() == sequence => run.last = sequence,
            Some(_) | None => runs.push(SequenceRun { first: sequence, last: sequence }),
        }
    }
    runs
}

fn insert_runs(set: &mut RoaringTreemap, runs: &[SequenceRun]) {
    for run in runs {
        set.insert_range(run.first.0..=run.last.0);
    }
}
