//! What the engine wants done, and what it counts.

use std::sync::Arc;

use beamlog_log::{Damage, Sequence, StreamId};
use bytes::Bytes;

use crate::api::error::PublishRefusal;
use crate::api::request::{Answer, Published};
use crate::consumer::{ConsumerId, Delivery};
use crate::stream::ConsumerNames;
use crate::wire::{Advisory, DeliveryStatus};

/// One thing to do outside, once everything in the log so far is durable.
#[derive(Debug)]
pub(crate) enum Output {
    /// What became of the publish just handled. `acked` says whether the stream answers publishers.
    Published {
        stream: StreamId,
        result: Result<Published, PublishRefusal>,
        acked: bool,
    },
    Answer {
        token: u64,
        answer: Answer,
    },
    Deliver {
        stream: StreamId,
        consumer: ConsumerId,
        names: Arc<ConsumerNames>,
        delivery: Box<Delivery>,
    },
    Status {
        names: Arc<ConsumerNames>,
        to: Bytes,
        token: Option<u64>,
        status: DeliveryStatus,
    },
    /// An empty message: the ack is durable.
    AckReply {
        to: Bytes,
    },
    Advisory(Advisory),
    /// Publishes on the filter go to the stream from now on, or no longer.
    Capture {
        filter: Bytes,
        stream: StreamId,
    },
    Release {
        filter: Bytes,
        stream: StreamId,
    },
    /// Interest in the subject is to be told from now on, or no longer.
    Watch {
        subject: Bytes,
        group: Bytes,
    },
    Unwatch {
        subject: Bytes,
        group: Bytes,
    },
    /// An unstored copy of a message just stored.
    Republish {
        subject: Bytes,
        headers: Bytes,
        payload: Bytes,
    },
    /// A consumer stands before unreadable bytes (DR14).
    Blocked {
        names: Arc<ConsumerNames>,
        at: Sequence,
        damage: Damage,
    },
}

/// What happened since the start, and how much there is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counters {
    pub(crate) stored_messages: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) duplicates: u64,
    pub(crate) message_ids_reused: u64,
    pub(crate) refused_publishes: u64,
    pub(crate) requests: u64,
    pub(crate) acks: u64,
    pub(crate) deliveries: u64,
    pub(crate) redeliveries: u64,
    pub(crate) unreadable: u64,
    pub(crate) streams: u64,
    pub(crate) consumers: u64,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}
