//! The seam between a consumer and the stream that owns it: what it asks for.

use beamlog_log::{Damage, Message, Sequence};
use bytes::Bytes;

use crate::consumer::ConsumerRecord;
use crate::wire::{Advisory, DeliveryStatus};

/// One message on its way to a client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Delivery {
    /// Deliver subject of a push consumer, or reply subject of a pull request.
    pub to: Bytes,
    /// With headers only: the payload is empty, and its size is in the headers.
    pub message: Message,
    pub delivery_count: u64,
    pub consumer_sequence: u64,
    /// Messages that match and were not delivered yet.
    pub pending: u64,
}

/// What a consumer asks its stream to do, in this order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ConsumerOutput {
    /// Push this into the log. The consumer has applied it to itself already; replay applies it by
    /// [`crate::consumer::Consumer::apply`].
    Record(ConsumerRecord),
    /// This message is done here: a stream with interest or work-queue retention may remove it. It
    /// comes with, or shortly before, the record that says so.
    Acked {
        sequence: Sequence,
    },
    Deliver(Delivery),
    /// A message without payload. For `FlowControl` the token becomes its reply subject; for
    /// `IdleHeartbeat` the token, if any, becomes the name of the stalled flow control.
    Status {
        to: Bytes,
        token: Option<u64>,
        status: DeliveryStatus,
    },
    /// An empty message to whoever asked for the ack to be acked, once all records pushed so far are
    /// durable.
    AckReply {
        to: Bytes,
    },
    Advisory(Advisory),
    /// The consumer stands before bytes that cannot be read (DR14) and delivers no further; said once
    /// per damage. It tries again whenever it is asked to deliver.
    Blocked {
        at: Sequence,
        damage: Damage,
    },
    /// Inactive for as long as its configuration allows: delete it.
    Expired,
}
