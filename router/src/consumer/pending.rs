//! The messages that were delivered and are not acked, with what is due when.
//!
//! Invariant: every row either waits for its deadline (`ticket` is `None` and `due` has it) or is
//! queued for redelivery (`queue` has its ticket), never both.

use std::collections::{BTreeMap, BTreeSet};

use beamlog_log::{Sequence, Timestamp};

/// One pending message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Row {
    /// Consumer sequence of its first delivery.
    pub(super) consumer: u64,
    pub(super) delivery_count: u64,
    /// When its ack wait ends.
    pub(super) due: Timestamp,
    ticket: Option<u64>,
}

impl Row {
    pub(super) fn is_queued(&self) -> bool {
        self.ticket.is_some()
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct PendingSet {
    rows: BTreeMap<Sequence, Row>,
    due: BTreeSet<(Timestamp, Sequence)>,
    queue: BTreeMap<u64, Sequence>,
    next_ticket: u64,
    redelivered: usize,
}

impl PendingSet {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// How many were delivered more than once.
    pub(super) fn redelivered(&self) -> usize {
        self.redelivered
    }

    pub(super) fn get(&self, sequence: Sequence) -> Option<&Row> {
        self.rows.get(&sequence)
    }

    pub(super) fn contains(&self, sequence: Sequence) -> bool {
        self.rows.contains_key(&sequence)
    }

    pub(super) fn first(&self) -> Option<(Sequence, &Row)> {
        self.rows.first_key_value().map(|(sequence, row)| (*sequence, row))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Sequence, &Row)> {
        self.rows.iter().map(|(sequence, row)| (*sequence, row))
    }

    /// A message was delivered, or a delivery is remembered. Replaces what was known of it.
    pub(super) fn insert(&mut self, sequence: Sequence, consumer: u64, delivery_count: u64, due: Timestamp) {
        let row = Row { consumer, delivery_count, due, ticket: None };
        if let Some(old) = self.rows.insert(sequence, row) {
            self.forget(sequence, &old);
        }
        self.due.insert((due, sequence));
        self.redelivered += usize::from(delivery_count > 1);
    }

    pub(super) fn remove(&mut self, sequence: Sequence) -> Option<Row> {
        let row = self.rows.remove(&sequence)?;
        self.forget(sequence, &row);
        Some(row)
    }

    /// The rows from `first` to `last`, both included.
    pub(super) fn within(&self, first: Sequence, last: Sequence) -> Vec<Sequence> {
        if first > last {
            return Vec::new();
        }
        self.rows.range(first..=last).map(|(sequence, _)| *sequence).collect()
    }

    fn forget(&mut self, sequence: Sequence, row: &Row) {
        match row.ticket {
            Some(ticket) => {
                assert_eq!(self.queue.remove(&ticket), Some(sequence), "a queued row has a ticket")
            }
            None => assert!(self.due.remove(&(row.due, sequence)), "a waiting row has a deadline"),
        }
        self.redelivered -= usize::from(row.delivery_count > 1);
    }

    /// Delivered again: it waits anew.
    pub(super) fn redelivered_again(&mut self, sequence: Sequence, delivery_count: u64, due: Timestamp) {
        if let Some(row) = self.rows.get(&sequence) {
            let consumer = row.consumer;
            self.insert(sequence, consumer, delivery_count, due);
        }
    }

    /// Not before `due`, queued or not.
    pub(super) fn postpone(&mut self, sequence: Sequence, due: Timestamp) -> bool {
        let Some(row) = self.rows.get(&sequence) else { return false };
        let (consumer, delivery_count) = (row.consumer, row.delivery_count);
        self.insert(sequence, consumer, delivery_count, due);
        true
    }

    /// Again as soon as somebody takes it, after those queued before.
    pub(super) fn queue(&mut self, sequence: Sequence) {
        if let Some(row) = self.rows.get_mut(&sequence)
            && row.ticket.is_none()
        {
            row.ticket = Some(self.next_ticket);
            self.due.remove(&(row.due, sequence));
            self.queue.insert(self.next_ticket, sequence);
            self.next_ticket += 1;
        }
    }

    /// A delivery did not arrive: it does not count, and is made again at once.
    pub(super) fn take_back(&mut self, sequence: Sequence) {
        if let Some(row) = self.rows.get_mut(&sequence) {
            if row.delivery_count == 2 {
                self.redelivered -= 1;
            }
            row.delivery_count = row.delivery_count.saturating_sub(1).max(1);
            self.queue(sequence);
        }
    }

    /// The next to deliver again.
    pub(super) fn next_queued(&self) -> Option<Sequence> {
        self.queue.first_key_value().map(|(_, sequence)| *sequence)
    }

    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(due, _)| *due)
    }

    /// The latest moment at which an ack is still awaited.
    pub(super) fn last_due(&self) -> Option<Timestamp> {
        self.due.last().map(|(due, _)| *due)
    }

    /// Those whose ack wait has ended, in stream order. They keep waiting until told otherwise.
    pub(super) fn overdue(&self, now: Timestamp) -> Vec<Sequence> {
        let mut overdue: Vec<_> =
            self.due.iter().take_while(|(due, _)| *due <= now).map(|(_, sequence)| *sequence).collect();
        overdue.sort_unstable();
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Timestamp {
        Timestamp(nanos)
    }

    fn three() -> PendingSet {
        let mut pending = PendingSet::default();
        for n in 1..=3 {
            pending.insert(Sequence(n), n, 1, at(100 + n));
        }
        pending
    }

    #[test]
    fn a_queued_message_has_no_deadline() {
        let mut pending = three();
        pending.queue(Sequence(1));
        assert_eq!(pending.next_due(), Some(at(102)));
        assert_eq!(pending.next_queued(), Some(Sequence(1)));
        assert_eq!(pending.overdue(at(200)), [Sequence(2), Sequence(3)]);
    }

    #[test]
    fn a_message_queued_twice_is_queued_once() {
        let mut pending = three();
        pending.queue(Sequence(2));
        pending.queue(Sequence(1));
        pending.queue(Sequence(2));
        assert_eq!(pending.queued(), 2);
        assert_eq!(pending.next_queued(), Some(Sequence(2)));
    }

    #[test]
    fn a_postponed_message_leaves_the_queue() {
        let mut pending = three();
        pending.queue(Sequence(2));
        assert!(pending.postpone(Sequence(2), at(500)));
        assert_eq!(pending.queued(), 0);
        assert_eq!(pending.last_due(), Some(at(500)));
    }

    #[test]
    fn what_is_removed_leaves_nothing_behind() {
        let mut pending = three();
        pending.queue(Sequence(2));
        pending.redelivered_again(Sequence(3), 2, at(300));
        for n in 1..=3 {
            pending.remove(Sequence(n));
        }
        assert_eq!(pending.len(), 0);
        assert_eq!((pending.queued(), pending.next_due(), pending.redelivered()), (0, None, 0));
    }

    #[test]
    fn a_delivery_taken_back_does_not_count() {
        let mut pending = three();
        pending.redelivered_again(Sequence(1), 2, at(300));
        assert_eq!(pending.redelivered(), 1);
        pending.take_back(Sequence(1));
        assert_eq!(pending.redelivered(), 0);
        assert_eq!(pending.get(Sequence(1)).map(|row| row.delivery_count), Some(1));
    }
}
