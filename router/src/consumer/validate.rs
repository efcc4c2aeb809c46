//! What a consumer may be: defaults, checks and texts as nats-server 2.15.1 has them (observed, and
//! held by the tests of this module), in its order, because the first complaint is the one a client sees.

use crate::api::error::{ApiError, ConsumerConfigError as Wrong};
use crate::consumer::{AckPolicy, ConsumerConfig, DeliverPolicy};
use crate::stream::{Retention, StreamConfig};
use crate::subject;

const ACK_WAIT_NANOS: u64 = 30_000_000_000;
const ACK_PENDING_MAX: u32 = 1000;
const WAITING_MAX: u32 = 512;
const INACTIVE_THRESHOLD_NANOS: u64 = 5_000_000_000;
const HEARTBEAT_NANOS_MIN: u64 = 100_000_000;
const EXPIRES_NANOS_MIN: u64 = 1_000_000;
const NAME_BYTES_MAX: usize = 255;
const DESCRIPTION_BYTES_MAX: usize = 4 * 1024;
const METADATA_BYTES_MAX: usize = 128 * 1024;

/// `max_ack_pending` of a consumer that may have any number.
pub(super) const ACK_PENDING_UNLIMITED: u32 = u32::MAX;

pub(super) fn validate(
    config: &mut ConsumerConfig,
    stream: &StreamConfig,
    others: &mut dyn Iterator<Item = &ConsumerConfig>,
) -> Result<(), ApiError> {
    fill_defaults(config, stream);
    check(config, stream).map_err(ApiError::ConsumerConfigInvalid)?;
    if config.filter_subjects.iter().any(String::is_empty) {
        return Err(ApiError::ConsumerConfigInvalid(Wrong::EmptyFilter));
    }
    if config.filter_subjects.iter().any(|filter| subject::check_filter(filter.as_bytes()).is_err()) {
        return Err(ApiError::StreamConfigInvalid("invalid subject".to_owned()));
    }
    check_overlap(config)
        .and_then(|()| check_start(config))
        .and_then(|()| check_rest(config))
        .and_then(|()| check_work_queue(config, stream, others))
        .map_err(ApiError::ConsumerConfigInvalid)
}

fn fill_defaults(config: &mut ConsumerConfig, stream: &StreamConfig) {
    let nonzero = |value: &mut Option<u64>| *value = value.filter(|value| *value > 0);
    nonzero(&mut config.ack_wait_nanos);
    nonzero(&mut config.inactive_threshold_nanos);
    nonzero(&mut config.pull.max_request_expires_nanos);
    config.max_deliver = config.max_deliver.filter(|max| *max > 0);
    config.max_ack_pending = config.max_ack_pending.filter(|max| *max > 0);
    config.pull.max_waiting = config.pull.max_waiting.filter(|max| *max > 0);
    config.pull.max_request_batch = config.pull.max_request_batch.filter(|max| *max > 0);
    config.pull.max_request_max_bytes = config.pull.max_request_max_bytes.filter(|max| *max > 0);
    if config.push.is_none() {
        config.pull.max_waiting.get_or_insert(WAITING_MAX);
    }
    if config.ack_policy != AckPolicy::None {
        config.ack_wait_nanos.get_or_insert(ACK_WAIT_NANOS);
    }
    if let Some(first) = config.backoff_nanos.first() {
        config.ack_wait_nanos = Some(*first);
    }
    if config.max_ack_pending.is_none() {
        config.max_ack_pending = stream.consumer_limits.max_ack_pending.filter(|max| *max > 0);
    }
    if config.inactive_threshold_nanos.is_none() {
        config.inactive_threshold_nanos =
            stream.consumer_limits.inactive_threshold_nanos.filter(|nanos| *nanos > 0);
    }
    if config.ack_policy != AckPolicy::None {
        config.max_ack_pending.get_or_insert(ACK_PENDING_MAX);
    }
    if !config.durable {
        config.inactive_threshold_nanos.get_or_insert(INACTIVE_THRESHOLD_NANOS);
    }
}

fn check(config: &ConsumerConfig, stream: &StreamConfig) -> Result<(), Wrong> {
    if config.name.len() > NAME_BYTES_MAX {
        return Err(Wrong::NameTooLong { max: NAME_BYTES_MAX });
    }
    let is_bad = |c: char| matches!(c, '.' | '*' | '>' | '/' | '\\') || c.is_ascii_whitespace();
    if config.name.contains(is_bad) {
        return Err(Wrong::BadDurableName);
    }
    if config.replicas > stream.replicas.max(1) {
        return Err(Wrong::ReplicasExceedStream);
    }
    if config.max_deliver.is_some_and(|max| config.backoff_nanos.len() > max as usize) {
        return Err(Wrong::MaxDeliverBackoff);
    }
    if config.description.len() > DESCRIPTION_BYTES_MAX {
        return Err(Wrong::DescriptionTooLong { max: DESCRIPTION_BYTES_MAX });
    }
    match &config.push {
        Some(_) => check_push(config, stream)?,
        None => check_pull(config, stream)?,
    }
    let limits = &stream.consumer_limits;
    if let (Some(limit), Some(max)) = (limits.max_ack_pending, config.max_ack_pending)
        && limit > 0
        && max != ACK_PENDING_UNLIMITED
        && max > limit
    {
        return Err(Wrong::MaxAckPendingExcess { max: limit });
    }
    if let (Some(limit), Some(threshold)) = (limits.inactive_threshold_nanos, config.inactive_threshold_nanos)
        && limit > 0
        && threshold > limit
    {
        return Err(Wrong::InactiveThresholdExcess { max_nanos: limit });
    }
    if config.direct && config.push.is_none() {
        return Err(Wrong::DirectRequiresPush);
    }
    if config.direct && config.durable {
        return Err(Wrong::DirectRequiresEphemeral);
    }
    Ok(())
}

fn check_push(config: &ConsumerConfig, stream: &StreamConfig) -> Result<(), Wrong> {
    let Some(push) = &config.push else { return Ok(()) };
    let deliver = push.deliver_subject.as_bytes();
    if !subject::is_literal(deliver) {
        return Err(Wrong::DeliverToWildcards);
    }
    if subject::check_subject(deliver).is_err() {
        return Err(Wrong::InvalidDeliverSubject);
    }
    if stream.subjects.iter().any(|captured| subject::is_subset(deliver, captured.as_bytes())) {
        return Err(Wrong::DeliverCycle);
    }
    if config.pull.max_waiting.is_some() {
        return Err(Wrong::PushMaxWaiting);
    }
    if config.ack_policy == AckPolicy::None
        && config.max_ack_pending.is_some_and(|max| max != ACK_PENDING_UNLIMITED)
    {
        return Err(Wrong::MaxAckPendingNeedsAckPolicy);
    }
    if push.idle_heartbeat_nanos.is_some_and(|nanos| nanos > 0 && nanos < HEARTBEAT_NANOS_MIN) {
        return Err(Wrong::SmallHeartbeat);
    }
    Ok(())
}

fn check_pull(config: &ConsumerConfig, stream: &StreamConfig) -> Result<(), Wrong> {
    if config.ack_policy == AckPolicy::None && stream.retention == Retention::WorkQueue {
        return Err(Wrong::PullRequiresAck);
    }
    if config.pull.max_request_expires_nanos.is_some_and(|nanos| nanos < EXPIRES_NANOS_MIN) {
        return Err(Wrong::MaxRequestExpiresTooSmall);
    }
    Ok(())
}

fn check_overlap(config: &ConsumerConfig) -> Result<(), Wrong> {
    for (n, filter) in config.filter_subjects.iter().enumerate() {
        for (m, other) in config.filter_subjects.iter().enumerate() {
            if n != m && subject::is_subset(filter.as_bytes(), other.as_bytes()) {
                return Err(Wrong::OverlappingFilters);
            }
        }
    }
    Ok(())
}

fn check_start(config: &ConsumerConfig) -> Result<(), Wrong> {
    let not_set = |policy: &str, what: &str| {
        let text = format!("consumer delivery policy is deliver {policy}, but optional {what} is not set");
        Err(Wrong::InvalidPolicy(text))
    };
    match config.deliver_policy {
        DeliverPolicy::LastPerSubject if config.filter_subjects.is_empty() => {
            not_set("last per subject", "filter subject")
        }
        DeliverPolicy::ByStartSequence(start) if start.0 == 0 => {
            not_set("by start sequence", "start sequence")
        }
        DeliverPolicy::All
        | DeliverPolicy::Last
        | DeliverPolicy::New
        | DeliverPolicy::LastPerSubject
        | DeliverPolicy::ByStartSequence(_)
        | DeliverPolicy::ByStartTime(_) => Ok(()),
    }
}

fn check_rest(config: &ConsumerConfig) -> Result<(), Wrong> {
    let share = config.sample_frequency.trim_end_matches('%');
    if !config.sample_frequency.is_empty() && share.parse::<u32>().is_err() {
        return Err(Wrong::InvalidSampling(format!("strconv.Atoi: parsing {share:?}: invalid syntax")));
    }
    if let Some(push) = &config.push
        && push.flow_control
        && push.idle_heartbeat_nanos.is_none_or(|nanos| nanos == 0)
    {
        return Err(Wrong::FlowControlNeedsHeartbeats);
    }
    let metadata: usize = config.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if metadata > METADATA_BYTES_MAX {
        return Err(Wrong::MetadataTooLong { max: METADATA_BYTES_MAX });
    }
    Ok(())
}

fn check_work_queue(
    config: &ConsumerConfig,
    stream: &StreamConfig,
    others: &mut dyn Iterator<Item = &ConsumerConfig>,
) -> Result<(), Wrong> {
    if stream.retention != Retention::WorkQueue || config.direct {
        return Ok(());
    }
    if config.ack_policy != AckPolicy::Explicit {
        return Err(Wrong::WorkQueueRequiresExplicitAck);
    }
    if config.deliver_policy != DeliverPolicy::All {
        return Err(Wrong::WorkQueueNotDeliverAll);
    }
    for other in others.filter(|other| other.name != config.name && !other.direct) {
        if config.filter_subjects.is_empty() {
            return Err(Wrong::WorkQueueMultipleUnfiltered);
        }
        let meets = |filter: &String| {
            other.filter_subjects.is_empty()
                || other.filter_subjects.iter().any(|f| subject::overlaps(f.as_bytes(), filter.as_bytes()))
        };
        if config.filter_subjects.iter().any(meets) {
            return Err(Wrong::WorkQueueNotUnique);
        }
    }
    Ok(())
}

/// What may not change. `is_listened_to` says whether somebody receives from the old deliver subject.
pub(super) fn validate_update(
    old: &ConsumerConfig,
    new: &ConsumerConfig,
    is_listened_to: bool,
) -> Result<(), ApiError> {
    let refuse = |what: &str| Err(ApiError::ConsumerCreateFailed(what.to_owned()));
    let heartbeat = |config: &ConsumerConfig| config.push.as_ref().and_then(|push| push.idle_heartbeat_nanos);
    let flow_control = |config: &ConsumerConfig| config.push.as_ref().is_some_and(|push| push.flow_control);
    match (old.deliver_policy, new.deliver_policy) {
        (DeliverPolicy::ByStartSequence(a), DeliverPolicy::ByStartSequence(b)) if a != b => {
            return refuse("start sequence can not be updated");
        }
        (DeliverPolicy::ByStartTime(a), DeliverPolicy::ByStartTime(b)) if a != b => {
            return refuse("start time can not be updated");
        }
        (a, b) if a != b => return refuse("deliver policy can not be updated"),
        (_, _) => {}
    }
    if old.memory_storage != new.memory_storage {
        return refuse("storage type can not be updated");
    }
    if old.direct != new.direct {
        return refuse("direct can not be updated");
    }
    if old.ack_policy != new.ack_policy {
        return refuse("ack policy can not be updated");
    }
    if old.replay_policy != new.replay_policy {
        return refuse("replay policy can not be updated");
    }
    if heartbeat(old) != heartbeat(new) {
        return refuse("heart beats can not be updated");
    }
    if flow_control(old) != flow_control(new) {
        return refuse("flow control can not be updated");
    }
    match (&old.push, &new.push) {
        (None, Some(_)) => return refuse("can not update pull consumer to push based"),
        (Some(_), None) => return refuse("can not update push consumer to pull based"),
        (Some(a), Some(b)) if a.deliver_subject != b.deliver_subject && is_listened_to => {
            return Err(ApiError::ConsumerNameInUse);
        }
        (Some(_), Some(_)) | (None, None) => {}
    }
    if old.pull.max_waiting != new.pull.max_waiting {
        return refuse("max waiting can not be updated");
    }
    Ok(())
}
