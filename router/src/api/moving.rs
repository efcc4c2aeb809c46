//! A stream on its way from one shard to another: what the two say to each other and to the catalogue, and its bytes.
//!
//! Messages keep their sequences, times and bytes. They travel behind the envelope of the rest, because one of them
//! may be larger than an envelope holds.

use beamlog_log::envelope::{self, DecodeError, EncodeError, Enveloped};
use beamlog_log::{Message, Sequence, StreamId, Timestamp};
use bytes::Bytes;
use wincode::{SchemaRead, SchemaWrite};

use crate::api::catalogue::CatalogueRefusal;
use crate::api::request::{Answer, Request, Response};
pub use crate::stream::moving::MovedId;

/// What is asked of a shard. A move has a number, so that a late request of one that was given up does nothing.
#[derive(Clone, Debug, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub enum MoveRequest {
    /// Of the shard that has it: its messages behind a sequence.
    Page { stream: String, after: Sequence },
    /// Of the shard that has it: takes nothing more, until it is thawed or dropped.
    Freeze { stream: String, id: u64 },
    /// Of the shard that has it: which sequences have no message any more, from this one on.
    Dead { stream: String, from: Sequence },
    /// Of the shard that has it: what is no message. In parts, from this one on.
    Rest { stream: String, from: u32 },
    /// Of the shard that has it: the move was given up.
    Thaw { stream: String, id: u64 },
    /// Of either: forgets its copy.
    Drop { stream: String, id: u64 },
}

/// What is answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MoveAnswer {
    Page(MovePage),
    Dead(Dead),
    Rest(Rest),
    Done,
    Refused(CatalogueRefusal),
}

/// Messages, and ids of messages that are gone: all that there is behind a sequence, up to another.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MovePage {
    pub up_to: Sequence,
    /// The last sequence that the stream gave, and when.
    pub last: Sequence,
    pub last_time: Timestamp,
    pub messages: Vec<Message>,
    pub ids: Vec<MovedId>,
}

/// What is done with the copy, in the shard that gets the stream. All of it may be done again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Arrive {
    /// Begins it, or finds the one that this move has begun. `rows` are the first of [`Rest`].
    Begin {
        stream: String,
        id: u64,
        rows: Vec<Vec<u8>>,
    },
    Take {
        stream: String,
        id: u64,
        after: Sequence,
        page: MovePage,
    },
    /// Removes what is gone there.
    Trim {
        stream: String,
        id: u64,
        dead: Dead,
    },
    /// Takes in the rest, from the beginning.
    Rest {
        stream: String,
        id: u64,
        rows: Vec<Vec<u8>>,
    },
    /// Whether it is what the other one is: from then on nothing is added.
    Check {
        stream: String,
        id: u64,
    },
    /// The exchange was made: it is a stream like any other.
    Open {
        stream: String,
        id: u64,
    },
}

/// A stream that is on its way from or to a shard.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MovingHere {
    pub stream: String,
    pub subjects: Vec<String>,
    pub id: u64,
    pub state: MovingState,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MovingState {
    /// Frozen, to be had by another shard.
    Leaving,
    /// A copy that is being made.
    Arriving,
    /// A copy that is whole.
    Arrived,
}

/// Sequences without a message.
#[derive(Clone, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct Dead {
    /// Everything before it.
    pub first: Sequence,
    /// And these: a serialized roaring treemap.
    pub set: Vec<u8>,
    /// Where to go on.
    pub next: Option<Sequence>,
}

/// Rows of the stream's state, as a snapshot has them.
#[derive(Clone, Debug, Default, Eq, PartialEq, SchemaRead, SchemaWrite)]
pub struct Rest {
    pub rows: Vec<Vec<u8>>,
    /// Where to go on.
    pub next: Option<u32>,
}

/// The answer without the bytes of messages.
#[derive(Debug, SchemaRead, SchemaWrite)]
enum Head {
    Page {
        up_to: Sequence,
        last: Sequence,
        last_time: Timestamp,
        ids: Vec<MovedId>,
        messages: Vec<MessageHead>,
        checksum: u32,
    },
    Dead(Dead),
    Rest(Rest),
    Done,
    Refused(CatalogueRefusal),
}

#[derive(Debug, SchemaRead, SchemaWrite)]
struct MessageHead {
    sequence: Sequence,
    timestamp: Timestamp,
    subject: u32,
    headers: u32,
    payload: u32,
}

impl Enveloped for MoveRequest {
    const KIND: u16 = 0x0205;
    const VERSION: u8 = 1;
}

impl Enveloped for Head {
    const KIND: u16 = 0x0206;
    const VERSION: u8 = 1;
}

/// Why bytes are no answer.
#[derive(Debug, thiserror::Error)]
pub enum BrokenAnswer {
    #[error(transparent)]
    Undecodable(#[from] DecodeError),
    #[error("the messages are not whole")]
    Messages,
}

impl MoveRequest {
    /// # Errors
    /// It is too large for a message.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        envelope::encode(self)
    }

    /// # Errors
    /// The bytes are no such request.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        envelope::decode(bytes)
    }

    /// The stream that is asked about.
    #[must_use]
    pub fn stream(&self) -> &str {
        match self {
            Self::Page { stream, .. }
            | Self::Freeze { stream, .. }
            | Self::Dead { stream, .. }
            | Self::Rest { stream, .. }
            | Self::Thaw { stream, .. }
            | Self::Drop { stream, .. } => stream,
        }
    }

    /// What it is to the router.
    #[must_use]
    pub fn request(&self) -> Request {
        Request::Move(Box::new(self.clone()))
    }
}

impl MoveAnswer {
    /// The router's answer to [`MoveRequest::request`], as it is told.
    #[must_use]
    pub fn of(answer: Answer) -> Self {
        match answer {
            Ok(Response::Moving(answer)) => *answer,
            Ok(_) => Self::Refused(CatalogueRefusal::Unavailable),
            Err(error) => Self::Refused(CatalogueRefusal::of(&error)),
        }
    }

    /// # Errors
    /// It is too large for a message.
    pub fn encode(self) -> Result<Vec<u8>, EncodeError> {
        let page = match self {
            Self::Page(page) => page,
            Self::Dead(dead) => return envelope::encode(&Head::Dead(dead)),
            Self::Rest(rest) => return envelope::encode(&Head::Rest(rest)),
            Self::Done => return envelope::encode(&Head::Done),
            Self::Refused(refusal) => return envelope::encode(&Head::Refused(refusal)),
        };
        let MovePage { up_to, last, last_time, messages, ids } = page;
        let mut bytes = Vec::new();
        let mut put = |part: &[u8]| {
            bytes.extend_from_slice(part);
            u32::try_from(part.len()).expect("a part of a message is far below 4 GiB")
        };
        let messages = messages
            .iter()
            .map(|message| MessageHead {
                sequence: message.sequence,
                timestamp: message.timestamp,
                subject: put(&message.subject),
                headers: put(&message.headers),
                payload: put(&message.payload),
            })
            .collect();
        let checksum = crc32fast::hash(&bytes);
        let mut whole = envelope::encode(&Head::Page { up_to, last, last_time, ids, messages, checksum })?;
        whole.extend_from_slice(&bytes);
        Ok(whole)
    }

    /// # Errors
    /// The bytes are no such answer.
    pub fn decode(bytes: &Bytes) -> Result<Self, BrokenAnswer> {
        let head_bytes = envelope::length(bytes).filter(|length| *length <= bytes.len());
        let head_bytes = head_bytes.ok_or(BrokenAnswer::Messages)?;
        let (head, mut rest) = (bytes.slice(..head_bytes), bytes.slice(head_bytes..));
        match envelope::decode(&head)? {
            Head::Page { up_to, last, last_time, ids, messages: heads, checksum } => {
                if crc32fast::hash(&rest) != checksum {
                    return Err(BrokenAnswer::Messages);
                }
                let mut messages = Vec::with_capacity(heads.len());
                for MessageHead { sequence, timestamp, subject, headers, payload } in heads {
                    let mut take = |length: u32| {
                        let length = usize::try_from(length).ok().filter(|length| *length <= rest.len());
                        length.map(|length| rest.split_to(length)).ok_or(BrokenAnswer::Messages)
                    };
                    let (subject, headers, payload) = (take(subject)?, take(headers)?, take(payload)?);
                    let stream = StreamId(0);
                    messages.push(Message { stream, sequence, timestamp, subject, headers, payload });
                }
                if !rest.is_empty() {
                    return Err(BrokenAnswer::Messages);
                }
                Ok(Self::Page(MovePage { up_to, last, last_time, messages, ids }))
            }
            _ if !rest.is_empty() => Err(BrokenAnswer::Messages),
            Head::Dead(dead) => Ok(Self::Dead(dead)),
            Head::Rest(rest) => Ok(Self::Rest(rest)),
            Head::Done => Ok(Self::Done),
            Head::Refused(refusal) => Ok(Self::Refused(refusal)),
        }
    }
}
