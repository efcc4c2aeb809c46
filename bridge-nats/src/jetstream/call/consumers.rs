//! What is asked of consumers.

use beamlog_router::api::request::{ConsumerAction, Request};

use super::super::consumer_config;
use super::super::errors::ErrorBody;
use super::super::json::{Fields, Malformed};
use super::Wanted;
use super::bodies::object_or_nothing;

/// How the subject of a create request names the consumer.
pub(super) enum Naming<'a> {
    /// Not at all: the body may.
    Ephemeral {
        stream: &'a str,
    },
    /// The old form for durables.
    Durable {
        stream: &'a str,
        consumer: &'a str,
    },
    Named {
        stream: &'a str,
        consumer: &'a str,
        filter: &'a str,
    },
}

pub(super) fn create_consumer(naming: &Naming<'_>, payload: &[u8]) -> Result<Wanted, ErrorBody> {
    let mut fields = Fields::parse(payload)?;
    let stream_name = fields.string("stream_name")?;
    let action = match fields.string("action")?.as_str() {
        "" => ConsumerAction::CreateOrUpdate,
        "create" => ConsumerAction::Create,
        "update" => ConsumerAction::Update,
        other => return Err(ErrorBody::invalid_json(format!("unknown consumer action: {other:?}"))),
    };
    fields.boolean("pedantic")?;
    let config = fields.object("config")?;
    fields.finish()?;
    let mut config = config.unwrap_or_default();
    let sent = consumer_config::read(&mut config)?;
    config.finish()?;

    let (stream, in_subject) = match naming {
        Naming::Ephemeral { stream } => (*stream, ""),
        Naming::Durable { stream, consumer } | Naming::Named { stream, consumer, .. } => (*stream, *consumer),
    };
    if stream != stream_name {
        return Err(ErrorBody::new(400, 10056, "stream name in subject does not match request"));
    }
    let mut sent = sent?;
    let name = if in_subject.is_empty() { sent.config.name.as_str() } else { in_subject };
    if name.contains(['/', '\\']) {
        return Err(ErrorBody::path_separators_in_consumer());
    }
    let durable_differs = in_subject != sent.durable_name;
    let mismatch = "consumer name in subject does not match durable name in request";
    match naming {
        Naming::Ephemeral { .. } if !sent.durable_name.is_empty() => {
            let text = "consumer expected to be ephemeral but a durable name was set in request";
            return Err(ErrorBody::new(400, 10020, text));
        }
        Naming::Ephemeral { .. } => {}
        Naming::Durable { .. } if sent.durable_name.is_empty() => {
            let text = "consumer expected to be durable but a durable name was not set";
            return Err(ErrorBody::new(400, 10018, text));
        }
        Naming::Durable { .. } if durable_differs => return Err(ErrorBody::new(400, 10017, mismatch)),
        Naming::Durable { .. } => {}
        Naming::Named { .. } if durable_differs && !sent.durable_name.is_empty() => {
            return Err(ErrorBody::new(400, 10017, mismatch));
        }
        Naming::Named { filter, .. } => check_filter(filter, &sent)?,
    }
    if !in_subject.is_empty() {
        in_subject.clone_into(&mut sent.config.name);
    }
    let config = Box::new(sent.config);
    Ok(Request::CreateConsumer { stream: stream.to_owned(), config, action }.into())
}

/// A filter in the subject must be the one in the body: permissions are given on the subject.
fn check_filter(in_subject: &str, sent: &consumer_config::Sent) -> Result<(), ErrorBody> {
    if in_subject.is_empty() {
        return Ok(());
    }
    if sent.config.filters_as_list {
        let text = "consumer with multiple subject filters cannot use subject based API";
        return Err(ErrorBody::new(400, 10137, text));
    }
    if sent.filter_subject != in_subject {
        let text = "Consumer create request did not match filtered subject from create subject";
        return Err(ErrorBody::new(400, 10131, text));
    }
    Ok(())
}

pub(super) fn pause(stream: &str, consumer: &str, payload: &[u8]) -> Result<Wanted, Malformed> {
    let mut until = None;
    if let Some(mut fields) = object_or_nothing(payload)? {
        until = fields.time("pause_until")?;
        fields.finish()?;
    }
    Ok(Request::PauseConsumer { stream: stream.to_owned(), consumer: consumer.to_owned(), until }.into())
}
