//! Defaults, refusals and their texts, as nats-server 2.15.1 answered when it was asked the same.

use beamlog_log::{Sequence, Timestamp};

use super::scene::{SECOND, explicit, push_to};
use crate::api::error::{ApiError, ConsumerConfigError as Wrong};
use crate::consumer::{
    AckPolicy, Consumer, ConsumerConfig, DeliverPolicy, PullLimits, PushConfig, ReplayPolicy,
};
use crate::stream::{ConsumerLimits, Retention, StreamConfig};

fn stream() -> StreamConfig {
    StreamConfig {
        name: "S".to_owned(),
        subjects: vec!["a.>".to_owned(), "b.*".to_owned()],
        replicas: 1,
        ..StreamConfig::default()
    }
}

fn work_queue() -> StreamConfig {
    StreamConfig { retention: Retention::WorkQueue, ..stream() }
}

fn filtered(filters: &[&str]) -> ConsumerConfig {
    ConsumerConfig { filter_subjects: filters.iter().map(|f| (*f).to_owned()).collect(), ..explicit() }
}

fn pushing(push: PushConfig) -> ConsumerConfig {
    ConsumerConfig { push: Some(push), ..explicit() }
}

fn validate_among(
    config: &ConsumerConfig,
    stream: &StreamConfig,
    others: &[ConsumerConfig],
) -> Result<ConsumerConfig, ApiError> {
    let mut config = config.clone();
    Consumer::validate(&mut config, stream, &mut others.iter())?;
    Ok(config)
}

fn refused(config: ConsumerConfig) -> Wrong {
    match validate_among(&config, &stream(), &[]) {
        Err(ApiError::ConsumerConfigInvalid(wrong)) => wrong,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pull_consumer_has_the_defaults_of_nats_server() {
    let config = validate_among(&explicit(), &stream(), &[]).unwrap();
    assert_eq!(config.ack_wait_nanos, Some(30 * SECOND));
    assert_eq!(config.max_ack_pending, Some(1000));
    assert_eq!(config.pull.max_waiting, Some(512));
    assert_eq!(config.max_deliver, None);
    assert_eq!(config.inactive_threshold_nanos, None);
}

#[test]
fn without_acks_there_is_neither_a_wait_nor_a_limit_for_them() {
    let config = ConsumerConfig { ack_policy: AckPolicy::None, ..explicit() };
    let config = validate_among(&config, &stream(), &[]).unwrap();
    assert_eq!((config.ack_wait_nanos, config.max_ack_pending), (None, None));
}

#[test]
fn an_ephemeral_consumer_has_a_threshold_and_a_push_consumer_no_queue() {
    let ephemeral = ConsumerConfig { durable: false, ..explicit() };
    let config = validate_among(&ephemeral, &stream(), &[]).unwrap();
    assert_eq!(config.inactive_threshold_nanos, Some(5 * SECOND));
    let config = validate_among(&pushing(push_to("d")), &stream(), &[]).unwrap();
    assert_eq!(config.pull.max_waiting, None);
}

#[test]
fn the_first_backoff_is_the_ack_wait() {
    let config = ConsumerConfig {
        ack_wait_nanos: Some(5),
        backoff_nanos: vec![SECOND, 2 * SECOND],
        max_deliver: Some(2),
        ..explicit()
    };
    assert_eq!(validate_among(&config, &stream(), &[]).unwrap().ack_wait_nanos, Some(SECOND));
}

#[test]
fn the_limits_of_the_stream_are_defaults_and_bounds() {
    let limits = ConsumerLimits { inactive_threshold_nanos: Some(2 * SECOND), max_ack_pending: Some(10) };
    let stream = StreamConfig { consumer_limits: limits, ..stream() };
    let config = validate_among(&explicit(), &stream, &[]).unwrap();
    assert_eq!(config.max_ack_pending, Some(10));
    assert_eq!(config.inactive_threshold_nanos, Some(2 * SECOND));
    for (config, expected) in [
        (ConsumerConfig { max_ack_pending: Some(11), ..explicit() }, Wrong::MaxAckPendingExcess { max: 10 }),
        (
            ConsumerConfig { inactive_threshold_nanos: Some(3 * SECOND), ..explicit() },
            Wrong::InactiveThresholdExcess { max_nanos: 2 * SECOND },
        ),
    ] {
        let refused = validate_among(&config, &stream, &[]);
        assert_eq!(refused, Err(ApiError::ConsumerConfigInvalid(expected)));
    }
}

#[test]
fn each_wrong_configuration_has_its_own_refusal() {
    let none = |config: ConsumerConfig| ConsumerConfig { ack_policy: AckPolicy::None, ..config };
    let policy = |text: &str| Wrong::InvalidPolicy(text.to_owned());
    let heartbeat = |nanos| PushConfig { idle_heartbeat_nanos: Some(nanos), ..push_to("d") };
    for (config, expected) in [
        (pushing(push_to("q.*")), Wrong::DeliverToWildcards),
        (pushing(push_to("q..x")), Wrong::InvalidDeliverSubject),
        (pushing(push_to("a.1")), Wrong::DeliverCycle),
        (
            ConsumerConfig {
                pull: PullLimits { max_waiting: Some(3), ..PullLimits::default() },
                ..pushing(push_to("d"))
            },
            Wrong::PushMaxWaiting,
        ),
        (
            none(ConsumerConfig { max_ack_pending: Some(5), ..pushing(push_to("d")) }),
            Wrong::MaxAckPendingNeedsAckPolicy,
        ),
        (pushing(heartbeat(SECOND / 20)), Wrong::SmallHeartbeat),
        (pushing(PushConfig { flow_control: true, ..push_to("d") }), Wrong::FlowControlNeedsHeartbeats),
        (
            ConsumerConfig {
                pull: PullLimits { max_request_expires_nanos: Some(999_999), ..PullLimits::default() },
                ..explicit()
            },
            Wrong::MaxRequestExpiresTooSmall,
        ),
        (ConsumerConfig { direct: true, ..explicit() }, Wrong::DirectRequiresPush),
        (ConsumerConfig { direct: true, ..pushing(push_to("d")) }, Wrong::DirectRequiresEphemeral),
        (filtered(&["a.1", "a.*"]), Wrong::OverlappingFilters),
        (filtered(&["a.1", "a.1"]), Wrong::OverlappingFilters),
        (filtered(&["a.1", ""]), Wrong::EmptyFilter),
        (
            ConsumerConfig { deliver_policy: DeliverPolicy::LastPerSubject, ..explicit() },
            policy(
                "consumer delivery policy is deliver last per subject, but optional filter subject is not set",
            ),
        ),
        (
            ConsumerConfig { deliver_policy: DeliverPolicy::ByStartSequence(Sequence(0)), ..explicit() },
            policy(
                "consumer delivery policy is deliver by start sequence, but optional start sequence is not set",
            ),
        ),
        (
            ConsumerConfig { backoff_nanos: vec![1, 2], max_deliver: Some(1), ..explicit() },
            Wrong::MaxDeliverBackoff,
        ),
        (
            ConsumerConfig { sample_frequency: "many".to_owned(), ..explicit() },
            Wrong::InvalidSampling("strconv.Atoi: parsing \"many\": invalid syntax".to_owned()),
        ),
        (ConsumerConfig { name: "x".repeat(256), ..explicit() }, Wrong::NameTooLong { max: 255 }),
        (ConsumerConfig { name: "a.b".to_owned(), ..explicit() }, Wrong::BadDurableName),
        (
            ConsumerConfig { description: "x".repeat(4097), ..explicit() },
            Wrong::DescriptionTooLong { max: 4096 },
        ),
        (
            ConsumerConfig { metadata: [("k".to_owned(), "x".repeat(128 * 1024))].into(), ..explicit() },
            Wrong::MetadataTooLong { max: 128 * 1024 },
        ),
        (ConsumerConfig { replicas: 3, ..explicit() }, Wrong::ReplicasExceedStream),
    ] {
        let told = format!("{config:?}");
        assert_eq!(refused(config), expected, "{told}");
    }
}

#[test]
fn a_filter_that_is_no_subject_is_invalid() {
    let refused = validate_among(&filtered(&["a..1"]), &stream(), &[]);
    assert_eq!(refused, Err(ApiError::StreamConfigInvalid("invalid subject".to_owned())));
}

#[test]
fn a_filter_outside_the_stream_is_accepted_and_matches_nothing() {
    // Observed: nats-server gave up 10093 when the subjects of a stream became changeable.
    assert!(validate_among(&filtered(&["zzz"]), &stream(), &[]).is_ok());
}

#[test]
fn a_work_queue_takes_explicit_acks_from_the_start_and_one_consumer_for_each_subject() {
    let one = [ConsumerConfig { name: "one".to_owned(), ..filtered(&["a.x.*"]) }];
    let all = [ConsumerConfig { name: "one".to_owned(), ..explicit() }];
    let none: [ConsumerConfig; 0] = [];
    let with = |ack_policy| ConsumerConfig { ack_policy, ..explicit() };
    for (config, others, expected) in [
        (with(AckPolicy::None), &none[..], Some(Wrong::PullRequiresAck)),
        (with(AckPolicy::All), &none, Some(Wrong::WorkQueueRequiresExplicitAck)),
        (
            ConsumerConfig { deliver_policy: DeliverPolicy::New, ..explicit() },
            &none,
            Some(Wrong::WorkQueueNotDeliverAll),
        ),
        (explicit(), &none, None),
        (explicit(), &one, Some(Wrong::WorkQueueMultipleUnfiltered)),
        (filtered(&["a.>"]), &one, Some(Wrong::WorkQueueNotUnique)),
        (filtered(&["a.*.b"]), &one, Some(Wrong::WorkQueueNotUnique)),
        (filtered(&["a.y.*"]), &one, None),
        (filtered(&["a.y.*"]), &all, Some(Wrong::WorkQueueNotUnique)),
        (ConsumerConfig { name: "one".to_owned(), ..filtered(&["a.>"]) }, &one, None),
    ] {
        let told = format!("{:?} {:?}", config.filter_subjects, config.ack_policy);
        let got = validate_among(&config, &work_queue(), others).err();
        assert_eq!(got, expected.map(ApiError::ConsumerConfigInvalid), "{told}");
    }
}

#[test]
fn what_defines_a_consumer_can_not_be_updated() {
    let refused = |old: &ConsumerConfig, new: &ConsumerConfig| {
        let old = validate_among(old, &stream(), &[]).unwrap();
        let new = validate_among(new, &stream(), &[]).unwrap();
        crate::consumer::validate::validate_update(&old, &new, true).err().map(|error| error.to_string())
    };
    let push = pushing(push_to("d"));
    let by_sequence =
        |n| ConsumerConfig { deliver_policy: DeliverPolicy::ByStartSequence(Sequence(n)), ..explicit() };
    let by_time =
        |n| ConsumerConfig { deliver_policy: DeliverPolicy::ByStartTime(Timestamp(n)), ..explicit() };
    for (old, new, expected) in [
        (explicit(), by_sequence(2), "deliver policy can not be updated"),
        (by_sequence(1), by_sequence(2), "start sequence can not be updated"),
        (by_time(1), by_time(2), "start time can not be updated"),
        (
            explicit(),
            ConsumerConfig { ack_policy: AckPolicy::None, ..explicit() },
            "ack policy can not be updated",
        ),
        (
            explicit(),
            ConsumerConfig { replay_policy: ReplayPolicy::Original, ..explicit() },
            "replay policy can not be updated",
        ),
        (
            explicit(),
            ConsumerConfig { memory_storage: true, ..explicit() },
            "storage type can not be updated",
        ),
        (
            push.clone(),
            pushing(PushConfig { idle_heartbeat_nanos: Some(SECOND), ..push_to("d") }),
            "heart beats can not be updated",
        ),
        (explicit(), push.clone(), "can not update pull consumer to push based"),
        (push.clone(), explicit(), "can not update push consumer to pull based"),
        (push, pushing(push_to("e")), "consumer name already in use"),
        (
            explicit(),
            ConsumerConfig {
                pull: PullLimits { max_waiting: Some(3), ..PullLimits::default() },
                ..explicit()
            },
            "max waiting can not be updated",
        ),
    ] {
        assert_eq!(refused(&old, &new).as_deref(), Some(expected));
    }
}

#[test]
fn the_rest_can_be_updated() {
    let old = validate_among(&explicit(), &stream(), &[]).unwrap();
    let new = ConsumerConfig {
        description: "new".to_owned(),
        ack_wait_nanos: Some(SECOND),
        max_deliver: Some(7),
        backoff_nanos: vec![1, 2],
        filter_subjects: vec!["a.1".to_owned()],
        sample_frequency: "50%".to_owned(),
        max_ack_pending: Some(5),
        headers_only: true,
        inactive_threshold_nanos: Some(SECOND),
        ..explicit()
    };
    let new = validate_among(&new, &stream(), &[]).unwrap();
    assert_eq!(crate::consumer::validate::validate_update(&old, &new, true), Ok(()));
}
