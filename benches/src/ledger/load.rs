//! Publishers with many messages in flight and consumers that wait for the confirmation of every ack,
//! until they are told to stop or the server is gone.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::record::{Entry, Ledger, Shape};
use super::{LedgerError, message};
use crate::client::{ClientError, Connection};
use crate::jetstream::{ApiError, consumer_info, create_consumer, create_stream, is_publish_ack};

/// How often a waiting connection looks whether it should stop.
const IDLE: Duration = Duration::from_millis(20);
/// How long acks are awaited after the end was asked for.
const LAST_ACKS: Duration = Duration::from_secs(5);
const FETCH: usize = 64;
const ACKS_SID: u64 = 2;
const MESSAGES_SID: u64 = 3;
pub(super) const CONSUMER: &str = "ledger";

#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Unacked messages of each publisher.
    pub in_flight: usize,
    /// Whether a consumer with confirmed acks runs on every stream.
    pub consume: bool,
    pub duration: Duration,
    /// Messages that each publisher sends at most.
    pub messages_max: u64,
}

/// What a load did before it ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loaded {
    pub acked: u64,
    pub confirmed: u64,
    /// Publishes that were answered by an error.
    pub refused: u64,
    /// Connections that ended before they were asked to.
    pub connections_lost: u32,
}

impl Loaded {
    fn add(&mut self, other: Self) {
        self.acked += other.acked;
        self.confirmed += other.confirmed;
        self.refused += other.refused;
        self.connections_lost += other.connections_lost;
    }
}

pub(super) fn stream_name(stream: u32) -> String {
    format!("LEDGER{stream}")
}

/// Creates the streams and consumers; those that are there already are left as they are.
pub fn prepare(connection: &mut Connection, shape: &Shape, consume: bool) -> Result<(), LedgerError> {
    for stream in 0..shape.streams {
        let name = stream_name(stream);
        // Long enough for a message of one cycle to be known as a duplicate in the next.
        let extra = json!({ "duplicate_window": 120_000_000_000_u64 });
        create_stream(connection, &name, &format!("ledger.{stream}.>"), &extra)?;
        if consume {
            let config = json!({
                "durable_name": CONSUMER, "ack_policy": "explicit", "deliver_policy": "all",
                "ack_wait": 3_000_000_000_u64, "max_ack_pending": 1000,
            });
            create_consumer(connection, &name, &config)?;
        }
    }
    Ok(())
}

/// Runs publishers and consumers until `stop`, the duration's end, or the loss of their connections.
pub fn load(
    address: SocketAddr,
    ledger: &Ledger,
    load: Load,
    stop: &AtomicBool,
) -> Result<Loaded, LedgerError> {
    let shape = ledger.shape();
    let prepared = Connection::open(address)
        .map_err(LedgerError::from)
        .and_then(|mut connection| prepare(&mut connection, &shape, load.consume));
    let lost = outlived(prepared, Loaded::default())?;
    if lost.connections_lost > 0 {
        return Ok(lost);
    }
    let until = Instant::now() + load.duration;
    let ended = || stop.load(Ordering::Relaxed) || Instant::now() >= until;
    thread::scope(|scope| {
        let ended = &ended;
        let mut threads = Vec::new();
        for publisher in 0..shape.publishers {
            threads.push(scope.spawn(move || {
                let mut loaded = Loaded::default();
                let outcome = publish(address, ledger, publisher, load, ended, &mut loaded);
                outlived(outcome, loaded)
            }));
        }
        for stream in 0..if load.consume { shape.streams } else { 0 } {
            threads.push(scope.spawn(move || {
                let mut loaded = Loaded::default();
                let outcome = consume(address, ledger, stream, &|| Ok(ended()), &mut loaded);
                outlived(outcome, loaded)
            }));
        }
        let mut all = Loaded::default();
        for thread in threads {
            all.add(thread.join().map_err(|_panic| LedgerError::Panicked)??);
        }
        Ok(all)
    })
}

/// Consumes, with confirmed acks, until no message is left in any stream, or the duration's end.
/// Gives whether all were consumed.
pub fn drain(address: SocketAddr, ledger: &Ledger, duration: Duration) -> Result<bool, LedgerError> {
    let until = Instant::now() + duration;
    for stream in 0..ledger.shape().streams {
        let empty = || -> Result<bool, LedgerError> {
            let mut connection = Connection::open(address)?;
            let info = consumer_info(&mut connection, &stream_name(stream), CONSUMER)?;
            let left = |name: &str| info[name].as_u64().unwrap_or(u64::MAX);
            Ok(left("num_pending") == 0 && left("num_ack_pending") == 0)
        };
        consume(
            address,
            ledger,
            stream,
            &|| Ok(Instant::now() >= until || empty()?),
            &mut Loaded::default(),
        )?;
        if !empty()? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The server going away is what these loads are for; other failures are the caller's.
fn outlived(outcome: Result<(), LedgerError>, mut loaded: Loaded) -> Result<Loaded, LedgerError> {
    match outcome {
        Ok(()) => Ok(loaded),
        Err(LedgerError::Client(error) | LedgerError::Api(ApiError::Client(error))) => match error {
            ClientError::Connect { .. }
            | ClientError::Read(_)
            | ClientError::Write(_)
            | ClientError::Closed
            | ClientError::Refused(_) => {
                loaded.connections_lost += 1;
                Ok(loaded)
            }
            ClientError::Protocol(_) => Err(LedgerError::Client(error)),
        },
        Err(error) => Err(error),
    }
}

fn publish(
    address: SocketAddr,
    ledger: &Ledger,
    publisher: u32,
    load: Load,
    ended: &dyn Fn() -> bool,
    loaded: &mut Loaded,
) -> Result<(), LedgerError> {
    let shape = ledger.shape();
    let subject = format!("ledger.{}.{publisher}", shape.stream_of(publisher)).into_bytes();
    let mut connection = Connection::open(address)?;
    // The publisher is in the reply subject so that a trace of the server's socket tells whose ack it is.
    let prefix = format!("{}.p{publisher}.", connection.inbox());
    connection.subscribe(&format!("{prefix}*"), None, ACKS_SID);

    let first = ledger.next_number(publisher);
    let mut next = first;
    let mut in_flight = 0;
    let (mut payload, mut headers) = (Vec::new(), Vec::new());
    let mut entries = Vec::new();
    let mut end: Option<Instant> = None;
    loop {
        if end.is_none() && (ended() || loaded.refused > 0 || next - first >= load.messages_max) {
            end = Some(Instant::now());
        }
        if let Some(end) = end
            && (in_flight == 0 || end.elapsed() > LAST_ACKS)
        {
            return Ok(());
        }
        while end.is_none() && in_flight < load.in_flight && next - first < load.messages_max {
            message::payload(publisher, next, shape.message_bytes, &mut payload);
            message::headers(publisher, next, &mut headers);
            let reply = format!("{prefix}{next}");
            connection.publish_with_headers(&subject, reply.as_bytes(), &headers, &payload);
            next += 1;
            in_flight += 1;
        }
        connection.flush()?;
        connection.fill_or_idle(IDLE)?;
        // What was read before the connection broke counts: it is written down before the next read.
        while let Some(answer) = connection.buffered_next()? {
            let Some(number) = answer.subject.strip_prefix(prefix.as_bytes()).and_then(decimal) else {
                continue;
            };
            in_flight = in_flight.saturating_sub(1);
            if is_publish_ack(answer.payload) {
                let sequence = sequence_of(answer.payload);
                entries.push(Entry::Acked { publisher, number, sequence });
            } else {
                loaded.refused += 1;
            }
        }
        loaded.acked += entries.len() as u64;
        ledger.add(&entries)?;
        entries.clear();
    }
}

/// Fetches, acks each message and waits for the confirmations, then fetches again.
fn consume(
    address: SocketAddr,
    ledger: &Ledger,
    stream: u32,
    ended: &dyn Fn() -> Result<bool, LedgerError>,
    loaded: &mut Loaded,
) -> Result<(), LedgerError> {
    let mut connection = Connection::open(address)?;
    let fetch = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{CONSUMER}", stream_name(stream)).into_bytes();
    let messages = format!("{}.m", connection.inbox());
    let acks = format!("{}.a.", connection.inbox());
    connection.subscribe(&messages, None, MESSAGES_SID);
    connection.subscribe(&format!("{acks}*"), None, ACKS_SID);
    let body = json!({ "batch": FETCH, "expires": 1_000_000_000_u64 }).to_string();
    let mut scratch = Vec::new();
    while !ended()? {
        connection.publish(&fetch, messages.as_bytes(), body.as_bytes());
        connection.flush()?;
        let asked = Instant::now();
        let (mut received, mut unconfirmed, mut over) = (0, 0_u32, false);
        // A server that is silent for that long after a fetch has lost it: ask again.
        while (received < FETCH && !over || unconfirmed > 0) && asked.elapsed() < LAST_ACKS {
            connection.fill_or_idle(IDLE)?;
            let mut entries = Vec::new();
            let mut replies = Vec::new();
            while let Some(delivered) = connection.buffered_next()? {
                if delivered.sid == ACKS_SID {
                    if let Some(sequence) = delivered.subject.strip_prefix(acks.as_bytes()).and_then(decimal)
                    {
                        unconfirmed = unconfirmed.saturating_sub(1);
                        entries.push(Entry::Confirmed { stream, sequence });
                    }
                } else if delivered.reply.is_empty() {
                    over = true;
                } else if let Some(sequence) = stream_sequence(delivered.reply) {
                    received += 1;
                    judge_delivery(ledger, stream, sequence, delivered.payload, &entries, &mut scratch)?;
                    replies.push((delivered.reply.to_vec(), sequence));
                }
            }
            for (reply, sequence) in replies {
                unconfirmed += 1;
                connection.publish(&reply, format!("{acks}{sequence}").as_bytes(), b"+ACK");
            }
            connection.flush()?;
            loaded.confirmed += entries.len() as u64;
            ledger.add(&entries)?;
            if ended()? && unconfirmed == 0 {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A message whose ack was confirmed must never come again, and each must be one that was sent.
fn judge_delivery(
    ledger: &Ledger,
    stream: u32,
    sequence: u64,
    payload: &[u8],
    entries: &[Entry],
    scratch: &mut Vec<u8>,
) -> Result<(), LedgerError> {
    ledger.note_delivery(stream, sequence);
    let in_this_read = entries
        .iter()
        .any(|entry| matches!(entry, Entry::Confirmed { sequence: confirmed, .. } if *confirmed == sequence));
    if in_this_read || ledger.is_confirmed(stream, sequence) {
        ledger.violation(format!("{sequence} of stream {stream} was delivered after its confirmed ack"))?;
    }
    if message::identify(payload, scratch).is_none() {
        ledger.violation(format!("{sequence} of stream {stream} was delivered with other bytes"))?;
    }
    Ok(())
}

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The `seq` of a publish ack.
fn sequence_of(payload: &[u8]) -> u64 {
    let ack: serde_json::Value = serde_json::from_slice(payload).unwrap_or_default();
    ack["seq"].as_u64().unwrap_or(0)
}

/// The stream sequence in an ack subject, in its form with 9 tokens or in the one with domain and account.
pub(super) fn stream_sequence(reply: &[u8]) -> Option<u64> {
    ack_token(reply, 5)
}

/// How many messages match and come after this one.
pub(super) fn pending_after(reply: &[u8]) -> Option<u64> {
    ack_token(reply, 8)
}

fn ack_token(reply: &[u8], position: usize) -> Option<u64> {
    let tokens: Vec<&[u8]> = reply.split(|byte| *byte == b'.').collect();
    let position = if tokens.len() >= 11 { position + 2 } else { position };
    decimal(tokens.get(position)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ack_subjects_are_read_in_both_forms() {
        let short = b"$JS.ACK.S.C.1.42.7.1700000000.3";
        let long = b"$JS.ACK.hub.hash.S.C.1.42.7.1700000000.3.token";
        for reply in [short.as_slice(), long.as_slice()] {
            assert_eq!((stream_sequence(reply), pending_after(reply)), (Some(42), Some(3)));
        }
    }
}
