//! Compares what a server has with what its clients were promised.

use roaring::RoaringTreemap;
use serde::Serialize;
use serde_json::json;

use super::load::{CONSUMER, pending_after, stream_name, stream_sequence};
use super::record::Ledger;
use super::{LedgerError, message};
use crate::client::Connection;
use crate::jetstream::{ApiError, ask, consumer_info, create_consumer, stream_info};

const MESSAGES_SID: u64 = 3;
/// Examples of each kind of finding that are spelled out.
const EXAMPLES: usize = 5;

/// What an audit found. Only `acked`, `stored`, `unknown` and `confirmed` may be other than zero.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// Publish acks in the ledger that this audit looked for.
    pub acked: u64,
    /// Messages read from the server.
    pub stored: u64,
    /// Of these, messages without an ack in the ledger: sent, and their ack not read.
    pub unknown: u64,
    pub confirmed: u64,
    /// Acked and not there.
    pub lost: u64,
    /// Acked and there, but at another sequence than the ack said.
    pub moved: u64,
    /// There more than once.
    pub duplicated: u64,
    /// Behind a later message of the same publisher.
    pub disordered: u64,
    /// Not the bytes that were sent.
    pub corrupt: u64,
    /// Consumers whose ack floor is behind acks that were confirmed.
    pub consumers_gone_back: u64,
    /// Things clients saw while they ran, from the ledger.
    pub seen_by_clients: u64,
    pub examples: Vec<String>,
}

impl Verdict {
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let Self {
            lost, moved, duplicated, disordered, corrupt, consumers_gone_back, seen_by_clients, ..
        } = self;
        [lost, moved, duplicated, disordered, corrupt, consumers_gone_back, seen_by_clients]
            .iter()
            .all(|count| **count == 0)
    }

    fn example(&mut self, count: u64, text: impl FnOnce() -> String) {
        if count <= EXAMPLES as u64 {
            self.examples.push(text());
        }
    }
}

/// Reads every stream from the sequence `from` gives for it (1 for all), and the consumers' states.
/// Nothing may be publishing meanwhile.
pub fn audit(
    connection: &mut Connection,
    ledger: &Ledger,
    from: &dyn Fn(u32) -> u64,
) -> Result<Verdict, LedgerError> {
    let mut verdict = Verdict::default();
    for stream in 0..ledger.shape().streams {
        audit_stream(connection, ledger, stream, from(stream).max(1), &mut verdict)?;
        audit_consumer(connection, ledger, stream, &mut verdict)?;
    }
    let state = ledger.state();
    verdict.seen_by_clients = state.violations.len() as u64;
    verdict.examples.extend(state.violations.iter().take(EXAMPLES).cloned());
    Ok(verdict)
}

fn audit_stream(
    connection: &mut Connection,
    ledger: &Ledger,
    stream: u32,
    from: u64,
    verdict: &mut Verdict,
) -> Result<(), LedgerError> {
    let publishers = ledger.shape().publishers as usize;
    let mut seen = vec![RoaringTreemap::new(); publishers];
    let mut scratch = Vec::new();
    let mut highest: Vec<Option<u64>> = vec![None; publishers];
    read_stream(connection, stream, from, |sequence, payload| {
        verdict.stored += 1;
        let sender = message::identify(payload, &mut scratch);
        let Some((publisher, number)) = sender.filter(|(publisher, _)| (*publisher as usize) < publishers)
        else {
            verdict.corrupt += 1;
            verdict.example(verdict.corrupt, || format!("stream {stream}, {sequence}: not what was sent"));
            return;
        };
        let at = publisher as usize;
        if !seen[at].insert(number) {
            verdict.duplicated += 1;
            verdict.example(verdict.duplicated, || {
                format!("stream {stream}, {sequence}: message {number} of publisher {publisher} again")
            });
        } else if highest[at].is_some_and(|highest| number < highest) {
            verdict.disordered += 1;
            verdict.example(verdict.disordered, || {
                format!("stream {stream}, {sequence}: message {number} of publisher {publisher} is late")
            });
        }
        highest[at] = highest[at].max(Some(number));
        let acked = usize::try_from(number).ok().and_then(|number| {
            ledger.state().acked[at].get(number).copied().filter(|sequence| *sequence != 0)
        });
        match acked {
            None => verdict.unknown += 1,
            Some(acked) if acked != sequence => {
                verdict.moved += 1;
                verdict.example(verdict.moved, || {
                    format!("stream {stream}: message {number} of publisher {publisher}: acked as {acked}, is {sequence}")
                });
            }
            Some(_) => {}
        }
    })?;
    let state = ledger.state();
    for (publisher, acked) in state.acked.iter().enumerate() {
        if ledger.shape().stream_of(u32::try_from(publisher).unwrap_or(u32::MAX)) != stream {
            continue;
        }
        for (number, sequence) in acked.iter().enumerate().filter(|(_, sequence)| **sequence >= from) {
            verdict.acked += 1;
            if !seen[publisher].contains(number as u64) {
                verdict.lost += 1;
                verdict.example(verdict.lost, || {
                    format!("stream {stream}: message {number} of publisher {publisher}, acked as {sequence}, is lost")
                });
            }
        }
    }
    Ok(())
}

/// Gives every message of a stream from a sequence on to `each`. A stream that is not there is empty.
fn read_stream(
    connection: &mut Connection,
    stream: u32,
    from: u64,
    mut each: impl FnMut(u64, &[u8]),
) -> Result<(), LedgerError> {
    let name = stream_name(stream);
    let state = match stream_info(connection, &name) {
        Ok(info) => info["state"].clone(),
        Err(ApiError::Refused { answer, .. }) if answer.contains("10059") => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if state["messages"].as_u64() == Some(0) || state["last_seq"].as_u64().is_some_and(|last| last < from) {
        return Ok(());
    }
    let inbox = format!("{}.v{stream}", connection.inbox());
    let sid = MESSAGES_SID + u64::from(stream);
    connection.subscribe(&inbox, None, sid);
    connection.ping()?;
    let config =
        json!({ "ack_policy": "none", "deliver_policy": "by_start_sequence", "opt_start_seq": from });
    let consumer = create_consumer(connection, &name, &config)?;
    let fetch = format!("$JS.API.CONSUMER.MSG.NEXT.{name}.{consumer}").into_bytes();
    let body = json!({ "batch": 10_000, "no_wait": true }).to_string();
    let mut left = u64::MAX;
    while left > 0 {
        connection.publish(&fetch, inbox.as_bytes(), body.as_bytes());
        connection.flush()?;
        let mut received = 0;
        while received < 10_000 && left > 0 {
            let delivered = connection.receive()?;
            if delivered.sid != sid {
                continue;
            }
            match (stream_sequence(delivered.reply), pending_after(delivered.reply)) {
                (Some(sequence), Some(pending)) => {
                    each(sequence, delivered.payload);
                    left = pending;
                    received += 1;
                }
                // A status: the batch is over, or there is nothing more.
                _ if received == 0 => left = 0,
                _ => break,
            }
        }
    }
    ask(connection, &format!("$JS.API.CONSUMER.DELETE.{name}.{consumer}"), &serde_json::Value::Null)?;
    Ok(())
}

/// The ack floor must be at least as far as confirmations without a gap go.
fn audit_consumer(
    connection: &mut Connection,
    ledger: &Ledger,
    stream: u32,
    verdict: &mut Verdict,
) -> Result<(), LedgerError> {
    let (count, confirmed_floor) = {
        let state = ledger.state();
        let confirmed = &state.confirmed[stream as usize];
        let gapless =
            confirmed.iter().zip(1..).take_while(|(sequence, expected)| sequence == expected).count();
        (confirmed.len(), gapless as u64)
    };
    verdict.confirmed += count;
    if count == 0 {
        return Ok(());
    }
    let floor = match consumer_info(connection, &stream_name(stream), CONSUMER) {
        Ok(info) => info["ack_floor"]["stream_seq"].as_u64().unwrap_or(0),
        Err(ApiError::Refused { .. }) => 0,
        Err(error) => return Err(error.into()),
    };
    if floor < confirmed_floor {
        verdict.consumers_gone_back += 1;
        verdict.example(verdict.consumers_gone_back, || {
            format!("stream {stream}: the ack floor is {floor}, acks are confirmed up to {confirmed_floor}")
        });
    }
    Ok(())
}
