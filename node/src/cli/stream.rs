//! `stream …`: streams of a running node, by the JetStream API.

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::cli::client::{ServerArguments, Session};
use crate::cli::exit::Failure;
use crate::cli::output::{Output, cell, columns, fields};
use crate::cli::subjects::{message_text, payload_value};
use crate::config::{ByteSize, Span};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  beamlog stream add ORDERS --subjects 'orders.>' --max-age 7d
  beamlog stream add JOBS --subjects 'jobs.*' --retention workqueue --discard new --max-messages 10000
  beamlog stream add TRACES --subjects 'traces.>' --replicas 1 --tag n2
  beamlog stream edit TRACES --tag n3                    # it moves there; --replicas 3: to all that vote
  beamlog stream ls
  beamlog stream info ORDERS -o json
  beamlog stream get ORDERS --last orders.eu
  beamlog stream purge ORDERS --filter orders.eu --keep 10")]
pub(crate) struct StreamArguments {
    #[command(subcommand)]
    pub(crate) command: StreamCommand,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StreamCommand {
    /// Create a stream.
    Add {
        name: String,
        #[command(flatten)]
        settings: StreamSettings,
    },
    /// Change the settings that are given, and leave the others. With --replicas or --tag the stream moves.
    Edit {
        name: String,
        #[command(flatten)]
        settings: StreamSettings,
    },
    /// List the streams.
    #[command(visible_alias = "list")]
    Ls {
        /// Only streams that capture this subject.
        #[arg(long, value_name = "SUBJECT")]
        subject: Option<String>,
    },
    /// Show settings and figures of a stream.
    Info { name: String },
    /// Show how many messages each subject has.
    Subjects {
        name: String,
        /// Only subjects that this filter matches.
        #[arg(long, default_value = ">", value_name = "FILTER")]
        filter: String,
    },
    /// Show one message; the last one of the stream when nothing is chosen.
    Get {
        name: String,
        /// Its sequence.
        #[arg(long, value_name = "SEQUENCE", conflicts_with_all = ["last", "next"])]
        sequence: Option<u64>,
        /// The last message of this subject.
        #[arg(long, value_name = "SUBJECT", conflicts_with = "next")]
        last: Option<String>,
        /// The first message that this filter matches, at --from or after it.
        #[arg(long, value_name = "FILTER")]
        next: Option<String>,
        /// Where --next begins.
        #[arg(long, value_name = "SEQUENCE", requires = "next", default_value_t = 1)]
        from: u64,
    },
    /// Delete one message.
    #[command(name = "delete-message")]
    DeleteMessage { name: String, sequence: u64 },
    /// Remove messages, all unless told which.
    Purge {
        name: String,
        /// Only messages that this filter matches.
        #[arg(long, value_name = "FILTER")]
        filter: Option<String>,
        /// Only messages before this sequence.
        #[arg(long, value_name = "SEQUENCE", conflicts_with = "keep")]
        before: Option<u64>,
        /// Keep this many of the newest.
        #[arg(long, value_name = "COUNT")]
        keep: Option<u64>,
    },
    /// Delete a stream, its messages and its consumers.
    Rm { name: String },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RetentionArgument {
    Limits,
    Interest,
    Workqueue,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum StorageArgument {
    File,
    Memory,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DiscardArgument {
    Old,
    New,
}

/// What a stream can be told; what is absent keeps its default (or, in `edit`, its value).
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Settings")]
pub(crate) struct StreamSettings {
    /// A JSON file with settings as the JetStream API has them; flags go over it.
    #[arg(long, value_name = "FILE")]
    pub(crate) from_file: Option<PathBuf>,
    /// Filters to capture, separated by commas; the stream's name when absent.
    #[arg(long, value_delimiter = ',', value_name = "FILTERS")]
    pub(crate) subjects: Option<Vec<String>>,
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,
    /// When messages leave: by limits, when all consumers acked, when one consumer acked.
    #[arg(long, value_enum)]
    pub(crate) retention: Option<RetentionArgument>,
    #[arg(long, value_enum)]
    pub(crate) storage: Option<StorageArgument>,
    /// What a full stream does: drop its oldest message, or refuse the new one.
    #[arg(long, value_enum)]
    pub(crate) discard: Option<DiscardArgument>,
    /// Most messages; -1 is no limit.
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pub(crate) max_messages: Option<i64>,
    /// Most bytes, like 1GiB.
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_bytes: Option<ByteSize>,
    /// Oldest age, like 7d; 0s is no limit.
    #[arg(long, value_name = "DURATION")]
    pub(crate) max_age: Option<Span>,
    /// Most messages of one subject; -1 is no limit.
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pub(crate) max_messages_per_subject: Option<i64>,
    /// Largest headers + payload, like 64KiB.
    #[arg(long, value_name = "SIZE")]
    pub(crate) max_message_bytes: Option<ByteSize>,
    /// Most consumers; -1 is no limit.
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pub(crate) max_consumers: Option<i64>,
    /// How long a message id is remembered, like 2m.
    #[arg(long, value_name = "DURATION")]
    pub(crate) duplicate_window: Option<Span>,
    /// Nodes of the cluster that hold it: 1 is one of them alone, more are those of a shard.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=5))]
    pub(crate) replicas: Option<u8>,
    /// Where it is to be: the node that holds a stream with one replica (absent: the one that is asked), or `shard:<number>`.
    #[arg(long = "tag", value_delimiter = ',', value_name = "NODES")]
    pub(crate) tags: Option<Vec<String>>,
    /// Let one message replace all earlier ones by a Nats-Rollup header.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub(crate) allow_rollup: Option<bool>,
    /// Let clients read messages without a consumer and without the API.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub(crate) allow_direct: Option<bool>,
    /// Let messages carry their own time to live.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub(crate) allow_message_ttl: Option<bool>,
    /// Let publishers store several messages together or not at all (ADR-50 of NATS).
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub(crate) allow_atomic: Option<bool>,
    /// Refuse to delete single messages.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub(crate) deny_delete: Option<bool>,
    /// Refuse to purge.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub(crate) deny_purge: Option<bool>,
    /// Send no publish acks.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "BOOL")]
    pub(crate) no_ack: Option<bool>,
}

impl StreamSettings {
    /// Lays what is said over a configuration.
    fn over(&self, mut config: Value) -> Result<Value, Failure> {
        if let Some(path) = &self.from_file {
            for (key, value) in read_object(path)? {
                config[key] = value;
            }
        }
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                config[key] = value;
            }
        };
        set("subjects", self.subjects.as_ref().map(|subjects| json!(subjects)));
        set("description", self.description.as_ref().map(|text| json!(text)));
        set(
            "retention",
            self.retention.map(|retention| {
                json!(match retention {
                    RetentionArgument::Limits => "limits",
                    RetentionArgument::Interest => "interest",
                    RetentionArgument::Workqueue => "workqueue",
                })
            }),
        );
        set(
            "storage",
            self.storage.map(|storage| match storage {
                StorageArgument::File => json!("file"),
                StorageArgument::Memory => json!("memory"),
            }),
        );
        set(
            "discard",
            self.discard.map(|discard| match discard {
                DiscardArgument::Old => json!("old"),
                DiscardArgument::New => json!("new"),
            }),
        );
        set("max_msgs", self.max_messages.map(Value::from));
        set("max_bytes", self.max_bytes.map(|size| json!(size.0)));
        set("max_age", self.max_age.map(nanos));
        set("max_msgs_per_subject", self.max_messages_per_subject.map(Value::from));
        set("max_msg_size", self.max_message_bytes.map(|size| json!(size.0)));
        set("max_consumers", self.max_consumers.map(Value::from));
        set("duplicate_window", self.duplicate_window.map(nanos));
        set("num_replicas", self.replicas.map(Value::from));
        set("placement", self.tags.as_ref().map(|tags| json!({ "tags": tags })));
        set("allow_rollup_hdrs", self.allow_rollup.map(Value::from));
        set("allow_direct", self.allow_direct.map(Value::from));
        set("allow_msg_ttl", self.allow_message_ttl.map(Value::from));
        set("allow_atomic", self.allow_atomic.map(Value::from));
        set("deny_delete", self.deny_delete.map(Value::from));
        set("deny_purge", self.deny_purge.map(Value::from));
        set("no_ack", self.no_ack.map(Value::from));
        Ok(config)
    }
}

/// A duration as the JetStream API counts it.
pub(crate) fn nanos(span: Span) -> Value {
    u64::try_from(span.0.as_nanos()).unwrap_or(u64::MAX).into()
}

pub(crate) fn read_object(path: &std::path::Path) -> Result<serde_json::Map<String, Value>, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::cannot_start(format!("reading {}: {e}", path.display())))?;
    serde_json::from_str(&text)
        .map_err(|e| Failure::cannot_start(format!("{} is not a JSON object: {e}", path.display())))
}

/// Names go into API subjects: what would be another subject is refused here.
pub(crate) fn checked_name<'a>(what: &str, name: &'a str) -> Result<&'a str, Failure> {
    let is_bad = |c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c);
    if name.is_empty() || name.contains(is_bad) {
        return Err(Failure::cannot_start(format!(
            "{name:?} cannot name a {what}: no white space and none of . * > / \\"
        )));
    }
    Ok(name)
}

pub(crate) async fn stream(arguments: StreamArguments, output: Output) -> Result<(), Failure> {
    use StreamCommand::{Add, DeleteMessage, Edit, Get, Info, Ls, Purge, Rm, Subjects};
    let server = arguments.server;
    match arguments.command {
        Add { name, settings } => {
            let name = checked_name("stream", &name)?;
            let config = json!({
                "name": name, "retention": "limits", "storage": "file", "discard": "old",
                "max_msgs": -1, "max_bytes": -1, "max_msgs_per_subject": -1, "max_consumers": -1,
                "max_msg_size": -1, "num_replicas": 0, "allow_direct": true,
            });
            let config = settings.over(config)?;
            let session = server.connect().await?;
            output.value(&session.api(&format!("STREAM.CREATE.{name}"), Some(&config)).await?, stream_text)
        }
        Edit { name, settings } => {
            let name = checked_name("stream", &name)?;
            let session = server.connect().await?;
            let info = session.api(&format!("STREAM.INFO.{name}"), None).await?;
            let config = settings.over(info["config"].clone())?;
            output.value(&session.api(&format!("STREAM.UPDATE.{name}"), Some(&config)).await?, stream_text)
        }
        Ls { subject } => {
            let session = server.connect().await?;
            let body = subject.map_or_else(|| json!({}), |subject| json!({ "subject": subject }));
            let streams = session.pages("STREAM.LIST", "streams", body).await?;
            output.value(&Value::Array(streams), streams_text)
        }
        Info { name } => {
            let session = server.connect().await?;
            let name = checked_name("stream", &name)?;
            output.value(&session.api(&format!("STREAM.INFO.{name}"), None).await?, stream_text)
        }
        Subjects { name, filter } => {
            let session = server.connect().await?;
            subjects(&session, checked_name("stream", &name)?, &filter, output).await
        }
        Get { name, sequence, last, next, from } => {
            let name = checked_name("stream", &name)?;
            let session = server.connect().await?;
            let body = match (sequence, last, next) {
                (Some(sequence), _, _) => json!({ "seq": sequence }),
                (None, Some(subject), _) => json!({ "last_by_subj": subject }),
                (None, None, Some(filter)) => json!({ "seq": from, "next_by_subj": filter }),
                (None, None, None) => {
                    let info = session.api(&format!("STREAM.INFO.{name}"), None).await?;
                    json!({ "seq": info["state"]["last_seq"] })
                }
            };
            let answer = session.api(&format!("STREAM.MSG.GET.{name}"), Some(&body)).await?;
            output.line(&stored_message(&answer["message"])?, message_text)
        }
        DeleteMessage { name, sequence } => {
            let name = checked_name("stream", &name)?;
            let session = server.connect().await?;
            let body = json!({ "seq": sequence });
            session.api(&format!("STREAM.MSG.DELETE.{name}"), Some(&body)).await?;
            done(
                output,
                json!({ "stream": name, "deleted": sequence }),
                &format!("deleted message {sequence} of {name}"),
            )
        }
        Purge { name, filter, before, keep } => {
            let name = checked_name("stream", &name)?;
            let session = server.connect().await?;
            let mut body = json!({});
            for (key, value) in [
                ("filter", filter.map(Value::from)),
                ("seq", before.map(Value::from)),
                ("keep", keep.map(Value::from)),
            ] {
                if let Some(value) = value {
                    body[key] = value;
                }
            }
            let answer = session.api(&format!("STREAM.PURGE.{name}"), Some(&body)).await?;
            let value = json!({ "stream": name, "purged": answer["purged"] });
            done(output, value, &format!("purged {} messages of {name}", answer["purged"]))
        }
        Rm { name } => {
            let name = checked_name("stream", &name)?;
            let session = server.connect().await?;
            session.api(&format!("STREAM.DELETE.{name}"), None).await?;
            done(output, json!({ "stream": name, "deleted": true }), &format!("deleted stream {name}"))
        }
    }
}

/// A result that is one sentence.
pub(crate) fn done(output: Output, value: Value, text: &str) -> Result<(), Failure> {
    output.value(&value, |_| format!("{text}\n"))
}

async fn subjects(session: &Session, name: &str, filter: &str, output: Output) -> Result<(), Failure> {
    let mut counts = serde_json::Map::new();
    loop {
        let body = json!({ "subjects_filter": filter, "offset": counts.len() });
        let info = session.api(&format!("STREAM.INFO.{name}"), Some(&body)).await?;
        let page = info["state"]["subjects"].as_object().cloned().unwrap_or_default();
        let is_last = page.is_empty();
        counts.extend(page);
        if is_last || counts.len() as u64 >= info["total"].as_u64().unwrap_or(0) {
            break;
        }
    }
    output.value(&Value::Object(counts), |value| {
        let rows: Vec<Vec<String>> = value
            .as_object()
            .into_iter()
            .flatten()
            .map(|(subject, count)| vec![cell(&json!(subject)), cell(count)])
            .collect();
        columns(&["subject", "messages"], &rows)
    })
}

/// A message of the API, with its base64 undone.
fn stored_message(message: &Value) -> Result<Value, Failure> {
    let broken = |_| Failure::failed("the server's message is not base64");
    let mut value =
        json!({ "subject": message["subject"], "sequence": message["seq"], "time": message["time"] });
    if let Some(block) = message["hdrs"].as_str() {
        let block = STANDARD.decode(block).map_err(broken)?;
        let mut headers = serde_json::Map::new();
        for line in String::from_utf8_lossy(&block).split("\r\n").skip(1) {
            if let Some((name, text)) = line.split_once(':') {
                let values = headers.entry(name).or_insert_with(|| json!([]));
                values.as_array_mut().expect("made as an array").push(text.trim().into());
            }
        }
        value["headers"] = headers.into();
    }
    let payload = STANDARD.decode(message["data"].as_str().unwrap_or_default()).map_err(broken)?;
    payload_value(&mut value, &payload);
    Ok(value)
}

fn stream_text(info: &Value) -> String {
    let mut shown = json!({ "name": info["config"]["name"], "created": info["created"] });
    let mut config = info["config"].clone();
    if let Some(config) = config.as_object_mut() {
        config.remove("name");
    }
    shown["config"] = config;
    shown["state"] = info["state"].clone();
    if let Some(leader) = info["cluster"].get("leader") {
        shown["placement"] = json!({ "leader": leader, "replicas": replicas(info) });
        if let Some(moving) = info["cluster"].get("moving") {
            shown["placement"]["moving"] = moving.clone();
        }
    }
    fields(&shown)
}

/// The nodes that hold the stream beside the one that leads, with what is wrong with them.
fn replicas(info: &Value) -> Vec<String> {
    let all = info["cluster"]["replicas"].as_array();
    all.into_iter()
        .flatten()
        .map(|replica| {
            let name = replica["name"].as_str().unwrap_or_default();
            match (replica["offline"] == true, replica["current"] == true) {
                (true, _) => format!("{name} (offline)"),
                (false, false) => format!("{name} (behind)"),
                (false, true) => name.to_owned(),
            }
        })
        .collect()
}

fn streams_text(streams: &Value) -> String {
    let rows: Vec<Vec<String>> = streams
        .as_array()
        .into_iter()
        .flatten()
        .map(|info| {
            let (config, state) = (&info["config"], &info["state"]);
            // A node that stands alone says nothing of the place in a list.
            let (leader, others) = (&info["cluster"]["leader"], json!(replicas(info)));
            [
                &config["name"],
                &config["subjects"],
                &state["messages"],
                &state["bytes"],
                &state["first_seq"],
                &state["last_seq"],
                &state["consumer_count"],
                leader,
                &others,
            ]
            .map(cell)
            .to_vec()
        })
        .collect();
    let heading =
        ["name", "subjects", "messages", "bytes", "first", "last", "consumers", "leader", "replicas"];
    columns(&heading, &rows)
}
