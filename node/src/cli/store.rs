//! `store …`: the store of a node that is not running, read as it lies. Only `repair` writes.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use beamlog_log::inspect::{self, Dumped, DumpedRecord, SegmentReport};
use beamlog_log::{
    DataDirectory, DirectoryError, Disk, DiskLock, FirstStart, Log, LogOptions, NodeId, OpenError, Opened,
    ShardId, StdDisk, Tail, Timestamp, VoteState,
};
use beamlog_nats::rfc3339;
use beamlog_router::headers;
use clap::Subcommand;
use serde_json::{Value, json};

use crate::cli::exit::{Failure, err_chain};
use crate::cli::output::{Output, cell, columns, fields, printable};
use crate::cli::subjects::payload_value;

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  beamlog store check ./beamlog-data        # exit code 1 when something is damaged
  beamlog store stats ./beamlog-data -o json
  beamlog store dump ./beamlog-data --limit 10")]
pub(crate) enum StoreCommand {
    /// Read every byte and say what is damaged.
    Check { data_dir: PathBuf },
    /// Print the records of the log, in its order.
    Dump {
        data_dir: PathBuf,
        /// Stop after this many records.
        #[arg(long, value_name = "COUNT")]
        limit: Option<u64>,
        /// Only messages.
        #[arg(long)]
        messages: bool,
    },
    /// Show what the log holds of each stream.
    Stats { data_dir: PathBuf },
    /// Let a store start again that refuses to. Shows what it would do unless told to do it.
    Repair {
        data_dir: PathBuf,
        /// Cut a last frame that fails its checksum, although it may have been acknowledged.
        #[arg(long)]
        accept_tail_loss: bool,
    },
}

pub(crate) fn store(command: StoreCommand, output: Output) -> Result<(), Failure> {
    match command {
        StoreCommand::Check { data_dir } => check(&Store::open(&data_dir)?, output),
        StoreCommand::Dump { data_dir, limit, messages } => {
            dump(&Store::open(&data_dir)?, limit.unwrap_or(u64::MAX), messages, output)
        }
        StoreCommand::Stats { data_dir } => stats(&Store::open(&data_dir)?, output),
        StoreCommand::Repair { data_dir, accept_tail_loss: false } => {
            check(&Store::open(&data_dir)?, output)?;
            eprintln!("nothing was changed; --accept-tail-loss cuts a suspect last frame");
            Ok(())
        }
        StoreCommand::Repair { data_dir, accept_tail_loss: true } => repair(&data_dir, output),
    }
}

/// A store nobody else is using.
struct Store {
    shard: PathBuf,
    node: NodeId,
    _lock: Option<Box<dyn DiskLock>>,
}

impl Store {
    fn open(path: &Path) -> Result<Self, Failure> {
        let refused = |error: DirectoryError| {
            Failure::cannot_start(format!("{}; {}", err_chain(&error), error.remedy()))
        };
        let identity = DataDirectory::identity_of(&StdDisk, path).map_err(refused)?;
        let Some(identity) = identity else {
            return Err(Failure::cannot_start(format!("there is no store in {}", path.display())));
        };
        let lock = path.join("lock");
        // A copy of a store may have no lock file; looking at it must not make one.
        let lock = if lock.exists() {
            match StdDisk.lock(&lock) {
                Ok(lock) => Some(lock),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(refused(DirectoryError::Locked { path: path.to_owned() }));
                }
                // Read-only media cannot be locked, and nobody writes there.
                Err(_) => None,
            }
        } else {
            None
        };
        Ok(Self { shard: path.join("shard-0000"), node: identity.node, _lock: lock })
    }
}

fn unreadable(error: &dyn std::error::Error) -> Failure {
    Failure::failed(format!("reading the store: {}", err_chain(error)))
}

fn check(store: &Store, output: Output) -> Result<(), Failure> {
    let report = inspect::check(&StdDisk, &store.shard).map_err(|e| unreadable(&e))?;
    let value = json!({
        "node": store.node.to_string(),
        "sound": report.is_sound(),
        "segments": report.segments.iter().map(segment_value).collect::<Vec<_>>(),
        "missing": report.missing.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "unexpected": report.unexpected,
        "unfinished": report.unfinished,
        "vote": vote_name(report.vote),
    });
    output.value(&value, check_text)?;
    if report.is_sound() {
        return Ok(());
    }
    let places: usize = report.segments.iter().map(|segment| segment.damaged.len()).sum();
    Err(Failure::failed(format!(
        "the store is damaged: {places} places, {} missing segments; restore them from a backup of this store; \
         what is not damaged is served",
        report.missing.len()
    )))
}

const fn vote_name(vote: VoteState) -> &'static str {
    match vote {
        VoteState::None => "none",
        VoteState::Whole => "whole",
        VoteState::OneCopy => "one copy",
        VoteState::Lost => "lost",
    }
}

fn segment_value(segment: &SegmentReport) -> Value {
    json!({
        "segment": segment.segment.to_string(),
        "state": format!("{:?}", segment.state),
        "bytes": segment.file_bytes,
        "frames": segment.frames,
        "records": segment.records,
        "messages": segment.messages,
        "last_index": segment.last_index.0,
        "side_file": format!("{:?}", segment.side_file),
        "damaged": segment.damaged.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn check_text(value: &Value) -> String {
    let names = ["segment", "state", "bytes", "frames", "messages", "last_index", "side_file"];
    let segments = value["segments"].as_array();
    let rows: Vec<Vec<String>> = segments
        .into_iter()
        .flatten()
        .map(|segment| names.map(|name| cell(&segment[name])).to_vec())
        .collect();
    let mut text = columns(&names, &rows);
    for segment in segments.into_iter().flatten() {
        for damage in segment["damaged"].as_array().into_iter().flatten() {
            text.push_str(&format!("damaged: {}\n", cell(damage)));
        }
    }
    for kind in ["missing", "unexpected", "unfinished"] {
        for name in value[kind].as_array().into_iter().flatten() {
            text.push_str(&format!("{kind}: {}\n", cell(name)));
        }
    }
    if value["vote"] != "none" {
        text.push_str(&format!("vote: {}\n", cell(&value["vote"])));
    }
    if value["sound"] == true {
        text.push_str("sound\n");
    }
    text
}

fn stats(store: &Store, output: Output) -> Result<(), Failure> {
    let stats = inspect::stats(&StdDisk, &store.shard).map_err(|e| unreadable(&e))?;
    let streams: Vec<Value> = stats
        .streams
        .iter()
        .map(|(stream, figures)| {
            json!({
                "stream_id": stream.to_string(),
                "messages": figures.messages,
                "bytes": figures.bytes,
                "subjects": figures.subjects,
                "first": figures.first.0,
                "last": figures.last.0,
                "segments": figures.segments,
            })
        })
        .collect();
    let value = json!({
        "node": store.node.to_string(),
        "segments": stats.segments,
        "bytes": stats.file_bytes,
        "frames": stats.frames,
        "records": stats.records,
        "last_index": stats.last_index.0,
        "streams": streams,
    });
    output.value(&value, |value| {
        let mut summary = value.clone();
        if let Some(summary) = summary.as_object_mut() {
            summary.remove("streams");
        }
        let names = ["stream_id", "messages", "bytes", "subjects", "first", "last", "segments"];
        let rows: Vec<Vec<String>> = value["streams"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|stream| names.map(|name| cell(&stream[name])).to_vec())
            .collect();
        format!("{}\n{}", fields(&summary), columns(&names, &rows))
    })
}

fn dump(store: &Store, limit: u64, only_messages: bool, output: Output) -> Result<(), Failure> {
    let (mut left, mut failure) = (limit, None);
    let mut print = |dumped: Dumped| {
        if only_messages && !matches!(dumped.record, DumpedRecord::Message(_)) {
            return ControlFlow::Continue(());
        }
        if left == 0 {
            return ControlFlow::Break(());
        }
        left -= 1;
        match output.line(&dumped_value(&dumped), dumped_text) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    };
    inspect::dump(&StdDisk, &store.shard, &mut print).map_err(|e| unreadable(&e))?;
    failure.map_or(Ok(()), Err)
}

fn dumped_value(dumped: &Dumped) -> Value {
    let mut value = json!({
        "segment": dumped.segment.to_string(),
        "offset": dumped.offset,
        "index": dumped.index.0,
        "term": dumped.term.0,
        "time": rfc3339(dumped.timestamp.0),
    });
    let names = |segments: &[beamlog_log::SegmentId]| -> Value {
        segments.iter().map(|segment| Value::from(segment.to_string())).collect()
    };
    match &dumped.record {
        DumpedRecord::Message(message) => {
            value["kind"] = "message".into();
            value["stream_id"] = message.stream.to_string().into();
            value["sequence"] = message.sequence.0.into();
            value["subject"] = String::from_utf8_lossy(&message.subject).into();
            let mut found = serde_json::Map::new();
            for (name, text) in headers::iter(&message.headers) {
                let values = found.entry(String::from_utf8_lossy(name)).or_insert_with(|| json!([]));
                values.as_array_mut().expect("made as an array").push(String::from_utf8_lossy(text).into());
            }
            if !found.is_empty() {
                value["headers"] = found.into();
            }
            payload_value(&mut value, &message.payload);
        }
        DumpedRecord::Control(body) => {
            value["kind"] = "control".into();
            value["body_base64"] = STANDARD.encode(body).into();
        }
        DumpedRecord::Replication(body) => {
            value["kind"] = "replication".into();
            value["body_base64"] = STANDARD.encode(body).into();
        }
        DumpedRecord::Snapshot(body) => {
            value["kind"] = "snapshot".into();
            value["body_base64"] = STANDARD.encode(body).into();
        }
        DumpedRecord::Manifest(segments) => {
            value["kind"] = "manifest".into();
            value["segments"] = names(segments);
        }
        DumpedRecord::Retired(segments) => {
            value["kind"] = "retired".into();
            value["segments"] = names(segments);
        }
        DumpedRecord::Seal => value["kind"] = "seal".into(),
        DumpedRecord::Unreadable(reason) => {
            value["kind"] = "unreadable".into();
            value["reason"] = reason.to_string().into();
        }
    }
    value
}

fn dumped_text(value: &Value) -> String {
    let what = match value["kind"].as_str().unwrap_or_default() {
        "message" => {
            let payload = value["payload"].as_str().map_or_else(|| "(binary)".to_owned(), printable);
            let (stream, sequence) = (cell(&value["stream_id"]), &value["sequence"]);
            format!("message {stream}#{sequence} [{}] {payload}", cell(&value["subject"]))
        }
        "control" | "replication" | "snapshot" => {
            let bytes = value["body_base64"].as_str().map_or(0, |text| text.len() / 4 * 3);
            format!("{} of about {bytes} bytes", cell(&value["kind"]))
        }
        "unreadable" => format!("unreadable: {}", cell(&value["reason"])),
        _ => format!("{} {}", cell(&value["kind"]), cell(&value["segments"])),
    };
    format!("{:>8}  {}+{}  {what}", value["index"].to_string(), cell(&value["segment"]), value["offset"])
}

fn repair(path: &Path, output: Output) -> Result<(), Failure> {
    // What is not a store yet must not become one here.
    drop(Store::open(path)?);
    let disk: Arc<dyn Disk> = Arc::new(StdDisk);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let first = FirstStart {
        node: NodeId([0; 16]),
        created: Timestamp(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)),
    };
    let refused =
        |error: DirectoryError| Failure::cannot_start(format!("{}; {}", err_chain(&error), error.remedy()));
    let directory = DataDirectory::open(Arc::clone(&disk), path, first).map_err(refused)?;
    let options =
        LogOptions { accept_tail_loss: true, must_exist: directory.has_log(), ..LogOptions::default() };
    let shard = ShardId(0);
    let failed = |error: OpenError| Failure::failed(format!("repairing the log: {}", err_chain(&error)));
    let Opened { log, report, .. } =
        Log::open(disk, &directory.shard_directory(shard), shard, options).map_err(failed)?;
    log.close().map_err(|e| Failure::failed(format!("sealing the repaired log: {}", err_chain(&e))))?;
    let cut = match report.tail {
        Tail::LossAccepted { bytes } => bytes,
        Tail::New | Tail::Clean | Tail::Whole | Tail::Torn { .. } | Tail::Suspect { .. } | Tail::Fenced => 0,
    };
    let value = json!({
        "tail": format!("{:?}", report.tail),
        "lost_bytes": cut,
        "last_index": report.last_index.0,
        "quarantined": report.quarantined,
    });
    output.value(&value, fields)
}
