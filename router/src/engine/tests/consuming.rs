//! Consumers as their stream drives them: delivery, acks that let messages go, interest, deletion.

use super::*;
use crate::api::request::{AckKind, AckTarget, ConsumerAction, PullRequest};
use crate::consumer::{AckPolicy, ConsumerConfig, PushConfig};
use crate::driver::command::{Acknowledgement, Pull};
use crate::stream::Retention;
use crate::wire::DeliveryStatus;

pub(super) fn durable(name: &str) -> ConsumerConfig {
    ConsumerConfig {
        name: name.into(),
        durable: true,
        ack_policy: AckPolicy::Explicit,
        ..ConsumerConfig::default()
    }
}

fn filtered(name: &str, filter: &str) -> ConsumerConfig {
    ConsumerConfig { filter_subjects: vec![filter.into()], ..durable(name) }
}

impl Shard {
    pub(super) fn consumer(&mut self, config: ConsumerConfig) -> Result<(), ApiError> {
        let action = ConsumerAction::CreateOrUpdate;
        let config = Box::new(config);
        self.request(Request::CreateConsumer { stream: "S".into(), config, action }).map(|_| ())
    }

    pub(super) fn pull(&mut self, consumer: &str, batch: u32) {
        self.input(Input::Pull(Pull {
            stream: "S".into(),
            consumer: consumer.into(),
            request: PullRequest { batch, ..PullRequest::default() },
            reply: "inbox".into(),
        }));
        self.work();
    }

    /// The stream sequences delivered since the last call.
    pub(super) fn delivered(&mut self) -> Vec<u64> {
        let mut delivered = Vec::new();
        self.outputs.retain(|output| match output {
            Output::Deliver { delivery, .. } => {
                delivered.push(delivery.message.sequence.0);
                false
            }
            _ => true,
        });
        delivered
    }

    pub(super) fn ack(&mut self, consumer: &str, sequence: u64, reply: Option<&'static str>) {
        self.input(Input::Acknowledge(Acknowledgement {
            target: AckTarget {
                stream: "S".into(),
                consumer: consumer.into(),
                delivery_count: 1,
                stream_sequence: Sequence(sequence),
                consumer_sequence: sequence,
            },
            kind: AckKind::Ack,
            reply: reply.map(Bytes::from),
        }));
        self.work();
    }
}

#[test]
fn a_pull_gets_what_is_there_and_what_comes() {
    let mut shard = Shard::with(s());
    shard.consumer(durable("C")).unwrap();
    shard.publish("s.a", "1").unwrap();
    shard.pull("C", 3);
    assert_eq!(shard.delivered(), [1]);
    shard.publish("s.a", "2").unwrap();
    shard.publish("s.a", "3").unwrap();
    shard.publish("s.a", "4").unwrap();
    shard.work();
    assert_eq!(shard.delivered(), [2, 3]);
    shard.check_recovery();
}

#[test]
fn a_plain_ack_waits_for_nobody_and_an_ack_with_reply_for_the_log() {
    let mut shard = Shard::with(s());
    shard.consumer(durable("C")).unwrap();
    shard.publish("s.a", "1").unwrap();
    shard.publish("s.a", "2").unwrap();
    shard.pull("C", 2);
    shard.engine.take_commit_wanted();
    shard.ack("C", 1, None);
    assert!(!shard.engine.take_commit_wanted());
    assert!(shard.engine.has_unlogged());
    shard.ack("C", 2, Some("reply"));
    assert!(shard.engine.take_commit_wanted());
    assert!(shard.outputs.iter().any(|output| matches!(output, Output::AckReply { to } if to == "reply")));
    shard.check_recovery();
}

#[test]
fn a_work_queue_lets_a_message_go_when_it_is_acked() {
    let mut shard = Shard::with(StreamConfig { retention: Retention::WorkQueue, ..s() });
    shard.consumer(filtered("A", "s.a")).unwrap();
    shard.consumer(filtered("B", "s.b")).unwrap();
    for subject in ["s.a", "s.b", "s.c"] {
        shard.publish(subject, "x").unwrap();
    }
    shard.pull("A", 1);
    shard.pull("B", 1);
    assert_eq!(shard.delivered(), [1, 2]);
    shard.ack("A", 1, None);
    assert_eq!(shard.living(), [2, 3]);
    shard.check_recovery();
    shard.ack("B", 2, None);
    assert_eq!(shard.living(), [3]);
    shard.check_recovery();
}

#[test]
fn interest_keeps_a_message_until_everybody_acked() {
    let mut shard = Shard::with(StreamConfig { retention: Retention::Interest, ..s() });
    shard.consumer(durable("ALL")).unwrap();
    shard.consumer(filtered("A", "s.a")).unwrap();
    shard.publish("s.a", "1").unwrap();
    shard.publish("s.b", "2").unwrap();
    shard.pull("ALL", 2);
    shard.pull("A", 1);
    shard.ack("ALL", 1, None);
    shard.ack("ALL", 2, None);
    assert_eq!(shard.living(), [1]);
    shard.check_recovery();
    shard.ack("A", 1, None);
    assert!(shard.living().is_empty());
    shard.check_recovery();
}

#[test]
fn what_nobody_is_interested_in_is_acked_and_not_stored() {
    let mut shard = Shard::with(StreamConfig { retention: Retention::Interest, ..s() });
    assert_eq!(shard.publish("s.a", "1"), stored(1));
    assert_eq!(shard.info().state.messages, 0);
    shard.consumer(filtered("B", "s.b")).unwrap();
    assert_eq!(shard.publish("s.b", "2"), stored(2));
    assert_eq!(shard.publish("s.a", "3"), stored(3));
    assert_eq!(shard.publish("s.b", "4"), stored(4));
    assert_eq!(shard.living(), [2, 4]);
    shard.check_recovery();
}

#[test]
fn a_deleted_consumer_takes_its_interest_along() {
    let mut shard = Shard::with(StreamConfig { retention: Retention::Interest, ..s() });
    shard.consumer(durable("ALL")).unwrap();
    shard.consumer(filtered("A", "s.a")).unwrap();
    shard.publish("s.a", "1").unwrap();
    shard.publish("s.b", "2").unwrap();
    let delete = |name: &str| Request::DeleteConsumer { stream: "S".into(), consumer: name.into() };
    shard.request(delete("ALL")).unwrap();
    shard.work();
    assert_eq!(shard.living(), [1]);
    shard.check_recovery();
    shard.request(delete("A")).unwrap();
    shard.work();
    assert!(shard.living().is_empty());
    assert_eq!(shard.request(delete("A")), Err(ApiError::ConsumerNotFound));
    shard.check_recovery();
}

#[test]
fn a_deleted_stream_tells_those_who_pull() {
    let mut shard = Shard::with(s());
    shard.consumer(durable("C")).unwrap();
    shard.pull("C", 1);
    shard.request(Request::DeleteStream { stream: "S".into() }).unwrap();
    let told = shard
        .outputs
        .iter()
        .any(|output| matches!(output, Output::Status { status: DeliveryStatus::ConsumerDeleted, .. }));
    assert!(told);
}

#[test]
fn a_push_consumer_delivers_while_somebody_listens() {
    let mut shard = Shard::with(s());
    let push = PushConfig { deliver_subject: "to.me".into(), ..PushConfig::default() };
    let config = ConsumerConfig { push: Some(push), ..durable("P") };
    shard.consumer(config).unwrap();
    assert!(
        shard
            .outputs
            .iter()
            .any(|output| matches!(output, Output::Watch { subject, .. } if subject == "to.me"))
    );
    shard.publish("s.a", "1").unwrap();
    shard.work();
    assert!(shard.delivered().is_empty());
    shard.input(Input::Interest { subject: "to.me".into(), group: Bytes::new(), present: true });
    shard.work();
    assert_eq!(shard.delivered(), [1]);
    shard.input(Input::Interest { subject: "to.me".into(), group: Bytes::new(), present: false });
    shard.publish("s.a", "2").unwrap();
    shard.work();
    assert!(shard.delivered().is_empty());
    shard.request(Request::DeleteConsumer { stream: "S".into(), consumer: "P".into() }).unwrap();
    assert!(shard.outputs.iter().any(|output| matches!(output, Output::Unwatch { .. })));
}

#[test]
fn a_delivery_that_nobody_took_comes_again() {
    let mut shard = Shard::with(s());
    shard.consumer(durable("C")).unwrap();
    shard.publish("s.a", "1").unwrap();
    shard.pull("C", 1);
    assert_eq!(shard.delivered(), [1]);
    let consumer = *shard.engine.streams[&StreamId(1)].by_name.get("C").unwrap();
    shard.input(Input::Undeliverable {
        stream: StreamId(1),
        consumer,
        to: "inbox".into(),
        sequence: Sequence(1),
    });
    shard.pull("C", 1);
    assert_eq!(shard.delivered(), [1]);
}

#[test]
fn a_long_replay_leaves_room_for_others() {
    let mut shard = Shard::with(s());
    for _ in 0..1000 {
        shard.publish("s.a", "x").unwrap();
    }
    shard.consumer(ConsumerConfig { max_ack_pending: Some(10_000), ..durable("C") }).unwrap();
    shard.consumer(ConsumerConfig { max_ack_pending: Some(10_000), ..durable("D") }).unwrap();
    for consumer in ["C", "D"] {
        shard.input(Input::Pull(Pull {
            stream: "S".into(),
            consumer: consumer.into(),
            request: PullRequest { batch: 1000, ..PullRequest::default() },
            reply: "inbox".into(),
        }));
    }
    shard.delivered();
    shard.input(Input::Work { budget: 600 });
    let mut by_consumer = std::collections::BTreeMap::new();
    for output in &shard.outputs {
        if let Output::Deliver { names, .. } = output {
            *by_consumer.entry(names.consumer.clone()).or_insert(0) += 1;
        }
    }
    assert!(by_consumer.values().all(|count| *count >= 256), "{by_consumer:?}");
    assert!(by_consumer.values().sum::<i32>() <= 600);
    assert!(shard.engine.has_work());
    shard.work();
    assert_eq!(shard.delivered().len(), 2000);
}

#[test]
fn consumers_are_listed_found_and_limited() {
    let mut shard = Shard::with(StreamConfig { max_consumers: Some(2), ..s() });
    shard.consumer(durable("B")).unwrap();
    shard.consumer(durable("A")).unwrap();
    assert_eq!(shard.consumer(durable("C")), Err(ApiError::MaxConsumers));
    assert_eq!(shard.consumer(durable("A")), Ok(()));
    let names = shard.request(Request::ConsumerNames { stream: "S".into(), offset: 0 });
    assert!(matches!(names, Ok(Response::Names(page)) if page.items == ["A", "B"]));
    let info = |consumer: &str| Request::ConsumerInfo { stream: "S".into(), consumer: consumer.into() };
    assert!(matches!(shard.request(info("A")), Ok(Response::Consumer(info)) if info.config.name == "A"));
    assert_eq!(shard.request(info("X")), Err(ApiError::ConsumerNotFound));
    assert_eq!(shard.info().state.consumers_count, 2);
    let action = |action| {
        let config = Box::new(durable("NEW"));
        Request::CreateConsumer { stream: "S".into(), config, action }
    };
    assert_eq!(shard.request(action(ConsumerAction::Update)), Err(ApiError::ConsumerDoesNotExist));
}

#[test]
fn a_consumer_without_a_name_is_given_one() {
    let mut shard = Shard::with(s());
    let config = ConsumerConfig { ack_policy: AckPolicy::Explicit, ..ConsumerConfig::default() };
    shard.consumer(config.clone()).unwrap();
    shard.consumer(config).unwrap();
    assert_eq!(shard.info().state.consumers_count, 2);
}
