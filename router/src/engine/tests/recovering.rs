//! Live state, replayed state and restored state are one (promise 3), after any history.

use beamlog_log::SeededRandom;

use super::*;
use crate::api::request::{AckKind, AckTarget, ConsumerAction, PullRequest, Purge};
use crate::consumer::{AckPolicy, ConsumerConfig};
use crate::driver::command::{Acknowledgement, Pull};
use crate::engine::rows;
use crate::stream::{ORIGIN_HEADER, Provenance, Retention};

struct History {
    shard: Shard,
    random: SeededRandom,
    next_id: u64,
}

impl History {
    fn new(seed: u64) -> Self {
        Self { shard: Shard::new(), random: SeededRandom::new(seed), next_id: 0 }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random.below(end)
    }

    fn config(&mut self) -> StreamConfig {
        let mut config = StreamConfig {
            allow_rollup_headers: true,
            allow_message_ttl: self.below(2) == 0,
            allow_atomic: self.below(2) == 0,
            retention: [Retention::Limits, Retention::Interest, Retention::WorkQueue]
                [usize::try_from(self.below(3)).unwrap()],
            ..s()
        };
        if self.below(2) == 0 {
            config.max_messages = Some(1 + self.below(30));
        }
        if self.below(3) == 0 {
            config.max_messages_per_subject = Some(1 + self.below(4));
        }
        if self.below(3) == 0 {
            config.max_age_nanos = Some(5 * SECOND);
            config.duplicate_window_nanos = Some(3 * SECOND);
        }
        config
    }

    fn subject(&mut self) -> String {
        format!("s.{}", self.below(6))
    }

    fn step(&mut self) {
        match self.below(20) {
            0 => {
                let config = self.config();
                drop(self.shard.create(config));
            }
            1 if self.below(8) == 0 => {
                drop(self.shard.request(Request::DeleteStream { stream: "S".into() }));
            }
            2 => {
                let purge = Purge {
                    filter: if self.below(2) == 0 { String::new() } else { self.subject() },
                    before: (self.below(3) == 0).then(|| Sequence(self.below(60))),
                    keep: None,
                };
                drop(self.shard.request(Request::PurgeStream { stream: "S".into(), purge }));
            }
            3 => {
                let sequence = Sequence(self.below(80));
                let request = Request::DeleteMessage { stream: "S".into(), sequence, erase: true };
                drop(self.shard.request(request));
            }
            4 => self.shard.pass(SECOND),
            5 => {
                let config = ConsumerConfig {
                    name: format!("C{}", self.below(3)),
                    durable: true,
                    ack_policy: AckPolicy::Explicit,
                    filter_subjects: if self.below(2) == 0 { vec![self.subject()] } else { Vec::new() },
                    ..ConsumerConfig::default()
                };
                let action = ConsumerAction::CreateOrUpdate;
                let config = Box::new(config);
                drop(self.shard.request(Request::CreateConsumer { stream: "S".into(), config, action }));
            }
            6 => {
                let consumer = format!("C{}", self.below(3));
                drop(self.shard.request(Request::DeleteConsumer { stream: "S".into(), consumer }));
            }
            7 | 8 => {
                let consumer = format!("C{}", self.below(3));
                let batch = 1 + u32::try_from(self.below(5)).unwrap();
                let request = PullRequest { batch, no_wait: true, ..PullRequest::default() };
                let pull = Pull { stream: "S".into(), consumer, request, reply: "inbox".into() };
                self.shard.input(Input::Pull(pull));
                self.shard.work();
            }
            9 | 10 => self.ack(),
            11 => self.publish_batch(),
            _ => self.publish(),
        }
    }

    fn publish(&mut self) {
        let subject = self.subject();
        let mut headers = Vec::new();
        let id = if self.below(4) == 0 {
            self.next_id.saturating_sub(1)
        } else {
            self.next_id += 1;
            self.next_id
        };
        let id = format!("id-{id}");
        if self.below(2) == 0 {
            headers.push(("Nats-Msg-Id", id.as_str()));
        }
        match self.below(12) {
            0 => headers.push(("Nats-Rollup", "sub")),
            1 => headers.push(("Nats-Rollup", "all")),
            2 => headers.push(("Nats-TTL", "2")),
            _ => {}
        }
        let origin = self.origin();
        if self.below(3) == 0 {
            headers.push((ORIGIN_HEADER, origin.as_str()));
        }
        drop(self.shard.publish_with(&subject, &headers));
    }

    /// Some of its messages may be refused, and all with them.
    fn publish_batch(&mut self) {
        let end = 1 + self.below(4);
        for number in 1..=end {
            let (subject, number_text) = (self.subject(), number.to_string());
            let id = format!("id-{}", self.next_id + self.below(2));
            let mut headers = vec![("Nats-Batch-Id", "b"), ("Nats-Batch-Sequence", number_text.as_str())];
            if number == end {
                headers.push(("Nats-Batch-Commit", "1"));
            }
            if self.below(4) == 0 {
                headers.push(("Nats-Msg-Id", id.as_str()));
            }
            drop(self.shard.publish_with(&subject, &headers));
        }
    }

    /// Of one of two streams elsewhere, somewhere near the last; of one of them with its own sequence.
    fn origin(&mut self) -> String {
        let last = self.shard.engine.stream("S").map_or(0, |stream| stream.body.last.0);
        let (stream, keep_sequence) = [("A", false), ("B", true)][usize::from(self.below(2) == 0)];
        let sequence = Sequence((last + self.below(9)).saturating_sub(5).max(1));
        let epoch = self.below(2);
        Provenance {
            stream: stream.into(),
            epoch,
            sequence,
            time: self.shard.now,
            keep_sequence,
            after: None,
        }
        .to_header()
    }

    fn ack(&mut self) {
        let at = self.shard.outputs.iter().position(|output| matches!(output, Output::Deliver { .. }));
        let Some(at) = at else { return };
        let Output::Deliver { names, delivery, .. } = self.shard.outputs.remove(at) else { unreachable!() };
        let target = AckTarget {
            stream: names.stream.clone(),
            consumer: names.consumer.clone(),
            delivery_count: delivery.delivery_count,
            stream_sequence: delivery.message.sequence,
            consumer_sequence: delivery.consumer_sequence,
        };
        let kind = match self.below(4) {
            0 => AckKind::Nak { delay_nanos: None },
            1 => AckKind::Terminate { reason: String::new() },
            _ => AckKind::Ack,
        };
        self.shard.input(Input::Acknowledge(Acknowledgement { target, kind, reply: None }));
    }
}

#[test]
fn any_history_recovers_to_the_state_it_left() {
    for seed in 0..60 {
        let mut history = History::new(seed);
        let config = history.config();
        history.shard.create(config).unwrap();
        for at in 0..400 {
            history.step();
            if at % 57 == 0 {
                history.shard.work();
                let live = history.shard.state();
                assert_eq!(history.shard.recovered().state(), live, "replayed, seed {seed} step {at}");
                assert_eq!(history.shard.restored().state(), live, "restored, seed {seed} step {at}");
            }
        }
    }
}

#[test]
fn a_checkpoint_kept_up_to_date_by_differences_is_the_state() {
    let mut history = History::new(7);
    history.shard.create(s()).unwrap();
    let mut rows: std::collections::BTreeMap<Vec<u8>, Vec<u8>> = std::collections::BTreeMap::new();
    for at in 0..600 {
        history.step();
        if at % 41 != 0 {
            continue;
        }
        history.shard.work();
        history.shard.input(Input::Flush);
        let changes = history.shard.engine.take_changes();
        for key in changes.deletes {
            rows.remove(&key);
        }
        rows.extend(changes.puts);
        let mut recovering = Recovering::new(limits());
        for value in rows.values() {
            for row in rows::split(value).unwrap() {
                recovering.row(row).unwrap();
            }
        }
        let memory = history.shard.journal.memory.clone();
        let mut journal = TestJournal { memory, ..TestJournal::default() };
        let engine = recovering.finish(&mut journal, history.shard.now).unwrap();
        let mut restored = Shard { engine, journal, now: history.shard.now, outputs: Vec::new() };
        restored.drain();
        assert_eq!(restored.state(), history.shard.state(), "step {at}");
    }
}

#[test]
fn a_gap_in_the_messages_is_not_accepted() {
    let mut shard = Shard::with(s());
    shard.publish("s.a", "1").unwrap();
    shard.publish("s.a", "2").unwrap();
    let mut recovering = Recovering::new(limits());
    let mut replayed = Ok(());
    for pushed in shard.journal.memory.pushed() {
        replayed = match pushed {
            Pushed::Message(message) if message.sequence == Sequence(1) => Ok(()),
            Pushed::Message(message) => recovering.message(message),
            Pushed::Control(bytes) => recovering.control(bytes),
        };
    }
    assert!(replayed.unwrap_err().to_string().contains("does not follow"));
}

#[test]
fn bytes_that_are_no_record_are_refused() {
    let mut recovering = Recovering::new(limits());
    assert!(recovering.control(b"").is_err());
    assert!(recovering.row(&[1, 2, 3]).is_err());
    assert!(rows::split(&[9, 0, 0, 0, 1]).is_none());
}
