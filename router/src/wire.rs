//! How a protocol spells what the router says. The router knows meanings, the endpoint knows bytes:
//! it hands in one `Wire`, and the driver thread calls it when a result is durable.

use beamlog_log::{Sequence, Timestamp};

use crate::api::request::PublishOutcome;
use crate::stream::Abandoned;

/// One delivery of one message to a consumer's client.
#[derive(Clone, Copy, Debug)]
pub struct DeliveryRef<'a> {
    pub stream: &'a str,
    pub consumer: &'a str,
    pub delivery_count: u64,
    pub stream_sequence: Sequence,
    pub consumer_sequence: u64,
    pub timestamp: Timestamp,
    /// Messages that match and were not delivered yet.
    pub pending: u64,
}

/// A message without payload that a consumer sends its client (contract 1.1, status lines).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DeliveryStatus {
    /// 100: `last_consumer` and `last_stream` are the positions delivered so far; `stalled` names the
    /// flow-control reply subject that is awaited, if one is.
    IdleHeartbeat { last_consumer: u64, last_stream: Sequence, stalled: Option<Vec<u8>> },
    /// 100, with a reply subject that the client answers.
    FlowControl,
    /// 404
    NoMessages,
    /// 408, what the request still lacked.
    RequestTimeout { messages: u32, bytes: u64 },
    /// 408, to a request that does not wait: those before it will take what there is.
    RequestsPending,
    /// 409
    MessageSizeExceedsMaxBytes { messages: u32, bytes: u64 },
    /// 409, after as many bytes or messages as asked.
    BatchCompleted { messages: u32, bytes: u64 },
    /// 503, to a pull: there is no such consumer.
    NoConsumer { stream: String, consumer: String },
    /// 503, to an ack whose sender waits: there is no such consumer.
    NobodyToAck,
    /// 409
    ConsumerDeleted,
    /// 409
    ConsumerIsPushBased,
    /// 409
    ServerShutdown,
    /// 409: another node leads now; ask again.
    LeadershipChange,
    /// 409
    MaxWaitingExceeded,
    /// 409
    MaxRequestBatchExceeded { max: u32 },
    /// 409
    MaxRequestExpiresExceeded { max_nanos: u64 },
    /// 409
    MaxRequestMaxBytesExceeded { max: u32 },
    /// 400 with the reason
    BadRequest(String),
    /// 500: the next message is there and cannot be read (DR14). Never 404 or 408.
    Unreadable,
}

/// Something an operator or a tool may listen for (contract 1.6).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Advisory {
    StreamCreated {
        stream: String,
    },
    StreamUpdated {
        stream: String,
    },
    StreamDeleted {
        stream: String,
    },
    /// Messages of an atomic batch came, and not all of them.
    BatchAbandoned {
        stream: String,
        batch: String,
        reason: Abandoned,
    },
    ConsumerCreated {
        stream: String,
        consumer: String,
    },
    ConsumerDeleted {
        stream: String,
        consumer: String,
    },
    ConsumerPaused {
        stream: String,
        consumer: String,
        paused: bool,
        until: Option<Timestamp>,
    },
    MaxDeliveries {
        stream: String,
        consumer: String,
        stream_sequence: Sequence,
        deliveries: u64,
    },
    MessageNaked {
        stream: String,
        consumer: String,
        stream_sequence: Sequence,
        consumer_sequence: u64,
        deliveries: u64,
    },
    /// An ack that the consumer's sample frequency chose: how long it took.
    AckSampled {
        stream: String,
        consumer: String,
        stream_sequence: Sequence,
        consumer_sequence: u64,
        deliveries: u64,
        delay_nanos: u64,
    },
    MessageTerminated {
        stream: String,
        consumer: String,
        stream_sequence: Sequence,
        consumer_sequence: u64,
        deliveries: u64,
        reason: String,
    },
}

/// Spells results for clients. Called on the driver thread: no blocking, no locks held long.
pub trait Wire: Send + Sync {
    /// The body of a publish ack.
    fn publish_ack(&self, outcome: &PublishOutcome, out: &mut Vec<u8>);

    /// The reply subject that acks this delivery.
    fn ack_subject(&self, delivery: &DeliveryRef<'_>, out: &mut Vec<u8>);

    /// The reply subject that answers a flow-control message.
    fn flow_control_subject(&self, stream: &str, consumer: &str, token: u64, out: &mut Vec<u8>);

    /// The header block of a status message.
    fn status(&self, status: &DeliveryStatus, out: &mut Vec<u8>);

    /// Subject and body of an advisory; nothing when the protocol has none for it.
    fn advisory(&self, advisory: &Advisory, now: Timestamp) -> Option<(String, Vec<u8>)>;
}
