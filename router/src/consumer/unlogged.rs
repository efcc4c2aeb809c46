//! What happened since the last record, in as few numbers as it takes: neighbours are one run.

use beamlog_log::{Sequence, Timestamp};

use crate::consumer::{ConsumerOutput, ConsumerRecord, DeliveryRun, Redelivery, SequenceRun};

/// At so many rows a record is made at once, so that none outgrows a frame.
const ROWS_MAX: usize = 2048;

#[derive(Clone, Debug, Default)]
pub(super) struct Unlogged {
    runs: Vec<DeliveryRun>,
    redelivered: Vec<Redelivery>,
    acked: Vec<SequenceRun>,
    skipped: Option<Sequence>,
}

impl Unlogged {
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.redelivered.is_empty() && self.acked.is_empty() && self.skipped.is_none()
    }

    pub(super) fn is_full(&self) -> bool {
        self.runs.len() + self.redelivered.len() + self.acked.len() >= ROWS_MAX
    }

    pub(super) fn delivered(&mut self, stream: Sequence, consumer: u64) {
        if let Some(run) = self.runs.last_mut()
            && run.stream.0 + u64::from(run.count) == stream.0
            && run.consumer + u64::from(run.count) == consumer
            && run.count < u32::MAX
        {
            run.count += 1;
            return;
        }
        self.runs.push(DeliveryRun { stream, consumer, count: 1 });
    }

    pub(super) fn redelivered(&mut self, stream: Sequence, delivery_count: u64) {
        self.redelivered.push(Redelivery { stream, delivery_count });
    }

    pub(super) fn acked(&mut self, first: Sequence, last: Sequence) {
        if let Some(run) = self.acked.last_mut()
            && run.last.next() == first
        {
            run.last = last;
            return;
        }
        self.acked.push(SequenceRun { first, last });
    }

    pub(super) fn skipped(&mut self, to: Sequence) {
        self.skipped = Some(to);
    }

    /// Makes records of it: deliveries before acks, because what is acked was delivered.
    pub(super) fn take(&mut self, at: Timestamp, consumer_sequence: u64, out: &mut Vec<ConsumerOutput>) {
        // First: deliveries made before the purge were of messages that it removed.
        if let Some(to) = self.skipped.take() {
            out.push(ConsumerOutput::Record(ConsumerRecord::Skipped { to }));
        }
        if !self.runs.is_empty() || !self.redelivered.is_empty() {
            out.push(ConsumerOutput::Record(ConsumerRecord::Progress {
                at,
                runs: std::mem::take(&mut self.runs),
                redelivered: std::mem::take(&mut self.redelivered),
                consumer_sequence,
            }));
        }
        if !self.acked.is_empty() {
            let runs = std::mem::take(&mut self.acked);
            out.push(ConsumerOutput::Record(ConsumerRecord::Acked { at, runs }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run() {
        let mut unlogged = Unlogged::default();
        for n in 1..=1000 {
            unlogged.delivered(Sequence(n), n);
            unlogged.acked(Sequence(n), Sequence(n));
        }
        let mut out = Vec::new();
        unlogged.take(Timestamp(1), 1000, &mut out);
        assert_eq!(
            out,
            [
                ConsumerOutput::Record(ConsumerRecord::Progress {
                    at: Timestamp(1),
                    runs: vec![DeliveryRun { stream: Sequence(1), consumer: 1, count: 1000 }],
                    redelivered: Vec::new(),
                    consumer_sequence: 1000
                }),
                ConsumerOutput::Record(ConsumerRecord::Acked {
                    at: Timestamp(1),
                    runs: vec![SequenceRun { first: Sequence(1), last: Sequence(1000) }]
                }),
            ]
        );
        assert!(unlogged.is_empty());
    }

    #[test]
    fn a_gap_on_either_side_begins_a_new_run() {
        let mut unlogged = Unlogged::default();
        unlogged.delivered(Sequence(1), 1);
        unlogged.delivered(Sequence(3), 2);
        unlogged.delivered(Sequence(4), 4);
        assert_eq!(unlogged.runs.len(), 3);
    }
}
