//! `kv …`: buckets of keys with history, over a stream of one node.

use async_nats::jetstream;
use async_nats::jetstream::kv::{Entry, Operation, Store};
use async_nats::jetstream::stream::StorageType;
use bytes::Bytes;
use clap::Subcommand;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::cli::client::{ServerArguments, Session};
use crate::cli::exit::{Failure, err_chain};
use crate::cli::output::{Output, cell, columns, fields, printable, raw};
use crate::cli::stream::{StorageArgument, done};
use crate::cli::subjects::{payload, payload_value, rfc3339};
use crate::config::{ByteSize, Span};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  beamlog kv add SETTINGS --history 5
  beamlog kv put SETTINGS lamp.kitchen on
  beamlog kv get SETTINGS lamp.kitchen
  beamlog kv watch SETTINGS 'lamp.>'
  beamlog kv history SETTINGS lamp.kitchen")]
pub(crate) struct KvArguments {
    #[command(subcommand)]
    pub(crate) command: KvCommand,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KvCommand {
    /// Create a bucket.
    Add {
        bucket: String,
        /// Values kept for each key, 1 to 64.
        #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(i64).range(1..=64))]
        history: i64,
        /// How long a value lives, like 1h.
        #[arg(long, value_name = "DURATION", default_value = "0s")]
        ttl: Span,
        /// Most bytes of the bucket, like 100MiB.
        #[arg(long, value_name = "SIZE")]
        max_bytes: Option<ByteSize>,
        /// Largest value, like 1MiB.
        #[arg(long, value_name = "SIZE")]
        max_value_bytes: Option<ByteSize>,
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
        #[arg(long, value_enum, default_value = "file")]
        storage: StorageArgument,
    },
    /// List the buckets, or the keys of one.
    #[command(visible_alias = "list")]
    Ls { bucket: Option<String> },
    /// Show the figures of a bucket.
    Info { bucket: String },
    /// Set a key.
    Put {
        bucket: String,
        key: String,
        /// Read from stdin when absent or `-`.
        value: Option<String>,
    },
    /// Set a key that must not exist.
    Create {
        bucket: String,
        key: String,
        /// Read from stdin when absent or `-`.
        value: Option<String>,
    },
    /// Set a key whose last revision must be the one given.
    Update { bucket: String, key: String, value: String, revision: u64 },
    /// Print the value of a key, and nothing else.
    Get {
        bucket: String,
        key: String,
        #[arg(long, value_name = "REVISION")]
        revision: Option<u64>,
    },
    /// Mark a key as deleted; its history stays.
    Del { bucket: String, key: String },
    /// Delete a key and its history.
    Purge { bucket: String, key: String },
    /// Show the values a key had.
    History { bucket: String, key: String },
    /// Show changes as they happen, the present values first.
    Watch {
        bucket: String,
        /// Filter on keys.
        #[arg(default_value = ">")]
        keys: String,
        /// Stop after this many changes.
        #[arg(long, value_name = "COUNT")]
        count: Option<u64>,
    },
    /// Delete a bucket.
    Rm { bucket: String },
}

pub(crate) async fn kv(arguments: KvArguments, output: Output) -> Result<(), Failure> {
    use KvCommand::{Add, Create, Del, Get, History, Info, Ls, Purge, Put, Rm, Update, Watch};
    let session = arguments.server.connect().await?;
    match arguments.command {
        Add { bucket, history, ttl, max_bytes, max_value_bytes, description, storage } => {
            let config = jetstream::kv::Config {
                bucket: bucket.clone(),
                description,
                history,
                max_age: ttl.0,
                max_bytes: limit("--max-bytes", max_bytes)?,
                max_value_size: i32::try_from(limit("--max-value-bytes", max_value_bytes)?)
                    .map_err(|_too_large| Failure::cannot_start("--max-value-bytes must be below 2GiB"))?,
                storage: match storage {
                    StorageArgument::File => StorageType::File,
                    StorageArgument::Memory => StorageType::Memory,
                },
                ..Default::default()
            };
            context(&session)
                .create_key_value(config)
                .await
                .map_err(|e| failed(format!("creating bucket {bucket}"), &e))?;
            done(output, json!({ "bucket": bucket, "created": true }), &format!("created bucket {bucket}"))
        }
        Ls { bucket: None } => buckets(&session, output).await,
        Ls { bucket: Some(bucket) } => {
            let store = open(&session, &bucket).await?;
            let mut found = store.keys().await.map_err(|e| failed("listing the keys", &e))?;
            let mut keys = Vec::new();
            while let Some(key) = found.next().await {
                keys.push(key.map_err(|e| failed("listing the keys", &e))?);
            }
            keys.sort_unstable();
            output.value(&json!(keys), |_| keys.iter().map(|key| format!("{}\n", printable(key))).collect())
        }
        Info { bucket } => {
            let info = session.api(&format!("STREAM.INFO.KV_{}", checked_bucket(&bucket)?), None).await?;
            output.value(&bucket_value(&info), fields)
        }
        Put { bucket, key, value } => {
            let value = payload(value)?;
            let store = open(&session, &bucket).await?;
            let revision = store.put(&key, value).await.map_err(|e| failed(format!("putting {key}"), &e))?;
            written(output, &bucket, &key, revision)
        }
        Create { bucket, key, value } => {
            let value = payload(value)?;
            let store = open(&session, &bucket).await?;
            let revision =
                store.create(&key, value).await.map_err(|e| failed(format!("creating {key}"), &e))?;
            written(output, &bucket, &key, revision)
        }
        Update { bucket, key, value, revision } => {
            let store = open(&session, &bucket).await?;
            let revision = store
                .update(&key, Bytes::from(value), revision)
                .await
                .map_err(|e| failed(format!("updating {key}"), &e))?;
            written(output, &bucket, &key, revision)
        }
        Get { bucket, key, revision } => get(&session, &bucket, &key, revision, output).await,
        Del { bucket, key } => {
            let store = open(&session, &bucket).await?;
            store.delete(&key).await.map_err(|e| failed(format!("deleting {key}"), &e))?;
            done(output, json!({ "bucket": bucket, "key": key, "deleted": true }), &format!("deleted {key}"))
        }
        Purge { bucket, key } => {
            let store = open(&session, &bucket).await?;
            store.purge(&key).await.map_err(|e| failed(format!("purging {key}"), &e))?;
            done(output, json!({ "bucket": bucket, "key": key, "purged": true }), &format!("purged {key}"))
        }
        History { bucket, key } => {
            let store = open(&session, &bucket).await?;
            let mut entries = store.history(&key).await.map_err(|e| failed("reading the history", &e))?;
            while let Some(entry) = entries.next().await {
                let entry = entry.map_err(|e| failed("reading the history", &e))?;
                output.line(&entry_value(&entry), entry_text)?;
            }
            Ok(())
        }
        Watch { bucket, keys, count } => watch(&session, &bucket, &keys, count, output).await,
        Rm { bucket } => {
            session.api(&format!("STREAM.DELETE.KV_{}", checked_bucket(&bucket)?), None).await?;
            done(output, json!({ "bucket": bucket, "deleted": true }), &format!("deleted bucket {bucket}"))
        }
    }
}

fn limit(flag: &str, size: Option<ByteSize>) -> Result<i64, Failure> {
    size.map_or(Ok(0), |size| {
        i64::try_from(size.0).map_err(|_too_large| Failure::cannot_start(format!("{flag} is too large")))
    })
}

fn context(session: &Session) -> jetstream::Context {
    let mut context = jetstream::new(session.client.clone());
    context.set_timeout(session.timeout);
    context
}

fn checked_bucket(bucket: &str) -> Result<&str, Failure> {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if bucket.is_empty() || !bucket.chars().all(is_legal) {
        return Err(Failure::cannot_start(format!(
            "{bucket:?} cannot name a bucket: letters, digits, - and _"
        )));
    }
    Ok(bucket)
}

async fn open(session: &Session, bucket: &str) -> Result<Store, Failure> {
    let name = checked_bucket(bucket)?;
    context(session).get_key_value(name).await.map_err(|e| {
        Failure::failed(format!(
            "opening bucket {bucket}: {}; `beamlog kv ls` shows what there is",
            err_chain(&e)
        ))
    })
}

fn failed(what: impl std::fmt::Display, error: &dyn std::error::Error) -> Failure {
    Failure::failed(format!("{what}: {}", err_chain(error)))
}

fn written(output: Output, bucket: &str, key: &str, revision: u64) -> Result<(), Failure> {
    let value = json!({ "bucket": bucket, "key": key, "revision": revision });
    done(output, value, &format!("{key} is at revision {revision}"))
}

async fn get(
    session: &Session,
    bucket: &str,
    key: &str,
    revision: Option<u64>,
    output: Output,
) -> Result<(), Failure> {
    let store = open(session, bucket).await?;
    let reading = |e: &dyn std::error::Error| failed(format!("reading {key}"), e);
    let entry = match revision {
        Some(revision) => store.entry_for_revision(key, revision).await.map_err(|e| reading(&e))?,
        None => store.entry(key).await.map_err(|e| reading(&e))?,
    };
    let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else {
        return Err(Failure::failed(format!("there is no {key} in {bucket}")));
    };
    if output.is_json() {
        return output.line(&entry_value(&entry), entry_text);
    }
    raw(&entry.value)?;
    raw(b"\n")
}

async fn buckets(session: &Session, output: Output) -> Result<(), Failure> {
    let streams = session.pages("STREAM.LIST", "streams", json!({})).await?;
    let is_bucket =
        |info: &&Value| info["config"]["name"].as_str().is_some_and(|name| name.starts_with("KV_"));
    let buckets: Vec<Value> = streams.iter().filter(is_bucket).map(bucket_value).collect();
    output.value(&Value::Array(buckets), |buckets| {
        let rows: Vec<Vec<String>> = buckets
            .as_array()
            .into_iter()
            .flatten()
            .map(|bucket| {
                ["bucket", "values", "bytes", "history", "ttl_seconds"].map(|key| cell(&bucket[key])).to_vec()
            })
            .collect();
        columns(&["bucket", "values", "bytes", "history", "ttl seconds"], &rows)
    })
}

fn bucket_value(info: &Value) -> Value {
    let (config, state) = (&info["config"], &info["state"]);
    json!({
        "bucket": config["name"].as_str().map(|name| name.trim_start_matches("KV_")),
        "description": config["description"],
        "values": state["messages"],
        "bytes": state["bytes"],
        "last_revision": state["last_seq"],
        "history": config["max_msgs_per_subject"],
        "ttl_seconds": config["max_age"].as_u64().unwrap_or(0) / 1_000_000_000,
        "storage": config["storage"],
    })
}

async fn watch(
    session: &Session,
    bucket: &str,
    keys: &str,
    count: Option<u64>,
    output: Output,
) -> Result<(), Failure> {
    let store = open(session, bucket).await?;
    let mut changes =
        store.watch_with_history(keys).await.map_err(|e| failed(format!("watching {keys}"), &e))?;
    eprintln!("watching {keys} in {bucket}");
    let mut left = count.unwrap_or(u64::MAX);
    while left > 0 {
        let change = tokio::select! {
            change = changes.next() => change,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(change) = change else { break };
        let entry = change.map_err(|e| failed(format!("watching {keys}"), &e))?;
        output.line(&entry_value(&entry), entry_text)?;
        left -= 1;
    }
    Ok(())
}

fn entry_value(entry: &Entry) -> Value {
    let operation = match entry.operation {
        Operation::Put => "put",
        Operation::Delete => "del",
        Operation::Purge => "purge",
    };
    let nanos = u64::try_from(entry.created.unix_timestamp_nanos()).unwrap_or(0);
    let mut value = json!({
        "bucket": entry.bucket,
        "key": entry.key,
        "revision": entry.revision,
        "operation": operation,
        "created": rfc3339(std::time::Duration::from_nanos(nanos)),
    });
    payload_value(&mut value, &entry.value);
    value
}

fn entry_text(entry: &Value) -> String {
    let payload = entry["payload"].as_str().or(entry["payload_base64"].as_str()).unwrap_or_default();
    format!(
        "{:>6}  {:<5}  {}  {payload}",
        cell(&entry["revision"]),
        cell(&entry["operation"]),
        cell(&entry["key"])
    )
}
