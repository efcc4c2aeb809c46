//! What may be put into the driver's queue, and what is handed back when it is full.

use std::collections::BTreeMap;

use bytes::Bytes;

use beamlog_log::StreamId;

use crate::api::request::{AckKind, AckTarget, Answer, PublishOutcome, PullRequest, Request};
use crate::shards::ShardKind;

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

/// A publish as the engine looks at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PublishRef<'a> {
    pub(crate) stream: StreamId,
    pub(crate) subject: &'a [u8],
    pub(crate) headers: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl StreamPublish {
    pub(crate) fn borrow(&self) -> PublishRef<'_> {
        let Self { stream, subject, reply: _, headers, payload } = self;
        PublishRef { stream: *stream, subject, headers, payload }
    }
}

/// Publishes of one sender in their order, on their way in one piece: one copy, one buffer and one entry of
/// the queue for all that one read brought.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PublishBatch {
    bytes: Vec<u8>,
    rows: Vec<PublishRow>,
}

/// Where the parts of one publish of a batch end. They stand behind each other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct PublishRow {
    pub(crate) stream: StreamId,
    begin: usize,
    subject: usize,
    reply: usize,
    headers: usize,
    payload: usize,
}

impl PublishBatch {
    /// Adds a publish, whose parts are those of [`StreamPublish`].
    pub fn push(&mut self, stream: StreamId, subject: &[u8], reply: &[u8], headers: &[u8], payload: &[u8]) {
        let begin = self.bytes.len();
        self.bytes.reserve(subject.len() + reply.len() + headers.len() + payload.len());
        let mut add = |part: &[u8]| {
            self.bytes.extend_from_slice(part);
            self.bytes.len()
        };
        let (subject, reply, headers, payload) = (add(subject), add(reply), add(headers), add(payload));
        self.rows.push(PublishRow { stream, begin, subject, reply, headers, payload });
    }

    /// An empty batch with room for this much.
    #[must_use]
    pub fn with_capacity(publishes: usize, content_bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(content_bytes), rows: Vec::with_capacity(publishes) }
    }

    /// Publishes in it.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rows.len()
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes of all parts of all its publishes.
    #[must_use]
    pub const fn content_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The shards of its publishes, one for each.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = ShardKind> {
        self.rows.iter().map(|row| ShardKind::of(row.stream))
    }

    /// A batch for each shard.
    pub(crate) fn split(&self) -> BTreeMap<ShardKind, Self> {
        let mut parts: BTreeMap<ShardKind, Self> = BTreeMap::new();
        for row in &self.rows {
            parts.entry(ShardKind::of(row.stream)).or_default().push_row(row, &self.bytes);
        }
        parts
    }

    /// Adds all of another one behind its own.
    pub(crate) fn append(&mut self, other: &Self) {
        for row in &other.rows {
            self.push_row(row, &other.bytes);
        }
    }

    fn push_row(&mut self, row: &PublishRow, bytes: &[u8]) {
        let PublishRef { stream, subject, headers, payload } = row.of(bytes);
        self.push(stream, subject, &bytes[row.subject..row.reply], headers, payload);
    }

    /// Takes it apart into publishes that share one buffer.
    pub fn into_publishes(self) -> impl Iterator<Item = StreamPublish> {
        let (bytes, rows) = self.into_rows();
        rows.into_iter().map(move |row| row.publish(&bytes))
    }

    /// The buffer, and where in it what is.
    pub(crate) fn into_rows(self) -> (Bytes, Vec<PublishRow>) {
        (self.bytes.into(), self.rows)
    }
}

impl PublishRow {
    /// The publish in the buffer of its batch.
    pub(crate) fn of<'a>(&self, bytes: &'a [u8]) -> PublishRef<'a> {
        PublishRef {
            stream: self.stream,
            subject: &bytes[self.begin..self.subject],
            headers: &bytes[self.reply..self.headers],
            payload: &bytes[self.headers..self.payload],
        }
    }

    /// The publish for itself, sharing the buffer.
    pub(crate) fn publish(&self, bytes: &Bytes) -> StreamPublish {
        StreamPublish {
            stream: self.stream,
            subject: bytes.slice(self.begin..self.subject),
            reply: self.reply(bytes),
            headers: bytes.slice(self.reply..self.headers),
            payload: bytes.slice(self.headers..self.payload),
        }
    }

    /// Where the ack goes, sharing the buffer.
    pub(crate) fn reply(&self, bytes: &Bytes) -> Bytes {
        bytes.slice(self.subject..self.reply)
    }
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
    /// To this subject, spelled by the `Wire`. Empty: nobody wants it.
    Wire(Bytes),
    Ticket(oneshot::Sender<PublishOutcome>),
}

/// Called with the answer on the driver thread.
pub(crate) type Then = Box<dyn FnOnce(Answer) + Send>;

pub(crate) enum Command {
    Publish {
        publish: StreamPublish,
        reply: PublishReply,
    },
    /// Each is acked to its own reply subject.
    PublishAll(PublishBatch),
    Request {
        request: Box<Request>,
        then: Then,
    },
    Acknowledge(Box<Acknowledgement>),
    Pull(Box<Pull>),
    FlowControl(Box<FlowControlReply>),
}

impl Command {
    /// A publish whose ack goes to its reply subject.
    pub(crate) fn of_wire(publish: StreamPublish) -> Self {
        let reply = PublishReply::Wire(publish.reply.clone());
        Self::Publish { publish, reply }
    }

    /// What it holds of the queue's bytes.
    pub(crate) fn bytes(&self) -> usize {
        let outside = match self {
            Self::Publish { publish, .. } => {
                publish.subject.len() + publish.headers.len() + publish.payload.len() + publish.reply.len()
            }
            Self::PublishAll(batch) => batch.content_bytes() + batch.len() * size_of::<PublishRow>(),
            Self::Request { .. } => 512,
            Self::Acknowledge(_) | Self::Pull(_) | Self::FlowControl(_) => 128,
        };
        outside + size_of::<Self>()
    }

    /// What it counts for among commands.
    pub(crate) const fn weight(&self) -> usize {
        match self {
            Self::PublishAll(batch) => batch.len(),
            Self::Publish { .. }
            | Self::Request { .. }
            | Self::Acknowledge(_)
            | Self::Pull(_)
            | Self::FlowControl(_) => 1,
        }
    }
}
