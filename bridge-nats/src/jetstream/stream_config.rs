//! A stream's configuration and figures, between JSON and the router's types. In JSON -1 (and, in a
//! request, 0) is "no limit"; in the types that is `None`.

use beamlog_router::api::request::{Page, StreamInfo};
use beamlog_router::stream::{
    Compression, ConsumerLimits, Discard, Placement, Republish, Retention, Storage, StreamConfig,
    SubjectMapping,
};
use beamlog_router::{Sequence, Timestamp};

use super::cluster_view::Whereabouts;
use super::errors::ErrorBody;
use super::json::{Fields, Malformed, Object, push_number};
use super::version;

/// Reads the body of a create or update request.
pub(super) fn read(payload: &[u8]) -> Result<StreamConfig, ErrorBody> {
    let mut fields = Fields::parse(payload)?;
    let unsupported = unsupported(&mut fields)?;
    // A hint for checks that only pedantic clients want; ours are always on.
    fields.boolean("pedantic")?;
    let replicas = fields.signed("num_replicas")?;
    let config = StreamConfig {
        name: fields.string("name")?,
        description: fields.string("description")?,
        subjects: fields.strings("subjects")?,
        retention: match fields.string("retention")?.as_str() {
            "" | "limits" => Retention::Limits,
            "interest" => Retention::Interest,
            "workqueue" => Retention::WorkQueue,
            other => return Err(unknown_word(other)),
        },
        max_consumers: limit_u32(fields.signed("max_consumers")?),
        max_messages: limit(fields.signed("max_msgs")?),
        max_bytes: limit(fields.signed("max_bytes")?),
        max_age_nanos: limit(fields.signed("max_age")?),
        max_messages_per_subject: limit(fields.signed("max_msgs_per_subject")?),
        max_message_bytes: limit_u32(fields.signed("max_msg_size")?),
        discard: match fields.string("discard")?.as_str() {
            "" | "old" => Discard::Old,
            "new" => Discard::New,
            other => return Err(unknown_word(other)),
        },
        discard_new_per_subject: fields.boolean("discard_new_per_subject")?,
        storage: match fields.string("storage")?.as_str() {
            "" | "file" => Storage::File,
            "memory" => Storage::Memory,
            other => return Err(unknown_word(other)),
        },
        replicas: match replicas {
            ..0 => return Err(ErrorBody::new(400, 10133, "replicas count cannot be negative")),
            // Not said: whoever creates it decides.
            0..=5 => u8::try_from(replicas).unwrap_or(1),
            6.. => return Err(ErrorBody::stream_config("maximum replicas is 5")),
        },
        no_ack: fields.boolean("no_ack")?,
        duplicate_window_nanos: limit(fields.signed("duplicate_window")?),
        placement: placement(&mut fields)?,
        compression: match fields.string("compression")?.as_str() {
            "" | "none" => Compression::None,
            "s2" => Compression::S2,
            other => return Err(unknown_word(other)),
        },
        first_sequence: match fields.unsigned("first_seq")? {
            0 => None,
            first => Some(Sequence(first)),
        },
        subject_transform: mapping(&mut fields, "subject_transform")?,
        republish: republish(&mut fields)?,
        sealed: fields.boolean("sealed")?,
        deny_delete: fields.boolean("deny_delete")?,
        deny_purge: fields.boolean("deny_purge")?,
        allow_rollup_headers: fields.boolean("allow_rollup_hdrs")?,
        allow_direct: fields.boolean("allow_direct")?,
        mirror_direct: fields.boolean("mirror_direct")?,
        allow_message_ttl: fields.boolean("allow_msg_ttl")?,
        allow_atomic: fields.boolean("allow_atomic")?,
        subject_delete_marker_ttl_nanos: limit(fields.signed("subject_delete_marker_ttl")?),
        consumer_limits: consumer_limits(&mut fields)?,
        metadata: version::without_ours(fields.texts("metadata")?),
    };
    fields.finish()?;
    match unsupported {
        None => Ok(config),
        Some(what) => Err(ErrorBody::stream_config(format!("{what} not supported"))),
    }
}

/// What a client may ask of a nats-server and this router does not do: refused by name, since a stream
/// that silently does less than was asked for loses somebody's messages.
fn unsupported(fields: &mut Fields) -> Result<Option<&'static str>, Malformed> {
    let mut first = None;
    let mut found = |present: bool, what| {
        if present && first.is_none() {
            first = Some(what);
        }
    };
    found(fields.object("mirror")?.is_some(), "stream mirrors are");
    found(!fields.list("sources")?.is_empty(), "stream sources are");
    found(fields.boolean("allow_msg_counter")?, "message counters are");
    found(fields.boolean("allow_batched")?, "fast batch publishing is");
    found(fields.boolean("allow_msg_schedules")?, "message scheduling is");
    match fields.string("persist_mode")?.as_str() {
        "" | "default" => {}
        "async" => found(true, "persist mode async is"),
        other => return Err(Malformed(format!("can not unmarshal {other:?}"))),
    }
    Ok(first)
}

fn unknown_word(word: &str) -> ErrorBody {
    // nats-server quotes the JSON text, quotes and all.
    ErrorBody::invalid_json(format!("can not unmarshal {:?}", format!("\"{word}\"")))
}

/// -1 and 0 are "no limit" in a request.
fn limit(value: i64) -> Option<u64> {
    u64::try_from(value).ok().filter(|&value| value > 0)
}

fn limit_u32(value: i64) -> Option<u32> {
    limit(value).map(|value| u32::try_from(value).unwrap_or(u32::MAX))
}

fn placement(fields: &mut Fields) -> Result<Option<Placement>, Malformed> {
    let Some(mut inner) = fields.object("placement")? else { return Ok(None) };
    let placement = Placement { cluster: inner.string("cluster")?, tags: inner.strings("tags")? };
    // Of meaning to a cluster's meta leader only.
    inner.string("preferred")?;
    inner.finish()?;
    Ok(Some(placement))
}

fn mapping(fields: &mut Fields, name: &str) -> Result<Option<SubjectMapping>, Malformed> {
    let Some(mut inner) = fields.object(name)? else { return Ok(None) };
    let mapping = SubjectMapping { source: inner.string("src")?, destination: inner.string("dest")? };
    inner.finish()?;
    Ok(Some(mapping))
}

fn republish(fields: &mut Fields) -> Result<Option<Republish>, Malformed> {
    let Some(mut inner) = fields.object("republish")? else { return Ok(None) };
    let republish = Republish {
        source: inner.string("src")?,
        destination: inner.string("dest")?,
        headers_only: inner.boolean("headers_only")?,
    };
    inner.finish()?;
    Ok(Some(republish))
}

fn consumer_limits(fields: &mut Fields) -> Result<ConsumerLimits, Malformed> {
    let Some(mut inner) = fields.object("consumer_limits")? else { return Ok(ConsumerLimits::default()) };
    let limits = ConsumerLimits {
        inactive_threshold_nanos: limit(inner.signed("inactive_threshold")?),
        max_ack_pending: limit_u32(inner.signed("max_ack_pending")?),
    };
    inner.finish()?;
    Ok(limits)
}

/// Writes a configuration. `server` adds what names the server that answers.
pub(super) fn write(config: &StreamConfig, server: bool, object: &mut Object<'_>) {
    object.text("name", &config.name);
    object.text_unless_empty("description", &config.description);
    if !config.subjects.is_empty() {
        object.texts("subjects", &config.subjects);
    }
    object.text(
        "retention",
        match config.retention {
            Retention::Limits => "limits",
            Retention::Interest => "interest",
            Retention::WorkQueue => "workqueue",
        },
    );
    object.number("max_consumers", or_minus_one(config.max_consumers));
    object.number("max_msgs", or_minus_one(config.max_messages));
    object.number("max_bytes", or_minus_one(config.max_bytes));
    object.number("max_age", config.max_age_nanos.unwrap_or(0));
    object.number("max_msgs_per_subject", or_minus_one(config.max_messages_per_subject));
    object.number("max_msg_size", or_minus_one(config.max_message_bytes));
    object.text(
        "discard",
        match config.discard {
            Discard::Old => "old",
            Discard::New => "new",
        },
    );
    object.text(
        "storage",
        match config.storage {
            Storage::File => "file",
            Storage::Memory => "memory",
        },
    );
    object.number("num_replicas", config.replicas.max(1));
    object.boolean_if_set("no_ack", config.no_ack);
    object.number_unless_zero("duplicate_window", config.duplicate_window_nanos.unwrap_or(0));
    if let Some(placement) = &config.placement {
        object.object("placement", |inner| {
            inner.text_unless_empty("cluster", &placement.cluster);
            if !placement.tags.is_empty() {
                inner.texts("tags", &placement.tags);
            }
        });
    }
    object.text(
        "compression",
        match config.compression {
            Compression::None => "none",
            Compression::S2 => "s2",
        },
    );
    object.number_unless_zero("first_seq", config.first_sequence.map_or(0, |first| first.0));
    if let Some(mapping) = &config.subject_transform {
        object.object("subject_transform", |inner| {
            inner.text("src", &mapping.source);
            inner.text("dest", &mapping.destination);
        });
    }
    if let Some(republish) = &config.republish {
        object.object("republish", |inner| {
            inner.text_unless_empty("src", &republish.source);
            inner.text("dest", &republish.destination);
            inner.boolean_if_set("headers_only", republish.headers_only);
        });
    }
    object.boolean("allow_direct", config.allow_direct);
    object.boolean("mirror_direct", config.mirror_direct);
    object.boolean_if_set("discard_new_per_subject", config.discard_new_per_subject);
    object.boolean("sealed", config.sealed);
    object.boolean("deny_delete", config.deny_delete);
    object.boolean("deny_purge", config.deny_purge);
    object.boolean("allow_rollup_hdrs", config.allow_rollup_headers);
    object.object("consumer_limits", |inner| {
        let limits = &config.consumer_limits;
        inner.number_unless_zero("inactive_threshold", limits.inactive_threshold_nanos.unwrap_or(0));
        inner.number_unless_zero("max_ack_pending", limits.max_ack_pending.unwrap_or(0));
    });
    object.boolean("allow_msg_ttl", config.allow_message_ttl);
    object.boolean_if_set("allow_atomic", config.allow_atomic);
    let marker = config.subject_delete_marker_ttl_nanos.unwrap_or(0);
    object.number_unless_zero("subject_delete_marker_ttl", marker);
    let level = if config.allow_atomic { 2 } else { u8::from(config.allow_message_ttl || marker > 0) };
    version::write_metadata(&config.metadata, level, server, object);
}

fn or_minus_one(limit: Option<impl Into<i128>>) -> i128 {
    limit.map_or(-1, Into::into)
}

/// Writes the members of a stream info. `asked` is a request for this one stream.
pub(super) fn write_info(
    info: &StreamInfo,
    server: bool,
    whereabouts: Whereabouts<'_>,
    asked: bool,
    object: &mut Object<'_>,
) {
    object.object("config", |inner| write(&info.config, server, inner));
    object.time("created", info.created);
    object.object("state", |inner| write_state(info, inner));
    whereabouts.write(&info.config.name, asked, object);
    // DR23, ours: what an ack of this stream means. There is one class: synced before the ack.
    object.text("durability", "disk");
    object.time("ts", info.now);
}

fn write_state(info: &StreamInfo, object: &mut Object<'_>) {
    let state = &info.state;
    object.number("messages", state.messages);
    object.number("bytes", state.bytes);
    object.number("first_seq", state.first_sequence.0);
    object.time("first_ts", if state.messages == 0 { Timestamp(0) } else { state.first_timestamp });
    object.number("last_seq", state.last_sequence.0);
    object.time("last_ts", state.last_timestamp);
    object.number_unless_zero("num_subjects", state.subjects_count);
    if let Some(Page { items, .. }) = info.subjects.as_ref().filter(|page| !page.items.is_empty()) {
        object.object("subjects", |inner| {
            for (subject, count) in items {
                inner.number(subject, *count);
            }
        });
    }
    object.number_unless_zero("num_deleted", state.deleted_count);
    if let Some(deleted) = info.deleted.as_ref().filter(|deleted| !deleted.is_empty()) {
        object.list("deleted", deleted, |sequence, out| push_number(out, sequence.0.into()));
    }
    object.number("consumer_count", state.consumers_count);
}

/// Appends a whole info as an element of a list.
pub(super) fn push_info(info: &StreamInfo, whereabouts: Whereabouts<'_>, out: &mut String) {
    Object::write(out, |object| write_info(info, false, whereabouts, false, object));
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn written(config: &StreamConfig) -> Value {
        let mut out = String::new();
        Object::write(&mut out, |object| write(config, true, object));
        serde_json::from_str(&out).unwrap()
    }

    fn refused(body: &str) -> (u16, String) {
        let error = read(body.as_bytes()).unwrap_err();
        (error.err_code, error.description)
    }

    #[test]
    fn a_bare_configuration_reads_as_no_limits_and_writes_as_nats_server_writes_it() {
        let config = read(br#"{"name":"A","subjects":["a.>"]}"#).unwrap();
        let expected = StreamConfig {
            name: "A".to_owned(),
            subjects: vec!["a.>".to_owned()],
            ..StreamConfig::default()
        };
        assert_eq!(config, expected);
        assert_eq!(
            written(&config),
            json!({
                "name":"A","subjects":["a.>"],"retention":"limits","max_consumers":-1,"max_msgs":-1,
                "max_bytes":-1,"max_age":0,"max_msgs_per_subject":-1,"max_msg_size":-1,"discard":"old",
                "storage":"file","num_replicas":1,"compression":"none","allow_direct":false,
                "mirror_direct":false,"sealed":false,"deny_delete":false,"deny_purge":false,
                "allow_rollup_hdrs":false,"consumer_limits":{},"allow_msg_ttl":false,
                "metadata":{"_nats.level":version::API_LEVEL.to_string(),"_nats.req.level":"0","_nats.ver":version::SERVER_VERSION}
            })
        );
    }

    #[test]
    fn a_full_configuration_comes_back_as_it_was_sent() {
        let body = json!({
            "name":"F","description":"d","subjects":["f.*","g"],"retention":"workqueue","max_consumers":7,
            "max_msgs":1,"max_bytes":2,"max_age":3_000_000_000_i64,"max_msgs_per_subject":4,"max_msg_size":5,
            "discard":"new","storage":"memory","num_replicas":3,"no_ack":true,"duplicate_window":100_000_000,
            "placement":{"cluster":"c","tags":["t"]},"compression":"s2","first_seq":9,
            "subject_transform":{"src":"f.*","dest":"h.$1"},
            "republish":{"src":">","dest":"r.>","headers_only":true},"allow_direct":true,"mirror_direct":true,
            "discard_new_per_subject":true,"sealed":true,"deny_delete":true,"deny_purge":true,
            "allow_rollup_hdrs":true,"consumer_limits":{"inactive_threshold":5,"max_ack_pending":6},
            "allow_msg_ttl":true,"subject_delete_marker_ttl":1_000_000_000,"metadata":{"k":"v","_nats.ver":"9"}
        });
        let config = read(body.to_string().as_bytes()).unwrap();
        let mut expected = body;
        expected["metadata"] = json!({"k":"v","_nats.req.level":"1","_nats.level":version::API_LEVEL.to_string(),"_nats.ver":version::SERVER_VERSION});
        assert_eq!(written(&config), expected);
    }

    #[test]
    fn what_we_do_not_do_is_refused_by_name() {
        for (members, text) in [
            (r#""mirror":{"name":"B"}"#, "stream mirrors are not supported"),
            (r#""sources":[{"name":"B"}]"#, "stream sources are not supported"),
            (r#""allow_msg_counter":true"#, "message counters are not supported"),
            (r#""allow_batched":true"#, "fast batch publishing is not supported"),
            (r#""allow_msg_schedules":true"#, "message scheduling is not supported"),
            (r#""persist_mode":"async""#, "persist mode async is not supported"),
            (r#""num_replicas":6"#, "maximum replicas is 5"),
        ] {
            assert_eq!(refused(&format!(r#"{{"name":"A",{members}}}"#)), (10052, text.to_owned()));
        }
        let accepted =
            br#"{"name":"A","mirror":null,"sources":[],"allow_atomic":false,"persist_mode":"default"}"#;
        assert!(read(accepted).is_ok());
    }

    #[test]
    fn malformed_configurations_are_refused_with_the_reason() {
        assert_eq!(refused(r#"{"name":"A","bogus":1}"#).1, "invalid JSON: json: unknown field \"bogus\"");
        assert_eq!(
            refused(r#"{"name":"A","retention":"x"}"#).1,
            r#"invalid JSON: can not unmarshal "\"x\"""#
        );
        assert_eq!(refused(r#"{"name":5}"#).0, 10025);
        assert_eq!(refused("{").1, "invalid JSON: unexpected EOF");
        assert_eq!(refused(r#"{"num_replicas":-1}"#).0, 10133);
        assert_eq!(refused(r#"{"placement":{"x":1}}"#).0, 10025);
        assert_eq!(refused(r#"{"max_msgs":99999999999999999999}"#).0, 10025);
    }
}
