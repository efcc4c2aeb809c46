//! `consumer …`: reading positions of a stream, by the JetStream API.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::StatusCode;
use bytes::Bytes;
use clap::{Subcommand, ValueEnum};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::cli::client::{ServerArguments, Session, request_failure, sending};
use crate::cli::exit::{Failure, err_chain};
use crate::cli::output::{Output, cell, columns, fields};
use crate::cli::stream::{checked_name, done, nanos, read_object};
use crate::cli::subjects::{message_text, message_value, time_after};
use crate::config::Span;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  beamlog consumer add ORDERS billing --filter orders.eu --ack explicit --ack-wait 30s
  beamlog consumer next ORDERS billing --count 10
  beamlog consumer info ORDERS billing -o json
  beamlog consumer pause ORDERS billing --for 10m")]
pub(crate) struct ConsumerArguments {
    #[command(subcommand)]
    pub(crate) command: ConsumerCommand,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConsumerCommand {
    /// Create a consumer.
    Add {
        stream: String,
        /// Name of a durable consumer, or with --ephemeral of one that goes when unused.
        name: String,
        #[command(flatten)]
        settings: Box<ConsumerSettings>,
    },
    /// Change the settings that are given, and leave the others.
    Edit {
        stream: String,
        name: String,
        #[command(flatten)]
        settings: Box<ConsumerSettings>,
    },
    /// List the consumers of a stream.
    #[command(visible_alias = "list")]
    Ls { stream: String },
    /// Show settings and position of a consumer.
    Info { stream: String, name: String },
    /// Fetch messages and ack them.
    Next {
        stream: String,
        name: String,
        /// How many.
        #[arg(long, value_name = "COUNT", default_value_t = 1)]
        count: u32,
        /// Leave them unacked: they come again after the ack wait.
        #[arg(long)]
        no_ack: bool,
        /// How long to wait for messages that are not there yet.
        #[arg(long, value_name = "DURATION", default_value = "1s")]
        wait: Span,
    },
    /// Deliver nothing for a while.
    Pause {
        stream: String,
        name: String,
        /// For how long, like 10m.
        #[arg(long = "for", value_name = "DURATION")]
        duration: Span,
    },
    /// Deliver again.
    Resume { stream: String, name: String },
    /// Delete a consumer.
    Rm { stream: String, name: String },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum AckArgument {
    None,
    All,
    Explicit,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ReplayArgument {
    Instant,
    Original,
}

/// What a consumer can be told; what is absent keeps its default (or, in `edit`, its value).
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Settings")]
pub(crate) struct ConsumerSettings {
    /// A JSON file with settings as the JetStream API has them; flags go over it.
    #[arg(long, value_name = "FILE")]
    pub(crate) from_file: Option<PathBuf>,
    /// Filters, separated by commas; every message when absent.
    #[arg(long = "filter", value_delimiter = ',', value_name = "FILTERS")]
    pub(crate) filters: Option<Vec<String>>,
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// Where to begin: all, last, new, last-per-subject, a sequence, or a time like 2026-11-21T04:00:00Z.
    #[arg(long, value_name = "POSITION")]
    pub(crate) deliver: Option<String>,
    /// Which acks are expected.
    #[arg(long, value_enum)]
    pub(crate) ack: Option<AckArgument>,
    /// Time until an unacked message comes again.
    #[arg(long, value_name = "DURATION")]
    pub(crate) ack_wait: Option<Span>,
    /// Times a message is delivered at most; -1 is no limit.
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pub(crate) max_deliver: Option<i64>,
    /// Waits between deliveries, separated by commas, like 1s,10s,1m.
    #[arg(long, value_delimiter = ',', value_name = "DURATIONS")]
    pub(crate) backoff: Option<Vec<Span>>,
    /// Unacked messages at a time; -1 is no limit.
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pub(crate) max_ack_pending: Option<i64>,
    /// Go when not used for this long, like 5m.
    #[arg(long, value_name = "DURATION")]
    pub(crate) inactive_threshold: Option<Span>,
    #[arg(long, value_enum)]
    pub(crate) replay: Option<ReplayArgument>,
    /// Deliver headers and sizes without payloads.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub(crate) headers_only: Option<bool>,
    /// Do not outlive inactivity.
    #[arg(long)]
    pub(crate) ephemeral: bool,
    /// Push to this subject instead of waiting for pulls.
    #[arg(long, value_name = "SUBJECT")]
    pub(crate) deliver_subject: Option<String>,
    /// Queue group of the subscribers that a push goes to.
    #[arg(long, value_name = "GROUP", requires = "deliver_subject")]
    pub(crate) deliver_group: Option<String>,
    /// Send a heartbeat when idle for this long (push).
    #[arg(long, value_name = "DURATION")]
    pub(crate) heartbeat: Option<Span>,
    /// Ask the subscriber for permission to send on (push).
    #[arg(long, requires = "heartbeat")]
    pub(crate) flow_control: bool,
    /// Bits a second at most (push).
    #[arg(long, value_name = "BITS")]
    pub(crate) rate_limit: Option<u64>,
    /// Pull requests that may wait at a time (pull).
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_waiting: Option<u32>,
}

impl ConsumerSettings {
    /// Lays what is said over a configuration.
    fn over(&self, mut config: Value) -> Result<Value, Failure> {
        if let Some(path) = &self.from_file {
            for (key, value) in read_object(path)? {
                config[key] = value;
            }
        }
        if let Some(position) = &self.deliver {
            deliver(&mut config, position);
        }
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                config[key] = value;
            }
        };
        match self.filters.as_deref() {
            None => {}
            Some([one]) => set("filter_subject", Some(json!(one))),
            Some(many) => set("filter_subjects", Some(json!(many))),
        }
        set("description", self.description.as_ref().map(|text| json!(text)));
        set(
            "ack_policy",
            self.ack.map(|ack| match ack {
                AckArgument::None => json!("none"),
                AckArgument::All => json!("all"),
                AckArgument::Explicit => json!("explicit"),
            }),
        );
        set("ack_wait", self.ack_wait.map(nanos));
        set("max_deliver", self.max_deliver.map(Value::from));
        set("backoff", self.backoff.as_ref().map(|waits| waits.iter().map(|wait| nanos(*wait)).collect()));
        set("max_ack_pending", self.max_ack_pending.map(Value::from));
        set("inactive_threshold", self.inactive_threshold.map(nanos));
        set(
            "replay_policy",
            self.replay.map(|replay| match replay {
                ReplayArgument::Instant => json!("instant"),
                ReplayArgument::Original => json!("original"),
            }),
        );
        set("headers_only", self.headers_only.map(Value::from));
        set("deliver_subject", self.deliver_subject.as_ref().map(|subject| json!(subject)));
        set("deliver_group", self.deliver_group.as_ref().map(|group| json!(group)));
        set("idle_heartbeat", self.heartbeat.map(nanos));
        set("flow_control", self.flow_control.then_some(json!(true)));
        set("rate_limit_bps", self.rate_limit.map(Value::from));
        set("max_waiting", self.max_waiting.map(Value::from));
        Ok(config)
    }
}

fn deliver(config: &mut Value, position: &str) {
    config["deliver_policy"] = match position {
        "all" | "last" | "new" => json!(position),
        "last-per-subject" => json!("last_per_subject"),
        other => match other.parse::<u64>() {
            Ok(sequence) => {
                config["opt_start_seq"] = sequence.into();
                json!("by_start_sequence")
            }
            Err(_) => {
                config["opt_start_time"] = other.into();
                json!("by_start_time")
            }
        },
    };
}

pub(crate) async fn consumer(arguments: ConsumerArguments, output: Output) -> Result<(), Failure> {
    use ConsumerCommand::{Add, Edit, Info, Ls, Next, Pause, Resume, Rm};
    let server = arguments.server;
    match arguments.command {
        Add { stream, name, settings } => {
            let mut config = json!({ "name": name, "ack_policy": "explicit", "deliver_policy": "all", "replay_policy": "instant" });
            if !settings.ephemeral {
                config["durable_name"] = name.as_str().into();
            }
            let config = settings.over(config)?;
            create(&server.connect().await?, &stream, &name, config, "create", output).await
        }
        Edit { stream, name, settings } => {
            let session = server.connect().await?;
            let info = info(&session, &stream, &name).await?;
            let config = settings.over(info["config"].clone())?;
            create(&session, &stream, &name, config, "update", output).await
        }
        Ls { stream } => {
            let session = server.connect().await?;
            let stream = checked_name("stream", &stream)?;
            let consumers = session.pages(&format!("CONSUMER.LIST.{stream}"), "consumers", json!({})).await?;
            output.value(&Value::Array(consumers), consumers_text)
        }
        Info { stream, name } => {
            let session = server.connect().await?;
            output.value(&info(&session, &stream, &name).await?, consumer_text)
        }
        Next { stream, name, count, no_ack, wait } => {
            let session = server.connect().await?;
            let pull = Pull { stream: &stream, consumer: &name, count, wait: wait.0, acks: !no_ack };
            next(&session, pull, output).await
        }
        Pause { stream, name, duration } => {
            let session = server.connect().await?;
            let body = json!({ "pause_until": time_after(duration.0) });
            pause(&session, &stream, &name, &body, output).await
        }
        Resume { stream, name } => {
            let session = server.connect().await?;
            pause(&session, &stream, &name, &json!({}), output).await
        }
        Rm { stream, name } => {
            let session = server.connect().await?;
            session.api(&path("DELETE", &stream, &name)?, None).await?;
            let value = json!({ "stream": stream, "consumer": name, "deleted": true });
            done(output, value, &format!("deleted consumer {name} of {stream}"))
        }
    }
}

fn path(verb: &str, stream: &str, consumer: &str) -> Result<String, Failure> {
    let (stream, consumer) = (checked_name("stream", stream)?, checked_name("consumer", consumer)?);
    Ok(format!("CONSUMER.{verb}.{stream}.{consumer}"))
}

async fn info(session: &Session, stream: &str, consumer: &str) -> Result<Value, Failure> {
    session.api(&path("INFO", stream, consumer)?, None).await
}

async fn create(
    session: &Session,
    stream: &str,
    name: &str,
    config: Value,
    action: &str,
    output: Output,
) -> Result<(), Failure> {
    let mut api = path("CREATE", stream, name)?;
    // With one filter, the API wants it in the subject too, so that permissions can name it.
    if let Some(filter) = config["filter_subject"].as_str().filter(|filter| !filter.is_empty()) {
        api = format!("{api}.{filter}");
    }
    let body = json!({ "stream_name": stream, "config": config, "action": action });
    output.value(&session.api(&api, Some(&body)).await?, consumer_text)
}

async fn pause(
    session: &Session,
    stream: &str,
    name: &str,
    body: &Value,
    output: Output,
) -> Result<(), Failure> {
    let answer = session.api(&path("PAUSE", stream, name)?, Some(body)).await?;
    let text = if answer["paused"] == true {
        format!("paused {name} of {stream} until {}", cell(&answer["pause_until"]))
    } else {
        format!("{name} of {stream} delivers")
    };
    let mut value = answer;
    if let Some(value) = value.as_object_mut() {
        value.remove("type");
    }
    done(output, value, &text)
}

struct Pull<'a> {
    stream: &'a str,
    consumer: &'a str,
    count: u32,
    wait: Duration,
    acks: bool,
}

/// Pulls once, prints what comes, acks each after it was printed, and waits for every ack to be confirmed.
async fn next(session: &Session, pull: Pull<'_>, output: Output) -> Result<(), Failure> {
    let inbox = session.client.new_inbox();
    let mut messages = session
        .client
        .subscribe(inbox.clone())
        .await
        .map_err(|e| Failure::failed(format!("subscribing to the reply subject: {}", err_chain(&e))))?;
    let mut body = json!({ "batch": pull.count });
    if pull.wait.is_zero() {
        body["no_wait"] = true.into();
    } else {
        body["expires"] = nanos(Span(pull.wait));
    }
    let api = format!("$JS.API.{}", path("MSG.NEXT", pull.stream, pull.consumer)?);
    session
        .client
        .publish_with_reply(api, inbox, Bytes::from(body.to_string()))
        .await
        .map_err(|e| sending(&e))?;
    session.flush().await?;
    let patience = pull.wait + session.timeout;
    let mut received = 0;
    while received < pull.count {
        let message = match tokio::time::timeout(patience, messages.next()).await {
            Ok(Some(message)) => message,
            Ok(None) => return Err(Failure::failed("the server closed the connection")),
            Err(_) => {
                return Err(Failure::failed(
                    "the consumer did not answer in time; does it exist, and is it a pull consumer?",
                ));
            }
        };
        match message.status.map(|status| status.as_u16()) {
            None => {}
            Some(100) => continue,
            // Nothing there, or nothing more.
            Some(404 | 408) => break,
            Some(503) => {
                return Err(Failure::failed(format!(
                    "there is no consumer {} of {}; `beamlog consumer ls {}` shows what there is",
                    pull.consumer, pull.stream, pull.stream
                )));
            }
            Some(status) => {
                let text = message.description.as_deref().unwrap_or("refused");
                return Err(Failure::failed(format!("the pull was refused: {text} ({status})")));
            }
        }
        received += 1;
        output.line(&delivered_value(&message), message_text)?;
        if pull.acks
            && let Some(reply) = message.reply
        {
            let confirmed = session.client.request(reply, Bytes::from_static(b"+ACK")).await;
            confirmed.map_err(|e| request_failure(&e, "the ack"))?;
        }
    }
    if received == 0 {
        return Err(Failure::failed(format!("no messages for {} of {} now", pull.consumer, pull.stream)));
    }
    Ok(())
}

/// A delivery, with the positions that its reply subject carries.
fn delivered_value(message: &async_nats::Message) -> Value {
    let mut value = message_value(message);
    if message.status == Some(StatusCode::OK) {
        value["status"] = Value::Null;
    }
    let reply = message.reply.as_ref().map(|reply| reply.as_str()).unwrap_or_default();
    let tokens: Vec<&str> = reply.split('.').collect();
    // $JS.ACK.<stream>.<consumer>.<delivery count>.<sequence>.<consumer sequence>.<time>.<pending>; the
    // longer form has a domain and an account before the stream.
    let first = match tokens.len() {
        9 => Some(2),
        11.. => Some(4),
        _ => None,
    };
    if let Some(first) = first.filter(|_| reply.starts_with("$JS.ACK.")) {
        let number = |at: usize| tokens.get(first + at).and_then(|token| token.parse::<u64>().ok());
        value["delivery_count"] = json!(number(2));
        value["sequence"] = json!(number(3));
        value["consumer_sequence"] = json!(number(4));
        value["pending"] = json!(number(6));
    }
    value
}

fn consumer_text(info: &Value) -> String {
    let mut shown = info.clone();
    if let Some(shown) = shown.as_object_mut() {
        shown.remove("type");
        shown.remove("ts");
    }
    fields(&shown)
}

fn consumers_text(consumers: &Value) -> String {
    let rows: Vec<Vec<String>> = consumers
        .as_array()
        .into_iter()
        .flatten()
        .map(|info| {
            let kind = if info["config"]["deliver_subject"].is_string() { "push" } else { "pull" };
            [
                &info["name"],
                &json!(kind),
                &info["config"]["ack_policy"],
                &info["delivered"]["stream_seq"],
                &info["ack_floor"]["stream_seq"],
                &info["num_ack_pending"],
                &info["num_pending"],
            ]
            .map(cell)
            .to_vec()
        })
        .collect();
    columns(&["name", "kind", "ack", "delivered", "ack floor", "ack pending", "pending"], &rows)
}
