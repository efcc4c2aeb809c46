//! A consumer's configuration and figures, between JSON and the router's types.

use beamlog_router::api::error::{ApiError, ConsumerConfigError};
use beamlog_router::consumer::{
    AckPolicy, ConsumerConfig, ConsumerInfo, ConsumerPosition, DeliverPolicy, PullLimits, PushConfig,
    ReplayPolicy,
};
use beamlog_router::{Sequence, Timestamp};

use super::cluster_view::Whereabouts;
use super::errors::ErrorBody;
use super::json::{Fields, Malformed, Object, push_number};
use super::version;

/// An explicit -1: more than anybody can have unacked.
const UNLIMITED: u32 = u32::MAX;

/// A configuration as a client sent it: the name and the durable name may differ until the subject of
/// the request has decided.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) config: ConsumerConfig,
    pub(super) durable_name: String,
    /// The single filter, for comparison with the one in the subject.
    pub(super) filter_subject: String,
}

/// Reads the `config` member of a create request.
pub(super) fn read(fields: &mut Fields) -> Result<Result<Sent, ErrorBody>, Malformed> {
    let durable_name = fields.string("durable_name")?;
    let name = fields.string("name")?;
    let description = fields.string("description")?;
    let policy = fields.string("deliver_policy")?;
    let start_sequence = fields.unsigned("opt_start_seq")?;
    let start_time = fields.time("opt_start_time")?;
    let ack_policy = fields.string("ack_policy")?;
    let ack_wait = fields.signed("ack_wait")?;
    let max_deliver = fields.signed("max_deliver")?;
    let backoff = fields.integers("backoff")?;
    let filter_subject = fields.string("filter_subject")?;
    let filter_subjects = fields.strings("filter_subjects")?;
    let replay_policy = fields.string("replay_policy")?;
    let rate_limit = fields.unsigned("rate_limit_bps")?;
    let sample_frequency = fields.string("sample_freq")?;
    let max_waiting = fields.signed("max_waiting")?;
    let max_ack_pending = fields.signed("max_ack_pending")?;
    let flow_control = fields.boolean("flow_control")?;
    let headers_only = fields.boolean("headers_only")?;
    let max_batch = fields.signed("max_batch")?;
    let max_expires = fields.signed("max_expires")?;
    let max_bytes = fields.signed("max_bytes")?;
    let deliver_subject = fields.string("deliver_subject")?;
    let deliver_group = fields.string("deliver_group")?;
    let heartbeat = fields.signed("idle_heartbeat")?;
    let inactive_threshold = fields.signed("inactive_threshold")?;
    let replicas = fields.signed("num_replicas")?;
    let memory_storage = fields.boolean("mem_storage")?;
    let direct = fields.boolean("direct")?;
    let sourcing = fields.boolean("sourcing")?;
    let metadata = version::without_ours(fields.texts("metadata")?);
    let pause_until = fields.time("pause_until")?;
    let priority_groups = fields.strings("priority_groups")?;
    let priority_policy = fields.string("priority_policy")?;
    let priority_timeout = fields.signed("priority_timeout")?;

    let start = (start_sequence, start_time);
    let deliver_policy = match deliver_policy(&policy, start)? {
        Ok(policy) => policy,
        Err(text) => return Ok(Err((&ConsumerConfigError::InvalidPolicy(text)).into())),
    };
    let (ack_policy, flow_control_acks) = match ack_policy.as_str() {
        "" | "none" => (AckPolicy::None, false),
        "all" => (AckPolicy::All, false),
        "explicit" => (AckPolicy::Explicit, false),
        "flow_control" => (AckPolicy::All, true),
        other => return Err(unknown_word(other)),
    };
    let replay_policy = match replay_policy.as_str() {
        "" | "instant" => ReplayPolicy::Instant,
        "original" => ReplayPolicy::Original,
        other => return Err(unknown_word(other)),
    };
    let pinned = match priority_policy.as_str() {
        "" | "none" => false,
        "overflow" | "pinned_client" | "prioritized" => true,
        other => return Err(unknown_word(other)),
    };

    // What has no place in the router's types is decided here; all else is the router's to judge.
    let refusal = if flow_control_acks {
        Some(ErrorBody::new(400, 10181, "consumer ack policy invalid"))
    } else if pinned {
        Some(ErrorBody::consumer_create("consumer priority groups are not supported"))
    } else if !priority_groups.is_empty() {
        Some(ErrorBody::new(400, 10196, "consumer can not have priority groups when policy is none"))
    } else if priority_timeout != 0 {
        Some(ErrorBody::new(400, 10197, "PinnedTTL cannot be set when PriorityPolicy is none"))
    } else if sourcing {
        Some(ErrorBody::consumer_create("sourcing consumers are not supported"))
    } else if replicas < 0 {
        Some(ErrorBody::new(400, 10133, "replicas count cannot be negative"))
    } else if replicas > 1 {
        Some((&ApiError::ReplicasNotSupported).into())
    } else {
        let pull = deliver_subject.is_empty();
        [
            (ack_wait < 0, ConsumerConfigError::AckWaitNegative),
            (backoff.iter().any(|&wait| wait < 0), ConsumerConfigError::BackoffNegative),
            (max_expires < 0, ConsumerConfigError::MaxRequestExpiresTooSmall),
            (pull && rate_limit > 0, ConsumerConfigError::PullWithRateLimit),
            (pull && heartbeat > 0, ConsumerConfigError::HeartbeatRequiresPush),
            (pull && flow_control, ConsumerConfigError::FlowControlRequiresPush),
            (
                !filter_subject.is_empty() && !filter_subjects.is_empty(),
                ConsumerConfigError::DuplicateFilters,
            ),
        ]
        .iter()
        .find(|(wrong, _)| *wrong)
        .map(|(_, error)| error.into())
    };
    if let Some(refusal) = refusal {
        return Ok(Err(refusal));
    }

    let config = ConsumerConfig {
        durable: !durable_name.is_empty(),
        name,
        description,
        deliver_policy,
        ack_policy,
        ack_wait_nanos: positive(ack_wait),
        max_deliver: positive_u32(max_deliver),
        backoff_nanos: backoff.into_iter().map(|wait| u64::try_from(wait).unwrap_or(0)).collect(),
        filters_as_list: !filter_subjects.is_empty(),
        filter_subjects: if filter_subject.is_empty() {
            filter_subjects
        } else {
            vec![filter_subject.clone()]
        },
        replay_policy,
        sample_frequency,
        max_ack_pending: if max_ack_pending < 0 { Some(UNLIMITED) } else { positive_u32(max_ack_pending) },
        headers_only,
        push: (!deliver_subject.is_empty()).then(|| PushConfig {
            deliver_subject,
            deliver_group,
            flow_control,
            idle_heartbeat_nanos: positive(heartbeat),
            rate_limit_bits_per_second: (rate_limit > 0).then_some(rate_limit),
        }),
        pull: PullLimits {
            max_waiting: positive_u32(max_waiting),
            max_request_batch: positive_u32(max_batch),
            max_request_expires_nanos: positive(max_expires),
            max_request_max_bytes: positive_u32(max_bytes),
        },
        inactive_threshold_nanos: positive(inactive_threshold),
        replicas: u8::try_from(replicas).unwrap_or(u8::MAX),
        memory_storage,
        direct,
        pause_until,
        metadata,
    };
    Ok(Ok(Sent { config, durable_name, filter_subject }))
}

/// The policy with its start, or what is wrong with the pair in nats-server's words.
fn deliver_policy(
    policy: &str,
    (sequence, time): (u64, Option<Timestamp>),
) -> Result<Result<DeliverPolicy, String>, Malformed> {
    let also = |name: &str, start: &str| {
        Err(format!("consumer delivery policy is deliver {name}, but optional start {start} is also set"))
    };
    let missing = |name: &str, what: &str| {
        Err(format!("consumer delivery policy is deliver {name}, but optional {what} is not set"))
    };
    let plain = |name: &str, policy: DeliverPolicy| match (sequence, time) {
        (0, None) => Ok(policy),
        (0, Some(_)) => also(name, "time"),
        (_, _) => also(name, "sequence"),
    };
    Ok(match policy {
        "" | "all" => plain("all", DeliverPolicy::All),
        "last" => plain("last", DeliverPolicy::Last),
        "new" => plain("new", DeliverPolicy::New),
        "last_per_subject" => plain("last per subject", DeliverPolicy::LastPerSubject),
        "by_start_sequence" => match (sequence, time) {
            (0, _) => missing("by start sequence", "start sequence"),
            (_, Some(_)) => also("by start sequence", "time"),
            (first, None) => Ok(DeliverPolicy::ByStartSequence(Sequence(first))),
        },
        "by_start_time" => match (time, sequence) {
            (None, _) => missing("by start time", "start time"),
            (Some(_), 1..) => also("by start time", "start sequence"),
            (Some(time), 0) => Ok(DeliverPolicy::ByStartTime(time)),
        },
        other => return Err(unknown_word(other)),
    })
}

fn unknown_word(word: &str) -> Malformed {
    Malformed(format!("can not unmarshal {:?}", format!("\"{word}\"")))
}

fn positive(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|&value| value > 0)
}

fn positive_u32(value: i64) -> Option<u32> {
    positive(value).map(|value| u32::try_from(value).unwrap_or(u32::MAX))
}

/// Writes a configuration. `server` adds what names the server that answers.
pub(super) fn write(config: &ConsumerConfig, server: bool, object: &mut Object<'_>) {
    if config.durable {
        object.text("durable_name", &config.name);
    }
    object.text_unless_empty("name", &config.name);
    object.text_unless_empty("description", &config.description);
    let (policy, sequence, time) = match config.deliver_policy {
        DeliverPolicy::All => ("all", None, None),
        DeliverPolicy::Last => ("last", None, None),
        DeliverPolicy::New => ("new", None, None),
        DeliverPolicy::ByStartSequence(sequence) => ("by_start_sequence", Some(sequence), None),
        DeliverPolicy::ByStartTime(time) => ("by_start_time", None, Some(time)),
        DeliverPolicy::LastPerSubject => ("last_per_subject", None, None),
    };
    object.text("deliver_policy", policy);
    if let Some(sequence) = sequence {
        object.number("opt_start_seq", sequence.0);
    }
    if let Some(time) = time {
        object.time("opt_start_time", time);
    }
    object.text(
        "ack_policy",
        match config.ack_policy {
            AckPolicy::None => "none",
            AckPolicy::All => "all",
            AckPolicy::Explicit => "explicit",
        },
    );
    object.number_unless_zero("ack_wait", config.ack_wait_nanos.unwrap_or(0));
    match config.max_deliver {
        Some(most) => object.number("max_deliver", most),
        None => object.number("max_deliver", -1),
    }
    if !config.backoff_nanos.is_empty() {
        object.list("backoff", &config.backoff_nanos, |&wait, out| push_number(out, wait.into()));
    }
    match config.filter_subjects.as_slice() {
        [] => {}
        [only] if !config.filters_as_list => object.text("filter_subject", only),
        several => object.texts("filter_subjects", several),
    }
    object.text(
        "replay_policy",
        match config.replay_policy {
            ReplayPolicy::Instant => "instant",
            ReplayPolicy::Original => "original",
        },
    );
    let push = config.push.as_ref();
    let rate = push.and_then(|push| push.rate_limit_bits_per_second);
    object.number_unless_zero("rate_limit_bps", rate.unwrap_or(0));
    object.text_unless_empty("sample_freq", &config.sample_frequency);
    object.number_unless_zero("max_waiting", config.pull.max_waiting.unwrap_or(0));
    match config.max_ack_pending {
        Some(UNLIMITED) => object.number("max_ack_pending", -1),
        most => object.number_unless_zero("max_ack_pending", most.unwrap_or(0)),
    }
    object.boolean_if_set("flow_control", push.is_some_and(|push| push.flow_control));
    object.boolean_if_set("headers_only", config.headers_only);
    object.number_unless_zero("max_batch", config.pull.max_request_batch.unwrap_or(0));
    object.number_unless_zero("max_expires", config.pull.max_request_expires_nanos.unwrap_or(0));
    object.number_unless_zero("max_bytes", config.pull.max_request_max_bytes.unwrap_or(0));
    if let Some(push) = push {
        object.text("deliver_subject", &push.deliver_subject);
        object.text_unless_empty("deliver_group", &push.deliver_group);
        object.number_unless_zero("idle_heartbeat", push.idle_heartbeat_nanos.unwrap_or(0));
    }
    object.number_unless_zero("inactive_threshold", config.inactive_threshold_nanos.unwrap_or(0));
    object.number("num_replicas", config.replicas);
    object.boolean_if_set("mem_storage", config.memory_storage);
    object.boolean_if_set("direct", config.direct);
    let level = u8::from(config.pause_until.is_some());
    version::write_metadata(&config.metadata, level, server, object);
    if let Some(until) = config.pause_until {
        object.time("pause_until", until);
    }
}

/// Writes the members of a consumer info.
pub(super) fn write_info(
    info: &ConsumerInfo,
    now: Timestamp,
    server: bool,
    whereabouts: Whereabouts<'_>,
    object: &mut Object<'_>,
) {
    object.text("stream_name", &info.stream);
    object.text("name", &info.config.name);
    object.time("created", info.created);
    object.object("config", |inner| write(&info.config, server, inner));
    object.object("delivered", |inner| write_position(&info.delivered, inner));
    object.object("ack_floor", |inner| write_position(&info.ack_floor, inner));
    object.number("num_ack_pending", info.ack_pending);
    object.number("num_redelivered", info.redelivered);
    object.number("num_waiting", info.waiting);
    object.number("num_pending", info.pending);
    object.boolean_if_set("push_bound", info.push_bound);
    if let Some(remaining) = info.paused_for_nanos {
        object.boolean("paused", true);
        object.number_unless_zero("pause_remaining", remaining);
    }
    whereabouts.write_of_consumer(object);
    object.time("ts", now);
}

fn write_position(position: &ConsumerPosition, object: &mut Object<'_>) {
    object.number("consumer_seq", position.consumer);
    object.number("stream_seq", position.stream.0);
    if position.last_active != Timestamp(0) {
        object.time("last_active", position.last_active);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn sent(body: &Value) -> Sent {
        let mut fields = Fields::parse(body.to_string().as_bytes()).unwrap();
        let sent = read(&mut fields).unwrap().unwrap();
        fields.finish().unwrap();
        sent
    }

    fn refused(body: &str) -> (u16, String) {
        let mut fields = Fields::parse(body.as_bytes()).unwrap();
        let error = match read(&mut fields) {
            Err(malformed) => ErrorBody::from(malformed),
            Ok(Err(error)) => error,
            Ok(Ok(sent)) => panic!("accepted: {sent:?}"),
        };
        (error.err_code, error.description)
    }

    fn written(config: &ConsumerConfig) -> Value {
        let mut out = String::new();
        Object::write(&mut out, |object| write(config, false, object));
        serde_json::from_str(&out).unwrap()
    }

    #[test]
    fn a_pull_consumer_comes_back_as_it_was_sent() {
        let body = json!({
            "name":"st","description":"d","deliver_policy":"by_start_time",
            "opt_start_time":"2026-01-02T03:04:05.678Z","ack_policy":"all","ack_wait":30_000_000_000_i64,
            "max_deliver":5,"backoff":[1_000_000_000,2_000_000_000],"filter_subjects":["a","b.*"],
            "replay_policy":"original","sample_freq":"30%","max_waiting":5,"max_ack_pending":-1,
            "headers_only":true,"max_batch":10,"max_expires":1_000_000_000,"max_bytes":100,
            "inactive_threshold":5_000_000_000_i64,"num_replicas":1,"mem_storage":true,
            "metadata":{"k":"v"},"pause_until":"2027-01-01T00:00:00Z"
        });
        let sent = sent(&body);
        let mut expected = body;
        expected["metadata"]["_nats.req.level"] = json!("1");
        assert_eq!(written(&sent.config), expected);
    }

    #[test]
    fn a_push_consumer_comes_back_as_it_was_sent() {
        let body = json!({
            "durable_name":"d","name":"d","deliver_policy":"by_start_sequence","opt_start_seq":3,
            "ack_policy":"explicit","max_deliver":-1,"filter_subject":"a.>","replay_policy":"instant",
            "rate_limit_bps":1000,"max_ack_pending":7,"flow_control":true,"deliver_subject":"x",
            "deliver_group":"g","idle_heartbeat":5_000_000_000_i64,"num_replicas":0,"direct":true
        });
        let sent = sent(&body);
        assert!(sent.config.durable);
        assert_eq!(sent.filter_subject, "a.>");
        let mut expected = body;
        expected["metadata"] = json!({"_nats.req.level":"0"});
        assert_eq!(written(&sent.config), expected);
    }

    #[test]
    fn what_contradicts_itself_is_refused_with_nats_servers_code() {
        for (body, code) in [
            (r#"{"deliver_policy":"by_start_sequence"}"#, 10094),
            (r#"{"deliver_policy":"by_start_time"}"#, 10094),
            (r#"{"deliver_policy":"all","opt_start_seq":1}"#, 10094),
            (r#"{"deliver_policy":"new","opt_start_time":"2026-01-01T00:00:00Z"}"#, 10094),
            (r#"{"deliver_policy":"nope"}"#, 10025),
            (r#"{"ack_policy":"nope"}"#, 10025),
            (r#"{"opt_start_time":"x"}"#, 10025),
            (r#"{"ack_policy":"flow_control"}"#, 10181),
            (r#"{"priority_groups":["a"]}"#, 10196),
            (r#"{"priority_groups":["a"],"priority_policy":"overflow"}"#, 10012),
            (r#"{"priority_timeout":1}"#, 10197),
            (r#"{"sourcing":true}"#, 10012),
            (r#"{"ack_wait":-1}"#, 10183),
            (r#"{"backoff":[-1]}"#, 10184),
            (r#"{"num_replicas":3}"#, 10074),
            (r#"{"rate_limit_bps":1}"#, 10086),
            (r#"{"idle_heartbeat":1}"#, 10088),
            (r#"{"flow_control":true}"#, 10089),
            (r#"{"filter_subject":"a","filter_subjects":["b"]}"#, 10136),
        ] {
            assert_eq!(refused(body).0, code, "{body}");
        }
        assert_eq!(
            refused(r#"{"deliver_policy":"by_start_sequence"}"#).1,
            "consumer delivery policy is deliver by start sequence, but optional start sequence is not set"
        );
    }
}
