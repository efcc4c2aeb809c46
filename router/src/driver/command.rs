//! What may be put into the driver's queue, and what is handed back when it is full.

use bytes::Bytes;

use beamlog_log::StreamId;

use crate::api::request::{AckKind, AckTarget, Answer, PublishOutcome, PullRequest, Request};

/// A publish whose subject a stream captures. The ack goes to `reply`, spelled by the `Wire`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StreamPublish {
    pub stream: StreamId,
    pub subject: Bytes,
    /// Empty: nobody wants the ack.
    pub reply: Bytes,
    /// The raw header block, or empty.
    pub headers: Bytes,
    pub payload: Bytes,
}

/// A client's word on a delivery.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Acknowledgement {
    pub target: AckTarget,
    pub kind: AckKind,
    /// Where the client wants to hear that its ack is durable.
    pub reply: Option<Bytes>,
}

/// A pull request on its way to its consumer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pull {
    pub stream: String,
    pub consumer: String,
    pub request: PullRequest,
    /// Where deliveries and status messages go.
    pub reply: Bytes,
}

/// A client's answer to a flow-control message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FlowControlReply {
    pub stream: String,
    pub consumer: String,
    pub token: u64,
}

/// The work is handed back: the queue has no room now ([`crate::Router::when_ready`] waits for it), or
/// the router is closed ([`crate::Router::health`] tells which).
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("the router takes no more work now")]
pub struct Full<T>(pub T);

/// Where a publish outcome goes once it is durable.
#[derive(Debug)]
pub(crate) enum PublishReply {
    /// To `StreamPublish::reply`.
    Wire,
    Ticket(oneshot::Sender<PublishOutcome>),
}

/// Called with the answer on the driver thread.
pub(crate) type Then = Box<dyn FnOnce(Answer) + Send>;

pub(crate) enum Command {
    Publish { publish: StreamPublish, reply: PublishReply },
    Request { request: Box<Request>, then: Then },
    Acknowledge(Box<Acknowledgement>),
    Pull(Box<Pull>),
    FlowControl(Box<FlowControlReply>),
}

impl Command {
    /// What it holds of the queue's bytes.
    pub(crate) fn bytes(&self) -> usize {
        let outside = match self {
            Self::Publish { publish, .. } => {
                publish.subject.len() + publish.headers.len() + publish.payload.len() + publish.reply.len()
            }
            Self::Request { .. } => 512,
            Self::Acknowledge(_) | Self::Pull(_) | Self::FlowControl(_) => 128,
        };
        outside + size_of::<Self>()
    }
}
