//! Atomic batches from their messages to their records: one frame, so they are in the log together or not at all.

use beamlog_log::{Sequence, StreamId};
use bytes::Bytes;

use crate::api::error::PublishRefusal;
use crate::api::request::Published;
use crate::driver::command::PublishRef;
use crate::engine::publish::Admitted;
use crate::engine::{Engine, Output, Turn};
use crate::stream::Abandoned;
use crate::stream::batches::{BatchRoom, Before, Gathered, Refused, Waiting};
use crate::stream::publish_headers::BatchHeaders;
use crate::stream::publishing::Offer;
use crate::wire::Advisory;

/// Batches that gather at the same time in all streams, as in nats-server.
const OPEN_MAX: usize = 1000;
/// What they may hold together; nats-server has no such bound.
const WAITING_BYTES_MAX: usize = 64 << 20;

impl Engine {
    /// A message of a batch: it waits, or was the last and all are stored.
    pub(super) fn publish_of_batch(
        &mut self,
        turn: &mut Turn<'_>,
        publish: &PublishRef<'_>,
        batch: &BatchHeaders<'_>,
    ) -> Result<Published, PublishRefusal> {
        let id = publish.stream;
        // Only the first message of a batch asks.
        let another = batch.sequence != Some(1)
            || self.streams.values().map(|stream| stream.batches.count()).sum::<usize>() < OPEN_MAX;
        let stream = self.streams.get_mut(&id).expect("the publish was judged by this stream");
        let before = stream.batches.bytes();
        let elsewhere = self.batch_bytes - before;
        let all_bytes = WAITING_BYTES_MAX.saturating_sub(elsewhere);
        let room = BatchRoom { another, batch_bytes: self.limits.batch_bytes, all_bytes };
        let offer = Offer { subject: publish.subject, headers: publish.headers, payload: publish.payload };
        let gathered = stream.batches.add(turn.now, &offer, batch, room);
        self.batch_bytes = elsewhere + stream.batches.bytes();
        match gathered {
            Ok(Gathered::Waits) => {
                self.rearm_stream(turn, id);
                Ok(Published::Waiting)
            }
            Ok(Gathered::Whole(messages)) => {
                let last = self.store_batch(turn, id, &messages)?;
                let messages = messages.len();
                Ok(Published::Batch { last, id: Bytes::copy_from_slice(batch.id), messages })
            }
            Err(Refused { refusal, abandoned }) => {
                if let Some(reason) = abandoned {
                    self.tell_abandoned(id, batch.id, reason);
                }
                Err(refusal.into())
            }
        }
    }

    /// Stores all or, when one of them may not be stored, none.
    fn store_batch(
        &mut self,
        turn: &mut Turn<'_>,
        id: StreamId,
        messages: &[Waiting],
    ) -> Result<Sequence, PublishRefusal> {
        let stream = self.streams.get_mut(&id).expect("the batch was gathered by this stream");
        let mut before = Before::default();
        let mut judged = Vec::with_capacity(messages.len());
        for message in messages {
            let bytes_max = self.limits.message_bytes;
            let offer = message.offer();
            judged.push(stream.body.judge_of_batch(
                turn.now,
                turn.journal,
                &offer,
                bytes_max,
                &mut before,
            )?);
        }
        let mut last = Sequence(0);
        for (message, judged) in messages.iter().zip(&judged) {
            let admitted = Admitted {
                subject: &judged.subject,
                hash: judged.hash,
                block: &message.headers,
                headers: &judged.headers,
                payload: &message.payload,
                rollup: judged.rollup,
            };
            last = self.store(turn, id, &admitted);
        }
        Ok(last)
    }

    /// Gives up batches of a stream to which nothing was added for too long.
    pub(super) fn give_up_batches(&mut self, turn: &Turn<'_>, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let before = stream.batches.bytes();
        let idle = stream.batches.give_up_idle(turn.now);
        self.batch_bytes -= before - stream.batches.bytes();
        for batch in idle {
            self.tell_abandoned(id, &batch, Abandoned::Timeout);
        }
    }

    fn tell_abandoned(&mut self, id: StreamId, batch: &[u8], reason: Abandoned) {
        let Some(stream) = self.stream_name(id).map(str::to_owned) else { return };
        let batch = String::from_utf8_lossy(batch).into_owned();
        self.outputs.push_back(Output::Advisory(Advisory::BatchAbandoned { stream, batch, reason }));
    }
}
